"""Teachers in fewer bits: bytes, rounding, and what it does to their loss; the same on every mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.model import sharding
from distill.model.quantize import SUMMED, cast
from distill.training import step


def held(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree) if hasattr(leaf, "nbytes"))


def kl(p, q):
    return float(jnp.mean(jnp.sum(jnp.exp(p) * (p - q), axis=-1)))


@pytest.fixture(scope="module")
def config(tiny):
    return dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, n_heads=4, d_model=32, tied=False))


@pytest.mark.parametrize(("precision", "share", "most"), [("bfloat16", 0.5, 3e-5), ("int8", 0.25, 3e-4)])
def test_fewer_bytes_and_nearly_the_same_distribution(config, make_batch, precision, share, most):
    teacher = step.init_state(config).params
    small = cast(teacher, precision)
    maps = [getattr(teacher.blocks, name) for name in SUMMED]
    assert held([getattr(small.blocks, name) for name in SUMMED]) <= (share + 0.1) * held(maps)
    assert held(small.embed) == held(teacher.embed) / 2
    tokens = jnp.asarray(make_batch().tokens[0, :, :-1])
    speak = jax.jit(lambda model: jax.nn.log_softmax(model(tokens)))
    want, got = speak(teacher), speak(small)
    assert 0 < kl(want, got) < most
    assert cast(teacher, "float32") is teacher


def test_a_step_of_int8_is_at_most_half_a_scale_away(config):
    teacher = step.init_state(config).params
    small = cast(teacher, "int8")
    for name, axes in SUMMED.items():
        weight = np.asarray(getattr(teacher.blocks, name)[...])
        got = np.asarray(getattr(small.blocks, name)[...].astype(jnp.float32))
        scale = np.abs(weight).max(axis=axes, keepdims=True) / 127
        assert (np.abs(got - weight) <= 0.5001 * scale).all(), name
        np.testing.assert_allclose(np.abs(got).max(axis=axes), np.abs(weight).max(axis=axes), rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 2, 1), (1, 2, 2)])
def test_a_student_of_an_int8_teacher_is_the_same_on_every_mesh(config, make_batch, run_steps, mesh_of, shape):
    config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, lambda_=1.0))

    def loss():
        teacher = cast(step.init_state(dataclasses.replace(config, seed=3)).params, "int8")
        return float(run_steps(config, make_batch(2), teacher=teacher, count=2)[1]["loss"])

    want = loss()
    with jax.set_mesh(mesh_of(*shape)):
        np.testing.assert_allclose(loss(), want, rtol=2e-6)
    assert sharding.AXES
