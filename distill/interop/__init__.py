"""Models that others made, in and out: Hugging Face directories and GGUF files ([models](docs/models.md)).

model = interop.load("SmolLM2-135M.Q4_1.gguf")     # or a directory; on the current mesh
model.config, model.params, model.tokenizer
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.interop.errors import InteropError as InteropError
    from distill.interop.imported import Imported as Imported
    from distill.interop.imported import load as load
    from distill.interop.source import is_model as is_model
    from distill.interop.source import open_source as open_source

# Each module imports only from those before it.
ORDER = (
    "errors",
    "safetensors",
    "layout",
    "architecture",
    "gguf",
    "source",
    "companions",
    "place",
    "imported",
    "card",
    "export",
    "harness",
)

_HOME = {
    "InteropError": "errors",
    "Imported": "imported",
    "load": "imported",
    "is_model": "source",
    "open_source": "source",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
