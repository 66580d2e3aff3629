"""Schedules and the optimiser chain against a float64 reference, and the widths over which muP keeps its promise."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill.config import ExperimentConfig, ModelConfig, OptimConfig
from distill.model import transformer as models
from distill.training import optim, step

MODEL = ModelConfig(vocab_size=8, d_model=16, n_heads=4, n_kv_heads=2, d_head=6, d_ff=48, qkv_bias=True, tied=False)

# base_width over the inputs of each linear map; everything else learns at the rate itself.
MUP = {"query": 32 / 16, "key": 2, "value": 2, "gate": 2, "up": 2, "out": 32 / 24, "down": 32 / 48, "head": 2}
DECAYED = {*MUP, "embed"}


def experiment(**changes) -> ExperimentConfig:
    return ExperimentConfig(optim=OptimConfig(**changes), tokens=100 * 512)  # 100 steps


def scheduled(config: ExperimentConfig, steps) -> np.ndarray:
    return np.asarray(optim.schedule(config.optim.schedule, optim.hyperparams(config), jnp.asarray(steps)))


@pytest.mark.parametrize("kind", ["wsd", "cosine", "constant"])
def test_warmup_is_linear_and_its_first_step_is_not_lost(kind):
    config = experiment(schedule=kind, warmup_steps=10, final_ratio=1.0)
    np.testing.assert_allclose(scheduled(config, [0, 1, 4, 8, 9, 10]), [0.1, 0.2, 0.5, 0.9, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(scheduled(experiment(schedule=kind, warmup_steps=0), [0]), [1])


def test_wsd_holds_its_peak_and_then_falls_as_one_minus_a_root():
    config = experiment(warmup_steps=10, decay_fraction=0.2)
    assert config.stable_steps == 80
    np.testing.assert_allclose(scheduled(config, [10, 50, 80]), 1)
    steps = np.arange(80, 101)
    np.testing.assert_allclose(scheduled(config, steps), [1 - math.sqrt((t - 80) / 20) for t in steps], atol=1e-6)


def test_cosine_falls_from_the_peak_to_its_final_ratio():
    config = experiment(schedule="cosine", warmup_steps=10, final_ratio=0.1)
    want = [0.1 + 0.9 * (1 + math.cos(math.pi * (t - 10) / 90)) / 2 for t in (10, 40, 55, 99, 100)]
    np.testing.assert_allclose(scheduled(config, [10, 40, 55, 99, 100]), want, atol=1e-6)
    assert want[2] == pytest.approx(0.55) and want[-1] == pytest.approx(0.1)


def test_a_constant_rate_stays():
    np.testing.assert_allclose(scheduled(experiment(schedule="constant", warmup_steps=0), [0, 50, 99]), 1)


def test_runs_of_one_trunk_share_every_rate_before_the_decay():
    short, long = experiment(warmup_steps=5), dataclasses.replace(experiment(warmup_steps=5), tokens=400 * 512)
    steps = np.arange(short.stable_steps)
    np.testing.assert_array_equal(scheduled(short, steps), scheduled(long, steps))


def test_clipping_bounds_the_norm_and_nothing_else():
    tree = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}
    clipped = optim.clip_by_global_norm(tree, jnp.asarray(1.0))
    np.testing.assert_allclose(np.concatenate([clipped["a"], clipped["b"][0]]), [0.6, 0, 0.8], rtol=1e-6)
    for untouched in (optim.clip_by_global_norm(tree, jnp.asarray(5.0)), optim.clip_by_global_norm(tree, jnp.inf)):
        np.testing.assert_array_equal(untouched["a"], tree["a"])
    nothing = jax.tree.map(jnp.zeros_like, tree)
    np.testing.assert_array_equal(optim.clip_by_global_norm(nothing, jnp.asarray(1.0))["a"], [0, 0])


def named(tree) -> dict[str, np.ndarray]:
    """Leaves by the attribute that holds them; norms of blocks and the last one have names of their own."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)][-2]: np.asarray(leaf)
        for path, leaf in leaves
    }


@pytest.mark.parametrize("mup", [True, False])
def test_the_chain_is_the_papers_optimiser(mup):
    """clip -> Adam -> muP -> independent decay -> schedule, in float64 with plain loops, over ten steps."""
    config = OptimConfig(learning_rate=0.02, weight_decay=0.003, clip=0.7, warmup_steps=3, mup=mup)
    whole = ExperimentConfig(model=MODEL, optim=config, tokens=10 * 512)
    h, rng = optim.hyperparams(whole), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: models.Transformer(MODEL, key), jax.random.key(0))
    draw = lambda scale: jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), shapes
    )
    params = draw(1.0)
    transform = optim.optimizer(config, h, models.fan_in(MODEL))
    state = transform.init(params)

    want = {name: value.astype(np.float64) for name, value in named(params).items()}
    first, second = ({name: np.zeros_like(value) for name, value in want.items()} for _ in range(2))
    update = jax.jit(lambda g, s, p, t: transform.update(g, s, p, step=t))
    for t in range(10):
        gradient = draw([1.0, 1e-3, 0.3][t % 3])  # clipped, not clipped, clipped
        updates, state = update(gradient, state, params, t)
        params = optax.apply_updates(params, updates)

        g = {name: value.astype(np.float64) for name, value in named(gradient).items()}
        norm = math.sqrt(sum((value**2).sum() for value in g.values()))
        assert (norm > config.clip) == (t % 3 != 1)
        progress = max(t - whole.stable_steps, 0) / (whole.steps - whole.stable_steps)
        rate = min(1, (t + 1) / 3) * (1 - math.sqrt(progress))
        for name in want:
            clipped = g[name] * min(1, config.clip / norm)
            first[name] = config.b1 * first[name] + (1 - config.b1) * clipped
            second[name] = config.b2 * second[name] + (1 - config.b2) * clipped**2
            unbiased = first[name] / (1 - config.b1 ** (t + 1)), second[name] / (1 - config.b2 ** (t + 1))
            adam = unbiased[0] / (np.sqrt(unbiased[1]) + config.eps)
            learning_rate = config.learning_rate * (MUP.get(name, 1.0) if mup else 1.0)
            decay = config.weight_decay if name in DECAYED else 0.0
            want[name] = want[name] - rate * (learning_rate * adam + decay * want[name])
    got = named(params)
    assert got.keys() == want.keys() and set(MUP) < set(got)
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=2e-5, atol=2e-6, err_msg=name)


def test_a_tied_embedding_learns_as_the_head_that_it_is():
    assert models.fan_in(MODEL).get("embed_vd") is None and models.fan_in(MODEL)["head_vd"] == 16
    tied = models.fan_in(dataclasses.replace(MODEL, tied=True))
    assert tied["embed_vd"] == 16 and "head_vd" not in tied


def test_decay_does_not_depend_on_the_learning_rate():
    """'Independent': at a rate of zero the parameters still shrink by weight_decay, times the schedule alone."""
    config = OptimConfig(weight_decay=0.25, warmup_steps=2, mup=True)
    h = dataclasses.replace(optim.hyperparams(ExperimentConfig(optim=config)), learning_rate=jnp.float32(0))
    params = _Params(query=_Param(jnp.array([8.0])), attention_norm=_Param(jnp.array([8.0])))
    transform = optim.optimizer(config, h, {"query_dhk": 64})
    updates, _ = transform.update(jax.tree.map(jnp.ones_like, params), transform.init(params), params, step=0)
    assert float(updates.query.value[0]) == -0.5 * 0.25 * 8  # first step of a warmup of two
    assert float(updates.attention_norm.value[0]) == 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class _Param:
    """A leaf under the path that a flax Param has."""

    value: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class _Params:
    query: _Param
    attention_norm: _Param


@pytest.fixture(scope="module")
def changes(run_steps, make_batch):
    """changes(width, mup): RMS change of (hidden states, logits) over five steps at one learning rate."""

    @jax.jit
    def outputs(params, tokens):
        hidden = params.hidden(tokens)
        return hidden, params.logits(hidden)

    def change(width, mup):
        model = ModelConfig(vocab_size=32, d_model=width, n_layers=2, n_heads=2, tied=False)
        config = ExperimentConfig(
            model=model,
            optim=OptimConfig(learning_rate=4e-3, mup=mup, warmup_steps=0, schedule="constant", weight_decay=0.0),
            seq_len=16,
        )
        batches = make_batch(5, weighted=False)
        tokens = jnp.asarray(batches.tokens[0, :, :-1])
        before = outputs(step.init_state(config).params, tokens)
        after = outputs(run_steps(config, batches)[0].params, tokens)
        return [float(jnp.sqrt(jnp.mean(jnp.square(a - b)))) for a, b in zip(after, before)]

    return change


def test_mup_keeps_what_a_step_changes_at_every_width(changes):
    """Coordinate check: under muP five steps move hidden states and logits as far at width 256 as at 32."""
    with_mup = np.array([changes(width, True) for width in (32, 128, 256)])
    assert (with_mup > 0.02).all(), with_mup
    spread = with_mup.max(axis=0) / with_mup.min(axis=0)
    assert (spread < 1.6).all(), f"hidden, logits by width: {with_mup.tolist()}"
    plain = np.array([changes(width, False) for width in (32, 256)])
    np.testing.assert_allclose(plain[0], with_mup[0], rtol=0.2)  # the two agree where they must: at the base width
    assert plain[1][1] / plain[0][1] > 2.0, f"without muP logits must run away: {plain.tolist()}"
