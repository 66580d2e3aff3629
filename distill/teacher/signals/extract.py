"""Computes the signal to store from a teacher on the devices, and packs it on the host."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from distill.errors import SignalError
from distill.losses import targets
from distill.model import sharding
from distill.model.transformer import Transformer
from distill.teacher.cross_tokenizer import CrossTeacher
from distill.teacher.signals import codec
from distill.teacher.signals.spec import GRAIN, SignalSpec
from distill.types import LOG_ZERO, Alignment, Batch, ChunkSignal, HiddenSignal, SparseSignal, StoredCells

# For vocabularies of this size and larger, logits are materialised for a few positions at a time.
WHOLE_VOCABULARY = 16_384
_PADDING = 2**23  # a rank larger than that of any token


# What `extract` returns: hidden states [B, S, D], log-probabilities [B, S, V], a sparse signal, or one of chunks.
Extracted = SparseSignal | ChunkSignal | StoredCells | Float[Array, "B S D"] | Float[Array, "B S V"]
# The same once it has been fetched to the host.
Fetched = SparseSignal | ChunkSignal | StoredCells | Float[np.ndarray, "B S D"] | Float[np.ndarray, "B S V"]


def uniform(signal: SignalSpec, windows: NDArray[np.int64], seq_len: int) -> NDArray[np.float32]:
    """Uniform numbers [B, S, draws] for the draws of these windows; a function of seed and window id alone.

    Kinds other than 'sampled' draw nothing and get zeros [B, S, 1].
    """
    if signal.kind != "sampled":
        return np.zeros((len(windows), seq_len, 1), np.float32)
    return np.stack([_generator(signal, w).random((seq_len, signal.draws), np.float32) for w in windows])


def _generator(signal: SignalSpec, window: int | np.integer, jumps: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[signal.seed, int(window)]).jumped(jumps))


@jax.jit
def extract_chunks(teacher: CrossTeacher, alignment: Alignment) -> ChunkSignal | StoredCells:
    """The signal of a teacher with another tokenizer, before packing."""
    found = teacher.signal(alignment)
    if isinstance(found, ChunkSignal):
        return found
    least = float(jnp.finfo(jnp.float16).min)
    return StoredCells(chunk=found.chunk, log_probs=jnp.maximum(found.log_probs, least).astype(jnp.float16))


@functools.partial(jax.jit, static_argnums=0)
def extract(signal: SignalSpec, teacher: Transformer, batch: Batch, uniform: Float[Array, "B S K"]) -> Extracted:
    """The signal of a batch before packing: an array of hidden states or log-probabilities, or a SparseSignal.

    For draws, `log_probs` are the logs of their importances p / q.
    """
    hidden = teacher.hidden(batch.inputs, segment=batch.segment, position=batch.position)
    if signal.kind == "hidden":
        return hidden.astype(signal.dtype)
    tokens = teacher.config.tokens
    if signal.sparse and teacher.config.vocab_size >= WHOLE_VOCABULARY:
        whole = HiddenSignal(hidden=hidden, head=teacher.head_vd, cap=teacher.config.logit_cap)
        return targets.by_positions(functools.partial(of_logits, signal), whole, uniform, tokens)
    logits = jax.sharding.reshard(teacher.logits(hidden), sharding.ACT_BSD)[..., :tokens]
    if signal.sparse:
        return of_logits(signal, logits, uniform)
    least = float(jnp.finfo(jnp.float16).min)
    return jnp.maximum(jax.nn.log_softmax(logits, axis=-1), least).astype(jnp.float16)


def of_logits(signal: SignalSpec, log_probs: Float[Array, "B S V"], uniform: Float[Array, "B S K"]) -> SparseSignal:
    """The sparse signal of a batch from its (unnormalised) log-probabilities; NaN where these are not finite."""
    finite = jnp.isfinite(jnp.max(log_probs, axis=-1, keepdims=True))  # NaN and inf propagate to the maximum
    kept_signal = _sparse(signal, log_probs, uniform)
    return SparseSignal(ids=kept_signal.ids, log_probs=jnp.where(finite, kept_signal.log_probs, jnp.nan))


def _sparse(signal: SignalSpec, log_probs: Float[Array, "B S V"], uniform: Float[Array, "B S K"]) -> SparseSignal:
    if signal.kind == "argmax":
        return targets.argmax(log_probs)
    if signal.kind == "sampled":
        return sample(jax.nn.log_softmax(log_probs, axis=-1), uniform, signal.proposal)
    kept = targets.top_k(log_probs, signal.top_k)
    if signal.kind == "topk":
        return kept
    if signal.kind != "topp":
        raise ValueError(f"signal kind {signal.kind!r} is not taken from logits in distill/teacher/signals/extract.py")
    mass = jnp.exp(kept.log_probs)
    inside = jnp.cumsum(mass, axis=-1) - mass < signal.top_p
    inside = inside | (jnp.arange(mass.shape[-1]) < signal.floor)[None, None]
    return SparseSignal(ids=kept.ids, log_probs=jnp.where(inside, kept.log_probs, LOG_ZERO))


def sample(log_probs: Float[Array, "B S V"], uniform: Float[Array, "B S K"], proposal: float) -> SparseSignal:
    """Draws one token per uniform number from q = p^proposal / Z, with log(p / q); an id may occur twice.

    The cumulative distribution is inverted by bisection: log2(V) reads per draw instead of V.
    """
    size = log_probs.shape[-1]
    tempered = proposal * log_probs
    cumulative = jnp.cumsum(jax.nn.softmax(tempered, axis=-1), axis=-1)
    cumulative = cumulative / cumulative[..., -1:]
    below = jnp.zeros_like(uniform, jnp.int32)  # how many cumulative entries are known to be <= the number
    for power in reversed(range(size.bit_length())):
        further = below + 2**power
        reached = jnp.take_along_axis(cumulative, jnp.minimum(further, size) - 1, axis=-1)
        below = jnp.where((further <= size) & (reached <= uniform), further, below)
    ids = jnp.minimum(below, size - 1)
    if proposal == 1:
        return SparseSignal(ids=ids, log_probs=jnp.zeros_like(uniform))
    importance = (1 - proposal) * jnp.take_along_axis(log_probs, ids, axis=-1)
    return SparseSignal(ids=ids, log_probs=importance + jax.nn.logsumexp(tempered, axis=-1, keepdims=True))


def count(signal: SparseSignal, vocab_size: int) -> NDArray[np.int64]:
    """How often each id occurs in a sparse signal [vocab_size]."""
    ids, log_probs = np.asarray(signal.ids), np.asarray(signal.log_probs)
    return np.bincount(ids[log_probs > LOG_ZERO / 2], minlength=vocab_size)


def record(signal: SignalSpec, rank: NDArray[np.integer], extracted: Fetched, window: int) -> tuple[int, bytes]:
    """(largest number of entries of a token, packed bytes) of one window's signal; `rank` maps ids to ranks.

    Raises SignalError where the teacher's values are not finite.
    """
    if isinstance(extracted, SparseSignal | ChunkSignal | StoredCells):
        values = np.asarray(extracted.log_probs)
    else:
        values = np.asarray(extracted)
    if not np.isfinite(values).all():
        why = f" or beyond the range of dtype={signal.dtype}" if signal.kind == "hidden" else ""
        raise SignalError(f"window {window}: the teacher's output is not finite (NaN or inf){why}; nothing is stored")
    if isinstance(extracted, ChunkSignal | StoredCells):
        return 0, codec.join([codec.pack_dense(np.asarray(extracted.chunk, np.int32)), codec.pack_dense(values)])
    if not isinstance(extracted, SparseSignal):
        return 0, codec.pack_dense(values)
    ids = np.asarray(extracted.ids)
    if signal.kind == "sampled":
        ragged = _counted(signal, rank[ids], values, window)
        return int(ragged.lengths.max()), codec.pack(ragged)
    inside = values > LOG_ZERO / 2
    ranks = np.where(inside, rank[ids], _PADDING)
    rising = np.argsort(ranks, axis=1)
    ranks, values = (np.take_along_axis(x, rising, axis=1) for x in (ranks, values))
    lengths = inside.sum(axis=1)
    if signal.kind == "argmax":
        return 1, codec.pack(codec.Ragged(lengths, ranks))
    mass = np.where(ranks < _PADDING, np.exp(values.astype(np.float64)), 0).sum(axis=1)
    rest = codec.quantise_rest(np.log(np.maximum(1 - mass, 1e-12)))
    return int(lengths.max()), codec.pack(codec.Ragged(lengths, ranks, codec.quantise(values), rest))


def _counted(
    signal: SignalSpec, ranks: NDArray[np.integer], importance: NDArray[np.floating], window: int
) -> codec.Ragged:
    """Draws as distinct tokens with integer weights.

    A weight is a count where the proposal is the teacher itself; otherwise GRAIN times the sum of the importances,
    rounded up or down at random so that the expectation is exact.
    """
    size, draws = ranks.shape
    rising = np.argsort(ranks, axis=1, kind="stable")
    ranks, importance = np.take_along_axis(ranks, rising, axis=1), np.take_along_axis(importance, rising, axis=1)
    column = np.cumsum(np.diff(ranks, axis=1, prepend=-1) != 0, axis=1) - 1
    rows = np.arange(size)[:, None]
    flat = (rows * draws + column).reshape(-1)
    distinct = np.full((size, draws), _PADDING, np.int64)
    distinct[rows, column] = ranks
    if signal.proposal == 1:
        weights = np.bincount(flat, minlength=size * draws).reshape(size, draws)
    else:
        exact = GRAIN * np.bincount(flat, np.exp(importance.astype(np.float64)).reshape(-1), size * draws)
        noise = _generator(signal, window, 1).random((size, draws))
        weights = np.minimum(np.floor(exact.reshape(size, draws) + noise), 2**16 - 1).astype(np.int64)
        distinct = np.where(weights > 0, distinct, _PADDING)
        rising = np.argsort(distinct, axis=1, kind="stable")
        distinct, weights = (np.take_along_axis(x, rising, axis=1) for x in (distinct, weights))
    return codec.Ragged((distinct < _PADDING).sum(axis=1), distinct, weights)
