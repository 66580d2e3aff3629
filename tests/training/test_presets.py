"""Every objective has a preset, and under every preset a student comes nearer to its teacher."""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import objectives
from distill.config import ExperimentConfig
from distill.config.exactness import DIVERGENCES
from distill.config.objective import ObjectiveConfig
from distill.data.loader import Loader
from distill.losses import divergences
from distill.model import sharding
from distill.teacher.mixture import TeacherMixture
from distill.training import step
from launch.support import cli

STEPS, STACK = 30, 15
QUICK = {"xla_backend_optimization_level": 0}  # compiled once and run for a moment


def preset(name):
    return cli.resolve(ExperimentConfig, [f"--config=configs/objectives.py:{name}"]).objective


@pytest.fixture(scope="module")
def taught(tiny, store):
    """(student's config, stacked batches of the text, a trained teacher and a worse one of unequal shapes)."""
    config = dataclasses.replace(
        tiny,
        model=dataclasses.replace(tiny.model, n_layers=2),
        optim=dataclasses.replace(tiny.optim, learning_rate=2e-2, schedule="constant"),
        tokens=STEPS * tiny.batch_size * tiny.seq_len,
    )
    loader = Loader(store, split="student", batch_size=4, seq_len=16, seed=0, process=(0, 1),
                    packing="windows", completions_only=False)  # fmt: skip
    batches = loader.batches(0, STACK + 1)  # the last one is kept from training
    with jax.set_mesh(sharding.make(config.mesh, jax.devices()[:1])):
        teachers = []
        for width, rounds in ((32, 8), (24, 1)):
            own = dataclasses.replace(config, seed=9, model=dataclasses.replace(config.model, d_model=width))
            teachers.append(trained(own, batches, None, rounds).params)
    return config, batches, teachers


def trained(config, batches, teacher, rounds, shape=None):
    state = step.init_state(config, shape)
    placed = sharding.place(batches, jax.sharding.get_mesh(), leading=1)
    steps = jax.jit(functools.partial(step.train_steps, step.step_spec(config)), compiler_options=QUICK)
    for _ in range(rounds):
        state, _ = steps(state, teacher, placed, STACK)
    return state


def kl(teacher, student, batches):
    """KL(teacher, student) on text that was not trained on, nats per token."""
    tokens = jnp.asarray(batches.tokens[-1][:, :-1])
    found = jax.jit(lambda t, s: divergences.kl_divergence(s(tokens), t(tokens)).mean(), compiler_options=QUICK)
    return float(found(teacher, student))


@pytest.mark.parametrize("name", objectives.PRESETS)
def test_a_student_comes_nearer_to_its_teacher(name, taught):
    config, batches, (teacher, other) = taught
    config = dataclasses.replace(config, objective=preset(name))
    shape = teacher.config
    if name == "mixture":
        teacher = TeacherMixture(models=(teacher, other), weights=jnp.asarray([0.7, 0.3]))
    before = kl(teacher, step.init_state(config).params, batches)
    after = kl(teacher, trained(config, batches, teacher, STEPS // STACK, shape).params, batches)
    assert np.isfinite(after) and after < 0.7 * before, f"KL {before:.3f} -> {after:.3f}"


def test_every_objective_has_a_preset():
    found = [preset(name) for name in objectives.PRESETS]
    assert {config.divergence for config in found} == set(DIVERGENCES)
    for name in ("target", "tail", "feature_loss"):
        (field,) = (f for f in dataclasses.fields(ObjectiveConfig) if f.name == name)
        assert {getattr(config, name) for config in found} == set(typing.get_args(field.type)), name
    assert any(config.features for config in found) and any(config.schedule != "constant" for config in found)
    assert {0.0, 1.0} <= {config.lambda_ for config in found} and any(config.tempered for config in found)
    assert len(set(found)) == len(found) - 1  # the mixture differs by its teachers alone
    assert ObjectiveConfig() in found
