"""Writes the shards of a store: computation overlaps packing, and writing resumes after a kill.

The recipe alone determines which window is in which shard: shard i holds the windows i n .. (i + 1) n - 1 of the rising
list of those to store. The existing files therefore determine where to resume; they are checked, not recomputed.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from distill.data.loader import prefetch
from distill.errors import SignalError
from distill.system import files
from distill.teacher.signals import manifest
from distill.teacher.signals.shard import HOW, Name, ShardEntry, ShardWriter, entry

RECIPE = "recipe.json"
T = TypeVar("T")


def claim(folder: Path, recipe: Mapping[str, object]) -> None:
    """Claims an empty folder for this recipe, or checks that an interrupted store in it is of the same recipe.

    Raises SignalError, naming what differs, for a folder of another recipe or with other content.
    """
    path = folder / RECIPE
    if path.exists():
        try:
            stored = manifest.parse(path)
        except ValueError as error:
            raise SignalError(f"{path}: cannot be read ({error}); delete the folder and start again") from None
        same(folder, stored, recipe)
        return
    others = [item.name for item in folder.iterdir() if item.name != "lock"] if folder.exists() else []
    if others:
        raise SignalError(f"{folder}: exists and is no store of signals ({others[0]}); give another --out")
    files.atomic_write(path, manifest.text(recipe))


def same(folder: Path, stored: Mapping[str, object], wanted: Mapping[str, object]) -> None:
    """Raises SignalError, naming both values, for the first field in which two recipes differ."""
    old, new = _flat(stored), _flat(wanted)
    # Folders name tokenizers; whether they are equal, their hash says.
    for name in sorted({*old, *new} - {"data.tokenizer"}):
        if old.get(name) != new.get(name):
            raise SignalError(
                f"{folder}: this store was begun with {name}={old.get(name)!r}, and this call has {new.get(name)!r}; "
                "use the same flags, or another --out"
            )


def _flat(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def write_order(folder: Path, often: NDArray[np.int64]) -> None:
    """Writes ORDER, for readers and for a resumed call: the ids, most frequent first."""
    files.atomic_write(folder / manifest.ORDER, np.argsort(-often, kind="stable").astype("<u4").tobytes())


def ranks(folder: Path, vocab_size: int) -> NDArray[np.int64]:
    """The rank of each id in ORDER. Raises SignalError where the file is damaged."""
    order = np.frombuffer((folder / manifest.ORDER).read_bytes(), "<u4")
    if not np.array_equal(np.sort(order), np.arange(vocab_size)):
        raise SignalError(f"{folder / manifest.ORDER}: is damaged; delete {folder} and start again")
    rank = np.empty(vocab_size, np.int64)
    rank[order] = np.arange(vocab_size)
    return rank


def write(
    folder: Path,
    store: str,
    windows: NDArray[np.int64],
    *,
    per_shard: int,
    per_chunk: int,
    compute: Callable[[NDArray[np.int64]], T],
    pack: Callable[[T, int, int], tuple[int, bytes]],
    on_progress: Callable[[int, int], None] = lambda done, kept: None,
) -> list[ShardEntry]:
    """Writes the records of `windows` (rising) and returns the manifest's entry of each shard.

    compute(chunk of windows) runs in a thread, up to two chunks ahead of pack(result, row, window) -> (most, payload).
    Chunks always begin at a multiple of `per_chunk`, so that a window's signal never depends on an interruption.
    on_progress gets the windows done, and how many of them an earlier, interrupted call had written.
    Raises SignalError for a shard in the folder that does not hold the windows its recipe gives it.
    """
    entries: list[ShardEntry] = []
    plan = [windows[start : start + per_shard] for start in range(0, len(windows), per_shard)]
    for i, expected in enumerate(plan):
        name = Name(store, i)
        if not (folder / name.file).exists():
            break
        entries.append(_finished(folder, name, expected))
    writer: ShardWriter | None = None
    done = kept = sum(e["windows"] for e in entries)
    try:
        if len(entries) < len(plan):
            writer = _begin(folder, Name(store, len(entries)), plan[len(entries)])
            done = kept = kept + len(writer.windows)
            if len(writer.windows) == len(plan[len(entries)]) and done < len(windows):  # killed before it was closed
                entries.append(writer.finish())
                writer = _begin(folder, Name(store, len(entries)), plan[len(entries)])
        first = done // per_chunk
        starts = range(first * per_chunk, len(windows), per_chunk) if done < len(windows) else range(0)
        for start, computed in prefetch(lambda start: (start, compute(windows[start : start + per_chunk])), starts):
            for row, window in enumerate(windows[start : start + per_chunk].tolist()):
                if start + row < done:
                    continue
                assert writer is not None
                writer.append(window, *pack(computed, row, window))
                done += 1
                if done % per_shard == 0 and done < len(windows):
                    entries.append(writer.finish())
                    writer = _begin(folder, Name(store, len(entries)), plan[len(entries)])
            if writer is not None:
                writer.flush()
            on_progress(done, kept)
        if writer is not None:
            entries.append(writer.finish())
    finally:
        if writer is not None:
            writer.close()
    return entries


def _finished(folder: Path, name: Name, expected: NDArray[np.int64]) -> ShardEntry:
    """The entry of an existing shard. Raises SignalError unless it holds the expected windows."""
    described, windows = entry(folder / name.file, name)
    if not np.array_equal(windows, expected):
        raise SignalError(f"{folder / name.file}: does not hold the windows that its recipe gives it; {HOW}")
    return described


def _begin(folder: Path, name: Name, expected: NDArray[np.int64]) -> ShardWriter:
    """A writer positioned after the complete records of an interrupted one."""
    writer = ShardWriter(folder, name)
    if writer.windows != expected[: len(writer.windows)].tolist():
        writer.close()
        raise SignalError(f"{writer.path}: does not hold the windows that its recipe gives it; {HOW}")
    return writer
