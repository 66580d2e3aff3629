"""Orbax checkpoints of pure trees: saved asynchronously, restored bit for bit, on any mesh.

A checkpoint is one item for the parameters, one for the optimiser, and the resolved config as text, so that a teacher
is read without its optimiser. Arrays are stored under the names of their paths.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from distill.config import DistillError


class CheckpointError(DistillError):
    """A checkpoint that is missing, or that does not fit what asks for it."""


def _flat(tree: Any) -> dict[str, Any]:
    """{'params.blocks.query': leaf}: names survive a change of the classes that hold them."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


ITEMS = ("params", "optimizer")


class Checkpoints:
    """The checkpoints of one run (or trunk) in a directory of their own; a context manager.

    keep: how many of the latest to keep; 0 keeps all.
    """

    def __init__(self, directory: str | Path | epath.Path, *, keep: int = 2):
        self.directory = epath.Path(directory)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep or None, create=True, enable_async_checkpointing=True, cleanup_tmp_directories=True
        )
        handlers: dict[str, Any] = {name: ocp.StandardCheckpointHandler() for name in ITEMS}
        handlers["config"] = ocp.JsonCheckpointHandler()
        self._manager = ocp.CheckpointManager(self.directory.resolve(), item_handlers=handlers, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def steps(self) -> list[int]:
        """Steps with a whole checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, items: dict[str, Any], config: str) -> None:
        """Starts saving {item: tree}; the arrays may be donated at once. A step that is there is not saved again."""
        if step in self.steps():
            return
        # On a CPU orbax would write straight from buffers that the next step is about to overwrite.
        arrays = {name: ocp.args.StandardSave(jax.tree.map(jnp.copy, _flat(tree))) for name, tree in items.items()}
        self._manager.save(step, args=ocp.args.Composite(**arrays, config=ocp.args.JsonSave({"text": config})))

    def restore(self, step: int, like: dict[str, Any]) -> dict[str, Any]:
        """The items of `step` that `like` has, with its structure, dtypes and places, whichever mesh they came from.

        Raises CheckpointError, naming the first array that differs, where the checkpoint holds another model.
        """
        if step not in self.steps():
            raise CheckpointError(f"{self.directory}: there is no checkpoint of step {step}, only {self.steps()}")
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
        found = self._manager.restore(step, args=ocp.args.Composite(**requests))
        return {
            item: jax.tree.unflatten(jax.tree.structure(tree), [found[item][name] for name in wanted[item]])
            for item, tree in like.items()
        }

    def _compare(self, step: int, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        got = {name: tuple(leaf.shape) for name, leaf in found.items()}
        want = {name: tuple(leaf.shape) for name, leaf in wanted.items()}
        if got != want:
            name = next(n for n in (*want, *got) if want.get(n) != got.get(n))
            raise CheckpointError(
                f"{self.directory}, step {step}: {name} has shape {got.get(name)}, wanted {want.get(name)}; "
                "use the config that made the checkpoint, or another workdir"
            )
