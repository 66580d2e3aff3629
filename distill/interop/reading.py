"""Reads the fields of a config.json by name and type; errors name the file and the field."""

import math
from collections.abc import Mapping
from types import EllipsisType
from typing import Any, TypeVar, overload

from distill.errors import InteropError

T = TypeVar("T")
N = TypeVar("N", int, float)


class Reader:
    """The fields of an object of config.json."""

    def __init__(self, tree: Mapping[str, object], where: str):
        self.tree, self.where = tree, where

    @overload
    def get(self, name: str, kind: type[T], default: None) -> T | None: ...

    @overload
    def get(self, name: str, kind: type[T], default: T | EllipsisType = ...) -> T: ...

    def get(self, name: str, kind: type, default: object = ...) -> Any:
        """A field's value. Null counts as absent; a field without a default is required."""
        value: Any = self.tree.get(name)
        if value is None:
            if default is ...:
                raise InteropError(f"{self.where}: {name} is missing")
            return default
        if kind is float and type(value) is int and abs(value) < 2**53:
            value = float(value)
        if type(value) is not kind:
            raise InteropError(f"{self.where}: {name} is {value!r:.60}, wanted {kind.__name__}")
        if isinstance(value, float) and not math.isfinite(value):  # Python's JSON knows NaN and Infinity
            raise InteropError(f"{self.where}: {name} is {value!r:.60}, wanted a finite number")
        return value

    @overload
    def positive(self, name: str, kind: type[N], default: None) -> N | None: ...

    @overload
    def positive(self, name: str, kind: type[N], default: N | EllipsisType = ...) -> N: ...

    def positive(self, name: str, kind: type, default: object = ...) -> Any:
        """A number's value, above 0: sizes, bases, factors. Zero is never taken for an absent field."""
        value: Any = self.get(name, kind, default)
        if self.tree.get(name) is not None and not value > 0:
            raise InteropError(f"{self.where}: {name} is {value!r:.60}, wanted a number above 0")
        return value

    def want(self, name: str, allowed: tuple[object, ...], why: str) -> None:
        """Raises InteropError where a field is present with a value that is not allowed."""
        value = self.tree.get(name)
        if value is not None and value not in allowed:
            raise InteropError(f"{self.where}: {name} is {value!r:.80}, wanted {allowed[0]!r}: {why}")
