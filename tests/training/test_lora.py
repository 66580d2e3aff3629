"""Students of which adapters alone are trained: what they compute, what a step changes, and what it does not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.config import ConfigError, InitConfig, LoraConfig, ModelConfig, counts
from distill.model import adapted, decode, lora, sharding
from distill.model.transformer import Transformer
from distill.training import inputs, step

SHAPES = {
    "all": LoraConfig(rank=3, alpha=6.0),
    "two": LoraConfig(rank=4, alpha=4.0, maps=("query", "value")),
}


@pytest.fixture(params=SHAPES)
def config(request, tiny):
    return with_adapters(tiny, request.param)


@pytest.fixture
def one(tiny):
    return with_adapters(tiny, "all")


def with_adapters(tiny, name):
    model = dataclasses.replace(tiny.model, n_heads=4, n_kv_heads=2, d_head=8, lora=SHAPES[name])
    return dataclasses.replace(tiny, model=model)


def moved(model, seed=0):
    """The model with adapters that say something: B is no longer zero."""
    random = np.random.default_rng(seed)
    change = lambda x: x + jax.device_put(random.normal(0, 0.3, x.shape).astype(np.float32), x.sharding)
    return adapted.with_trained(model, jax.tree.map(change, adapted.trained(model)))


def test_fresh_adapters_change_nothing_and_plain_weights_stay_what_they_were(config):
    tokens = jnp.arange(16)[None] % 7
    student = Transformer(config.model, jax.random.key(0))
    plain = Transformer(adapted.plain(config.model), jax.random.key(0))
    np.testing.assert_allclose(student(tokens), plain(tokens), atol=1e-6)
    again = adapted.adapt(student, plain)
    assert again.config == config.model and np.array_equal(again(tokens), student(tokens))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 2)])
def test_adapted_is_merged(config, mesh_of, shape):
    """x W + s (x A) B = x (W + s A B) to float32, in a forward pass, in decoding, over fsdp and tensor."""
    with jax.set_mesh(mesh_of(*shape)), jax.default_matmul_precision("highest"):
        student = moved(Transformer(config.model, jax.random.key(0)))
        merged = adapted.merged(student)
        assert merged.config == adapted.plain(config.model) and not hasattr(merged.blocks, "lora")
        tokens = jax.device_put(np.arange(32, dtype=np.int32).reshape(2, 16) % 7, jax.P(sharding.BATCH, None))
        run = jax.jit(lambda m, t: m(t))
        want, got = np.asarray(run(merged, tokens)), np.asarray(run(student, tokens))
        plain = np.asarray(run(adapted.with_config(student, adapted.plain(config.model)), tokens))
        assert np.abs(got - want).max() < 2e-5 * np.abs(want).max() < 0.01 * np.abs(want - plain).max()
        hidden, _ = decode.extend(student, tokens, decode.empty(student, 2, 16), 0)
        np.testing.assert_allclose(student.logits(hidden), want, atol=2e-5 * np.abs(want).max())


def test_gradients_are_those_of_the_merged_weights(config, make_batch, gradient_of):
    """dA = s dW B', dB = s A' dW, from the whole model's own gradient dW."""
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, clip=1e9))
    batches = make_batch(1)
    state = step.init_state(config)
    state = dataclasses.replace(state, params=moved(state.params))
    merged, pairs, scale = adapted.merged(state.params), state.params.blocks.lora, config.model.lora.scale
    pairs = {name: [np.asarray(x, np.float64) for x in pairs.pair(name)] for name in lora.adapted_maps(config.model)}
    plain = dataclasses.replace(config, model=adapted.plain(config.model))
    start = dataclasses.replace(step.init_state(plain), params=merged)
    got = gradient_of(config, batches, state=state)
    whole = gradient_of(plain, batches, state=start)
    assert len(got) == 2 * len(pairs)
    for name, (a, b) in pairs.items():
        dw = next(v for k, v in whole.items() if f".{name}.value" in k)
        dw = np.asarray(dw, np.float64).reshape(len(a), a.shape[1], b.shape[2])
        for part, want in {
            "a": scale * dw @ b.transpose(0, 2, 1),
            "b": scale * a.transpose(0, 2, 1) @ dw,
        }.items():
            mine = next(value for key, value in got.items() if f"{name}_{part}" in key)
            np.testing.assert_allclose(mine, want, atol=2e-5 * np.abs(want).max(), err_msg=f"{name}_{part}")


def test_a_step_changes_adapters_alone(config, make_batch, run_steps):
    before = jax.tree.map(np.asarray, step.init_state(config).params)
    state, sums = run_steps(config, make_batch(3))
    after = jax.tree.map(np.asarray, state.params)
    rest = lambda model: jax.tree.leaves(adapted.with_config(model, adapted.plain(config.model)))
    for one, other in zip(rest(before), rest(after), strict=True):
        np.testing.assert_array_equal(one, other)
    assert all(
        np.any(one != other) for one, other in zip(*map(jax.tree.leaves, (before.blocks.lora, after.blocks.lora)))
    )
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) - 1
    assert (
        moments
        == 2 * counts.lora_parameters(config.model)
        == 2 * sum(leaf.size for leaf in jax.tree.leaves(state.params.blocks.lora))
    )
    assert np.isfinite(sums["loss"])


def test_a_step_computes_no_gradient_of_the_weights(one, make_batch):
    """By the compiler's count, at a size where that is a third of all products, beside the moments of the rest."""
    shape = ModelConfig(vocab_size=32, d_model=256, n_layers=1, n_heads=2, d_ff=1024, tied=False, lora=one.model.lora)
    batches = jax.tree.map(jnp.asarray, make_batch(1))

    def flops(model):
        whole = dataclasses.replace(one, model=model)
        lowered = step.train_steps.lower(step.step_spec(whole), step.init_state(whole), None, batches, 1)
        return lowered.compile().cost_analysis()["flops"]

    share = flops(shape) / flops(adapted.plain(shape))
    assert share < 0.7, share


def test_in_bfloat16_what_is_not_trained_is_held_so(one):
    narrow = dataclasses.replace(one, model=dataclasses.replace(one.model, dtype="bfloat16"))
    params = step.init_state(narrow).params
    assert params.blocks.query[...].dtype == params.embed[...].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(params.blocks.lora)} == {jnp.dtype("float32")}


def test_a_mesh_takes_the_same_steps(one, make_batch, run_steps, mesh_of, gradient_of, relative_error):
    batches = make_batch(2)

    def start():
        state = step.init_state(one)
        return dataclasses.replace(state, params=moved(state.params))

    want = gradient_of(one, batches, state=start())
    with jax.set_mesh(mesh_of(1, 2, 2)):
        assert relative_error(gradient_of(one, batches, state=start()), want) < 1e-5
        whole, one = one, dataclasses.replace(one, model=dataclasses.replace(one.model, sequence=True))
        assert relative_error(gradient_of(one, batches, state=start()), want) < 1e-5
        one = whole
    cut = dataclasses.replace(one, microbatches=2)
    assert relative_error(gradient_of(cut, batches, state=start()), want) < 1e-5


def test_what_is_refused(tiny):
    with pytest.raises(ConfigError, match="wanted some of query, key"):
        LoraConfig(rank=2, maps=("q_proj",))
    with pytest.raises(ConfigError, match="rank=-1"):
        LoraConfig(rank=-1)
    with pytest.raises(ConfigError, match="has none of them; wanted some of query, key, value, out"):
        dataclasses.replace(tiny.model, experts=4, d_ff=32, lora=LoraConfig(rank=2, maps=("up", "down")))
    model = dataclasses.replace(tiny.model, lora=LoraConfig(rank=2))
    with pytest.raises(
        ConfigError, match="these would be random; name the model that is adapted in config.init.source"
    ):
        inputs.resolve(dataclasses.replace(tiny, model=model))
    with pytest.raises(ConfigError, match="got width='importance' without a source, so that weights would be random"):
        inputs.resolve(dataclasses.replace(tiny, init=InitConfig(width="importance")))


def test_the_cost_of_a_student_with_adapters(config):
    plain = dataclasses.replace(config, model=adapted.plain(config.model))
    own, whole = counts.run_flops(config).student, counts.run_flops(plain).student
    adapters = 6 * counts.lora_parameters(config.model) * counts.training_tokens(config)
    assert own == pytest.approx(whole * 2 / 3 + adapters)
    assert counts.non_embedding(config.model) == counts.non_embedding(plain.model), "merged, it is the same model"
