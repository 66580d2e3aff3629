"""How the arrays that a loop over steps carries lie in a TPU's memory."""

import itertools
import math
from collections.abc import Sequence

import jax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, PyTree

from distill.model import attention_kernels

LANES = 128  # of a tile's rows
TILE_BYTES = 8 * 4  # of a tile's columns: 8 numbers of 4 bytes, 16 of 2


def compact(tree: PyTree) -> PyTree:
    """The same arrays, those of heads in the order of dimensions in which they lie between the calls of a program.

    For a loop the TPU's compiler chooses the order that its body likes, fills 34 heads up to 40, and copies weights and
    moments in and out: 1.1 of 7.8 GiB for 7.75B on 256 v5e (docs/results/speed.md). Elsewhere nothing is done.
    """
    return jax.tree.map(_compact, tree) if attention_kernels.platform() == "tpu" else tree


def _compact(leaf: Array) -> Array:
    if leaf.ndim != 4:
        return leaf
    found = order(jax.typeof(leaf).sharding.shard_shape(leaf.shape), leaf.dtype.itemsize)
    return leaf if found == (0, 1, 2, 3) else with_layout_constraint(leaf, Layout(found))


def order(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """The dimensions of an array [L, _, _, _] from major to minor, so that its tiles hold the least padding.

    Of orders that are as good, the one nearest to how it is written: what XLA takes for arguments of a program.
    """

    def padded(dims: tuple[int, ...]) -> int:
        *_, column, row = dims
        rows, columns = -(-shape[row] // LANES) * LANES, TILE_BYTES // itemsize
        return rows * -(-shape[column] // columns) * columns * math.prod(shape[d] for d in dims[:-2])

    return min(((0, *rest) for rest in itertools.permutations((1, 2, 3))), key=padded)
