"""Experts against a dense computation of all of them, however the batch is cut, on one device and on eight."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.config import ConfigError, ExperimentConfig, ModelConfig, ObjectiveConfig
from distill.model import experts, sharding, transformer, units
from distill.model.quantize import cast
from distill.model.transformer import Transformer
from distill.training import optim, step
from distill.types import Batch
from tests.model.decoding import check_decoding

X, J, D, F = 6, 2, 8, 12
CONFIG = ModelConfig(d_model=D, d_ff=F * J, experts=X, experts_per_token=J)
SMALL = ModelConfig(d_model=32, n_heads=4, n_kv_heads=2, vocab_size=64, d_ff=64, experts=4, experts_per_token=2)


def arrays(seed=0, batch=3, length=7):
    """x, router, and the three maps: float64; expert 4 is never chosen."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, length, D))
    x[..., 0] = 1
    router = rng.normal(size=(D, X))
    router[0, 4] = -99
    shapes = (X, D, F), (X, D, F), (X, F, D)
    return tuple(jnp.asarray(a) for a in (x, router, *(rng.normal(size=shape) for shape in shapes)))


def reference(x, router, gate, up, down, norm):
    """Every expert for every token, in NumPy, and then a sum over the chosen."""
    x, router, gate, up, down = (np.asarray(a, np.float64) for a in (x, router, gate, up, down))
    logits = x @ router
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    least = np.sort(p, axis=-1)[..., -J][..., None]
    share = np.where(p >= least, p, 0.0)
    if norm:
        share = share / share.sum(-1, keepdims=True)
    units = np.einsum("bsd,xdf->bsxf", x, gate)
    units = units / (1 + np.exp(-units)) * np.einsum("bsd,xdf->bsxf", x, up)
    return np.einsum("bsx,bsxf,xfd->bsd", share, units, down), p, share > 0


@functools.partial(jax.jit, static_argnums=(0, 1))
def ours(config, product, x, router, *maps):
    routes = experts.route(config, x, router)
    return experts.feed_forward(x, routes, *maps, units.gated("silu"), product=product)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("product", ["ragged", "blocks"])
def test_the_sum_over_the_chosen_experts(float64, product, norm):
    config, given = dataclasses.replace(CONFIG, expert_norm=norm), arrays()
    want, _, chosen = reference(*given, norm)
    assert not chosen[..., 4].any() and chosen.sum() == J * chosen[..., 0].size
    np.testing.assert_allclose(ours(config, product, *given), want, rtol=0, atol=1e-10)


def test_both_products_have_one_gradient(float64):
    """By everything, the router included, and that of a dense sum with the same choice."""
    given = arrays()
    _, _, chosen = reference(*given, True)

    def dense(x, router, gate, up, down):
        share = jnp.where(chosen, jax.nn.softmax(jnp.einsum("bsd,dx->bsx", x, router)), 0.0)
        share = share / jnp.sum(share, axis=-1, keepdims=True)
        units = jax.nn.silu(jnp.einsum("bsd,xdf->bsxf", x, gate)) * jnp.einsum("bsd,xdf->bsxf", x, up)
        return jnp.einsum("bsx,bsxf,xfd->bsd", share, units, down)

    slope = lambda f: jax.jit(jax.grad(lambda *a: jnp.sum(jnp.sin(f(*a))), argnums=tuple(range(5))))(*given)
    want = slope(dense)
    for product in ("ragged", "blocks"):
        for one, other in zip(slope(functools.partial(ours, CONFIG, product)), want, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-10)
    assert float(jnp.abs(want[1]).max()) > 0.1 and float(jnp.abs(want[2][4]).max()) == 0


@pytest.mark.parametrize("product", ["ragged", "blocks"])
def test_neither_the_order_of_rows_nor_the_cut_changes_a_token(float64, product):
    x, *rest = arrays(batch=4, length=40)
    whole = np.asarray(ours(CONFIG, product, x, *rest))
    order = np.random.default_rng(1).permutation(4)
    np.testing.assert_allclose(ours(CONFIG, product, x[order], *rest), whole[order], rtol=0, atol=1e-12)
    parts = [np.asarray(ours(CONFIG, product, x[i : i + 2, 10 * i : 10 * i + 20], *rest)) for i in (0, 2)]
    joined, whole = np.concatenate(parts), np.concatenate([whole[:2, :20], whole[2:, 20:]])
    np.testing.assert_allclose(joined, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("copies", [1, 5, 700])
def test_a_plan_holds_every_copy_once(copies):
    """Also where one expert has all of them, which takes the most blocks, and with fewer copies than experts."""
    rng = np.random.default_rng(copies)
    for chosen in (rng.integers(0, X, (copies, 1)), np.full((copies, 1), 3)):
        plan = jax.jit(experts._plan, static_argnums=(1, 2))(jnp.asarray(chosen), X, "blocks")
        assert int(plan.held.sum()) == copies and len(set(np.asarray(plan.slot)[:, 0])) == copies
        np.testing.assert_array_equal(plan.copy[plan.slot[:, 0]], np.arange(copies))
        block = len(plan.copy) // len(plan.owner)
        np.testing.assert_array_equal(np.asarray(plan.owner)[np.asarray(plan.slot)[:, 0] // block], chosen[:, 0])


def test_the_losses_of_a_router(float64):
    """Switch's X sum f P and ST-MoE's squared logsumexp; tokens of weight zero count nowhere."""
    given = arrays()
    _, p, chosen = reference(*given, True)
    weight = np.ones(p.shape[:2])
    weight[0, 4:] = 0
    routes = experts.route(CONFIG, given[0], given[1])
    found = experts.losses(CONFIG, routes, jnp.asarray(weight))
    for row in range(len(p)):
        kept = weight[row] > 0
        want = X * np.sum(chosen[row, kept].mean(0) * p[row, kept].mean(0))
        np.testing.assert_allclose(np.mean(np.asarray(found["balance"])[row, kept]), want, rtol=1e-12)
    logits = np.asarray(given[0]) @ np.asarray(given[1])
    np.testing.assert_allclose(found["router_z"], np.log(np.exp(logits).sum(-1)) ** 2, rtol=1e-12)
    even = experts.route(CONFIG, given[0], jnp.zeros((D, X)))
    np.testing.assert_allclose(experts.losses(CONFIG, even, jnp.ones((3, 7)))["balance"], J, rtol=1e-12)


@pytest.fixture(scope="module")
def experiment():
    return ExperimentConfig(
        model=SMALL, objective=ObjectiveConfig(lambda_=0.5), tokens=2560, batch_size=8, seq_len=16, seed=3
    )


def batch(seed=0):
    rng = np.random.default_rng(seed)
    weight = np.ones((8, 16), np.float32)
    weight[0, 5:] = 0
    return Batch(rng.integers(0, 64, (8, 17), np.int32), weight)


def gradient(config, mesh=None):
    """The gradient by all parameters and the sums of a step's losses, on a mesh."""
    with jax.set_mesh(mesh or jax.sharding.get_mesh()):
        state = step.init_state(config)
        placed = sharding.place(batch(), jax.sharding.get_mesh())
        run = jax.jit(step.gradients, static_argnums=0)
        (found, _), sums, _ = run(step.step_spec(config), state, None, placed)
        return jax.device_get((found, sums))


@pytest.fixture(scope="module")
def alone(experiment):
    with jax.set_mesh(sharding.make(experiment.mesh, jax.devices()[:1])):
        return gradient(experiment)


def check(got, want):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 4, 2)])
def test_eight_devices_are_one(experiment, alone, mesh_of, shape):
    check(gradient(experiment, mesh_of(*shape)), alone)


def test_eight_devices_with_sequences_split_and_layers_computed_again(experiment, alone, mesh_of):
    model = dataclasses.replace(SMALL, sequence=True, remat="dots")
    check(gradient(dataclasses.replace(experiment, model=model), mesh_of(2, 2, 2)), alone)


def test_microbatches_are_one_batch(experiment, alone):
    check(gradient(dataclasses.replace(experiment, microbatches=4)), alone)


def test_the_routers_losses_are_part_of_the_step(experiment, alone):
    sums = alone[1]
    mean = lambda name: float(sums[name].mean())
    want = mean("ntp") + 1e-4 * mean("z") + 0.01 * mean("balance") + 0.001 * mean("router_z")
    assert mean("loss") == pytest.approx(want, rel=1e-5) and mean("balance") > 1.9
    without = dataclasses.replace(experiment.objective, balance=0.0, router_z=0.0)
    grads = gradient(dataclasses.replace(experiment, objective=without))[0]
    assert not np.allclose(grads.blocks.router[...], alone[0].blocks.router[...], rtol=1e-3)


def test_experts_learn_at_the_rate_of_their_fan_in(experiment):
    """muP: every map of an expert, and the router, as a map of that many inputs; none of another name is left out."""
    state = step.init_state(experiment)
    spec = step.step_spec(experiment)
    ones = jax.tree.map(jnp.ones_like, state.params)
    fans = transformer.fan_in(SMALL)
    assert {"router_dx", "expert_gate_xdf", "expert_up_xdf", "expert_down_xfd"} <= fans.keys() and "up_df" not in fans
    updates, _ = optim.optimizer(spec.optim, state.hyper, fans).update(
        ones, state.opt_state, jax.tree.map(jnp.zeros_like, state.params), step=jnp.int32(3)
    )
    rate = float(np.asarray(updates.blocks.attention_norm[...]).flat[0])
    for name, fan in (("router", 32), ("expert_gate", 32), ("expert_up", 32), ("expert_down", SMALL.expert_dim)):
        got = float(np.asarray(getattr(updates.blocks, name)[...]).flat[0])
        assert got == pytest.approx(rate * spec.optim.base_width / fan, rel=1e-5), name


def test_decoding_in_pieces_is_the_whole():
    check_decoding(Transformer(SMALL, jax.random.key(0)))


def test_a_teacher_in_fewer_bits_keeps_its_router():
    model = Transformer(SMALL, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 24), 0, 64)
    want = jax.nn.log_softmax(jax.jit(model)(tokens))
    for precision, most in (("bfloat16", 1e-3), ("int8", 1e-2)):
        small = cast(model, precision)
        np.testing.assert_array_equal(small.blocks.router[...], model.blocks.router[...])
        assert small.blocks.expert_gate[...].astype(jnp.bfloat16).dtype == jnp.bfloat16
        got = jax.nn.log_softmax(jax.jit(lambda m: m(tokens))(small))
        assert 0 < float(jnp.mean(jnp.sum(jnp.exp(want) * (want - got), axis=-1))) < most


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(experts=4, experts_per_token=5), "experts_per_token=5: wanted 1 to experts=4"),
        (dict(experts=4, experts_per_token=3, d_ff=64), "ff_dim=64 is not a multiple of experts_per_token=3"),
        (dict(experts=4, gated=False), "gated=False"),
        (dict(experts=-1), "experts=-1"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**fields)


def test_a_width_that_does_not_divide_is_named(mesh_of):
    model = dataclasses.replace(SMALL, n_heads=8, n_kv_heads=4, expert_d_ff=30)
    with pytest.raises(ConfigError, match=r"model.expert_d_ff=30 .* tensor=4"):
        sharding.check(model, 8, mesh_of(1, 1, 4))
