"""Orbax checkpoints of pure trees: saved asynchronously, with checksums, restored bit for bit on any mesh.

A checkpoint has one item for the parameters, one for the optimiser, and the resolved config as text, so that a teacher
loads without its optimiser. Arrays are stored under the names of their paths. Orbax silently restores arrays with
flipped bits, so every item carries the hashes of its files, and an item that does not match them is not restored.
"""

import contextlib
import errno
import logging
import os
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from distill.config import DistillError
from distill.system import checksums, cloud, distributed, preemption

T = TypeVar("T")


class _Shaped(Protocol):
    @property
    def shape(self) -> Sequence[int]: ...


class CheckpointError(DistillError):
    """A checkpoint that is missing, that does not match the requested structure, or that could not be saved."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint whose files differ from those that were saved."""


class _SealedArrays(ocp.StandardCheckpointHandler):
    # Orbax finalises an item in its temporary directory, before the rename that makes the checkpoint visible: a visible
    # checkpoint always has its hashes.
    def finalize(self, directory: epath.Path) -> None:
        super().finalize(directory)
        checksums.write_checksums(directory)


class _SealedText(ocp.JsonCheckpointHandler):
    def finalize(self, directory: epath.Path) -> None:
        super().finalize(directory)
        checksums.write_checksums(directory)


def _flat(tree: object) -> dict[str, jax.Array]:
    """{'params.blocks.query': leaf}: names survive a change of the classes that hold them."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


# Weights compress to nine tenths of their size: a save is not attempted if less than this share of it is free.
_COMPRESSED = 0.8
_FULL = re.compile("No space left|RESOURCE_EXHAUSTED|Disk quota exceeded")


def _size(count: float) -> str:
    """'1.2 MB'."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.2f} MB"


ITEMS = ("params", "optimizer")


# Runs that train together save one after the other: orbax identifies the saves of a process by one counter, and two
# concurrent threads took each other's folders for abandoned ones, which failed the run.
_TURN = threading.Lock()


class Checkpoints:
    """The checkpoints of one run (or trunk) in a directory of their own; a context manager.

    keep: how many of the latest to keep; 0 keeps all. readonly: changes nothing in another run's folder, which that
    run may be writing at the same time.
    """

    def __init__(self, directory: str | Path | epath.Path, *, keep: int = 2, readonly: bool = False):
        self.directory = epath.Path(directory)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if readonly else keep or None,
            create=not readonly,
            enable_async_checkpointing=not readonly,
            cleanup_tmp_directories=not readonly,
        )
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        for name in ITEMS:
            arrays = _SealedArrays()
            registry.add(name, ocp.args.StandardSave, arrays)
            registry.add(name, ocp.args.StandardRestore, arrays)
        registry.add("config", ocp.args.JsonSave, _SealedText())
        self._saving, self._need, self._readonly = -1, 0, readonly
        place = self.directory if cloud.remote(directory) else self.directory.resolve()
        self._manager = ocp.CheckpointManager(place, handler_registry=registry, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, _: object, error: object, __: object) -> None:
        if error is not None and distributed.several() and not isinstance(error, preemption.Preempted):
            return  # a save in progress waits for processes that may be gone
        try:
            self.wait()
        except (CheckpointError, distributed.PeerLost):
            if error is None:  # else the first error is the one to report
                raise
        finally:
            self._manager.close()

    def wait(self) -> None:
        """Blocks until all saves are on disk. Raises CheckpointError if one failed, PeerLost if a process has ended."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # orbax passes on whatever its writers raise
            raise self._failed(error) from error

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, items: Mapping[str, object], config: str) -> None:
        """Starts saving {item: tree}; the arrays may be donated at once. A step that exists is not saved again."""
        if step in self.steps():
            return
        # On a CPU orbax would write straight from buffers that the next step is about to overwrite.
        arrays = {name: ocp.args.StandardSave(jax.tree.map(jnp.copy, _flat(tree))) for name, tree in items.items()}
        self.wait()
        self._saving = step
        self._need = sum(leaf.nbytes for leaf in jax.tree.leaves(items) if hasattr(leaf, "nbytes"))
        room = self._room()
        if room is not None and room < _COMPRESSED * self._need and not distributed.several():
            raise self._failed(OSError(errno.ENOSPC, "No space left on device"))
        alone = threading.current_thread() is threading.main_thread()
        with contextlib.nullcontext() if alone else _TURN:
            try:
                self._manager.save(step, args=ocp.args.Composite(**arrays, config=ocp.args.JsonSave({"text": config})))
            except Exception as error:
                raise self._failed(error) from error
            if not alone:
                self.wait()

    def restore(self, step: int, like: Mapping[str, T]) -> dict[str, T]:
        """The items of `step` that `like` has, with its structure, dtypes and shardings, whichever mesh saved them.

        Raises CheckpointError, naming the first array that differs, if the checkpoint holds another model, and
        DamagedCheckpoint, naming the file, if it differs from what was saved.
        """
        if step not in self.steps():
            raise CheckpointError(f"{self.directory}: there is no checkpoint of step {step}, only {self.steps()}")
        self._check(step, like)
        metadata = self._manager.item_metadata(step)
        wanted = {}
        for item, tree in like.items():
            wanted[item] = _flat(tree)
            self._compare(step, getattr(metadata[item], "tree", metadata[item]), wanted[item])
        requests = {
            item: ocp.args.StandardRestore(
                {n: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for n, a in arrays.items()}
            )
            for item, arrays in wanted.items()
        }
        arrays_of = self._manager.restore(step, args=ocp.args.Composite(**requests))
        return {
            item: jax.tree.unflatten(jax.tree.structure(tree), [arrays_of[item][name] for name in wanted[item]])
            for item, tree in like.items()
        }

    def newest(self, like: Mapping[str, T], before: int | None = None) -> tuple[int, dict[str, T]] | None:
        """The last intact checkpoint, up to step `before`, as (step, items); None if there never was one.

        A damaged one is logged, moved to DIRECTORY-damaged (unless read-only), and the one before it is tried. Raises
        DamagedCheckpoint if none is intact: only the user may decide to start again from scratch.
        """
        steps = [step for step in self.steps() if before is None or step <= before]
        damaged: list[str] = []
        for step in reversed(steps):
            try:
                items = self.restore(step, like)
            except DamagedCheckpoint as error:
                place = "" if self._readonly else f"; set aside in {self._set_aside(step)}"
                if distributed.first():
                    logging.getLogger(__name__).warning("%s%s", error, place)
                damaged.append(str(error))
                continue
            return step, items
        if damaged:
            raise DamagedCheckpoint(
                f"{damaged[0]}; none of the {len(damaged)} checkpoints is whole: run the same command again to start "
                f"from the beginning, or put one of {self.directory}-damaged back"
            )
        return None

    def _check(self, step: int, items: Iterable[str]) -> None:
        mismatches = [
            (item, checksums.first_mismatch(self.directory / str(step) / item, distributed.rank()))
            for item in (*items, "config")
        ]
        mine = next((f"{item}/{wrong}" for item, wrong in mismatches if wrong), "")
        if wrong := next(filter(None, distributed.exchange(mine)), ""):
            raise DamagedCheckpoint(f"{self.directory}: the checkpoint of step {step} is damaged: {wrong}")

    def _set_aside(self, step: int) -> str:
        target = ""
        if distributed.first():
            place = self.directory.parent / f"{self.directory.name}-damaged"
            place.mkdir(parents=True, exist_ok=True)
            count = sum(path.name.split(".")[0] == str(step) for path in place.iterdir())
            target = str(place / (f"{step}.{count}" if count else str(step)))
            (self.directory / str(step)).rename(target)
        target = distributed.exchange(target)[0]
        self._manager.reload()
        return target

    def _room(self) -> int | None:
        """Free bytes on the file system of this directory; None if unknown (a bucket)."""
        if cloud.remote(self.directory):
            return None
        try:
            status = os.statvfs(self.directory)
        except OSError:
            return None
        return status.f_bavail * status.f_frsize

    def _failed(self, error: Exception) -> CheckpointError | distributed.PeerLost:
        """The error of a failed save: names the file and, on a full disk, the needed and the free bytes.

        All processes of a run write a checkpoint together: where one has ended, nothing is to be mended.
        """
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        if distributed.several() and distributed.lost(error):
            return distributed.PeerLost(f"saving step {self._saving}: {reason}")
        remedy, room = "mend this", self._room()
        if _FULL.search(str(error)) and room is not None:
            reason = f"it needs about {_size(self._need)} and the file system has {_size(room)} left"
            remedy = "make room"
        self._manager.reload()
        return CheckpointError(
            f"{self.directory / str(self._saving)}: saving step {self._saving} failed: {reason}; the checkpoints of "
            f"{self.steps()} are as they were: {remedy} and run the same command again"
        )

    def _compare(self, step: int, stored: Mapping[str, _Shaped], wanted: Mapping[str, _Shaped]) -> None:
        got = {name: tuple(leaf.shape) for name, leaf in stored.items()}
        want = {name: tuple(leaf.shape) for name, leaf in wanted.items()}
        if got != want:
            name = next(n for n in (*want, *got) if want.get(n) != got.get(n))
            raise CheckpointError(
                f"{self.directory}, step {step}: {name} has shape {got.get(name)}, wanted {want.get(name)}; "
                "use the config that made the checkpoint, or another workdir"
            )
