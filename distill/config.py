"""The experiment's configuration: frozen dataclasses, and the strict way in and out of them.

A config file (configs/*.py) returns a plain tree; `build` turns it once into frozen, hashable dataclasses or raises
an error that names the path, what it got, what it wanted and the nearest valid name. Inside `distill` only these
dataclasses travel, and a function takes the smallest one that it needs. Standard library only.
"""

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar

T = TypeVar("T")


class DistillError(Exception):
    """A mistake that the user can mend; entry points print it as one line and exit with code 2."""


class ConfigError(DistillError):
    """A configuration that cannot be built: where, got, wanted, what to do."""


def nearest(name: str, names: Iterable[str]) -> str:
    """' Did you mean 'x'?' for the valid name closest to a misspelt one, or '' where none is close."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
