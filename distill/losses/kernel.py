"""The sums of the fused losses over the vocabulary as a Pallas kernel for a TPU: logits stay in VMEM, never written.

It goes over the vocabulary once and keeps for each token and each of 128 lanes what online.PartialSums has; lanes are
summed at the end. In a block of tokens x columns, the product of one piece runs beside the arithmetic of the piece
before. The backward pass is XLA's: a kernel that wrote the gradient by logits was no faster (docs/results/speed.md). On
another device the kernel is interpreted: slow, the same numbers, for tests. Not for GPUs: XLA has no estimate for a
kernel there, so that nothing could say whether one is faster.

Letters: n tokens, v columns, D width, K ids a token.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from distill.config import chips
from distill.losses import online
from distill.losses.online import PartialSums
from distill.model import sharding
from distill.model.layers import capped
from distill.types import LOG_ZERO

LANES = 128
PIECE = 256  # columns of one product inside a block
BLOCK_TOKENS, BLOCK_COLUMNS = 1024, 1024
# Of the rows of a block, twice, since the next block is read meanwhile.
BLOCK_BYTES = 40 * 2**20
VMEM_BYTES = 100 * 2**20
# Where the table of docs/results/speed.md has it faster: up to these widths of all heads together, one id a token.
FASTER = {"v5e": 2176, "v5p": 1024, "v6e": 1024}
MAX_IDS = 1


def is_faster(kind: str, divergence: str, widths: Sequence[int], ids: int, parts: int, dtype: DTypeLike) -> bool:
    """Whether the kernel is faster than XLA's chunks by the instrument, on devices that JAX calls `kind`.

    `widths`: of the heads, the student's and those of its teachers; `ids`: of a token; `parts`: the teacher's arrays by
    token (several of a mixture, one without a head of a stored distribution, which was not measured).
    """
    chip = chips.recognise(kind)
    measured = chip is not None and sum(widths) <= FASTER.get(chip.name, 0) and ids <= MAX_IDS
    has = divergence in ("", "forward", "reverse") and parts == len(widths) - 1 <= 1 and dtype == jnp.bfloat16
    return measured and has


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiles:
    """What is compiled into the kernel.

    `heads`: the teacher's logits are computed here; `padded`: not all columns are before the limit.
    """

    divergence: str
    tempered: bool
    caps: tuple[float, float]  # the student's, the teacher's
    heads: bool
    padded: bool
    interpret: bool
    one_device: bool

    @property
    def kept(self) -> tuple[str, ...]:
        """The fields of PartialSums that the kernel sums, beside the logits of ids."""
        return (
            ("peak", "mass")
            + (("mass_tau",) if self.tempered else ())
            + (("peak_t", "mass_t", "expected") if self.divergence else ())
        )


def sums(
    tiles: Tiles,
    temperature: Float[Array, ""],
    limit: Int[Array, ""],
    ids: Int[Array, "n K"],
    hidden: Float[Array, "n D"],
    head: Float[Array, "v D"],
    teacher: tuple[Float[Array, "_ _"], ...],
) -> PartialSums:
    """The sums of each token over the columns before `limit`.

    `ids` are columns, -1 for one that is not here. `teacher`: its hidden states and its head, or its log-probabilities
    [n, v], or nothing.
    """
    n, v = hidden.shape[0], head.shape[0]
    tokens = [ids, hidden, *(teacher[:1] if tiles.heads else ())]
    columns = [head, *(teacher[1:] if tiles.heads else ())]
    logits = [] if tiles.heads else list(teacher)
    bt, bv = _blocks(n, v, tokens, columns)
    arrays = [temperature.astype(jnp.float32)[None], limit.astype(jnp.int32)[None], *tokens, *columns, *logits]
    size = len(tiles.kept) + ids.shape[1]
    out = jax.ShapeDtypeStruct((size, n, LANES), jnp.float32)
    if not tiles.one_device:
        arrays = list(map(_varying, arrays))
        out = jax.ShapeDtypeStruct(out.shape, out.dtype, manual_axis_type=jax.typeof(arrays[0]).manual_axis_type)
    call = pl.pallas_call(
        functools.partial(_sum, dataclasses.replace(tiles, padded=tiles.padded or v % bv > 0)),
        grid=(pl.cdiv(n, bt), pl.cdiv(v, bv)),
        in_specs=[
            *[pl.BlockSpec(memory_space=pltpu.SMEM)] * 2,
            *[pl.BlockSpec((bt, x.shape[1]), lambda i, j: (i, 0)) for x in tokens],
            *[pl.BlockSpec((bv, x.shape[1]), lambda i, j: (j, 0)) for x in columns],
            *[pl.BlockSpec((bt, bv), lambda i, j: (i, j)) for _ in logits],
        ],
        out_specs=pl.BlockSpec((size, bt, LANES), lambda i, j: (0, i, 0)),
        out_shape=out,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        interpret=tiles.interpret,
        name=f"loss_sums_{bt}x{bv}",  # the dry run reads the blocks from it
    )
    if tiles.one_device:
        call = jax.shard_map(call, in_specs=jax.P(), out_specs=jax.P(), check_vma=False)
    return _over_lanes(tiles, temperature, call(*arrays))


def _over_lanes(tiles: Tiles, temperature: Float[Array, ""], found: Float[Array, "_ n 128"]) -> PartialSums:
    """The sums of all lanes, from those of each."""
    lanes = dict(zip(tiles.kept, found))
    soften = lambda x: x / temperature if tiles.tempered else x
    total = lambda name, scale: jnp.sum(lanes[name] * scale, axis=1)
    below = lambda name, peak: lanes[name] - peak[:, None]
    peak = jnp.max(lanes["peak"], axis=1)
    mass = mass_tau = total("mass", jnp.exp(below("peak", peak)))
    scale = jnp.exp(soften(below("peak", peak)))
    if tiles.tempered:
        mass_tau = total("mass_tau", scale)
    peak_t, mass_t, expected = jnp.full_like(peak, LOG_ZERO), jnp.zeros_like(peak), jnp.zeros_like(peak)
    if tiles.divergence:
        peak_t = jnp.max(lanes["peak_t"], axis=1)
        scale_t = jnp.exp(soften(below("peak_t", peak_t)))
        mass_t = total("mass_t", scale_t)
        expected = total("expected", scale_t if tiles.divergence == "forward" else scale)
    picked = jnp.sum(found[len(tiles.kept) :], axis=2).T
    return PartialSums(peak, mass, mass_tau, picked, peak_t, mass_t, expected)


def _varying(x: Array) -> Array:
    """x, marked as varying along all axes of the mesh."""
    missing = tuple(axis for axis in sharding.AXES if axis not in jax.typeof(x).manual_axis_type.varying)
    return lax.pcast(x, missing, to="varying") if missing else x


def _blocks(n: int, v: int, tokens: list[Array], columns: list[Array]) -> tuple[int, int]:
    """Tokens and columns of one block, of which VMEM holds two at a time."""
    width = lambda arrays: sum(x.shape[1] * x.dtype.itemsize for x in arrays)
    bt, bv = BLOCK_TOKENS, BLOCK_COLUMNS
    while 2 * (bt * width(tokens) + bv * width(columns)) > BLOCK_BYTES and max(bt, bv) > LANES:
        bt, bv = (bt, bv // 2) if bv >= bt else (bt // 2, bv)
    return min(bt, -(-n // 16) * 16), min(bv, -(-v // LANES) * LANES)


class _Piece(NamedTuple):
    """Logits of some columns of a block by lanes, [p / 128, n, 128], and the column of each."""

    start: int  # in the block
    column: Int[Array, "_ n 128"]
    z: Float[Array, "_ n 128"]
    z_t: Float[Array, "_ n 128"] | None


def _pieces(tiles: Tiles, limit: jax.Ref, operands: Sequence[jax.Ref]) -> Iterator[_Piece]:
    """The pieces of a block. The product of a piece is written before the arithmetic of the piece before it."""
    count = 2 if tiles.heads else 1
    hidden, head = operands[:count], operands[count : 2 * count]
    size = head[0].shape[0]
    first = pl.program_id(1) * size

    def logits(model: int, start: int, stop: int) -> Array:
        x, weight = hidden[model], head[model]
        precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
        z = lax.dot_general(x[...], weight[start:stop].astype(x.dtype), (((1,), (1,)), ((), ())),
                            precision=precision, preferred_element_type=jnp.float32)  # fmt: skip
        return capped(_by_lanes(z), tiles.caps[model])

    def one(start: int) -> _Piece:
        stop = min(start + PIECE, size)
        z = logits(0, start, stop)
        column = lambda axis: lax.broadcasted_iota(jnp.int32, z.shape, axis)
        place = column(0) * LANES + column(2) + (first + start)
        z_t = None
        if tiles.heads:
            z_t = logits(1, start, stop)
        elif tiles.divergence:
            z_t = jnp.maximum(_by_lanes(operands[2][:, start:stop].astype(jnp.float32)), LOG_ZERO)
        if tiles.padded:
            known = place < limit[0]
            z = jnp.where(known, z, LOG_ZERO)
            z_t = None if z_t is None else jnp.where(known, z_t, LOG_ZERO)
        return _Piece(start, place, z, z_t)

    before = one(0)
    for start in range(PIECE, size, PIECE):
        after = one(start)
        yield before
        before = after
    yield before


def _by_lanes(z: Float[Array, "n p"]) -> Float[Array, "p/128 n 128"]:
    return jnp.stack([z[:, k : k + LANES] for k in range(0, z.shape[1], LANES)])


def _cool(tiles: Tiles, temperature: jax.Ref) -> online.Soften | None:
    """x / tau by its reciprocal: a division of registers is many operations."""
    if not tiles.tempered:
        return None
    reciprocal = 1 / temperature[0]
    return lambda x: x * reciprocal


def _sum(tiles: Tiles, *refs: jax.Ref) -> None:
    """Adds the columns of a block to the sums of its tokens, which stay in VMEM from block to block."""
    temperature, limit, ids, *operands, out = refs
    kept = dict(zip(tiles.kept, range(out.shape[0])))
    cool = _cool(tiles, temperature)

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        for place in range(out.shape[0]):
            lowest = tiles.kept[place : place + 1] in (("peak",), ("peak_t",))
            out[place] = jnp.full(out.shape[1:], LOG_ZERO if lowest else 0.0, jnp.float32)

    zero = jnp.zeros(out.shape[1:], jnp.float32)
    for piece in _pieces(tiles, limit, operands):
        held = {name: out[kept[name]] if name in kept else zero for name in PartialSums._fields}
        sums = online.add(tiles.divergence, cool, PartialSums(**held), piece.z, piece.z_t, axis=0)
        for name, place in kept.items():
            out[place] = getattr(sums, name)
        for k in range(ids.shape[1]):
            here = piece.column == _wide(ids, k)[None]
            out[len(kept) + k] += jnp.sum(jnp.where(here, piece.z, 0.0), axis=0)


def _wide(numbers: jax.Ref, k: int) -> Array:
    """Number k of each token in all lanes."""
    return jnp.broadcast_to(numbers[:, k : k + 1], (numbers.shape[0], LANES))
