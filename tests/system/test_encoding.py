"""Output on a terminal that is not UTF-8: readable, and no error."""

import io

import pytest

from distill.system import encoding


@pytest.mark.parametrize(
    ("name", "shown"), [("ascii", "0.1 +- 0.2 _# |-+ -> ?"), ("latin-1", "0.1 ± 0.2 _# |-+ -> ?"), ("utf-8", None)]
)
def test_what_cannot_be_encoded_is_replaced(name, shown, monkeypatch):
    text = "0.1 ± 0.2 ▁█ │─┼ → 漢"
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding=name))
    encoding.install()
    print(text, end="", flush=True)
    assert raw.getvalue().decode(name) == (shown or text)
