"""Layers that differ in window, base or rotation, and scaled positions; against models whose layers are all alike.

Against transformers the same is tested by family: tests/interop/test_zoo.py.
"""

import dataclasses
import math

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from distill.config import ConfigError, ModelConfig
from distill.losses import divergences
from distill.model import attention_kernels, layers, positions
from distill.model.transformer import Transformer

SHAPE = ModelConfig(vocab_size=32, d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, d_ff=48)
LENGTH = 24
TOKENS = np.random.default_rng(0).integers(0, 32, (2, LENGTH), np.int32)
LOGITS = jax.jit(lambda model, tokens: model(tokens))
# Equations of a traced loss and its gradient, of the last commit whose layers were all alike.
PLAIN = {
    "the paper's": ({}, 509),
    "window": ({"window": 5, "qk_norm": False}, 455),
    "published": (
        {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_context": 32, "qk_norm": False, "qkv_bias": True}
        | {"out_bias": True, "n_kv_heads": 1, "tied": False},
        485,
    ),
    "linear, bfloat16": ({"rope_scaling": "linear", "rope_factor": 2.0, "dtype": "bfloat16"}, 568),
}


def logits(weights=SHAPE, **changes):
    """Of the same weights under other settings."""
    model = Transformer(weights, jax.random.key(0))
    config = dataclasses.replace(weights, **changes)
    model.config = model.blocks.config = config
    return np.asarray(LOGITS(model, jnp.asarray(TOKENS)))


def equations(jaxpr):
    inner = [i for equation in jaxpr.eqns for i in jax.extend.core.jaxprs_in_params(equation.params)]
    return len(jaxpr.eqns) + sum(map(equations, inner))


@pytest.mark.parametrize("name", PLAIN)
def test_a_model_without_families_computes_what_it_did(name):
    """Not an operation more. Losses and gradients of these were bit-equal in float32 on a CPU when families came, and
    when the units of a feed-forward were computed again instead of kept (four equations, units.py)."""
    changes, wanted = PLAIN[name]
    shapes = jax.eval_shape(lambda key: Transformer(ModelConfig(**changes), key), jax.random.key(0))
    tokens = jnp.zeros((2, 128), jnp.int32)
    loss = lambda model: jnp.mean(divergences.cross_entropy(model(tokens), tokens))
    assert equations(jax.make_jaxpr(jax.value_and_grad(loss))(shapes).jaxpr) == wanted


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"window": 5, "global_layers": (0, 1, 2)}, {}),
        ({"window": LENGTH, "global_layers": (1,)}, {}),
        (
            {"window": 5, "global_layers": (1,), "local_rope_base": SHAPE.rope_base},
            {"window": 5, "global_layers": (1,)},
        ),
        ({"window": LENGTH, "global_layers": (1,), "local_rope_base": 1e3, "rope_base": 1e3}, {"rope_base": 1e3}),
        ({"rope_scaling": "dynamic", "rope_factor": 4.0, "rope_context": LENGTH}, {}),
        ({"rope_scaling": "yarn", "rope_factor": 1.0, "rope_context": 8}, {}),
        ({"rope_scaling": "longrope", "rope_short": (1.0,) * 4, "rope_long": (9.0,) * 4, "rope_context": LENGTH}, {}),
        (
            {"rope_scaling": "longrope", "rope_short": (9.0,) * 4, "rope_long": (3.0,) * 4, "rope_context": LENGTH - 1},
            {"rope_scaling": "linear", "rope_factor": 3.0},
        ),
        ({"attention_scale": 1 / math.sqrt(8)}, {}),
        ({"attention_cap": 1e4, "logit_cap": 1e4}, {}),
    ],
)
def test_two_descriptions_of_one_model(one, other):
    np.testing.assert_allclose(logits(**one), logits(**other), atol=2e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"window": 5, "global_layers": (1,)},
        {"window": 5, "global_layers": (1,), "local_rope_base": 100.0},
        {"unrotated_layers": (2,)},
        {"rope_channels": 4},
        {"rope_amplitude": 1.3},
        {"rope_scaling": "dynamic", "rope_factor": 4.0, "rope_context": 8},
        {"rope_scaling": "yarn", "rope_factor": 8.0, "rope_context": 8},
        {"attention_scale": 0.7},
        {"attention_cap": 0.5},
        {"logit_cap": 0.5},
        {"activation": "gelu_tanh"},
    ],
)
def test_each_setting_changes_the_model(changes):
    assert np.max(np.abs(logits(**changes) - logits())) > 1e-3


def test_the_order_of_words_is_nothing_to_a_model_without_positions():
    """Where no layer rotates, a token sees the earlier ones as a set; one that rotates sees their order."""
    swapped = TOKENS.copy()
    swapped[:, [2, 7]] = swapped[:, [7, 2]]
    for layers_without, same in (((0, 1, 2), True), ((0, 2), False)):
        config = dataclasses.replace(SHAPE, n_layers=1 if same else 3)
        unrotated = (0,) if same else layers_without
        model = Transformer(dataclasses.replace(config, unrotated_layers=unrotated), jax.random.key(0))
        got, want = (np.asarray(LOGITS(model, jnp.asarray(t)))[:, 8:] for t in (swapped, TOKENS))
        assert np.allclose(got, want, atol=1e-5) == same


def test_a_cap_of_scores_has_the_gradient_of_its_formula(float64):
    rng = np.random.default_rng(0)
    q, slope = jnp.asarray(rng.standard_normal((2, 2, 2, 12, 4))), jnp.asarray(rng.standard_normal((2, 2, 2, 12, 4)))
    k, v = jnp.asarray(rng.standard_normal((2, 2, 12, 4))), jnp.asarray(rng.standard_normal((2, 2, 12, 4)))
    bias = jnp.where(jnp.tril(jnp.ones((12, 12), bool)), 0.0, -1e30)[None, None, None]

    def plain(q, k, v):
        scores = 0.7 * jnp.tanh(jnp.einsum("bgrsk,bgtk->bgrst", q, k) / 0.7) + bias
        return jnp.sum(slope * jnp.einsum("bgrst,bgtk->bgrsk", jax.nn.softmax(scores), v))

    got = jax.grad(lambda q, k, v: jnp.sum(slope * layers.attention(q, k, v, bias, True, 0.7)), (0, 1, 2))(q, k, v)
    for one, other in zip(got, jax.grad(plain, (0, 1, 2))(q, k, v), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


MIXED = {"window": 40, "global_layers": (1,), "local_rope_base": 1e3, "unrotated_layers": (2,)}


@pytest.mark.parametrize(("kernel", "cap"), [("splash", 2.0), ("cudnn", 0.0)])
def test_kernels_take_layers_of_several_kinds(monkeypatch, kernel, cap):
    """Each layer has its own window, base and rotation in a kernel too, and the cap where the kernel has one."""
    monkeypatch.setattr(attention_kernels, "chosen", lambda config, length: config.attention)
    config = dataclasses.replace(SHAPE, attention_cap=cap, attention="xla", **MIXED)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 32, (1, 128), np.int32))
    model = Transformer(config, jax.random.key(0))
    want = LOGITS(model, tokens)
    model.config = model.blocks.config = dataclasses.replace(config, attention=kernel)
    np.testing.assert_allclose(LOGITS(model, tokens), want, atol=2e-5)


SANDWICH = dataclasses.replace(
    SHAPE, norms="sandwich", activation="gelu_tanh", attention_cap=2.0, logit_cap=3.0, **MIXED | {"window": 5}
)
POST = dataclasses.replace(SHAPE, norms="post", qk_norm_width="all", rope_channels=4)
BIASED = dataclasses.replace(SHAPE, norm_kind="layer", gated=False, feed_bias=True, qkv_bias=True, out_bias=True)


@pytest.mark.parametrize("config", [SANDWICH, POST, BIASED])
def test_a_mesh_changes_nothing(mesh_of, config):
    """Loss and gradient of the families' layers on one device and on eight."""
    host = np.random.default_rng(1).integers(0, 32, (4, 12), np.int32)

    def measured(shape):
        with jax.set_mesh(mesh_of(*shape)):
            tokens = jnp.asarray(host)
            model = jax.jit(Transformer, static_argnums=0)(config, jax.random.key(0))
            loss = lambda model: jnp.mean(divergences.cross_entropy(model(tokens), tokens))
            return jax.tree.map(np.asarray, jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(model)))

    for one, other in zip(measured((2, 2, 2)), measured((1, 1, 1)), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"global_layers": (0,)}, "with window=0"),
        ({"window": 4, "global_layers": (3,)}, "rising layers from 0 to 2"),
        ({"unrotated_layers": (1, 0)}, "rising layers"),
        ({"rope_channels": 10}, "an even number up to head_dim=8"),
        ({"rope_scaling": "longrope", "rope_short": (1.0,)}, "model.rope_short: got 1 divisors, wanted 4"),
        ({"logit_cap": -1.0}, "wanted at least 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(SHAPE, **changes)


def test_kinds_are_few():
    config = dataclasses.replace(SHAPE, n_layers=6, window=4, global_layers=(2, 5), local_rope_base=1e3)
    assert len(positions.kinds(config)) == 2
    np.testing.assert_array_equal(positions.numbers(config), [0, 0, 1, 0, 0, 1])
    assert positions.numbers(SHAPE) is None
