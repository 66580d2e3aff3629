"""Which parts of a model are kept: those that do something, where the others do nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from distill.config import ConfigError, InitConfig, ModelConfig
from distill.model import warm_start
from distill.model.importance import importance
from distill.model.transformer import Transformer
from distill.training import loop
from distill.types import Batch

SOURCE = ModelConfig(
    vocab_size=32, d_model=16, n_layers=3, n_heads=4, n_kv_heads=2, d_head=8, d_ff=24, tied=False, qk_norm=False
)
UNITS = np.array([[1, 5, 8, 20], [0, 2, 9, 23], [3, 4, 5, 6]])
TOKENS = np.random.default_rng(0).integers(0, 32, (2, 13), np.int32)
BATCH = Batch(jnp.asarray(TOKENS), jnp.ones((2, 12), jnp.float32))


def changed(model, module, **arrays):
    for name, change in arrays.items():
        param = getattr(module, name)
        setattr(module, name, nnx.Param(change(np.array(param[...]))))
    return model


def logits(model):
    return np.asarray(jax.jit(lambda m, t: m(t))(model, jnp.asarray(TOKENS)))


def only(numbers, axis):
    """Zeros in all other places of an axis, for each layer its own."""

    def change(array):
        keep = np.zeros((array.shape[0], array.shape[axis]), bool)
        np.put_along_axis(keep, numbers, True, axis=1)
        shape = [array.shape[0] if i == 0 else array.shape[axis] if i == axis else 1 for i in range(array.ndim)]
        return jnp.asarray(array * keep.reshape(shape))

    return change


def test_units_that_do_nothing_are_left_out():
    source = Transformer(SOURCE, jax.random.key(0))
    changed(source, source.blocks, up=only(UNITS, 2))
    mine = dataclasses.replace(SOURCE, d_ff=4)
    init = InitConfig(source="s", width="importance")
    measured = importance(source, BATCH)
    np.testing.assert_array_equal(warm_start.kept_parts(init, mine, SOURCE, measured).units, UNITS)
    student = warm_start.warm_start(init, mine, source, measured=measured)
    np.testing.assert_allclose(logits(student), logits(source), atol=1e-5)
    slice_ = warm_start.warm_start(InitConfig(source="s", width="slice"), mine, source)
    assert np.abs(logits(slice_) - logits(source)).max() > 0.1


@pytest.mark.parametrize("groups, heads", [([1], [1]), ([0, 1], [0, 0])])
def test_heads_that_do_nothing_are_left_out(groups, heads):
    """One group of two, or one query head of each group: what is kept reads as before."""
    source = Transformer(SOURCE, jax.random.key(0))
    numbers = [2 * group + head for group, head in zip(groups, heads)]
    alive = numbers if len(groups) > 1 else [2 * groups[0], 2 * groups[0] + 1]
    changed(source, source.blocks, out=only(np.tile(alive, (3, 1)), 1), value=lambda v: v)
    # A head's own output is measured before its map back, so a dead head is one whose values are zero.
    dead = [group for group in range(2) if group not in groups]
    changed(source, source.blocks, value=only(np.tile([g for g in range(2) if g not in dead], (3, 1)), 2))
    mine = dataclasses.replace(SOURCE, n_heads=len(alive), n_kv_heads=len(groups))
    init = InitConfig(source="s", width="importance")
    kept = warm_start.kept_parts(init, mine, SOURCE, importance(source, BATCH))
    np.testing.assert_array_equal(kept.groups, np.tile(groups, (3, 1)))
    if dead:
        student = warm_start.warm_start(init, mine, source, measured=importance(source, BATCH))
        np.testing.assert_allclose(logits(student), logits(source), atol=1e-5)


def test_channels_that_hold_nothing_are_left_out():
    """The norms divide by the root mean square of fewer channels, which the maps after them make good."""
    alive = np.array([0, 3, 4, 7, 9, 10, 11, 15])
    source = Transformer(dataclasses.replace(SOURCE, norm_eps=1e-9), jax.random.key(0))
    quiet = np.full(16, 1e-9, np.float32)
    quiet[alive] = 1
    changed(source, source, embed=lambda e: jnp.asarray(e * quiet))
    changed(source, source.blocks, out=lambda w: jnp.asarray(w * quiet), down=lambda w: jnp.asarray(w * quiet))
    mine = dataclasses.replace(SOURCE, d_model=8, norm_eps=1e-9)
    init, measured = InitConfig(source="s", width="importance"), importance(source, BATCH)
    kept = warm_start.kept_parts(init, mine, source.config, measured)
    np.testing.assert_array_equal(kept.channels, alive)
    student = warm_start.warm_start(init, mine, source, measured=measured)
    np.testing.assert_allclose(logits(student), logits(source), atol=1e-4)


def test_layers_that_change_nothing_are_left_out():
    source = Transformer(SOURCE, jax.random.key(0))
    still = lambda w: jnp.asarray(w * np.array([1, 0, 1]).reshape(3, *[1] * (w.ndim - 1)))
    changed(source, source.blocks, out=still, down=still)
    mine = dataclasses.replace(SOURCE, n_layers=2)
    init, measured = InitConfig(source="s", layers="influence"), importance(source, BATCH)
    assert np.argmin(measured.influence) == 1 and measured.influence[1] == pytest.approx(0, abs=1e-5)
    student = warm_start.warm_start(init, mine, source, measured=measured)
    np.testing.assert_allclose(logits(student), logits(source), atol=1e-5)
    every = warm_start.warm_start(InitConfig(source="s"), mine, source)
    assert np.abs(logits(every) - logits(source)).max() > 0.1


def test_only_counted_tokens_are_measured_and_batches_add_up():
    source = Transformer(SOURCE, jax.random.key(0))
    half = dataclasses.replace(BATCH, weight=BATCH.weight.at[1].set(0))
    other = dataclasses.replace(BATCH, weight=BATCH.weight.at[0].set(0))
    whole, parts = importance(source, BATCH), importance(source, half) + importance(source, other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), whole, parts)
    assert float(whole.shares.sum()) == pytest.approx(3 * 24, rel=1e-4), "one for each token and layer"


def test_a_token_of_zeros_is_no_nan():
    """As the embedding of padding is in some published models."""
    source = Transformer(SOURCE, jax.random.key(0))
    zeros = np.ones((32, 1), np.float32)
    zeros[TOKENS[0, 0]] = 0
    changed(source, source, embed=lambda e: jnp.asarray(e * zeros))
    found = importance(source, BATCH)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_a_mesh_measures_the_same(mesh_of):
    want = importance(Transformer(SOURCE, jax.random.key(0)), BATCH)
    with jax.set_mesh(mesh_of(1, 2, 2)):
        placed = jax.tree.map(lambda x: jax.device_put(np.asarray(x), jax.P(("data", "fsdp"), None)), BATCH)
        found = importance(Transformer(SOURCE, jax.random.key(0)), placed)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, want)


@pytest.mark.parametrize(
    "init, changes, message",
    [
        ({"layers": "influence"}, {"window": 4, "global_layers": (1,)}, "differ in their windows or positions"),
        ({"width": "importance", "tokens": "text"}, {}, "source must read in its own tokens; wanted 'same'"),
        ({"width": "importance"}, {"experts": 4, "experts_per_token": 2}, "not measured of a mixture of experts"),
    ],
)
def test_what_is_refused(init, changes, message):
    source = dataclasses.replace(SOURCE, **changes)
    with pytest.raises(ConfigError, match=message):
        warm_start.check(InitConfig(source="s", **init), source, source)


def test_a_run_measures_on_its_own_text(tiny, store, tmp_path):
    """A student half as wide of a trained model begins nearer to it with its important parts than with the leading."""
    tiny = dataclasses.replace(
        tiny, batch_size=8, model=dataclasses.replace(tiny.model, n_layers=3), tokens=120 * 8 * 16
    )
    loop.train(tiny, tmp_path / "source", store=store)
    losses = {}
    for width in ("importance", "slice"):
        init = InitConfig(source=str(tmp_path / "source"), width=width, calibration=512)
        mine = dataclasses.replace(tiny.model, d_ff=tiny.model.ff_dim // 4, n_layers=1)
        optim = dataclasses.replace(tiny.optim, learning_rate=1e-9)
        init = dataclasses.replace(init, layers="influence" if width == "importance" else "every")
        config = dataclasses.replace(tiny, model=mine, init=init, optim=optim)
        losses[width] = loop.train(config, tmp_path / width, store=store).loss
    assert losses["importance"] < losses["slice"]
