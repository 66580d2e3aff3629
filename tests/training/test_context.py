"""Runs whose devices share sequences, beside runs whose devices do not: the same losses, scores and weights."""

import dataclasses

import jax
import numpy as np
import pytest

from distill.config import ConfigError, MeshConfig, OnPolicyConfig, TeacherConfig
from distill.model import sharding
from distill.records.checkpoints import Checkpoints
from distill.training.loop import train
from distill.training.step import init_state


@pytest.fixture(autouse=True)
def one_device_mesh():
    """The loop makes its own mesh."""


@pytest.fixture(scope="module")
def long(tiny):
    """Four sequences of 64 tokens a step, packed."""
    return dataclasses.replace(
        tiny,
        data=dataclasses.replace(tiny.data, packing="documents"),
        eval=dataclasses.replace(tiny.eval, tokens=512, batch_size=8),
        loop=dataclasses.replace(tiny.loop, steps_per_call=2, log_steps=1),
        batch_size=4,
        seq_len=64,
        tokens=6 * 4 * 64,
    )


def ran(config, workdir, store, monkeypatch, devices):
    """A run's record, and its last weights."""
    make = sharding.make
    monkeypatch.setattr(sharding, "make", lambda config, *given: make(config, *(given or (jax.devices()[:devices],))))
    record = train(config, workdir, store=store)
    with jax.set_mesh(sharding.make(config.mesh)), Checkpoints(workdir / "checkpoints") as checkpoints:
        state = checkpoints.restore(config.steps, init_state(config).stored())
        weights = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state["params"]))}
    monkeypatch.undo()
    return record, weights


def test_a_student_whose_devices_share_sequences_is_the_same_student(
    tmp_path, store, long, monkeypatch, relative_error
):
    """Supervised teacher and distilled student, each on one device and on eight that share two sequences at a time."""
    shared = {"mesh": MeshConfig(data=2, fsdp=4, context=4), "microbatches": 2}
    teacher, weights = ran(long, tmp_path / "teacher", store, monkeypatch, 1)
    again, others = ran(dataclasses.replace(long, **shared), tmp_path / "shared", store, monkeypatch, 8)
    assert relative_error(others, weights) < 1e-4
    assert again.run == teacher.run and abs(again.loss - teacher.loss) < 1e-4
    assert abs(again.loss_se - teacher.loss_se) < 1e-4 and abs(again.ece - teacher.ece) < 1e-3
    student = dataclasses.replace(long, teacher=TeacherConfig(source=str(tmp_path / "teacher")), seed=1)
    alone, weights = ran(student, tmp_path / "alone", store, monkeypatch, 1)
    together, others = ran(dataclasses.replace(student, **shared), tmp_path / "together", store, monkeypatch, 8)
    assert relative_error(others, weights) < 1e-4
    assert abs(together.kl - alone.kl) < 1e-4 and abs(together.L_T - alone.L_T) < 1e-4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mesh": MeshConfig(data=2, fsdp=4, context=3)}, "mesh.context=3 with mesh.fsdp=4"),
        ({"mesh": MeshConfig(data=2, fsdp=4, context=4), "seq_len": 60}, "seq_len=60 with mesh.context=4"),
        (
            {"mesh": MeshConfig(data=2, fsdp=4, context=4), "on_policy": OnPolicyConfig(fraction=0.5, prompt_tokens=4),
             "data": "windows"},
            "mesh.context=4 with on_policy.fraction",
        ),
        ({"mesh": MeshConfig(data=2, fsdp=4, context=4), "experts": 4}, "objective.balance is by whole"),
    ],
)  # fmt: skip
def test_what_cannot_be_shared_is_refused_before_a_run(long, changed, message):
    if changed.pop("data", ""):
        changed["data"] = dataclasses.replace(long.data, packing="windows")
    if experts := changed.pop("experts", 0):
        changed["model"] = dataclasses.replace(long.model, experts=experts, experts_per_token=2)
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(long, **changed)


def test_a_batch_of_other_than_the_devices_sequences_is_refused(tmp_path, store, long, monkeypatch):
    config = dataclasses.replace(long, mesh=MeshConfig(data=2, fsdp=4, context=4))
    with pytest.raises(ConfigError, match="set batch_size to 2 x microbatches"):
        ran(config, tmp_path / "run", store, monkeypatch, 8)
