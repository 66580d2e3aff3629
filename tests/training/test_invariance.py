"""One batch, one loss: microbatches, padding, packing and the mesh change nothing, for every objective.

float64 to 1e-12 where the arithmetic is ours alone; float32 to 1e-5 of the gradient's norm through the whole step.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.config import ExperimentConfig
from distill.config.objective import every
from distill.model import sharding, transformer
from distill.training import objective, optim
from distill.types import Batch, TeacherSignal

B, S, V = 4, 6, 16
ALL = every(lambda_=0.7, beta=0.3, top_k=5, top_p=0.7, draws=4)
# Softened wherever that builds, and one nucleus: the others share every line with these.
GRID = {
    name: config
    for name, config in ALL.items()
    if (config.tempered or name[:-1] + "2" not in ALL) and (config.target != "topp" or "forward" in name)
}


@pytest.fixture
def case(float64):
    """(logits, teacher's log-probabilities, batch): random weights, a few of them zero."""
    rng = np.random.default_rng(5)
    logits, teacher = (jnp.asarray(2 * rng.normal(size=(B, S, V))) for _ in range(2))
    weight = jnp.asarray(rng.choice([0.0, 0.5, 1.0, 2.0], (B, S)))
    tokens = jnp.asarray(rng.integers(0, V, (B, S + 1), np.int32))
    return logits, jax.nn.log_softmax(teacher, axis=-1), Batch(tokens, weight)


@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def run(logits, log_probs, batch):
    """(loss sum, gradient by the logits, sums) of every objective, in one program."""
    signal, found = TeacherSignal(log_probs=log_probs), {}
    for name, config in GRID.items():
        h, shape = optim.hyperparams(ExperimentConfig(objective=config)), objective.objective_spec(config)
        loss = lambda z: objective.loss(shape, h, z, signal, batch, 7)  # noqa: B023, E731
        (value, sums), gradient = jax.value_and_grad(loss, has_aux=True)(logits)
        found[name] = (value, gradient, sums)
    return found


@pytest.fixture
def want(case):
    return run(*case)


def check(got, want, gradient=lambda g: g):
    """Loss sums and gradients of every objective, to 1e-12."""
    for name, (value, slope, _) in want.items():
        np.testing.assert_allclose(got[name][0], value, rtol=1e-12, err_msg=name)
        np.testing.assert_allclose(gradient(got[name][1]), slope, rtol=1e-11, atol=1e-13, err_msg=name)


def test_every_objective_mixes_its_parts(want):
    for name, (value, gradient, sums) in want.items():
        parts = 0.3 * sums["ntp"].value + 0.7 * sums["kd"].value + 1e-4 * sums["z"].value
        np.testing.assert_allclose(value, parts, rtol=1e-6, err_msg=name)  # lambda itself is a float32
        assert np.isfinite(gradient).all(), name
        assert np.linalg.norm(gradient) > 0.1, name


def test_microbatches(case, want):
    logits, log_probs, batch = case
    halves = [
        run(logits[i : i + 2], log_probs[i : i + 2], jax.tree.map(lambda x: x[i : i + 2], batch))  # noqa: B023
        for i in (0, 2)
    ]
    first, second = halves
    joined = {
        name: (first[name][0] + second[name][0], jnp.concatenate([first[name][1], second[name][1]]), None)
        for name in want
    }
    check(joined, want)


def test_packing_and_padding(case, want):
    """Two windows in one row, the seam between them and a row of junk under zero weight."""
    logits, log_probs, batch = case

    def pack(x, seam, junk):
        pairs = jnp.concatenate([x[0::2], seam[0::2], x[1::2]], axis=1)
        return jnp.pad(pairs, ((0, 1), (0, 0)) + ((0, 0),) * (x.ndim - 2), constant_values=junk)

    packed = Batch(
        pack(batch.tokens, batch.tokens[:, :0], 1),
        pack(batch.weight, jnp.zeros((B, 1)), 0.0),
        segment=pack(jnp.tile(jnp.asarray([[0], [1], [0], [1]]), (1, S)), jnp.zeros((B, 1), int), 0),
        position=pack(jnp.tile(jnp.arange(S)[None], (B, 1)), jnp.full((B, 1), S), 0),
    )
    got = run(pack(logits, logits[:, :1], 9.0), pack(log_probs, log_probs[:, :1], -3.0), packed)
    check(got, want, lambda g: jnp.stack([g[:2, :S], g[:2, S + 1 :]], axis=1).reshape(B, S, V))
    for _, gradient, _ in got.values():
        np.testing.assert_array_equal(gradient[2], 0)
        np.testing.assert_array_equal(gradient[:, S], 0)


def test_the_mesh(case, want, mesh_of):
    """Vocabulary and batch split over eight devices, in float32, against one device in float64."""
    logits, log_probs, batch = jax.tree.map(
        lambda x: np.asarray(x, np.float32) if x.dtype == np.float64 else np.asarray(x), case
    )
    want = jax.tree.map(np.asarray, want)
    with jax.enable_x64(False), jax.set_mesh(mesh_of(2, 1, 4)):
        place = lambda x: jax.device_put(x, sharding.LOGITS_BSV)
        got = run(place(logits), place(log_probs), sharding.place(batch, jax.sharding.get_mesh()))
        got = jax.tree.map(np.asarray, got)
    for name, (value, gradient, _) in want.items():
        np.testing.assert_allclose(got[name][0], value, rtol=1e-5, err_msg=name)
        assert np.linalg.norm(got[name][1] - gradient) < 1e-5 * np.linalg.norm(gradient), name


STEPPED = ("jensen_shannon-soft-2", "forward-sampled-1")


@pytest.mark.parametrize("name", STEPPED)
def test_the_whole_step(name, tiny, make_batch, gradient_of, relative_error, mesh_of):
    """An online teacher, two microbatches, 2 x 2 x 2 devices: the same gradient of every parameter."""
    config = dataclasses.replace(tiny, objective=ALL[name], microbatches=1)
    teacher = lambda: transformer.Transformer(dataclasses.replace(tiny.model, d_model=24), jax.random.key(9))
    batches = make_batch(1)
    want = gradient_of(config, batches, teacher=teacher())
    cut = dataclasses.replace(config, microbatches=2)
    assert relative_error(gradient_of(cut, batches, teacher=teacher()), want) < 1e-5
    with jax.set_mesh(mesh_of(2, 1, 2)):
        spread = gradient_of(config, batches, teacher=teacher())
    assert relative_error(spread, want) < 1e-5
