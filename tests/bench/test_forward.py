"""The bench of published models: its flags, and the part that runs without a peer."""

import re

import jax
import pytest

from distill.bench import forward, import_peers
from distill.config import ConfigError
from distill.interop import export
from distill.interop.tokenizer_files import TokenizerFiles
from distill.model.transformer import Transformer
from tests.interop.test_formats import CONFIG


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--parts=imports"], "--parts=imports; wanted some of import, forward, decode. Did you mean 'import'"),
        (["--parts="], "wanted 1 or more of each, and a part"),
        (["--repeats=0"], "wanted 1 or more of each"),
    ],
)
def test_what_cannot_be_measured_is_a_sentence(flags, words):
    """A part of another name ran nothing and ended with 0; no repeats were an IndexError."""
    with pytest.raises(ConfigError, match=re.escape(words)):
        forward.main(["--model=m", *flags])


def test_an_import_is_timed_in_processes_of_its_own(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(import_peers, "DTYPES", ("bfloat16",))
    monkeypatch.setattr(import_peers.importlib.util, "find_spec", lambda name: None)
    export.write(tmp_path / "m", Transformer(CONFIG, jax.random.key(0)), TokenizerFiles({}), context=64)
    assert forward.main([f"--model={tmp_path / 'm'}", "--parts=import", "--repeats=1"]) == 0
    said = capsys.readouterr().out
    assert "ours alone; the peer needs the extra parity" in said
    whole, load = map(float, re.search(r"bfloat16: ours ([\d.]+) \[.*of it the load ([\d.]+) \[", said).groups())
    assert 0 <= load < whole
    with pytest.raises(ConfigError, match="nowhere: there is no such file"):
        import_peers.compare(str(tmp_path / "nowhere"), 1)
