"""Sparse targets from a teacher's whole distribution: its most likely tokens, a nucleus, draws, or one label."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from distill.losses import divergences
from distill.model import sharding
from distill.model.layers import capped
from distill.types import LOG_ZERO, Batch, HiddenSignal, MixedSignal, SparseSignal, TeacherSignal

# Positions whose teacher logits exist at once when a target is computed from hidden states.
POSITIONS = 16


def align(log_probs: Float[Array, "B S V"], size: int, tokens: int) -> Float[Array, "B S {size}"]:
    """The teacher's log-probabilities over the student's `size` columns, of which the first `tokens` are common tokens.

    Heads of the same tokenizer are often padded to different sizes; columns beyond the tokens, and those that the
    teacher lacks, become LOG_ZERO. Rows with probability in columns beyond the tokens are no longer normalised.
    """
    have = log_probs.shape[-1]
    if have == size == tokens:
        return log_probs
    whole = jax.sharding.reshard(log_probs, sharding.ACT_BSD).astype(jnp.promote_types(log_probs.dtype, jnp.float32))
    whole = whole[..., :tokens]
    whole = jnp.pad(whole, ((0, 0), (0, 0), (0, size - min(have, tokens))), constant_values=LOG_ZERO)
    return jax.sharding.reshard(whole, sharding.LOGITS_BSV)


def align_head(head: Float[Array, "V D"], size: int) -> Float[Array, "{size} D"]:
    """The teacher's head truncated or padded to the student's `size` rows; rows beyond the tokens are not read."""
    have = head.shape[0]
    if have == size:
        return head
    whole = jax.sharding.reshard(head, P(None, "fsdp"))[:size]
    whole = jnp.pad(whole, ((0, max(size - have, 0)), (0, 0)))
    return jax.sharding.reshard(whole, sharding.PARAM_SPECS["head_vd"])


def align_heads(signal: HiddenSignal | MixedSignal, size: int) -> HiddenSignal | MixedSignal:
    """The signal with every head aligned (`align_head`)."""
    if isinstance(signal, HiddenSignal):
        return dataclasses.replace(signal, head=align_head(signal.head, size))
    return dataclasses.replace(
        signal, parts=tuple(dataclasses.replace(p, head=align_head(p.head, size)) for p in signal.parts)
    )


def whole_signal(signal: HiddenSignal | MixedSignal) -> TeacherSignal:
    """The teacher's logits instead of log-probabilities: all code that reads whole distributions normalises them."""
    if isinstance(signal, MixedSignal):
        each = [whole_signal(part).log_probs + offset for part, offset in zip(signal.parts, signal.offsets)]
        return TeacherSignal(log_probs=functools.reduce(jnp.logaddexp, each))
    head = jax.sharding.reshard(signal.head.astype(signal.hidden.dtype), P("tensor", None))
    logits = jnp.einsum(
        "bsd,vd->bsv", signal.hidden, head, preferred_element_type=jnp.float32, out_sharding=sharding.LOGITS_BSV
    )
    return TeacherSignal(log_probs=lax.stop_gradient(capped(logits, signal.cap)))


def by_positions(
    target: Callable[[Float[Array, "B S V"], Float[Array, "B S K"]], SparseSignal],
    signal: HiddenSignal | MixedSignal,
    uniform: Float[Array, "B S K"],
    tokens: int,
) -> SparseSignal:
    """`target` of the teacher's distribution from its hidden states, POSITIONS at a time, without all logits at once.

    The teacher is not differentiated. `tokens` columns of its head are tokens.
    """
    length = uniform.shape[1]
    size = max(n for n in range(1, POSITIONS + 1) if length % n == 0)

    def one(i: Int[Array, ""]) -> SparseSignal:
        few = lambda x: lax.dynamic_slice_in_dim(x, i * size, size, axis=1)
        some = lambda p: dataclasses.replace(p, hidden=few(p.hidden))
        if isinstance(signal, HiddenSignal):
            logits = whole_signal(some(signal)).log_probs
        else:
            mixed = MixedSignal(parts=tuple(map(some, signal.parts)), offsets=tuple(map(few, signal.offsets)))
            logits = whole_signal(mixed).log_probs
        logits = jax.sharding.reshard(logits, sharding.ACT_BSD)[..., :tokens]
        return target(logits, few(uniform))

    parts = lax.map(one, jnp.arange(length // size))
    join = lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], length, x.shape[-1])
    return jax.tree.map(join, parts)


def top_k(log_probs: Float[Array, "B S V"], k: int) -> SparseSignal:
    """The k most likely tokens (all of them in a smaller vocabulary), most likely first."""
    whole = _normalised(log_probs)
    values, ids = lax.top_k(whole, min(k, whole.shape[-1]))
    return SparseSignal(ids=ids, log_probs=values)


def top_p(log_probs: Float[Array, "B S V"], p: float, k: int) -> SparseSignal:
    """The fewest most likely tokens that have `p` of the mass, at least one and at most k."""
    kept = top_k(log_probs, k)
    mass = jnp.exp(kept.log_probs)
    before = jnp.cumsum(mass, axis=-1) - mass
    return SparseSignal(ids=kept.ids, log_probs=jnp.where(before < p, kept.log_probs, LOG_ZERO))


def argmax(log_probs: Float[Array, "B S V"]) -> SparseSignal:
    """The most likely token, with weight 1."""
    ids = divergences.argmax_token(jax.sharding.reshard(log_probs, sharding.ACT_BSD))[..., None]
    return SparseSignal(ids=ids, log_probs=jnp.zeros_like(ids, jnp.float32))


def sample(log_probs: Float[Array, "B S V"], draws: int, uniform: Float[Array, "B S K"]) -> SparseSignal:
    """`draws` tokens per position, from as many uniform numbers, by inverting the cumulative distribution."""
    cumulative = jnp.cumsum(jnp.exp(_normalised(log_probs)), axis=-1)
    # If the sum rounds below 1, the largest uniform numbers must still select a token.
    cumulative = cumulative / cumulative[..., -1:]
    one = lambda u: jnp.sum(cumulative <= u[..., None], axis=-1)
    ids = jnp.stack([one(uniform[..., i]) for i in range(draws)], axis=-1)
    weight = jnp.full_like(ids, -math.log(draws), cumulative.dtype)
    return SparseSignal(ids=jnp.minimum(ids, log_probs.shape[-1] - 1), log_probs=weight)


def uniform(batch: Batch, draws: int, seed: Int[Array, ""], step: Int[Array, ""]) -> Float[Array, "B S K"]:
    """Numbers in [0, 1) that depend only on the seed, the step, a token, the next token and its position.

    So a token's draws do not depend on microbatches, devices or packing.
    """
    position = jnp.arange(batch.inputs.shape[1])[None] if batch.position is None else batch.position
    state = _mix(seed.astype(jnp.uint32) ^ _mix(step.astype(jnp.uint32)))
    bits = jnp.broadcast_to(state, (1, 1)) ^ _mix(position.astype(jnp.uint32))
    bits = _mix(_mix(bits ^ _mix(batch.inputs.astype(jnp.uint32))) + batch.labels.astype(jnp.uint32))
    bits = _mix(bits[..., None] + jnp.arange(1, draws + 1, dtype=jnp.uint32)[None, None] * jnp.uint32(0x9E3779B9))
    return (bits >> 8).astype(jnp.float32) * 2.0**-24


def gather(logits: Float[Array, "B S V"], ids: Int[Array, "B S K"]) -> Float[Array, "B S K"]:
    """The student's logits of the tokens that a target keeps."""
    if ids.shape[-1] == 1:
        return divergences.gather_label(logits, ids[..., 0])[..., None]
    return jnp.take_along_axis(jax.sharding.reshard(logits, sharding.ACT_BSD), ids, axis=-1)


def _mix(x: Array) -> Array:
    """A bijection of 32-bit words in which every bit depends on every other (the finaliser of MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _normalised(log_probs: Float[Array, "B S V"]) -> Float[Array, "B S V"]:
    """Whole rows of the vocabulary, normalised, in float32 at least, as sorting and cumulative sums need."""
    whole = jax.sharding.reshard(log_probs, sharding.ACT_BSD)
    return jax.nn.log_softmax(whole.astype(jnp.promote_types(whole.dtype, jnp.float32)), axis=-1)
