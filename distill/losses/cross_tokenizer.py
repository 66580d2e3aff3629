"""Distillation between models of different tokenizers: both give one distribution over outcomes that both can name.

A chunk x is the smallest span of bytes that begins and ends at a token of both (distill/data/align.py).
Teacher p and student q are compared once a chunk, over a partition of what may follow the bytes before it:

likelihood   x, or anything else: the binarised f-divergence of chunk likelihoods of ALM (arXiv 2503.20083, section 3),
             D(p(x)^(1/tau), 1 - p(x)^(1/tau) || q(x)^(1/tau), 1 - q(x)^(1/tau)), over the smallest chunks and without
             its debiasing by outcomes.
projection   a sparse projection of both vocabularies onto common cells (`cell_numbers`), and x as an outcome of its
             own where it has several tokens. One token each, of the same string, is its own cell: then this is the
             ordinary divergence between distributions over cells, exact where the vocabularies are equal.
             The projection is ours. X-Token's P-KL (arXiv 2605.21699) multiplies the student's probabilities by W,
             which spreads a token over the pieces that the teacher makes of it with weights 0.9, 0.09, ...; it averages
             the distributions at a chunk's tokens, and compares them on the tokens that are likely anywhere in the
             microbatch, which makes a loss depend on how batches are cut, and leaves nearly nothing to a student of
             bytes. Here the weight is on the first piece, in both directions; inside a chunk nothing is averaged, as
             the chain rule gives p(x).

The loss of a chunk stands at its first token, in nats (times tau^2 in a projection, as in divergences.py), and zero at
the others: summed, both are nats a token of the student, like the labels' loss.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Num
from numpy.typing import NDArray

from distill.losses import divergences
from distill.model import sharding
from distill.types import LOG_ZERO, CellSignal, ChunkSignal

# The least log-probability of an outcome, about float32's: what one tokenizer cannot write stays finite for the other.
LEAST = -87.0
# Below it, as in float16, the chunk is no outcome of its own.
UNNAMED = -1e4


def cell_numbers(
    student: Sequence[bytes], teacher: Sequence[bytes], first: tuple[Callable[[int], int], Callable[[int], int]]
) -> tuple[NDArray[np.int32], NDArray[np.int32], int]:
    """The cells of the student's tokens [V_S] and of the teacher's [V_T], and their number C.

    student, teacher: what each token is; b'' matches nothing. first: of a student's token the first token that the
    teacher makes of its bytes, and the other way round; -1 for none. A token that both have is a cell. Any other token
    is in the cell of the first piece that the other tokenizer makes of it, whose cell may again be that of its first
    piece. Tokens whose pieces lead nowhere share the last cell.
    """
    ids = {piece: i for i, piece in reversed(list(enumerate(teacher))) if piece}
    common: dict[bytes, int] = {}
    for piece in student:
        if piece in ids:
            common.setdefault(piece, len(common))
    sides, count = (student, teacher), len(common) + 1

    def cell(side: int, i: int) -> int:
        for _ in range(64):  # each piece is a prefix of the last one, and so shorter, or leads nowhere
            piece = sides[side][i]
            if piece in common:
                return common[piece]
            i, side = first[side](i), 1 - side
            if i < 0:
                break
        return count - 1

    numbers = [np.array([cell(side, i) for i in range(len(pieces))], np.int32) for side, pieces in enumerate(sides)]
    return numbers[0], numbers[1], count


def chunk_sums(values: Num[Array, "B N"], chunk: Int[Array, "B N"], size: int) -> Num[Array, "B {size}"]:
    """The sum of each chunk's values, at the position of its first token of `size`; zero elsewhere."""
    one = lambda v, c: jnp.zeros(size + 1, v.dtype).at[c].add(v)[1:]
    return _by_row(lambda arrays: jax.vmap(one)(*arrays), (values, chunk))


def chunk_starts(chunk: Int[Array, "B T"], size: int) -> Int[Array, "B {size}"]:
    """The first of the T tokens of each chunk, at the position of its first token of `size`; 0 elsewhere."""
    length = chunk.shape[1]

    def one(c: Int[Array, " T"]) -> Int[Array, " size"]:
        found = jnp.full(size + 1, length, jnp.int32).at[c].min(jnp.arange(length, dtype=jnp.int32))[1:]
        return jnp.where(found < length, found, 0)

    return _by_row(lambda arrays: jax.vmap(one)(*arrays), (chunk,))


def rows_at(values: Array, index: Int[Array, "B S"]) -> Array:
    """values [B, T, ...] at `index` along T: [B, S, ...]."""
    return _by_row(lambda arrays: jax.vmap(lambda v, i: v[i])(*arrays), (values, index))


def _by_row(
    of_rows: Callable[[tuple[Array, ...]], Array], rows: tuple[Array, ...], whole: tuple[Array, ...] = ()
) -> Array:
    """A function of arrays by row, on the device that holds each row: no scatter or gather leaves its row.

    `whole` arrays, which come after them, are the same for all rows.
    """
    spec = lambda x: P(sharding.BATCH, *[None] * (x.ndim - 1))
    arrays = *(jax.sharding.reshard(x, spec(x)) for x in rows), *(jax.sharding.reshard(x, P()) for x in whole)
    shape = jax.eval_shape(of_rows, tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays))
    if jax.sharding.get_abstract_mesh().size == 1:
        return jax.sharding.reshard(of_rows(tuple(jax.sharding.reshard(x, P()) for x in arrays)), spec(shape))
    specs = *map(spec, rows), *(P() for _ in whole)
    return jax.shard_map(of_rows, in_specs=(specs,), out_specs=spec(shape))(arrays)


def starts(chunk: Int[Array, "B S"]) -> Array:
    """Where chunks begin: the positions that have a loss [B, S]."""
    return chunk == 1 + jnp.arange(chunk.shape[1], dtype=chunk.dtype)[None]


def likelihood(
    kind: str,
    log_q: Float[Array, "B S"],
    signal: ChunkSignal,
    temperature: float | Float[Array, ""] = 1.0,
    beta: float | Float[Array, ""] = 0.5,
) -> Float[Array, "B S"]:
    """The binarised divergence of chunk likelihoods; `log_q` is the student's log-probability of each label."""
    whole = chunk_sums(log_q, signal.chunk, log_q.shape[1])
    # Softened before they are binarised, as in ALM; a chunk without tokens is as good as certain.
    log_p = _binary(signal.log_probs.astype(log_q.dtype) / temperature)
    loss = jnp.sum(divergences.terms(kind, log_p, _binary(whole / temperature), beta), axis=-1)
    return jnp.where(starts(signal.chunk), loss, 0)


def _binary(log_prob: Float[Array, "B S"]) -> Float[Array, "B S 2"]:
    """log p and log(1 - p), p at most 1 - eps."""
    log_prob = jnp.minimum(log_prob, -float(jnp.finfo(log_prob.dtype).eps))
    return jnp.stack([log_prob, jnp.log(-jnp.expm1(log_prob))], axis=-1)


def outcomes(
    log_probs: Float[Array, "B S V"],
    token: Int[Array, "B S"],
    log_rest: Float[Array, "B S"],
    cells: Int[Array, " V"],
    count: int,
) -> Float[Array, "B S {count}+1"]:
    """The log-probabilities of `count` cells, and of a chunk that begins with `token`, as the last outcome.

    log_probs: of the tokens after the bytes before the chunk. log_rest: of the chunk's other tokens given the first.
    The chunk's probability is taken out of its first token's cell; log_rest = LOG_ZERO leaves it there.
    """
    rest = jnp.exp(log_rest)[..., None]
    column = jax.lax.broadcasted_iota(token.dtype, (1, 1, log_probs.shape[-1]), 2)
    probs = jnp.exp(log_probs)
    own = jnp.where(token[..., None] == column, probs, 0)
    tiny = float(jnp.finfo(log_probs.dtype).tiny)

    def by_cell(arrays: tuple[Array, ...]) -> Float[Array, "B S C"]:
        kept, columns = arrays
        return jnp.zeros((*kept.shape[:2], count), kept.dtype).at[..., columns].add(kept)

    summed = _by_row(by_cell, (probs - own * rest,), (cells,))
    chunk = jnp.sum(own, axis=-1, keepdims=True) * rest
    whole = jnp.concatenate([summed, chunk], axis=-1)
    return jnp.where(whole > tiny, jnp.log(jnp.maximum(whole, tiny)), LOG_ZERO)


def projection(
    kind: str,
    logits: Float[Array, "B S V"],
    labels: Int[Array, "B S"],
    signal: CellSignal,
    temperature: float | Float[Array, ""] = 1.0,
    beta: float | Float[Array, ""] = 0.5,
) -> Float[Array, "B S"]:
    """tau^2 times the divergence over cells and the chunk itself, both softened by tau."""
    whole = jax.sharding.reshard(logits, sharding.ACT_BSD)
    log_probs = jax.nn.log_softmax(whole, axis=-1)
    log_q = divergences.gather_label(log_probs, labels)
    count = signal.log_probs.shape[-1] - 1
    log_rest = chunk_sums(log_q, signal.chunk, labels.shape[1]) - log_q
    named = signal.log_probs[..., count] > UNNAMED  # chunks that are outcomes of their own
    log_rest = jnp.where(named, log_rest, LOG_ZERO)
    log_q = outcomes(log_probs, labels, log_rest, signal.cells, count)
    log_p = signal.log_probs.astype(log_q.dtype)
    if not isinstance(temperature, float) or temperature != 1.0:
        log_p, log_q = (jax.nn.log_softmax(x / temperature, axis=-1) for x in (log_p, log_q))
    log_p, log_q = (jnp.maximum(x, LEAST) for x in (log_p, log_q))
    loss = jnp.sum(divergences.terms(kind, log_p, log_q, beta), axis=-1)
    return jnp.where(starts(signal.chunk), temperature**2 * loss, 0)
