"""Opens the token store that a DataConfig describes, and builds it on first use."""

import dataclasses
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.config.data import DataConfig, TokenizerConfig
from distill.data.documents import TextSource, assign
from distill.data.mixture import Mixture
from distill.data.sources.columns import Columns
from distill.data.sources.embedded import Embedded
from distill.data.sources.files import Files
from distill.data.sources.inside import SplitInside, needs_inner_split
from distill.data.sources.language import Generated
from distill.data.store.build import OnProgress, StoreRecipe, build_progress, build_store
from distill.data.store.store import MANIFEST, TokenStore, read_manifest
from distill.data.tokenizers.around import MODEL, NONE, Around
from distill.data.tokenizers.same import difference
from distill.data.tokenizers.sentencepiece import SentencePieceTokenizer
from distill.data.tokenizers.spec import JSON, SENTENCEPIECE, Spec
from distill.data.tokenizers.subword import END_OF_TEXT, SubwordTokenizer
from distill.data.tokenizers.tokenizer import ByteTokenizer, SymbolTokenizer, Tokenizer, load
from distill.errors import DataError
from distill.system import cloud
from distill.system.progress import Rate

_log = logging.getLogger(__name__)


def open_store(
    config: DataConfig,
    cache_dir: str | Path,
    *,
    workers: int = 0,
    on_progress: OnProgress = lambda _: None,
) -> TokenStore | Mixture:
    """Opens the store of this config, kept in `cache_dir` under its fingerprint; builds it if it is missing.

    Safe to call from many processes at once: one builds, the others wait. Raises DataError.
    """
    if config.source == "tokens":
        return _open_finished(config)
    if config.source == "mixture":
        embedded = DataConfig(tokenizer=config.tokenizer)
        names = config.mixture.stores
        stores = [_open_made(embedded, cache_dir) if name == "embedded" else _finished(name) for name in names]
        return Mixture(stores, config.mixture.weights)
    return _open_made(config, cache_dir, workers=workers, on_progress=on_progress)


def _finished(place: str) -> TokenStore:
    """Opens a finished store. One in a bucket is copied to this host once: tokens are read through memory maps."""
    return TokenStore(cloud.local_copy_of_store(place) if cloud.remote(place) else place)


def _open_finished(config: DataConfig) -> TokenStore:
    """Opens the store at `config.tokens`. Raises DataError where the config names a tokenizer other than its own."""
    store = _finished(config.tokens)
    if config.tokenizer != TokenizerConfig() and (differs := _other_tokenizer(config.tokenizer, store)):
        raise DataError(
            f"{store.path} holds tokens of {store.tokenizer_name!r}: {differs}; "
            "leave data.tokenizer at its default to take the store's, or tokenize again"
        )
    return store


def _other_tokenizer(config: TokenizerConfig, store: TokenStore) -> str:
    """What differs between a config's tokenizer and a finished store's; '' if the store may be that config's.

    The default special tokens are those of the store, which may be older than the setting.
    """
    wanted, made_with = _describe_tokenizer(config), store.manifest["recipe"].get("tokenizer")
    if made_with == wanted:
        return ""
    if config.kind == "bpe":
        return _difference(made_with, wanted, "tokenizer")
    given = load(spec_of(config))
    if differs := difference(store.tokenizer(), given):
        return f"{differs} of the config"
    if given.end_of_text != store.end_of_text:
        return f"documents end with token {store.end_of_text} there, {given.end_of_text} in the config"
    if config.special != MODEL and given.spec.special != store.special:
        return f"its text stands in {store.special!r}, data.tokenizer.special is {config.special!r}"
    return ""


def _open_made(
    config: DataConfig,
    cache_dir: str | Path,
    *,
    workers: int = 0,
    on_progress: OnProgress = lambda _: None,
) -> TokenStore:
    path, recipe = locate(config, cache_dir)
    return open_at(path, recipe, workers=workers, on_progress=on_progress)


def locate(config: DataConfig, cache_dir: str | Path) -> tuple[Path, StoreRecipe]:
    """Returns the path of the store that `open_store` makes of this config's text, and the recipe of that store.

    Raises DataError where the text or the tokenizer is missing.
    """

    def path_of(recipe: StoreRecipe) -> Path:
        kind = recipe.description["tokenizer"]["kind"]
        return Path(cache_dir) / f"{config.source}-{kind}-{recipe.fingerprint[:12]}"

    recipe = choose_recipe(config, path_of)
    return path_of(recipe), recipe


def size(recipe: StoreRecipe) -> float:
    """Bytes on disk that a build of this recipe reads; infinite for a TFDS dataset."""
    source = recipe.description["source"]
    if source["source"] == "tfds":
        return math.inf
    return float(sum(file["size"] for file in source.get("files", {}).values()))


def open_at(
    path: Path, recipe: StoreRecipe, *, workers: int = 0, on_progress: OnProgress = lambda _: None
) -> TokenStore:
    """Opens the store at `path`; builds it if it is missing. Raises DataError where it has another recipe."""
    build_store(path, recipe, workers=workers, on_progress=on_progress)
    store = TokenStore(path)
    if store.note:
        _log.warning("%s: %s", path, store.note)
    if store.fingerprint != recipe.fingerprint:
        raise DataError(
            f"{path}: this store was made from something else: "
            f"{_difference(store.manifest['recipe'], recipe.description)}; give another path, or delete it"
        )
    return store


def choose_recipe(config: DataConfig, path_of: Callable[[StoreRecipe], Path]) -> StoreRecipe:
    """Returns the recipe of a config; `path_of` maps a recipe to the path of its store.

    Whole documents are assigned to splits, unless the source has too few (see sources/inside.py). An existing store
    of an earlier version is reused if it has text for training and for validation. Earlier versions did not put the
    special tokens of the tokenizer's files around a text, and did not record it.
    """
    recipe = _choose_splits(config, path_of)
    if "special" not in recipe.description["tokenizer"] or config.tokenizer.special != MODEL:
        return recipe
    bare = dataclasses.replace(config, tokenizer=dataclasses.replace(config.tokenizer, special=NONE))
    earlier = _choose_splits(bare, path_of)
    unrecorded = _trainable(path_of(earlier), earlier) and "special" not in read_manifest(path_of(earlier))["tokenizer"]
    if not unrecorded or _trainable(path_of(recipe), recipe):
        return recipe
    _log.warning(
        "%s: an earlier version built it, without what the tokenizer's files put around each text (%s); it is used as "
        "it is. Delete it to build it anew, under another fingerprint",
        path_of(earlier),
        recipe.description["tokenizer"]["special"],
    )
    return earlier


def _choose_splits(config: DataConfig, path_of: Callable[[StoreRecipe], Path]) -> StoreRecipe:
    recipe = make_recipe(config)
    for earlier in _earlier(recipe):
        if _trainable(path_of(earlier), earlier):
            return earlier
    if needs_inner_split(recipe.source, config.splits):
        return make_recipe(config, inside=True)
    return recipe


def _earlier(recipe: StoreRecipe) -> Iterator[StoreRecipe]:
    """The recipe, and those of the same text in earlier versions.

    They did not find separators in text with CRLF line ends, kept a byte order mark before UTF-8, and encoded each
    turn of a document as a text of its own.
    """
    description = recipe.description
    marked = {key: value for key, value in description["source"].items() if key != "marks"}
    source = {key: value for key, value in marked.items() if key != "newlines"}
    parts = {key: value for key, value in description.items() if key not in ("encoding", "template")}
    sources = [{"source": each} for each in (description["source"], marked, source)]
    for earlier in [whole | each for whole in (description, parts) for each in sources]:
        yield dataclasses.replace(recipe, description=earlier, fingerprint=_fingerprint(earlier))


def _trainable(path: Path, recipe: StoreRecipe) -> bool:
    """Whether a finished store of this recipe has text for training and for validation."""
    if not (path / MANIFEST).exists():
        return False
    manifest = read_manifest(path)
    tokens = {name: entry["tokens"] for name, entry in manifest["splits"].items()}
    trains = tokens.get("validation", 0) and (tokens.get("teacher", 0) or tokens.get("student", 0))
    return bool(manifest["fingerprint"] == recipe.fingerprint and trains)


def make_recipe(config: DataConfig, inside: bool = False) -> StoreRecipe:
    """Makes the source, tokenizer and splits of a config, and the fingerprint that names their store.

    inside: cut every document into blocks, one per split, instead of assigning whole documents to splits.
    """
    for name in ("validation", "teacher"):
        value = getattr(config.splits, name)
        if not 0 <= value <= 1:
            raise DataError(f"data.splits.{name} is {value}, wanted a fraction from 0 to 1")
    source = make_source(config)
    if inside:
        source = SplitInside(source, config.splits)
    description: dict[str, Any] = {"source": source.describe(), "splits": {"duplicates": config.splits.duplicates}}
    if set(source.explicit) != {"teacher", "student", "validation"}:
        description["splits"] |= {"validation": config.splits.validation, "teacher": config.splits.teacher}
    tokenizer: Callable[[Path, OnProgress], Tokenizer]
    if config.source == "generated":
        symbols = SymbolTokenizer(config.generated.symbols)
        description["tokenizer"], tokenizer = {"kind": "symbols"}, lambda folder, report: symbols
    else:
        description["tokenizer"], tokenizer = _tokenizer(config.tokenizer, source, config)
    if config.source in ("files", "tfds"):
        columns = Columns(config.columns)
        chat = columns.template.text if columns.template else config.columns.chat
        description["columns"] = {"read": columns.needed(), **({"chat": chat} if config.columns.messages else {})}
        if columns.template:
            description["template"] = columns.template.describe()
        if config.columns.prompt:
            description["columns"] |= {"prompt": config.columns.prompt, "completion": config.columns.completion}
    if source.masked:
        description["encoding"] = "whole"  # each document as one text
    return StoreRecipe(
        source=source,
        tokenizer=tokenizer,
        splits=config.splits,
        description=description,
        fingerprint=_fingerprint(description),
    )


def _fingerprint(description: Mapping[str, object]) -> str:
    text = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def make_source(config: DataConfig) -> TextSource:
    """The source of a config's text. Raises DataError where the text is missing."""
    special = _special_tokens(config.tokenizer) if config.columns.template else None
    if config.source == "files":
        return Files(config.files, Columns(config.columns, special))
    if config.source == "tfds":
        from distill.data.sources.tfds import Tfds

        return Tfds(config.tfds, Columns(config.columns, special))
    if config.source == "generated":
        return Generated(config.generated)
    if config.source == "embedded":
        return Embedded()
    raise DataError(f"config.data.source: got {config.source!r}, which has no reader in distill/data/corpus.py")


def _special_tokens(config: TokenizerConfig) -> Collection[str]:
    """The special tokens of the tokenizer, as text writes them."""
    if config.kind == "json":
        given = load(spec_of(config))
        return given.special_tokens.values() if isinstance(given, SubwordTokenizer) else ()
    return (END_OF_TEXT,) if config.kind == "bpe" else ()


def _tokenizer(
    config: TokenizerConfig, source: TextSource, data: DataConfig
) -> tuple[dict[str, object], Callable[[Path, OnProgress], Tokenizer]]:
    """The tokenizer's part of a recipe, and a function that makes the tokenizer in the folder of a store."""
    description = _describe_tokenizer(config)
    if config.kind == "bytes":
        return description, lambda folder, report: ByteTokenizer()
    if config.kind == "bpe":

        def train(folder: Path, report: OnProgress) -> Tokenizer:
            from distill.data.tokenizers.subword import train_bpe

            path = folder / "tokenizer.json"
            if not path.exists():
                train_bpe(_training_text(source, data, config.train_bytes, report), config.vocab_size, path)
            trained = load(Spec("json", str(path)))
            trained.name = f"bpe-{trained.vocab_size}-{trained.hash[:8]}"
            return trained

        return description, train
    given = load(spec_of(config))
    return description, lambda folder, report: copy_tokenizer(given, folder)


def copy_tokenizer(given: Tokenizer, folder: Path) -> Tokenizer:
    """The tokenizer of a store's own copy of its file, which is written into `folder`; one without a file as it is."""
    if not isinstance(given, (SubwordTokenizer, SentencePieceTokenizer)):
        return given
    path = folder / (SENTENCEPIECE if isinstance(given, SentencePieceTokenizer) else JSON)
    if isinstance(given, SubwordTokenizer):
        path.write_text(given.text, "utf-8")
    else:
        shutil.copyfile(given.file, path)
    end = given.token(given.end_of_text) if given.end_of_text >= 0 else NONE
    renamed = load(given.spec._replace(path=str(path), option=end))
    renamed.name = given.name
    return renamed


def _describe_tokenizer(config: TokenizerConfig) -> dict[str, object]:
    """The tokenizer's part of a recipe. A trained tokenizer follows from the text, which the recipe also names."""
    spec = spec_of(config)
    if config.kind == "bytes":
        return {"kind": "bytes"}
    if config.kind == "bpe":
        return {"kind": "bpe", "vocab_size": config.vocab_size, "train_bytes": config.train_bytes}
    given = load(spec)
    around = {} if given.around == Around() else {"special": given.spec.special}
    return {"kind": config.kind, "hash": given.hash, "end_of_text": given.end_of_text} | around


def spec_of(config: TokenizerConfig) -> Spec:
    """What `load` makes the tokenizer of a config of. Raises DataError for special tokens that its kind cannot have."""
    if config.kind not in ("json", "sentencepiece") and config.special not in (MODEL, NONE):
        raise DataError(
            f"data.tokenizer.special is {config.special!r}, wanted 'none' or 'model', for a tokenizer of kind "
            f"{config.kind!r} has no special tokens but the end of text; leave it out"
        )
    return Spec(config.kind, config.path, config.end_of_text, config.special)


def _training_text(source: TextSource, data: DataConfig, limit: int, report: OnProgress) -> Iterator[str]:
    """Yields about `limit` bytes of the training splits: validation text must not influence the tokenizer."""
    total, held_out, speed = 0, set(), Rate()
    for shard in range(len(source.shards)):
        for count, document in enumerate(source.read(shard)):
            if count % 100 == 0:
                share = max(source.share, total / limit)
                report(build_progress("learning the tokenizer", share, total, 0, speed.update(total)))
            digest = document.digest()
            if document.split == "validation":
                held_out.add(digest)
            if digest in held_out or (document.split or assign(digest, data.splits)) == "validation":
                continue
            yield "".join(part.text for part in document.parts)
            total += document.size
            if total >= limit:
                return


def _difference(got: object, wanted: object, path: str = "") -> str:
    """Describes the first difference of two descriptions, with both values."""
    if isinstance(got, dict) and isinstance(wanted, dict):
        for key in [*wanted, *(k for k in got if k not in wanted)]:
            if got.get(key) != wanted.get(key):
                return _difference(got.get(key), wanted.get(key), f"{path}.{key}" if path else key)
    return f"{path} is {got!r} there, {wanted!r} in the config"
