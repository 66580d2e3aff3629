"""Packages whose names load on first use, so that `import distill.laws` imports only what is used."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def facade(package: str, homes: Mapping[str, tuple[str, ...]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of `package`; `homes` maps each module to the public names it defines.

    A module's name is absolute or, with a leading dot, relative to the package.

        __getattr__, __dir__ = facade(__name__, {".corpus": ("open_store",), "distill.errors": ("DataError",)})
    """
    home = {name: module for module, names in homes.items() for name in names}

    def load(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(home[name], package), name)

    return load, lambda: sorted(home)
