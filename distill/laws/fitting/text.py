"""A fit in at most ten lines, for a prompt and for a notebook; uncertainty/text.py has the full report."""

import textwrap
from collections.abc import Mapping

from distill.laws.forms import notebook

_WIDTH = 100
_INDENT = 11
_LINES = 3  # of one note, and of the values


def brief(title: str, values: Mapping[str, float], notes: Mapping[str, str]) -> str:
    """The title, the parameters' values and the notes by heading: at most ten lines for two one-line notes and one
    long note."""
    text = "   ".join(f"{name}\xa0=\xa0{value:.6g}" for name, value in values.items())
    lines = [title, *(f"  {line}" for line in _wrapped(text, _WIDTH))]
    for heading, note in notes.items():
        for i, line in enumerate(_wrapped(note, _WIDTH - _INDENT)):
            lines.append(f"{heading if i == 0 else '':<{_INDENT}}{line}")
    return "\n".join(lines).replace("\xa0", " ")


def as_html(title: str, values: Mapping[str, float], notes: Mapping[str, str]) -> str:
    """The same as an HTML table."""
    rows = [*((name, f"{value:.6g}") for name, value in values.items()), *notes.items()]
    return notebook.table(title, ("", "estimate"), rows)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, max_lines=_LINES, placeholder=" ...")
