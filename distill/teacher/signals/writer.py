"""Writes the shards of a store: computing overlaps packing, and a killed writer's work is gone on with.

Which window lies where follows from the recipe alone: shard i holds the windows i n .. (i + 1) n - 1 of the rising list
of those to keep. So what is there already says where to go on; it is checked, and neither computed again nor doubled.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data.loader import prefetch
from distill.errors import SignalError
from distill.system import files
from distill.teacher.signals import manifest
from distill.teacher.signals.shard import HOW, Name, ShardWriter, entry

RECIPE = "recipe.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a store is: windows done of all, of them `kept` by an earlier, interrupted call."""

    done: int
    total: int
    kept: int
    tokens: int  # a window


def claim(folder: Path, recipe: dict[str, Any]) -> None:
    """Takes an empty folder for this recipe, or one that was interrupted while it was made for the same.

    Raises SignalError, naming what differs, for a folder of another recipe, or of something else.
    """
    path = folder / RECIPE
    if path.exists():
        try:
            kept = manifest.parse(path)
        except ValueError as error:
            raise SignalError(f"{path}: cannot be read ({error}); delete the folder and start again") from None
        same(folder, kept, recipe)
        return
    strangers = [item.name for item in folder.iterdir() if item.name != "lock"] if folder.exists() else []
    if strangers:
        raise SignalError(f"{folder}: exists and is no store of signals ({strangers[0]}); give another --out")
    files.atomic_write(path, manifest.text(recipe))


def same(folder: Path, kept: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises SignalError, naming both sides, for the first field in which two recipes differ."""
    old, new = _flat(kept), _flat(wanted)
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            raise SignalError(
                f"{folder}: this store was begun with {name}={old.get(name)!r}, and this call has {new.get(name)!r}; "
                "use the same flags, or another --out"
            )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def write(
    folder: Path,
    store: str,
    windows: NDArray[np.int64],
    *,
    per_shard: int,
    per_chunk: int,
    compute: Callable[[NDArray[np.int64]], Any],
    pack: Callable[[Any, int, int], tuple[int, bytes]],
    on_progress: Callable[[int, int], None] = lambda done, kept: None,
) -> list[dict[str, Any]]:
    """Writes the records of `windows` (rising) and returns what the manifest keeps of each shard.

    compute(chunk of windows) runs in a thread, up to two chunks ahead of pack(result, row, window) -> (most, payload).
    Chunks always begin at a multiple of `per_chunk`, so that a window's signal never depends on an interruption.
    """
    entries: list[dict[str, Any]] = []
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
        for start, found in prefetch(lambda start: (start, compute(windows[start : start + per_chunk])), starts):
            for row, window in enumerate(windows[start : start + per_chunk].tolist()):
                if start + row < done:
                    continue
                assert writer is not None
                writer.append(window, *pack(found, row, window))
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


def _finished(folder: Path, name: Name, expected: NDArray[np.int64]) -> dict[str, Any]:
    """The entry of a shard that is there. Raises SignalError where it does not hold what it should."""
    found, windows = entry(folder / name.file, name)
    if not np.array_equal(windows, expected):
        raise SignalError(f"{folder / name.file}: does not hold the windows that its recipe gives it; {HOW}")
    return found


def _begin(folder: Path, name: Name, expected: NDArray[np.int64]) -> ShardWriter:
    """A writer that stands after the whole records of an interrupted one."""
    writer = ShardWriter(folder, name)
    if writer.windows != expected[: len(writer.windows)].tolist():
        writer.close()
        raise SignalError(f"{writer.path}: does not hold the windows that its recipe gives it; {HOW}")
    return writer
