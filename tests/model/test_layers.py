"""Linear maps and attention with their own backward passes, against automatic differentiation of the plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from distill.model import layers


def draw(*shape, seed=0, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def plain(q, k, v, bias):
    """softmax(q k' + bias) v, as it is written."""
    return jnp.einsum("bgrst,bgtk->bgrsk", jax.nn.softmax(jnp.einsum("bgrsk,bgtk->bgrst", q, k) + bias, axis=-1), v)


def hidden_after(length, window=0, batch=1):
    """[batch, 1, 1, S, S]: 0 where a key may be seen, -1e30 where not."""
    distance = np.arange(length)[:, None] - np.arange(length)[None]
    seen = (distance >= 0) & ((distance < window) if window else True)
    return jnp.asarray(np.where(np.broadcast_to(seen, (batch, 1, 1, length, length)), 0.0, -1e30))


def close(got, want, rtol=1e-11):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


@pytest.mark.parametrize("length", [12, 64, 65])  # whole; in two halves; odd
@pytest.mark.parametrize("shared", [1, 3])  # queries to a key-value head
@pytest.mark.parametrize("window", [0, 20])
def test_attention_and_its_gradient_are_those_of_the_formula(float64, length, shared, window):
    q, k, v = draw(2, 2, shared, length, 4), draw(2, 2, length, 4, seed=1), draw(2, 2, length, 4, seed=2)
    bias, slope = hidden_after(length, window), draw(*q.shape, seed=3)
    loss = lambda f: jax.value_and_grad(lambda q, k, v: jnp.sum(slope * f(q, k, v)), argnums=(0, 1, 2))
    want = loss(lambda q, k, v: plain(q, k, v, bias))(q, k, v)
    for causal in (True, False):
        close(loss(lambda q, k, v: layers.attention(q, k, v, bias, causal))(q, k, v), want)  # noqa: B023


def test_attention_to_more_keys_than_queries(float64):
    """As decoding does: no promise of causality, and places that hold nothing."""
    q, k, v = draw(2, 2, 1, 3, 4), draw(2, 2, 9, 4, seed=1), draw(2, 2, 9, 4, seed=2)
    bias = jnp.where(jnp.arange(9) < 5, 0.0, -1e30)[None, None, None, None]
    got = layers.attention(q, k, v, jnp.broadcast_to(bias, (1, 1, 1, 3, 9)), False)
    close(got, plain(q, k[:, :, :5], v[:, :, :5], 0.0))


def test_large_scores_overflow_nothing(float64):
    q = draw(1, 1, 1, 64, 4, dtype=jnp.float32) * 1e4
    k, v = draw(1, 1, 64, 4, seed=1, dtype=jnp.float32), draw(1, 1, 64, 4, seed=2, dtype=jnp.float32)
    grad = jax.grad(lambda q: jnp.sum(layers.attention(q, k, v, hidden_after(64).astype(jnp.float32), True)))(q)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("sizes", [(4, 6), (6, 4)])  # whichever is transposed
def test_linear_and_its_gradients(float64, sizes):
    x, w, slope = draw(2, 5, sizes[0]), draw(*sizes, seed=1), draw(2, 5, sizes[1], seed=2)
    loss = lambda f: jax.value_and_grad(lambda x, w: jnp.sum(slope * f(x, w)), argnums=(0, 1))(x, w)
    close(loss(lambda x, w: layers.linear(x, w, P(None, None, None))), loss(lambda x, w: x @ w))


def test_linear_in_bfloat16_can_answer_in_float32():
    x, w = draw(2, 5, 4, dtype=jnp.bfloat16), draw(4, 6, seed=1, dtype=jnp.bfloat16)
    got, back = jax.vjp(lambda x, w: layers.linear(x, w, P(None, None, None), jnp.float32), x, w)
    assert got.dtype == jnp.float32
    assert [one.dtype for one in back(got)] == [jnp.bfloat16] * 2
    close(got, x.astype(jnp.float32) @ w.astype(jnp.float32), rtol=1e-6)
