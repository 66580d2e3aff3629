"""The transformer against a plain float64 reference, and the identities that a causal rotary model obeys."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.config import ModelConfig
from distill.model.positions import rope_tables, rotate
from distill.model.transformer import Transformer, fan_in, rms_norm

BASE = ModelConfig(vocab_size=32, d_model=16, n_layers=2, n_heads=4, d_ff_multiple=16)
VARIANTS = {
    "base": BASE,
    "grouped": dataclasses.replace(BASE, n_kv_heads=2, qkv_bias=True, tied=False, d_head=6),
    "plain": dataclasses.replace(BASE, qk_norm=False, n_kv_heads=1, n_layers=1, rope_base=100.0),
}

build = jax.jit(Transformer, static_argnums=0)


@jax.jit
def forward(model, tokens, segment=None, position=None):
    return model(tokens, segment=segment, position=position)


@pytest.fixture
def tokens():
    return jnp.asarray(np.random.default_rng(0).integers(0, 32, (2, 12), np.int32))


def make(config, seed=0):
    """A model with random parameters, gains and biases too, so that none goes unseen. Nothing is compiled."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        gain = "norm" in jax.tree_util.keystr(path)
        return jnp.asarray(gain + rng.normal(0, 0.1 if gain else 0.3, leaf.shape), leaf.dtype)

    shapes = jax.eval_shape(lambda key: Transformer(config, key), jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def reference(model, tokens):
    """Logits in float64, one position and one head at a time, from the text of the paper (section 4)."""
    c = model.config
    get = lambda param: np.asarray(param[...], np.float64)
    norm = lambda x, gain: gain * x / np.sqrt(np.mean(x**2) + c.norm_eps)

    def turn(x, place):
        """The pairs (i, i + K/2) as complex numbers, turned by the angle place / base^(2i/K)."""
        half = c.head_dim // 2
        turned = (x[:half] + 1j * x[half:]) * np.exp(1j * place * c.rope_base ** (-2 * np.arange(half) / c.head_dim))
        return np.concatenate([turned.real, turned.imag])

    logits = []
    for row in np.asarray(tokens):
        x = get(model.embed)[row] * (math.sqrt(c.d_model) if c.tied else 1)
        for layer in range(c.n_layers):
            w = jax.tree.map(lambda p: p[layer], model.blocks)  # noqa: B023
            y = np.stack([norm(one, get(w.attention_norm)) for one in x])
            heads = {}
            for kind, count in (("query", c.n_heads), ("key", c.kv_heads), ("value", c.kv_heads)):
                for h in range(count):
                    z = y @ get(getattr(w, kind))[:, h]
                    if c.qkv_bias:
                        z = z + get(getattr(w, f"{kind}_bias"))[h]
                    if c.qk_norm and kind != "value":
                        z = np.stack([norm(one, get(getattr(w, f"{kind}_norm"))) for one in z])
                    heads[kind, h] = z if kind == "value" else np.stack([turn(one, t) for t, one in enumerate(z)])
            out = np.zeros_like(x)
            for h in range(c.n_heads):
                g = h * c.kv_heads // c.n_heads
                for t in range(len(row)):
                    score = heads["key", g][: t + 1] @ heads["query", h][t] / math.sqrt(c.head_dim)
                    weight = np.exp(score - score.max())
                    out[t] += (weight / weight.sum()) @ heads["value", g][: t + 1] @ get(w.out)[h]
            x = x + out
            y = np.stack([norm(one, get(w.feed_norm)) for one in x])
            gate = y @ get(w.gate)
            x = x + (gate / (1 + np.exp(-gate)) * (y @ get(w.up))) @ get(w.down)
        x = np.stack([norm(one, get(model.last_norm)) for one in x])
        logits.append(x @ get(model.embed if c.tied else model.head).T)
    return np.stack(logits)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_the_reference(name, tokens):
    model = make(VARIANTS[name])
    got = forward(model, tokens)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, reference(model, tokens), atol=2e-5)


def test_future_tokens_do_not_change_past_logits(tokens):
    model = make(BASE)
    changed = tokens.at[:, 7].set((tokens[:, 7] + 1) % 32)
    before, after = forward(model, tokens), forward(model, changed)
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert (np.abs(before - after)[:, 7:].max(axis=-1) > 1e-4).all()  # and everything later is changed


def test_only_differences_of_positions_matter(tokens):
    model = make(BASE)
    place = jnp.broadcast_to(jnp.arange(12), (2, 12))
    np.testing.assert_allclose(forward(model, tokens, None, place), forward(model, tokens), atol=1e-6)
    np.testing.assert_allclose(forward(model, tokens, None, place + 100), forward(model, tokens), atol=1e-4)
    assert np.abs(forward(model, tokens, None, 2 * place) - forward(model, tokens)).max() > 1e-2


def test_rotation_keeps_norms_and_turns_by_the_difference():
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))
    config = ModelConfig(d_head=8, rope_base=100.0)
    turned = lambda x, place: rotate(x, *rope_tables(jnp.array([[place]]), config))
    np.testing.assert_allclose(jnp.linalg.norm(turned(q, 9)), jnp.linalg.norm(q), rtol=1e-6)
    dot = lambda i, j: float(jnp.sum(turned(q, i) * turned(k, j)))
    assert dot(7, 3) == pytest.approx(dot(14, 10), abs=1e-5)
    assert abs(dot(7, 3) - dot(3, 7)) > 1e-2  # the order matters too


def test_packed_documents_are_the_documents_alone(tokens):
    model = make(BASE)
    segment = jnp.asarray([[1] * 5 + [2] * 4 + [3] * 3] * 2)
    position = jnp.asarray([[*range(5), *range(4), *range(3)]] * 2)
    packed = forward(model, tokens, segment, position)
    for start, end in ((0, 5), (5, 9), (9, 12)):
        alone = jnp.pad(tokens[:, start:end], ((0, 0), (0, 12 - (end - start))))  # causality hides the padding
        np.testing.assert_allclose(packed[:, start:end], forward(model, alone)[:, : end - start], atol=2e-5)
    assert np.abs(packed - forward(model, tokens, None, position))[:, 5:].max() > 1e-2


def test_grouped_heads_are_full_heads_with_repeated_keys_and_values(tokens):
    grouped = make(dataclasses.replace(BASE, n_kv_heads=2, qkv_bias=True))
    full = make(dataclasses.replace(BASE, qkv_bias=True))
    repeat = lambda param, axis: jnp.asarray(np.repeat(param, 2, axis))
    blocks = grouped.blocks
    for name in ("query", "query_bias", "out", "gate", "up", "down", "attention_norm", "feed_norm"):
        getattr(full.blocks, name)[...] = getattr(blocks, name)[...]
    full.blocks.query_norm[...], full.blocks.key_norm[...] = blocks.query_norm[...], blocks.key_norm[...]
    for name, axis in (("key", 2), ("value", 2), ("key_bias", 1), ("value_bias", 1)):
        getattr(full.blocks, name)[...] = repeat(getattr(blocks, name)[...], axis)
    full.embed[...], full.last_norm[...] = grouped.embed[...], grouped.last_norm[...]
    np.testing.assert_allclose(forward(full, tokens), forward(grouped, tokens), atol=2e-6)


@pytest.fixture(scope="module")
def gradients():
    """gradients(config): of a scalar of the logits, by parameter."""

    @jax.jit
    def gradient(model, tokens):
        return jax.grad(lambda m: jnp.sum(jnp.sin(m(tokens))))(model)

    def found(config, tokens):
        leaves, _ = jax.tree_util.tree_flatten_with_path(gradient(make(config), tokens))
        return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}

    return found


@pytest.mark.parametrize(
    "change",
    [
        *({"remat": name} for name in ("attention", "dots", "offload", "full")),
        *({"unroll": 4}, {"unroll": 3}, {"unroll": 2, "remat": "dots"}),
    ],
)
def test_remat_and_unrolling_change_no_gradient(gradients, relative_error, tokens, change):
    """Three layers at once are two, for that divides."""
    deep = dataclasses.replace(BASE, n_layers=4)
    got = gradients(dataclasses.replace(deep, **change), tokens)
    assert relative_error(got, gradients(deep, tokens)) < 1e-6


def test_every_parameter_has_a_gradient(gradients, tokens):
    for name, value in gradients(VARIANTS["grouped"], tokens).items():
        # A key's bias shifts all scores of a query alike only without rotation and norm, so even it is felt.
        assert np.abs(value).max() > 1e-6, name


def test_bfloat16_is_near_float32_with_float32_parameters_and_logits(tokens):
    model = make(BASE)
    narrow = dataclasses.replace(BASE, dtype="bfloat16")
    half = make(narrow)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("float32")}
    assert jax.eval_shape(lambda m: m.hidden(tokens), half).dtype == jnp.bfloat16
    got, want = forward(half, tokens), forward(model, tokens)
    assert got.dtype == jnp.float32
    assert 1e-4 < np.linalg.norm(got - want) / np.linalg.norm(want) < 3e-2


@pytest.mark.parametrize("tied", [True, False])
def test_every_layer_begins_at_unit_scale(tied):
    """Weights at 1/sqrt(fan-in) and a unit residual stream: hidden states and logits are O(1) at any width."""
    config = ModelConfig(vocab_size=256, d_model=128, n_layers=2, n_heads=4, tied=tied)
    model = build(config, jax.random.key(0))
    # A normal cut at three deviations has 0.9866 of its standard deviation.
    for name, inputs in fan_in(config).items():
        attribute = name.rsplit("_", 1)[0]
        param = getattr(model.blocks if hasattr(model.blocks, attribute) else model, attribute)
        assert float(jnp.std(param[...])) * math.sqrt(inputs) == pytest.approx(0.9866, rel=0.03), name
    tokens = jnp.arange(256, dtype=jnp.int32).reshape(8, 32)
    scale = np.std(model.embed[...]) * (math.sqrt(128) if tied else 1)
    assert scale == pytest.approx(0.9866, rel=0.03)
    assert np.sqrt(np.mean(np.square(model.hidden(tokens)))) == pytest.approx(1, rel=0.02)
    if not tied:
        assert np.std(forward(model, tokens)) == pytest.approx(1, rel=0.1)


def test_layers_and_seeds_begin_differently():
    model = build(BASE, jax.random.key(0))
    assert np.abs(model.blocks.query[0] - model.blocks.query[1]).max() > 0.1
    assert np.abs(model.blocks.key[...] - model.blocks.value[...]).max() > 0.1
    assert np.abs(model.embed[...] - build(BASE, jax.random.key(1)).embed[...]).max() > 0.1


def test_rms_norm_is_computed_in_float32_and_returned_in_its_inputs_type():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 8)) * 300, jnp.bfloat16)
    gain = jnp.linspace(0.5, 2.0, 8)
    exact = np.asarray(x, np.float64)
    want = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-6) * np.asarray(gain)
    got = rms_norm(x, gain, 1e-6)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=2**-8)
