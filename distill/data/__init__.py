"""Text in, token windows out: sources -> tokenizer -> token store (built once) -> loader (state: the step).

    store = data.open_store(DataConfig(), cache_dir)
    loader = data.Loader(store, split="student", batch_size=4, seq_len=128, seed=0)
    batch = loader.batch(step)                     # the same on any number of hosts

Names are imported on first use, so that reading a config needs the standard library only and building a store
needs NumPy only; `tokenizers`, `tensorflow_datasets`, `pyarrow` and the like load when a config asks for them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.data.config import DataConfig as DataConfig
    from distill.data.corpus import open_store as open_store
    from distill.data.errors import DataError as DataError
    from distill.data.evaluation import Evaluation as Evaluation
    from distill.data.language import Language as Language
    from distill.data.language import make_language as make_language
    from distill.data.loader import Loader as Loader
    from distill.data.loader import prefetch as prefetch
    from distill.data.mixture import Mixture as Mixture
    from distill.data.store import TokenStore as TokenStore

# Each module imports only from those before it.
ORDER = (
    *("config", "errors", "permutation", "order", "documents", "gguf", "render", "chat", "columns", "blocks"),
    *("subword", "sentencepiece", "tokenizer", "embedded", "storage", "files", "tfds", "language"),
    *("split", "windows", "packing", "evaluation", "store", "mixture", "loader"),
    *("encode", "build", "corpus", "progress", "prose"),
)

_HOME = {
    "DataConfig": "config",
    "DataError": "errors",
    "Evaluation": "evaluation",
    "Language": "language",
    "Loader": "loader",
    "Mixture": "mixture",
    "TokenStore": "store",
    "make_language": "language",
    "open_store": "corpus",
    "prefetch": "loader",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
