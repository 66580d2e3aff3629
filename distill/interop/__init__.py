"""Models that others made, in and out: Hugging Face directories and GGUF files (docs/guide/models.md).

model = interop.load("SmolLM2-135M.Q4_1.gguf")     # or a directory; on the current mesh
model.config, model.params, model.tokenizer
"""

from typing import TYPE_CHECKING

from distill.system.lazy import facade

if TYPE_CHECKING:
    from distill.errors import InteropError as InteropError
    from distill.interop.loaded import LoadedModel as LoadedModel
    from distill.interop.loaded import load as load
    from distill.interop.source import is_model as is_model
    from distill.interop.source import open_source as open_source

__getattr__, __dir__ = facade(
    __name__,
    {
        "distill.errors": ("InteropError",),
        ".loaded": ("LoadedModel", "load"),
        ".source": ("is_model", "open_source"),
    },
)
