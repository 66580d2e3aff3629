"""Parses cells as numbers: plain, with a suffix (1.3B), with separators (7_000_000; 1,300,000), or empty."""

import re
from typing import Any

from distill.config import flags

_ABSENT = ("", "nan", "-nan", "none", "null", "na", "n/a", "#n/a", "#na", "<na>", "nat", "-", "--")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3}){2,}(\.\d*)?")


def is_empty(cell: object) -> bool:
    """Whether a cell is empty: None, nan, or a text that means one of them."""
    return cell is None or str(cell).strip().lower() in _ABSENT


def number(cell: Any) -> float:
    """A cell as a float64; nan for an empty cell or an invalid number."""
    if isinstance(cell, bool):
        return float("nan")
    try:
        return float(cell)
    except (TypeError, ValueError, OverflowError):
        pass
    text = str(cell).strip()
    if _THOUSANDS.fullmatch(text):
        return float(text.replace(",", ""))
    try:
        return flags.number(text)
    except ValueError:
        return float("nan")
