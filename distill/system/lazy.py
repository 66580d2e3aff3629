"""Facades whose names load on first use, so that `import distill.laws` costs no more than what is asked of it."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def facade(package: str, homes: Mapping[str, tuple[str, ...]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of `package`, whose public names lie in the modules that `homes` maps to them.

    A module is named in full or, with a leading dot, relative to the package.

        __getattr__, __dir__ = facade(__name__, {".corpus": ("open_store",), "distill.errors": ("DataError",)})
    """
    home = {name: module for module, names in homes.items() for name in names}

    def load(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(home[name], package), name)

    return load, lambda: sorted(home)
