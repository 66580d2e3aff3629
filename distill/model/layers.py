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

# From this many positions on, queries are processed in two halves, and the first half skips the later keys, which
# saves a quarter of all scores. Four quarters save more, but were slower at S = 128: their products are too small.
HALVES_FROM = 64


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def linear(
    x: Float[Array, "B S I"], w: Float[Array, "I O"], place: P, dtype: DTypeLike | None = None
) -> Float[Array, "B S O"]:
    """x w, sharded as `place`, in `dtype` (by default x's)."""
    return lax.dot_general(x, w, (((2,), (0,)), ((), ())), preferred_element_type=dtype or x.dtype, out_sharding=place)


def _linear_forward(
    x: Float[Array, "B S I"], w: Float[Array, "I O"], place: P, dtype: DTypeLike | None
) -> tuple[Float[Array, "B S O"], tuple[Array, Array]]:
    return linear(x, w, place, dtype), (x, w)


def _linear_backward(
    place: P,
    dtype: DTypeLike | None,
    kept: tuple[Float[Array, "B S I"], Float[Array, "I O"]],
    dy: Float[Array, "B S O"],
) -> tuple[Float[Array, "B S I"], Float[Array, "I O"]]:
    x, w = kept
    dy = dy.astype(x.dtype)
    if place[1] is not None:  # the residual stream is split along the sequence (sharding.residual)
        dy = jax.sharding.reshard(dy, P(place[0], None, place[2]))
    dx = lax.dot_general(dy, w, (((2,), (1,)), ((), ())), out_sharding=_spec(x))
    # The first operand is transposed, so the smaller one comes first. The barrier keeps XLA from fusing later
    # operations into the product and transposing the larger operand after all: an Eigen product twice as slow.
    tokens, (inputs, outputs) = (((0, 1), (0, 1)), ((), ())), _spec(w).partitions
    # The gradient of a gathered weight is scattered back to the weight's shards (sharding.gather_for_use).
    sums = {"unreduced": _spec(w).reduced}
    # For a square map, the dimension that fsdp scatters comes first: the TPU compiler supports only that.
    scattered = inputs == "tensor" and jax.sharding.get_abstract_mesh().shape.get("fsdp", 1) > 1
    if w.shape[0] + scattered <= w.shape[1]:
        return dx, lax.optimization_barrier(lax.dot_general(x, dy, tokens, out_sharding=P(inputs, outputs, **sums)))
    return dx, lax.optimization_barrier(lax.dot_general(dy, x, tokens, out_sharding=P(outputs, inputs, **sums))).T


linear.defvjp(_linear_forward, _linear_backward)


def _spec(x: Array) -> P:
    return jax.typeof(x).sharding.spec


Query: TypeAlias = Float[Array, "B G R S K"]
Key: TypeAlias = Float[Array, "B G T K"]
Bias: TypeAlias = Float[Array, "#B 1 1 S T"]
# For each span of queries: the unnormalised softmax [B, G, R, s, t], and 1 / its sums [B, G, R, s, 1].
Weights: TypeAlias = list[tuple[Float[Array, "B G R _ _"], Float[Array, "B G R _ 1"]]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attention(q: Query, k: Key, v: Key, bias: Bias, causal: bool) -> Query:
    """softmax(q k' + bias) v, softmax in float32: R query heads share each head of k and v.

    bias is not differentiated. `causal` asserts that it hides every key after its query (S = T).
    The gradient is that of FlashAttention (Dao et al. 2205.14135, B.2): with P the weights and O the output,
    dS = P (dO v' - rowsum(dO O)).
    """
    return _attention_forward(q, k, v, bias, causal)[0]


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
    q: Query, k: Key, v: Key, bias: Bias, causal: bool
) -> tuple[Query, tuple[Query, Key, Key, Query, Weights]]:
    exact = jnp.promote_types(q.dtype, jnp.float32)
    outputs, kept = [], []
    for rows, keys in _spans(causal, q.shape[3], k.shape[2]):
        scores = _dot(q[:, :, :, rows], k[:, :, keys], ((4,), (3,)), exact) + bias[..., rows, keys]
        weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
        scale = 1 / jnp.sum(weights, axis=-1, keepdims=True)  # applied to the output: S K numbers; the weights are S T
        weights = weights.astype(q.dtype)
        outputs.append((scale * _dot(weights, v[:, :, keys], ((4,), (2,)), exact)).astype(q.dtype))
        kept.append((weights, scale))
    out = jnp.concatenate(outputs, axis=3)
    return out, (q, k, v, out, kept)


def _attention_backward(
    causal: bool, residuals: tuple[Query, Key, Key, Query, Weights], dout: Query
) -> tuple[Query, Key, Key, None]:
    q, k, v, out, kept = residuals
    exact, length = jnp.promote_types(q.dtype, jnp.float32), k.shape[2]
    b, g, r, length_q, width = q.shape
    flat = P(*_spec(q)[:2], None, None)
    # Summed in four dimensions: in five, XLA's YNN took 215 us instead of 20 us (4 x 4 x 128 x 16).
    product = lax.reshape(dout.astype(exact) * out.astype(exact), (b, g, r * length_q, width), out_sharding=flat)
    rowsum = lax.reshape(jnp.sum(product, axis=-1), (b, g, r, length_q, 1), out_sharding=P(*flat, None))
    dq, dk, dv = [], [], []
    for (rows, keys), (weights, scale) in zip(_spans(causal, q.shape[3], length), kept):
        scaled = (scale * dout[:, :, :, rows]).astype(q.dtype)
        dscores = _dot(scaled, v[:, :, keys], ((4,), (3,)), exact) - scale * rowsum[:, :, :, rows]
        dscores = (weights * dscores).astype(q.dtype)
        dq.append(_dot(dscores, k[:, :, keys], ((4,), (2,)), exact))
        # [B, G, K, T]: the narrower operand first, as above.
        padding = ((0, 0), (0, 0), (0, 0), (0, length - keys.stop))
        dk.append(jnp.pad(_dot(q[:, :, :, rows], dscores, ((2, 3), (2, 3)), q.dtype), padding))
        dv.append(jnp.pad(_dot(scaled, weights, ((2, 3), (2, 3)), q.dtype), padding))
    whole_k, whole_v = (jnp.swapaxes(sum(parts), 2, 3) for parts in (dk, dv))
    return jnp.concatenate(dq, axis=3).astype(q.dtype), whole_k, whole_v, None


attention.defvjp(_attention_forward, _attention_backward)
