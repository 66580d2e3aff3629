"""Maps multiplied in int8 and float8: NumPy's arithmetic, plain gradients, every mesh, the devices' own types."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from distill.model import head_maps, layers, products, sharding
from distill.model.quantize import cast
from distill.training import step

KINDS = ("int8", "float8")


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rounded(x, axis, kind):
    """Steps in float64 and their scales, by NumPy alone."""
    largest = {"int8": 127, "float8": 448}[kind]
    most = np.abs(x).max(axis=axis, keepdims=True)
    scale = np.where(most > 0, most, 1) / np.float32(largest)
    steps = x / scale
    steps = np.round(steps) if kind == "int8" else steps.astype(ml_dtypes.float8_e4m3fn)
    return steps.astype(np.float64), scale.astype(np.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_is_that_of_the_steps(kind):
    x, w = draw(2, 5, 48), draw(48, 24, seed=1)
    x[0, 0] = 0  # a token without anything to scale
    (a, s), (b, t) = rounded(x, -1, kind), rounded(w, 0, kind)
    want = (a @ b) * s * t
    got = layers.linear(jnp.asarray(x), jnp.asarray(w), sharding.ACT_BSF, None, kind)
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)
    assert 1e-3 < np.linalg.norm(got - x @ w) / np.linalg.norm(x @ w) < {"int8": 0.015, "float8": 0.05}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_heads_are_the_same_products(kind):
    x, w, back = draw(2, 5, 48), draw(48, 24, seed=1), draw(24, 48, seed=2)
    matrix = layers.linear(jnp.asarray(x), jnp.asarray(w), sharding.ACT_BSF, None, kind)
    heads = head_maps.into(jnp.asarray(x), jnp.asarray(w), 8, kind)
    np.testing.assert_array_equal(heads, matrix.reshape(2, 5, 3, 8))
    want = layers.linear(matrix, jnp.asarray(back), sharding.ACT_BSD, None, kind)
    np.testing.assert_allclose(head_maps.out_of(heads, jnp.asarray(back), sharding.ACT_BSD, kind), want, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_plain_product(kind):
    x, w, dy = jnp.asarray(draw(2, 5, 48)), jnp.asarray(draw(48, 24, seed=1)), jnp.asarray(draw(2, 5, 24, seed=2))

    def pull(kind):
        loss = lambda x, w: jnp.sum(layers.linear(x, w, sharding.ACT_BSF, None, kind) * dy)
        return jax.jit(jax.grad(loss, (0, 1)))(x, w)

    for got, want in zip(pull(kind), pull("full")):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", KINDS)
def test_the_devices_types_give_the_numbers_of_the_cpu(kind, monkeypatch):
    x, w = jnp.asarray(draw(2, 5, 48)), jnp.asarray(draw(48, 24, seed=1))
    want = layers.linear(x, w, sharding.ACT_BSF, None, kind)
    monkeypatch.setattr(products, "platform", lambda: "tpu")
    text = jax.jit(lambda x, w: layers.linear(x, w, sharding.ACT_BSF, None, kind)).lower(x, w).as_text()
    assert {"int8": "xi8>", "float8": "xf8E4M3FN>"}[kind] in next(s for s in text.splitlines() if "dot_general" in s)
    np.testing.assert_allclose(layers.linear(x, w, sharding.ACT_BSF, None, kind), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_rounded_away(kind, value):
    """A step cannot hold it: NaN in int8 is zero. The guard of a step must see it; the other tokens stay."""
    x, w = draw(2, 5, 48), jnp.asarray(draw(48, 24, seed=1))
    x[1, 2, 7] = value
    found = np.array(layers.linear(jnp.asarray(x), w, sharding.ACT_BSF, None, kind))
    assert not np.isfinite(found[1, 2]).any()
    found[1, 2] = 0
    assert np.isfinite(found).all()


def test_tokens_of_nothing_give_nothing():
    x, w = jnp.asarray([[[0.0] * 48, [1e-37] * 48]]), jnp.asarray(draw(48, 24))
    for kind in KINDS:
        np.testing.assert_array_equal(layers.linear(x, w, sharding.ACT_BSF, None, kind), 0)


@pytest.fixture(scope="module")
def config(tiny):
    return dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, n_heads=4, d_model=32, tied=False))


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_that_multiplies_steps(config, make_batch, run_steps, mesh_of, kind):
    """Near the teacher of float32, by a distribution that is not its own; the same student on every mesh, but for
    activations that another order of sums rounds to another step."""
    config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, lambda_=1.0))
    tokens = jnp.asarray(make_batch().tokens[0, :, :-1])

    def taught():
        whole = step.init_state(dataclasses.replace(config, seed=3)).params
        small = cast(whole, f"{kind}_products")
        speak = jax.jit(lambda model: jax.nn.log_softmax(model(tokens)))
        p, q = speak(whole), speak(small)
        loss = float(run_steps(config, make_batch(2), teacher=small, count=2)[1]["loss"])
        return loss, float(jnp.mean(jnp.sum(jnp.exp(p) * (p - q), axis=-1)))

    loss, kl = taught()
    assert 0 < kl < {"int8": 1e-3, "float8": 1e-2}[kind]
    with jax.set_mesh(mesh_of(1, 2, 2)):
        np.testing.assert_allclose(taught()[0], loss, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_map_is_the_same_product_on_every_mesh(config, mesh_of, kind):
    x = draw(4, 6, 32)

    def heads_and_units():
        blocks = cast(step.init_state(config).params, f"{kind}_products").blocks
        block = jax.tree.map(lambda leaf: leaf[0], blocks)
        x_here = jax.device_put(x, jax.NamedSharding(jax.sharding.get_mesh(), sharding.ACT_BSD))
        rounded = jax.jit(lambda block, x: (block._heads(x, "query", "query_dhk"), block._feed(x, "up")))
        return [np.asarray(part) for part in rounded(block, x_here)]

    want = heads_and_units()
    for shape in ((2, 2, 1), (1, 2, 2), (1, 1, 4)):
        with jax.set_mesh(mesh_of(*shape)):
            for got, wanted in zip(heads_and_units(), want):
                np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=2e-6)


def test_a_teachers_steps_are_rounded_once(config):
    """The same steps whether the weights are rounded when they are loaded, or when they are used."""
    teacher = step.init_state(config).params
    small = cast(teacher, "int8_products")
    used = dataclasses.replace(teacher.config, products="int8")
    rounding = jax.tree.unflatten(jax.tree.structure(step.init_state(
        dataclasses.replace(config, model=used)).params), jax.tree.leaves(teacher))  # fmt: skip
    x = jnp.asarray(draw(2, 5, 32))
    first = lambda model: jax.tree.map(lambda leaf: leaf[0], model.blocks)
    np.testing.assert_allclose(first(small).mlp(x), first(rounding).mlp(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_learns_by_them(config, make_batch, run_steps, mesh_of, kind):
    """Beside the same student of plain products: near, and not equal."""
    with jax.set_mesh(mesh_of(2, 2, 2)):
        plain = float(run_steps(config, make_batch(2), count=4)[1]["loss"])
        model = dataclasses.replace(config.model, products=kind)
        rounded = float(run_steps(dataclasses.replace(config, model=model), make_batch(2), count=4)[1]["loss"])
    assert 0 < abs(rounded - plain) < 0.01 * plain
