"""What gpt-oss adds: a score of no key, biases of router and experts, clipped units; on one device and on eight."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.config import ConfigError, ExperimentConfig, ModelConfig, ObjectiveConfig, counts
from distill.model import attention_kernels, experts, layers, sharding, units
from distill.model.transformer import Transformer
from distill.training import step
from distill.types import Batch
from tests.model.decoding import check_decoding

SMALL = ModelConfig(
    d_model=32, n_heads=4, n_kv_heads=2, vocab_size=64, experts=4, experts_per_token=2, expert_d_ff=24, tied=False,
    attention_sinks=True, feed_bias=True, qkv_bias=True, out_bias=True, activation="clipped_swiglu", qk_norm=False,
    window=5, global_layers=(1,),
)  # fmt: skip


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def moved(model, seed=5):
    """The model with biases and sinks that are not zero."""
    leaves, structure = jax.tree.flatten(model)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(
        structure,
        [
            jax.sharding.reshard(x + 0.3 * jax.random.normal(k, x.shape, x.dtype), jax.typeof(x).sharding)
            for x, k in zip(leaves, keys)
        ],
    )


@pytest.mark.parametrize(("length", "causal"), [(12, True), (64, True), (12, False)])  # in two halves from 64 on
def test_a_sink_is_a_key_that_all_see_and_whose_value_is_zero(float64, length, causal):
    q, k, v = draw(2, 2, 3, length, 4), draw(2, 2, length, 4, seed=1), draw(2, 2, length, 4, seed=2)
    sink, slope = 2 * draw(2, 3, seed=3), draw(*q.shape, seed=4)
    hidden = jnp.asarray(np.where(np.tril(np.ones((length, length), bool)), 0.0, -1e30))[None, None, None]

    def plain(q, k, v, sink):
        scores = jnp.einsum("bgrsk,bgtk->bgrst", q, k) + hidden
        column = jnp.broadcast_to(sink[None, :, :, None, None], (*scores.shape[:-1], 1))
        weights = jax.nn.softmax(jnp.concatenate([scores, column], -1), axis=-1)[..., :-1]
        return jnp.einsum("bgrst,bgtk->bgrsk", weights, v)

    def ours(q, k, v, sink):
        return layers.attention(q, k, v, hidden, causal, 0.0, sink)

    loss = lambda f: jax.value_and_grad(lambda *a: jnp.sum(slope * f(*a)), argnums=(0, 1, 2, 3))(q, k, v, sink)
    for got, want in zip(jax.tree.leaves(loss(ours)), jax.tree.leaves(loss(plain)), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-11 * np.abs(want).max())


def test_a_sink_far_above_all_scores_leaves_nothing_and_one_far_below_changes_nothing():
    q, k, v = (draw(1, 1, 1, 8, 4, seed=i).astype(jnp.float32) for i in range(3))
    given = q, k[:, :, 0], v[:, :, 0], jnp.zeros((1, 1, 1, 8, 8)), False, 0.0
    np.testing.assert_allclose(layers.attention(*given, jnp.full((1, 1), 1e4)), 0, atol=1e-30)
    np.testing.assert_array_equal(layers.attention(*given, jnp.full((1, 1), -1e4)), layers.attention(*given))


@pytest.mark.parametrize("product", ["ragged", "blocks"])
def test_biases_of_router_and_experts(float64, product):
    """Value and gradient by everything, against all experts for every token."""
    X, J, D, F = 6, 2, 8, 12
    config = ModelConfig(d_model=D, experts=X, experts_per_token=J, expert_d_ff=F, n_heads=2)
    x = draw(3, 7, D)
    given = [draw(D, X, seed=1), draw(X, seed=2), draw(X, D, F, seed=3), draw(X, D, F, seed=4), draw(X, F, D, seed=5)]
    given += [draw(X, F, seed=7), draw(X, F, seed=8), draw(X, D, seed=9)]
    largest = lambda logits: logits >= np.sort(logits, axis=-1)[..., -J][..., None]
    chosen = largest(np.asarray(x @ given[0]) + np.asarray(given[1]))
    assert not (chosen == largest(np.asarray(x @ given[0]))).all()

    def ours(router, router_bias, gate, up, down, *biases):
        routes = experts.route(config, x, router, router_bias)
        given = x, routes, gate, up, down, units.clipped_swiglu
        return experts.feed_forward(*given, product=product, biases=experts.Biases(*biases))

    def dense(router, router_bias, gate, up, down, gate_bias, up_bias, down_bias):
        share = jax.nn.softmax(jnp.where(chosen, x @ router + router_bias[None, None], -jnp.inf), axis=-1)
        first = [jnp.einsum("bsd,xdf->bsxf", x, w) + b[None, None] for w, b in ((gate, gate_bias), (up, up_bias))]
        each = jnp.einsum("bsxf,xfd->bsxd", units.clipped_swiglu(*first), down) + down_bias[None, None]
        return jnp.einsum("bsx,bsxd->bsd", share, each)

    loss = lambda f: jax.jit(jax.value_and_grad(lambda *a: jnp.sum(jnp.sin(f(*a))), argnums=tuple(range(8))))(*given)
    for got, want in zip(jax.tree.leaves(loss(ours)), jax.tree.leaves(loss(dense)), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)


def test_clipped_units():
    """By hand: the gate is cut above alone, the other map on both sides, and one is added to it."""
    gate, up = jnp.asarray([1.0, 9.0, -9.0, 2.0]), jnp.asarray([0.5, 9.0, -9.0, -1.0])
    g, u = np.asarray([1.0, 7.0, -9.0, 2.0]), np.asarray([1.5, 8.0, -6.0, 0.0])
    np.testing.assert_allclose(units.clipped_swiglu(gate, up), g / (1 + np.exp(-1.702 * g)) * u, rtol=1e-6)


@pytest.fixture(scope="module")
def experiment():
    objective = ObjectiveConfig(lambda_=0.5)
    return ExperimentConfig(model=SMALL, objective=objective, tokens=2560, batch_size=8, seq_len=16, seed=3)


def gradient(config, mesh):
    """The gradient by all parameters, which biases and sinks are part of, on a mesh."""
    rng = np.random.default_rng(0)
    with jax.set_mesh(mesh):
        state = step.init_state(config)
        state = dataclasses.replace(state, params=moved(state.params))
        placed = sharding.place(Batch(rng.integers(0, 64, (8, 17), np.int32), np.ones((8, 16), np.float32)), mesh)
        (found, _), sums, _ = jax.jit(step.gradients, static_argnums=0)(step.step_spec(config), state, None, placed)
        return jax.device_get((found, sums))


@pytest.fixture(scope="module")
def alone(experiment):
    return gradient(experiment, sharding.make(experiment.mesh, jax.devices()[:1]))


def test_eight_devices_are_one(experiment, alone, mesh_of):
    model = dataclasses.replace(SMALL, sequence=True, remat="attention")  # on one device these change nothing
    got = gradient(dataclasses.replace(experiment, model=model), mesh_of(2, 2, 2))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-6)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(alone[0]))  # nothing is left out


def test_decoding_in_pieces_is_the_whole():
    check_decoding(moved(Transformer(SMALL, jax.random.key(0))))


@pytest.mark.parametrize("changes", [{}, {"experts": 0, "activation": "silu"}])
def test_all_parameters_are_counted(changes):
    config = dataclasses.replace(SMALL, **changes)
    model = Transformer(config, jax.random.key(0))
    assert counts.total(config) == sum(leaf.size for leaf in jax.tree.leaves(model))


def test_kernels_without_sinks_are_not_chosen():
    published = dataclasses.replace(SMALL, dtype="bfloat16")
    for platform, kind in (("tpu", "TPU v5 lite"), ("gpu", "NVIDIA H100 80GB HBM3")):
        kernel, reason = attention_kernels.automatic(published, 128, platform, kind)
        assert kernel == "xla" and "no sinks" in reason
    for kernel in ("splash", "cudnn"):
        with pytest.raises(ConfigError, match="no sinks .*; use 'xla'"):
            attention_kernels.chosen(dataclasses.replace(published, attention=kernel), 128)


def test_a_clipped_gate_that_is_not_there():
    with pytest.raises(ConfigError, match="clips a gate; set gated=true"):
        ModelConfig(activation="clipped_swiglu", gated=False)
