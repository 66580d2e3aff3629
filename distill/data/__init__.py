"""Text in, token windows out: sources -> tokenizer -> token store (built once) -> loader (state: the step).

    store = data.open_store(DataConfig(), cache_dir)
    loader = data.Loader(store, split="student", batch_size=4, seq_len=128, seed=0)
    batch = loader.batch(step)                     # the same on any number of hosts

Names are imported on first use: reading a config needs the standard library only, and building a store needs
NumPy only. `tokenizers`, `tensorflow_datasets`, `pyarrow` and others are imported when a config requires them.
"""

from typing import TYPE_CHECKING

from distill.system.lazy import facade

if TYPE_CHECKING:
    from distill.config.data import DataConfig as DataConfig
    from distill.data.corpus import open_store as open_store
    from distill.data.loader import Loader as Loader
    from distill.data.loader import prefetch as prefetch
    from distill.data.mixture import Mixture as Mixture
    from distill.data.sources.language import Language as Language
    from distill.data.sources.language import make_language as make_language
    from distill.data.store.evaluation import Evaluation as Evaluation
    from distill.data.store.store import TokenStore as TokenStore
    from distill.errors import DataError as DataError

__getattr__, __dir__ = facade(
    __name__,
    {
        "distill.config.data": ("DataConfig",),
        "distill.errors": ("DataError",),
        ".corpus": ("open_store",),
        ".loader": ("Loader", "prefetch"),
        ".mixture": ("Mixture",),
        ".sources.language": ("Language", "make_language"),
        ".store.evaluation": ("Evaluation",),
        ".store.store": ("TokenStore",),
    },
)
