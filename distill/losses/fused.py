"""The losses of losses.py straight from hidden states and heads: [B, S, V] never exists, for student or teacher.

Logits are computed for a chunk of tokens and a chunk of the vocabulary at a time, reduced, and thrown away; the
backward pass computes them again. Everything happens inside one shard_map, batch over (data, fsdp) and vocabulary over
tensor. Its collectives stand before and after the loops: the head is gathered over fsdp (so its gradient comes back
scattered), and each token's normaliser is summed over tensor once.

With z the student's logits, q(tau) its probabilities and d_v = d terms_v / d log q_v, the gradients are
    d logsumexp(z / tau) / d z_v = q_v / tau      d divergence / d z_v = (d_v - q_v sum_u d_u) / tau
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from distill.losses import divergences
from distill.model import sharding
from distill.types import LOG_ZERO, HiddenSignal, MixedSignal, TeacherSignal

# Logits of one chunk: enough to keep a matmul busy, few enough to stay near it. Measured: docs/results/objectives.md.
CHUNK_LOGITS = 2**20
CHUNK_TOKENS = 2048
LEAST_COLUMNS = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class FusedShape:
    """What is compiled in. kind '' asks for no divergence; tokens: columns of the heads that are tokens."""

    kind: str
    tempered: bool
    tokens: int
    chunk_logits: int = CHUNK_LOGITS
    chunk_tokens: int = CHUNK_TOKENS
    alone: bool = False  # one device: no shard_map, for even collectives with oneself copy the heads


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Readings:
    """Of every token: logsumexp at tau = 1 and at tau, some logits, and the divergence.

    Where tau is 1, `normaliser` carries the gradient and `softened` none. The divergence is between distributions
    softened by tau, without the factor tau^2; it is zero where none was asked for.
    """

    normaliser: Float[Array, "B S"]
    softened: Float[Array, "B S"]
    picked: Float[Array, "B S K"]
    divergence: Float[Array, "B S"]


def read(
    shape: FusedShape,
    hidden: Float[Array, "B S D"],
    head: Float[Array, "V D"],
    ids: Int[Array, "B S K"],
    signal: HiddenSignal | MixedSignal | TeacherSignal | None,
    temperature: float | Float[Array, ""] = 1.0,
    beta: float | Float[Array, ""] = 0.5,
) -> Readings:
    """Readings of the student's logits hidden @ head.T, differentiable by `hidden` and `head`.

    `head` comes as it is stored (over tensor and fsdp) and is used in hidden's dtype. The teacher, stop-gradient, may
    be given by its hidden states and head, as a mixture of several, or by its log-probabilities; its columns match
    the student's.
    """
    reshard = jax.sharding.reshard
    said, said_specs = _said(signal)
    values = (hidden, head, ids, jnp.asarray(temperature, jnp.float32), jnp.asarray(beta, jnp.float32), said)
    specs = (sharding.ACT_BSD, sharding.STORED["head_vd"], sharding.ACT_BSD, P(), P(), said_specs)
    outputs = (sharding.TOKENS_BS, sharding.TOKENS_BS, sharding.ACT_BSD, sharding.TOKENS_BS)
    values = jax.tree.map(reshard, values, specs)
    if jax.sharding.get_abstract_mesh().size == 1:
        found = _local(dataclasses.replace(shape, alone=True), *jax.tree.map(lambda x: reshard(x, P()), values))
        return Readings(*map(reshard, found, outputs))
    mapped = jax.shard_map(functools.partial(_local, shape), in_specs=specs, out_specs=outputs)
    return Readings(*mapped(*values))


def _said(signal: HiddenSignal | MixedSignal | TeacherSignal | None) -> tuple[Any, Any]:
    """The teacher's word as (what is cut by tokens, heads), and where each lies.

    Cut by tokens are log-probabilities with no head beside them, or hidden states, a head each, and in a mixture then
    an offset each.
    """
    head = sharding.STORED["head_vd"]
    if signal is None:
        return ((), ()), ((), ())
    if isinstance(signal, TeacherSignal):
        return ((signal.log_probs,), ()), ((sharding.LOGITS_BSV,), ())
    if isinstance(signal, HiddenSignal):
        return ((signal.hidden,), (signal.head,)), ((sharding.ACT_BSD,), (head,))
    own = (*(part.hidden for part in signal.parts), *signal.offsets)
    heads = tuple(part.head for part in signal.parts)
    return (own, heads), ((sharding.ACT_BSD,) * len(own), (head,) * len(heads))


def _local(shape: FusedShape, hidden: Any, head: Any, ids: Any, temperature: Any, beta: Any, said: Any) -> Any:
    """The shard of one device: flattens its tokens, gathers the heads, and back again."""
    lead = hidden.shape[:2]
    flat = lambda x: x.reshape(-1, x.shape[-1])
    weight = _gather(shape, head, hidden.dtype)
    own, heads = tuple(map(flat, said[0])), said[1]
    if heads:
        own = tuple(_vary(shape, x, "tensor") for x in own)
        heads = tuple(_gather(shape, head, x.dtype) for x, head in zip(own, heads))
    tokens = _vary(shape, flat(hidden), "tensor"), weight, _vary(shape, flat(ids), "tensor")
    found = _read(shape, *tokens, temperature, beta, (own, heads))
    return tuple(x.reshape(*lead, *x.shape[1:]) for x in found)


def _vary(shape: FusedShape, x: Any, *axes: str) -> Any:
    """x as a value that may differ along these axes too, all by default; the transpose sums gradients over them."""
    return x if shape.alone else lax.pcast(x, axes or sharding.AXES, to="varying")


def _gather(shape: FusedShape, head: Any, dtype: Any) -> Any:
    """The rows of the head that this device keeps, whole; in transit in the dtype of the hidden states.

    On one device nothing travels, and each chunk is cast where it is used, which leaves no second copy.
    """
    if shape.alone:
        return head
    return _vary(shape, sharding.gather_rows(head.astype(dtype)), "data")


class _Chunks:
    """How a device walks through its tokens and its part of the vocabulary."""

    def __init__(self, shape: FusedShape, tokens: int, rows: int):
        self.tokens = max(n for n in range(1, min(tokens, shape.chunk_tokens) + 1) if tokens % n == 0)
        self.columns = min(rows, max(LEAST_COLUMNS, shape.chunk_logits // self.tokens))
        self.parts = tokens // self.tokens
        self.count = math.ceil(rows / self.columns)
        self.rows, self.valid = rows, shape.tokens
        self.offset = 0 if shape.alone else lax.axis_index("tensor") * rows
        self.whole = rows % self.columns == 0

    def split(self, x: Any) -> Any:
        """[T, ...] as chunks of tokens, [T / chunk, chunk, ...]."""
        return x.reshape(self.parts, self.tokens, *x.shape[1:])

    def start(self, i: Any) -> Any:
        """The first column of chunk i; the last chunk reaches back where the vocabulary does not divide."""
        return i * self.columns if self.whole else jnp.minimum(i * self.columns, self.rows - self.columns)

    def live(self, i: Any) -> Any:
        """[columns]: neither read before nor padding."""
        column = self.start(i) + jnp.arange(self.columns)
        return (column >= i * self.columns) & (column + self.offset < self.valid)

    def student(self, i: Any, hidden: Any, weight: Any) -> Any:
        """[tokens, columns]: logits, NOTHING where a column is not live."""
        part = lax.dynamic_slice_in_dim(weight, self.start(i), self.columns).astype(hidden.dtype)
        exact = jnp.promote_types(hidden.dtype, jnp.float32)
        z = lax.dot_general(hidden, part, (((1,), (1,)), ((), ())), preferred_element_type=exact)
        return jnp.where(self.live(i)[None], z, LOG_ZERO)

    def teacher(self, i: Any, own: tuple[Any, ...], heads: tuple[Any, ...], exact: Any) -> Any:
        """The teacher's logits, or its log-probabilities, over the same columns."""
        if heads:
            each = [self.student(i, hidden, head).astype(exact) for hidden, head in zip(own, heads)]
            offsets = own[len(heads) :]
            return functools.reduce(jnp.logaddexp, [z + c for z, c in zip(each, offsets)]) if offsets else each[0]
        part = lax.dynamic_slice_in_dim(own[0], self.start(i), self.columns, axis=1).astype(exact)
        return jnp.where(self.live(i)[None], jnp.maximum(part, LOG_ZERO), LOG_ZERO)

    def places(self, i: Any, ids: Any) -> tuple[Any, Any]:
        """Where ids lie in chunk i, and which of them do."""
        place = ids - self.offset - self.start(i)
        return jnp.clip(place, 0, self.columns - 1), (place >= i * self.columns - self.start(i)) & (
            place < self.columns
        )


def _reduce(shape: FusedShape, chunks: _Chunks, weight: Any, tau: Any, said: Any, x: Any) -> tuple[Any, ...]:
    """What one device knows of a chunk of tokens: peaks and sums of exponentials below them, picked logits, and the
    sum of the exponentials times what a forward or reverse divergence is the mean of."""
    hidden, ids, own = x
    exact = jnp.promote_types(hidden.dtype, jnp.float32)
    zeros = lambda *dims, fill=0.0: _vary(shape, jnp.full((hidden.shape[0], *dims), fill, exact))

    def columns(carry: Any, i: Any) -> Any:
        peak, plain, soft, picked, peak_t, soft_t, expected = carry
        z = chunks.student(i, hidden, weight)
        place, inside = chunks.places(i, ids)
        if ids.shape[1] == 1:
            chosen = jnp.sum(jnp.where((place == jnp.arange(chunks.columns)[None]) & inside, z, 0), axis=1)[:, None]
        else:
            chosen = jnp.where(inside, jnp.take_along_axis(z, place, axis=1), 0)
        top = jnp.maximum(peak, jnp.max(z, axis=1))
        plain = plain * jnp.exp(peak - top) + jnp.sum(jnp.exp(z - top[:, None]), axis=1)
        mass, change = jnp.exp((z - top[:, None]) / tau), jnp.exp((peak - top) / tau)
        soft = soft * change + jnp.sum(mass, axis=1)
        if shape.kind:
            t = chunks.teacher(i, own, said[1], exact)
            top_t = jnp.maximum(peak_t, jnp.max(t, axis=1))
            mass_t, change_t = jnp.exp((t - top_t[:, None]) / tau), jnp.exp((peak_t - top_t) / tau)
            soft_t = soft_t * change_t + jnp.sum(mass_t, axis=1)
            if shape.kind == "forward":
                expected = expected * change_t + jnp.sum(mass_t * z, axis=1)
            elif shape.kind == "reverse":
                expected = expected * change + jnp.sum(mass * (z - t), axis=1)
            peak_t = top_t
        return (top, plain, soft, picked + chosen, peak_t, soft_t, expected), None

    start = (zeros(fill=LOG_ZERO), zeros(), zeros(), zeros(ids.shape[1]), zeros(fill=LOG_ZERO), zeros(), zeros())
    return lax.scan(columns, start, jnp.arange(chunks.count))[0]


def _compare(shape: FusedShape, chunks: _Chunks, weight: Any, tau: Any, beta: Any, said: Any, x: Any) -> Any:
    """The sums of the terms of a divergence and of their slopes, over the columns of one device."""
    hidden, own, soft, soft_t = x
    zero = _vary(shape, jnp.zeros(soft.shape, soft.dtype))

    def columns(carry: Any, i: Any) -> Any:
        log_q = chunks.student(i, hidden, weight) / tau - soft[:, None]
        log_p = chunks.teacher(i, own, said[1], soft.dtype) / tau - soft_t[:, None]
        value, d = _slope(shape.kind, log_p, log_q, beta)
        return (carry[0] + jnp.sum(value, axis=1), carry[1] + jnp.sum(d, axis=1)), None

    return lax.scan(columns, (zero, zero), jnp.arange(chunks.count))[0]


def _slope(kind: str, log_p: Any, log_q: Any, beta: Any) -> tuple[Any, Any]:
    """The terms of a divergence and their derivatives by log q."""
    function = lambda log_q: divergences.terms(kind, log_p, log_q, beta.astype(log_q.dtype))
    return jax.jvp(function, (log_q,), (jnp.ones_like(log_q),))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _read(
    shape: FusedShape, hidden: Any, weight: Any, ids: Any, temperature: Any, beta: Any, said: tuple[Any, ...]
) -> tuple[Any, ...]:
    return _read_forward(shape, hidden, weight, ids, temperature, beta, said)[0]


def _each(chunks: _Chunks, said: tuple[Any, ...]) -> tuple[Any, ...]:
    """The part of the teacher's word that is cut by tokens."""
    return tuple(map(chunks.split, said[0]))


def _read_forward(
    shape: FusedShape, hidden: Any, weight: Any, ids: Any, temperature: Any, beta: Any, said: tuple[Any, ...]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    chunks = _Chunks(shape, hidden.shape[0], weight.shape[0])
    tau = _tau(shape, hidden, temperature)
    join = lambda x: x.reshape(-1, *x.shape[2:])
    parts = chunks.split(hidden), chunks.split(ids), _each(chunks, said)
    found = lax.map(functools.partial(_reduce, shape, chunks, weight, tau, said), parts)
    peak, plain, soft, picked, peak_t, soft_t, expected = map(join, found)

    # The only collectives: a token's sums over the vocabulary, once.
    total = lambda x: x if shape.alone else lax.psum(x, "tensor")
    most = lambda x: x if shape.alone else lax.pmax(x, "tensor")
    top, top_t = most(peak), most(peak_t)
    change, change_t = jnp.exp((peak - top) / tau), jnp.exp((peak_t - top_t) / tau)
    plain = top + jnp.log(total(plain * jnp.exp(peak - top)))
    mass, mass_t = total(soft * change), total(soft_t * change_t)
    picked, soft = total(picked), top / tau + jnp.log(mass)
    slope = divergence = soft_t = jnp.zeros_like(plain)
    if shape.kind:
        soft_t = top_t / tau + jnp.log(mass_t)
    if shape.kind == "forward":
        divergence = soft - total(expected * change_t) / mass_t / tau
    elif shape.kind == "reverse":
        divergence = total(expected * change) / mass / tau - soft + soft_t
    elif shape.kind:
        known = chunks.split(hidden), _each(chunks, said), chunks.split(soft), chunks.split(soft_t)
        sums = lax.map(functools.partial(_compare, shape, chunks, weight, tau, beta, said), known)
        divergence, slope = total(join(sums[0])), total(join(sums[1]))
    # The same on every device of tensor, which division by a varying tau hides.
    soft, divergence = most((soft, divergence))
    kept = (hidden, weight, ids, temperature, beta, said, (plain, soft, divergence, soft_t, slope))
    return (plain, soft, picked, divergence), kept


def _tau(shape: FusedShape, hidden: Any, temperature: Any) -> Any:
    """A temperature of 1 is compiled in."""
    return temperature.astype(jnp.promote_types(hidden.dtype, jnp.float32)) if shape.tempered else 1.0


def _read_backward(shape: FusedShape, kept: tuple[Any, ...], cotangents: tuple[Any, ...]) -> tuple[Any, ...]:
    hidden, weight, ids, temperature, beta, said, readings = kept
    chunks = _Chunks(shape, hidden.shape[0], weight.shape[0])
    exact = jnp.promote_types(hidden.dtype, jnp.float32)
    tau = _tau(shape, hidden, temperature)
    by = tuple(map(chunks.split, cotangents))

    def tokens(total: Any, x: Any) -> Any:
        hidden, ids, own, (plain, soft, divergence, soft_t, slope), (g_plain, g_soft, g_picked, g_divergence) = x

        def columns(carry: Any, i: Any) -> Any:
            by_hidden, total = carry
            z = chunks.student(i, hidden, weight)
            q = jnp.exp(z - plain[:, None])
            by_z = g_plain[:, None] * q
            if shape.tempered:
                q = jnp.exp(z / tau - soft[:, None])
                by_z += (g_soft / tau)[:, None] * q
            if shape.kind:
                t = chunks.teacher(i, own, said[1], exact)
                log_p = t / tau - soft_t[:, None]
                if shape.kind == "forward":
                    d = q - jnp.exp(log_p)
                elif shape.kind == "reverse":
                    d = q * ((z / tau - soft[:, None] - log_p) - divergence[:, None])
                else:
                    d = _slope(shape.kind, log_p, z / tau - soft[:, None], beta)[1] - q * slope[:, None]
                by_z += (g_divergence / tau)[:, None] * d
            place, inside = chunks.places(i, ids)
            by_picked = jnp.where(inside, g_picked, 0)
            if ids.shape[1] == 1:
                by_z += jnp.where(place == jnp.arange(chunks.columns)[None], by_picked, 0)
            else:
                by_z = by_z.at[jnp.arange(chunks.tokens)[:, None], place].add(by_picked)
            by_z = by_z.astype(hidden.dtype)
            start = chunks.start(i)
            part = lax.dynamic_slice_in_dim(weight, start, chunks.columns).astype(hidden.dtype)
            by_hidden += lax.dot_general(by_z, part, (((1,), (0,)), ((), ())), preferred_element_type=exact)
            new = lax.dot_general(by_z, hidden, (((0,), (0,)), ((), ())), preferred_element_type=exact)
            old = lax.dynamic_slice_in_dim(total, start, chunks.columns)
            total = lax.dynamic_update_slice_in_dim(total, old + new.astype(total.dtype), start, axis=0)
            return (by_hidden, total), None

        zero = _vary(shape, jnp.zeros(hidden.shape, exact))
        (by_hidden, total), _ = lax.scan(columns, (zero, total), jnp.arange(chunks.count))
        return total, by_hidden.astype(hidden.dtype)

    # Every row is written once unless there are several chunks of tokens, so only then does it need float32.
    zero = _vary(shape, jnp.zeros(weight.shape, weight.dtype if chunks.parts == 1 else exact))
    parts = (chunks.split(hidden), chunks.split(ids), _each(chunks, said), tuple(map(chunks.split, readings)), by)
    by_weight, by_hidden = lax.scan(tokens, zero, parts)
    return by_hidden.reshape(hidden.shape), by_weight.astype(weight.dtype), None, None, None, None


_read.defvjp(_read_forward, _read_backward)
