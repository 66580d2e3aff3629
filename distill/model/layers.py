"""The two operations that dominate a step, linear maps and attention, with hand-written backward passes.

Automatic differentiation gives the same numbers, but it computes gradients in transposed layouts and does not
differentiate softmax by rows: docs/results/speed.md has the profile before and after (measured with `python -m
launch.bench step`). Letters of the shapes: distill/types.py; I inputs, O outputs; R queries that share a key-value
head; T keys.
"""

import functools
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from distill.model import products
from distill.model.products import Kind as ProductKind
from distill.model.products import Quantised

# From this many positions on, queries are processed in two halves, and the first half skips the later keys, which
# saves a quarter of all scores. Four quarters save more, but were slower at S = 128: their products are too small.
HALVES_FROM = 64


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def linear(
    x: Float[Array, "B S I"],
    w: Float[Array, "I O"] | Quantised,
    place: P,
    dtype: DTypeLike | None = None,
    kind: ProductKind = "full",
) -> Float[Array, "B S O"]:
    """x w, sharded as `place`, in `dtype` (by default x's).

    A `kind` but full multiplies both rounded (distill/model/products.py); gradients are those of the plain product.
    """
    if kind != "full" or isinstance(w, Quantised):
        return products.dot(x, w, ((2,), (0,)), place, dtype or x.dtype, kind)
    return lax.dot_general(x, w, (((2,), (0,)), ((), ())), preferred_element_type=dtype or x.dtype, out_sharding=place)


def _linear_forward(
    x: Float[Array, "B S I"], w: Float[Array, "I O"], place: P, dtype: DTypeLike | None, kind: ProductKind
) -> tuple[Float[Array, "B S O"], tuple[Array, Array]]:
    return linear(x, w, place, dtype, kind), (x, w)


def _linear_backward(
    place: P,
    dtype: DTypeLike | None,
    kind: ProductKind,
    kept: tuple[Float[Array, "B S I"], Float[Array, "I O"]],
    dy: Float[Array, "B S O"],
) -> tuple[Float[Array, "B S I"], Float[Array, "I O"]]:
    x, w = kept
    dy = whole_sequence(dy.astype(x.dtype), place)
    dx = lax.dot_general(dy, w, (((2,), (1,)), ((), ())), out_sharding=spec_of(x))
    return dx, weight_gradient(x, w, dy)


linear.defvjp(_linear_forward, _linear_backward)


def whole_sequence(dy: Float[Array, "B S O"], place: P) -> Float[Array, "B S O"]:
    """A gradient with all positions on every device, where `place` splits them over tensor (sharding.residual)."""
    return jax.sharding.reshard(dy, P(place[0], None, place[2])) if place[1] is not None else dy


def weight_gradient(x: Float[Array, "B S I"], w: Float[Array, "I O"], dy: Float[Array, "B S O"]) -> Float[Array, "I O"]:
    """x' dy summed over all tokens, scattered as the weight w of a map x w is stored."""
    # The first operand is transposed, so the smaller one comes first. The barrier keeps XLA from fusing later
    # operations into the product and transposing the larger operand after all: an Eigen product twice as slow.
    tokens, (inputs, outputs) = (((0, 1), (0, 1)), ((), ())), spec_of(w).partitions
    # The gradient of a gathered weight is scattered back to the weight's shards (sharding.gather_for_use).
    sums = {"unreduced": spec_of(w).reduced}
    # For a square map, the dimension that fsdp scatters comes first: the TPU compiler supports only that.
    scattered = inputs == "tensor" and jax.sharding.get_abstract_mesh().shape.get("fsdp", 1) > 1
    if w.shape[0] + scattered <= w.shape[1]:
        return lax.optimization_barrier(lax.dot_general(x, dy, tokens, out_sharding=P(inputs, outputs, **sums)))
    return lax.optimization_barrier(lax.dot_general(dy, x, tokens, out_sharding=P(outputs, inputs, **sums))).T


def spec_of(x: Array) -> P:
    """How a value is sharded; part of its type."""
    return jax.typeof(x).sharding.spec


Query: TypeAlias = Float[Array, "B G R S K"]
Key: TypeAlias = Float[Array, "B G T K"]
Bias: TypeAlias = Float[Array, "#B 1 1 S T"]
Sink: TypeAlias = Float[Array, "G R"]
# For each span of queries: the unnormalised softmax [B, G, R, s, t], 1 / its sums [B, G, R, s, 1], and the sink's
# probability [B, G, R, s, 1], if there is one.
Weights: TypeAlias = list[tuple[Float[Array, "B G R _ _"], Float[Array, "B G R _ 1"], Float[Array, "B G R _ 1"] | None]]


def capped(x: Float[Array, "..."], cap: float) -> Float[Array, "..."]:
    """cap tanh(x / cap), which stays within the cap (Gemma 2, 2408.00118); x itself where cap is 0."""
    return cap * jnp.tanh(x / cap) if cap else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def attention(q: Query, k: Key, v: Key, bias: Bias, causal: bool, cap: float = 0.0, sink: Sink | None = None) -> Query:
    """softmax(capped(q k') + bias) v, softmax in float32: R query heads share each head of k and v.

    bias is not differentiated. `causal` asserts that it hides every key after its query (S = T). With a sink the
    softmax of each query has that score too, of no key and no value (gpt-oss 2508.10925).
    The gradient is that of FlashAttention (Dao et al. 2205.14135, B.2): with P the weights and O the output,
    dS = P (dO v' - rowsum(dO O)); of the sink, whose value is zero, -P rowsum(dO O).
    """
    return _attention_forward(q, k, v, bias, causal, cap, sink)[0]


def _spans(causal: bool, length: int, keys: int) -> list[tuple[slice, slice]]:
    """Blocks of queries and the keys that they attend to."""
    half = length // 2
    if not causal or length < HALVES_FROM or length % 2:
        return [(slice(0, length), slice(0, keys))]
    return [(slice(0, half), slice(0, half)), (slice(half, length), slice(0, length))]


def _dot(
    a: Float[Array, "B G R _ _"],
    b: Float[Array, "B G ..."],
    contracted: tuple[tuple[int, ...], tuple[int, ...]],
    dtype: DTypeLike,
) -> Float[Array, "B G ..."]:
    """One product for each key-value head."""
    return lax.dot_general(a, b, (contracted, ((0, 1), (0, 1))), preferred_element_type=dtype)


def _attention_forward(
    q: Query, k: Key, v: Key, bias: Bias, causal: bool, cap: float, sink: Sink | None
) -> tuple[Query, tuple[Query, Key, Key, Query, Weights]]:
    exact = jnp.promote_types(q.dtype, jnp.float32)
    outputs, kept = [], []
    for rows, keys in _spans(causal, q.shape[3], k.shape[2]):
        scores = capped(_dot(q[:, :, :, rows], k[:, :, keys], ((4,), (3,)), exact), cap) + bias[..., rows, keys]
        most = jnp.max(scores, axis=-1, keepdims=True)
        if sink is not None:
            score = sink.astype(exact)[None, :, :, None, None]
            most = jnp.maximum(most, score)
        weights = jnp.exp(scores - most)
        # The scale is applied to the output: S K numbers; the weights are S T.
        if sink is None:
            scale, lost = 1 / jnp.sum(weights, axis=-1, keepdims=True), None
        else:
            idle = jnp.exp(score - most)
            scale = 1 / (jnp.sum(weights, axis=-1, keepdims=True) + idle)
            lost = scale * idle
        weights = weights.astype(q.dtype)
        outputs.append((scale * _dot(weights, v[:, :, keys], ((4,), (2,)), exact)).astype(q.dtype))
        kept.append((weights, scale, lost))
    out = jnp.concatenate(outputs, axis=3)
    return out, (q, k, v, out, kept)


def _attention_backward(
    causal: bool, cap: float, residuals: tuple[Query, Key, Key, Query, Weights], dout: Query
) -> tuple[Query, Key, Key, None, Sink | None]:
    q, k, v, out, kept = residuals
    exact, length = jnp.promote_types(q.dtype, jnp.float32), k.shape[2]
    b, g, r, length_q, width = q.shape
    flat = P(*spec_of(q)[:2], None, None)
    # Summed in four dimensions: in five, XLA's YNN took 215 us instead of 20 us (4 x 4 x 128 x 16).
    product = lax.reshape(dout.astype(exact) * out.astype(exact), (b, g, r * length_q, width), out_sharding=flat)
    rowsum = lax.reshape(jnp.sum(product, axis=-1), (b, g, r, length_q, 1), out_sharding=P(*flat, None))
    dq, dk, dv, dsinks = [], [], [], []
    for (rows, keys), (weights, scale, lost) in zip(_spans(causal, q.shape[3], length), kept):
        scaled = (scale * dout[:, :, :, rows]).astype(q.dtype)
        dscores = _dot(scaled, v[:, :, keys], ((4,), (3,)), exact) - scale * rowsum[:, :, :, rows]
        dscores = weights * dscores
        if cap:  # the cap's own slope, from the scores once more: they are not kept
            raw = _dot(q[:, :, :, rows], k[:, :, keys], ((4,), (3,)), exact)
            dscores = dscores * (1 - jnp.square(jnp.tanh(raw / cap)))
        dscores = dscores.astype(q.dtype)
        dq.append(_dot(dscores, k[:, :, keys], ((4,), (2,)), exact))
        # [B, G, K, T]: the narrower operand first, as above.
        padding = ((0, 0), (0, 0), (0, 0), (0, length - keys.stop))
        dk.append(jnp.pad(_dot(q[:, :, :, rows], dscores, ((2, 3), (2, 3)), q.dtype), padding))
        dv.append(jnp.pad(_dot(scaled, weights, ((2, 3), (2, 3)), q.dtype), padding))
        if lost is not None:
            dsinks.append(-jnp.sum(lost * rowsum[:, :, :, rows], axis=(0, 3, 4)))
    whole_k, whole_v = (jnp.swapaxes(sum(parts), 2, 3) for parts in (dk, dv))
    dsink = functools.reduce(jnp.add, dsinks) if dsinks else None
    return jnp.concatenate(dq, axis=3).astype(q.dtype), whole_k, whole_v, None, dsink


attention.defvjp(_attention_forward, _attention_backward)
