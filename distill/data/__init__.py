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
    from distill.data.loader import Loader as Loader
    from distill.data.store import DataError as DataError
    from distill.data.store import Evaluation as Evaluation
    from distill.data.store import TokenStore as TokenStore

# Each module imports only from those before it.
ORDER = ("config", "permutation", "blocks", "documents", "tokenizer", "embedded", "store", "build", "corpus", "loader")

_HOME = {
    "DataConfig": "config",
    "DataError": "store",
    "Evaluation": "store",
    "TokenStore": "store",
    "open_store": "corpus",
    "Loader": "loader",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
