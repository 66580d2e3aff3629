"""What a store of signals says of itself, and whether it is of the data, the tokenizer and the teacher that ask for it.

manifest.json is written last: a folder without one is no store yet. Its first line seals it: the sha256 of the whole
text with zeros where that stands, so that an edit of any byte is noticed.

recipe      all that decides the content: the signal, the teacher (run, hash of its checkpoint), the data (fingerprint
            of the token store, tokenizer, split, length, packing), the windows kept
teacher     its record and its model, for what a student reports; its own loss on the validation set
shards      file, size, windows, first window, bytes of payload, most entries a token, digest of the index
fidelity    how close the stored signal comes to the whole distribution, on a few windows
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.errors import SignalError
from distill.system import files
from distill.system.files import loads
from distill.teacher.signals.shard import FORMAT

MANIFEST = "manifest.json"
HEAD, ORDER = "head.bin", "order.bin"
_LARGEST = 1 << 24  # tokens of a window, of a vocabulary, entries of a window: more is nobody's


def text(tree: Mapping[str, Any]) -> str:
    return json.dumps(tree, indent=1, sort_keys=True) + "\n"


def parse(path: Any) -> dict[str, Any]:
    """The tree of a JSON file. Raises ValueError where it holds none."""
    tree = loads(path.read_text("utf-8"))
    if not isinstance(tree, dict):
        raise ValueError(f"got {type(tree).__name__}, wanted fields")
    return tree


def digest(tree: Mapping[str, Any]) -> str:
    """Names a tree by its content."""
    return hashlib.sha256(text(tree).encode()).hexdigest()


def _sealed(seal: str, body: str) -> str:
    return f'{{"seal": "{seal}",\n{body}'


def _seal(body: str) -> str:
    return hashlib.sha256(_sealed("0" * 64, body).encode()).hexdigest()


def write(folder: Any, tree: dict[str, Any]) -> None:
    """Writes the manifest, whole or not at all."""
    body = text(tree).removeprefix("{\n")
    files.atomic_write(folder / MANIFEST, _sealed(_seal(body), body))


def read(folder: Any) -> dict[str, Any]:
    """The manifest of a finished store. Raises SignalError where there is none, or it is not as it was written."""
    path = folder / MANIFEST
    try:
        content = path.read_text("utf-8")
        tree = loads(content)
    except FileNotFoundError:
        raise SignalError(
            f"{folder}: there is no {MANIFEST}, so this is no finished store of signals; `python -m launch.cache` "
            "makes one, or goes on with one that was interrupted"
        ) from None
    except (ValueError, OSError) as error:
        raise SignalError(f"{path}: cannot be read ({error}); delete the store and run launch.cache again") from None
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        got = tree.get("format") if isinstance(tree, dict) else tree
        raise SignalError(f"{path}: got format {got!r}, wanted {FORMAT}; run launch.cache again")
    tree.pop("seal", None)  # where it is not the first line, the text differs
    body = content.partition("\n")[2]
    if content != _sealed(_seal(body), body):
        raise SignalError(f"{path}: was changed after it was written (its seal is broken); run launch.cache again")
    try:
        _check(tree)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise SignalError(f"{path}: describes no store ({error!r:.100}); run launch.cache again") from None
    return tree


def _check(tree: Mapping[str, Any]) -> None:
    """Raises ValueError or the like for a tree that says what no store can be: a seal is anybody's to make."""

    def number(place: Mapping[str, Any], name: str, most: int = 2**62) -> None:
        value = place[name]
        if type(value) is not int or not 0 <= value <= most:
            raise ValueError(f"{name} is {value!r:.40}")

    recipe, shards = tree["recipe"], tree["shards"]
    for name in ("signal", "codec", "teacher", "data", "windows"):
        if not isinstance(recipe[name], dict):
            raise ValueError(f"{name} is {recipe[name]!r:.40}")
    number(recipe["data"], "seq_len", _LARGEST)
    for name in ("vocab_size", "d_model"):
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
            raise ValueError(f"{name!r:.40} is no name of a file in it")


def compare(where: Any, kept: Mapping[str, Any], wanted: Mapping[str, Any], what: str) -> None:
    """Raises SignalError for the first field of `wanted` that the store holds otherwise."""
    for name, value in wanted.items():
        if kept.get(name) != value:
            raise SignalError(
                f"{where}: was made for {what} {name}={kept.get(name)!r}, and this run has {value!r}; use the store "
                "that belongs to it, or make one with launch.cache"
            )
