"""A tiny student, its teacher, and stores of what the teacher says of the student's windows."""

import dataclasses

import jax
import pytest

from distill.config import ObjectiveConfig, TeacherConfig
from distill.teacher.signals.spec import SignalSpec
from distill.training import cache, loop


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """A mesh of data=-1 takes one of the eight fake devices."""
    make = loop.sharding.make
    monkeypatch.setattr(loop.sharding, "make", lambda config, devices=None: make(config, devices or jax.devices()[:1]))


@pytest.fixture(scope="session")
def student(tiny, tmp_path_factory):
    """A student's config: its teacher trained, its text at hand. Every window of the run is stored in 24 records."""
    folder = tmp_path_factory.mktemp("signals")
    config = dataclasses.replace(
        tiny,
        data=dataclasses.replace(tiny.data, cache=str(folder / "data")),
        eval=dataclasses.replace(tiny.eval, tokens=256, batch_size=8),
        loop=dataclasses.replace(tiny.loop, steps_per_call=3, log_steps=1),
        tokens=6 * 4 * 16,
    )
    teacher = dataclasses.replace(config, data=dataclasses.replace(config.data, split="teacher"))
    make = loop.sharding.make
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.sharding, "make", lambda config: make(config, jax.devices()[:1]))
        loop.train(teacher, folder / "teacher")
    return dataclasses.replace(config, teacher=TeacherConfig(source=str(folder / "teacher")))


KINDS = {
    "topk": (SignalSpec(kind="topk", top_k=4), ObjectiveConfig(target="topk", top_k=4)),
    "topp": (SignalSpec(kind="topp", top_p=0.8, top_k=6), ObjectiveConfig(target="topp", top_p=0.8, top_k=6)),
    "sampled": (SignalSpec(kind="sampled", draws=16), ObjectiveConfig(target="sampled", draws=16)),
    "argmax": (SignalSpec(kind="argmax"), ObjectiveConfig(target="argmax")),
    "hidden": (SignalSpec(kind="hidden", dtype="float32"), ObjectiveConfig()),
    "full": (SignalSpec(kind="full"), ObjectiveConfig()),
}


@pytest.fixture(scope="session")
def made(student, tmp_path_factory):
    """made(kind): the folder of a finished store, in four shards, made once."""
    folder, found = tmp_path_factory.mktemp("stores"), {}

    def make(kind):
        if kind not in found:
            cache.cache_signals(student, KINDS[kind][0], folder / kind, shard_tokens=7 * 16)
            found[kind] = folder / kind
        return found[kind]

    return make


def reading(student, kind, folder, **changes):
    """The student's config with the signal of a store."""
    teacher = dataclasses.replace(student.teacher, signal="stored", store=str(folder))
    return dataclasses.replace(student, teacher=teacher, objective=KINDS[kind][1], **changes)
