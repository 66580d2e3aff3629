"""The manifest of a signal store: its content, and whether it fits the data, tokenizer and teacher of a run.

manifest.json is written last: a folder without one is an unfinished store. Its first line is a seal: the sha256 of the
whole text with zeros in place of the seal, so that an edit of any byte is detected.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from distill.config import ExperimentConfig
from distill.data.mixture import Mixture
from distill.data.store.store import TokenStore
from distill.errors import SignalError
from distill.model.quantize import Precision
from distill.system import files
from distill.system.files import loads
from distill.teacher.signals.fidelity import Coverage, FidelityResult
from distill.teacher.signals.shard import FORMAT, ShardEntry

MANIFEST = "manifest.json"
HEAD, ORDER, CELLS = "head.bin", "order.bin", "cells.bin"
# Tokens of a window, of a vocabulary, or entries of a window; larger values are rejected as corrupt.
_LARGEST = 1 << 24


class RecipeTeacher(TypedDict):
    """The teacher of a recipe: the fingerprint of its run, and a hash that identifies its weights."""

    run: str
    checkpoint: str
    vocab_size: int
    d_model: int
    dtype: NotRequired[Precision]  # absent: float32
    tokenizer_hash: NotRequired[str]  # of a teacher with another tokenizer than the text's
    seq_len: NotRequired[int]  # of such a teacher: its tokens of a window, at most
    cells: NotRequired[int]  # of such a teacher: common cells


class RecipeData(TypedDict):
    """The data that the windows of a store come from."""

    store: str  # fingerprint of the token store
    tokenizer: str
    tokenizer_hash: str
    split: str
    seq_len: int
    packing: str
    completions_only: bool


class RecipeWindows(TypedDict):
    """Which windows are stored: `count` of `of`, those that the first `samples` samples of data.seed=`seed` read.

    `unique` is data.unique of the config, where it is not 0: the samples of another choice are others.
    """

    count: int
    of: int
    samples: int
    seed: int
    unique: NotRequired[int]


class SignalRecipe(TypedDict):
    """All that determines the content of a store; its digest names the store in every shard."""

    signal: dict[str, int | float | str]
    codec: dict[str, int | float]
    tau: float
    teacher: RecipeTeacher
    data: RecipeData
    windows: RecipeWindows
    shard_windows: int


class TeacherValidation(TypedDict):
    """The teacher's own loss, in nats, on the validation set of `tokens` tokens."""

    tokens: int
    loss: float


class TeacherEntry(TypedDict):
    """What a student reports about its teacher, which need not be available: config, record, validation loss.

    A record with N = 0 is of a teacher of which only the name is known.
    """

    config: str
    record: dict[str, Any]
    validation: NotRequired[TeacherValidation]  # absent where others wrote the signals and did not tell


class FileEntry(TypedDict):
    """A file beside the shards; dtype and shape are those of HEAD."""

    sha256: str
    dtype: NotRequired[str]
    shape: NotRequired[list[int]]


class SignalManifest(TypedDict):
    """The content of manifest.json."""

    format: int
    recipe: SignalRecipe
    files: dict[str, FileEntry]
    shards: list[ShardEntry]
    bytes_per_token: float
    teacher: NotRequired[TeacherEntry]
    fidelity: NotRequired[FidelityResult]
    coverage: NotRequired[Coverage]  # in place of fidelity, where others wrote the signals


def data_of(config: ExperimentConfig, store: TokenStore | Mixture) -> RecipeData:
    """The data that a signal's windows come from; the config of a student of the store must give the same."""
    return {
        "store": store.fingerprint,
        "tokenizer": store.tokenizer_name,
        "tokenizer_hash": store.tokenizer_hash,
        "split": config.data.split,
        "seq_len": config.seq_len,
        "packing": config.data.packing,
        "completions_only": config.data.completions_only,
    }


def text(tree: Mapping[str, object]) -> str:
    return json.dumps(tree, indent=1, sort_keys=True) + "\n"


def parse(path: Path) -> dict[str, object]:
    """The object in a JSON file. Raises ValueError where the file holds something else."""
    tree = loads(path.read_text("utf-8"))
    if not isinstance(tree, dict):
        raise ValueError(f"got {type(tree).__name__}, wanted an object")
    return tree


def digest(tree: Mapping[str, object]) -> str:
    """A hash of a tree's content, independent of the order of its keys."""
    return hashlib.sha256(text(tree).encode()).hexdigest()


def _sealed(seal: str, body: str) -> str:
    return f'{{"seal": "{seal}",\n{body}'


def _seal(body: str) -> str:
    return hashlib.sha256(_sealed("0" * 64, body).encode()).hexdigest()


def write(folder: Path, manifest: Mapping[str, object]) -> None:
    """Writes the manifest atomically."""
    body = text(manifest).removeprefix("{\n")
    files.atomic_write(folder / MANIFEST, _sealed(_seal(body), body))


def read(folder: Path) -> SignalManifest:
    """The manifest of a finished store. Raises SignalError where there is none, or it was changed."""
    path = folder / MANIFEST
    try:
        content = path.read_text("utf-8")
        tree = loads(content)
    except FileNotFoundError:
        raise SignalError(
            f"{folder}: there is no {MANIFEST}, so this is not a finished store of signals; `python -m launch.cache` "
            "makes one and resumes an interrupted one"
        ) from None
    except (ValueError, OSError) as error:
        raise SignalError(f"{path}: cannot be read ({error}); delete the store and run launch.cache again") from None
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        got = tree.get("format") if isinstance(tree, dict) else tree
        raise SignalError(f"{path}: got format {got!r}, wanted {FORMAT}; run launch.cache again")
    tree.pop("seal", None)  # compared below, as part of the text
    body = content.partition("\n")[2]
    if content != _sealed(_seal(body), body):
        raise SignalError(f"{path}: was changed after it was written (its seal is broken); run launch.cache again")
    try:
        return _checked(cast(SignalManifest, tree))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise SignalError(f"{path}: describes no store ({error!r:.100}); run launch.cache again") from None


def _checked(tree: SignalManifest) -> SignalManifest:
    """The tree, typed. Raises ValueError or a similar error for impossible values: anyone can compute a valid seal."""

    def number(fields: Mapping[str, object], name: str, most: int = 2**62) -> None:
        value = fields[name]
        if type(value) is not int or not 0 <= value <= most:
            raise ValueError(f"{name} is {value!r:.40}")

    recipe, shards = tree["recipe"], tree["shards"]
    for part in (recipe["signal"], recipe["codec"], recipe["teacher"], recipe["data"], recipe["windows"]):
        if not isinstance(part, dict):
            raise ValueError(f"a part of the recipe is {part!r:.40}")
    number(recipe["data"], "seq_len", _LARGEST)
    for name in ("vocab_size", "d_model"):
        number(recipe["teacher"], name, _LARGEST)
    for name in {"seq_len", "cells"} & set(recipe["teacher"]):
        number(recipe["teacher"], name, _LARGEST)
    for name in ("count", "of", "samples", "seed"):
        number(recipe["windows"], name)
    if not isinstance(shards, list) or not shards:
        raise ValueError(f"shards are {shards!r:.40}")
    for shard in shards:
        for name in ("size", "windows", "first", "payload", "most"):
            number(shard, name)
        if not isinstance(shard["file"], str) or not isinstance(shard["digest"], str):
            raise ValueError(f"a shard is {shard!r:.40}")
    if recipe["data"]["seq_len"] * max(shard["most"] for shard in shards) > _LARGEST:
        raise ValueError(f"a window of over {_LARGEST:,} entries")
    if not all(isinstance(kept["sha256"], str) for kept in tree["files"].values()):
        raise ValueError("a file without its sha256")
    for name in (*tree["files"], *(shard["file"] for shard in shards)):
        if Path(name).name != name or "\x00" in name:
            raise ValueError(f"{name!r:.40} is not the name of a file in the folder")
    return tree


def compare(where: object, stored: Mapping[str, object], wanted: Mapping[str, object], what: str) -> None:
    """Raises SignalError for the first field of `wanted` in which the store differs."""
    for name, value in wanted.items():
        if stored.get(name) != value:
            raise SignalError(
                f"{where}: was made for {what} {name}={stored.get(name)!r}, and this run has {value!r}; use the store "
                "that belongs to it, or make one with launch.cache"
            )
