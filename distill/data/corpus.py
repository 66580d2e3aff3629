"""From a DataConfig to an open token store: found, or built once and kept."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distill.data.build import Progress, Recipe, Source, build_store
from distill.data.config import DataConfig
from distill.data.embedded import Embedded
from distill.data.store import DataError, TokenStore
from distill.data.tokenizer import ByteTokenizer


def open_store(
    config: DataConfig,
    cache_dir: str | Path,
    *,
    workers: int = 0,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> TokenStore:
    """The store that this config describes: kept in `cache_dir` under its fingerprint, built if it is not there yet.

    Safe to call from many processes at once: one builds, the others wait.
    """
    recipe = make_recipe(config)
    path = Path(cache_dir) / f"{config.source}-{config.tokenizer.kind}-{recipe.fingerprint[:12]}"
    return open_at(path, recipe, workers=workers, on_progress=on_progress)


def open_at(
    path: Path, recipe: Recipe, *, workers: int = 0, on_progress: Callable[[Progress], None] = lambda _: None
) -> TokenStore:
    """The store at `path`, built if nothing is there; DataError when it was made from another recipe."""
    build_store(path, recipe, workers=workers, on_progress=on_progress)
    store = TokenStore(path)
    if store.fingerprint != recipe.fingerprint:
        raise DataError(
            f"{path}: this store was made from something else: "
            f"{_difference(store.manifest['recipe'], recipe.description)}; give another path, or delete it"
        )
    return store


def make_recipe(config: DataConfig) -> Recipe:
    """The source, tokenizer and splits of a config, and the fingerprint that names their store."""
    source = make_source(config)
    description = {
        "source": source.describe(),
        "tokenizer": {"kind": config.tokenizer.kind},
        "splits": {"duplicates": config.splits.duplicates},
    }
    text = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return Recipe(
        source=source,
        tokenizer=lambda folder: ByteTokenizer(),
        splits=config.splits,
        description=description,
        fingerprint=hashlib.sha256(text.encode()).hexdigest(),
    )


def make_source(config: DataConfig) -> Source:
    return Embedded()


def _difference(got: Any, wanted: Any, path: str = "") -> str:
    """The first place where two descriptions differ, with both values."""
    if isinstance(got, dict) and isinstance(wanted, dict):
        for key in [*wanted, *(k for k in got if k not in wanted)]:
            if got.get(key) != wanted.get(key):
                return _difference(got.get(key), wanted.get(key), f"{path}.{key}" if path else key)
    return f"{path} is {got!r} there, {wanted!r} in the config"
