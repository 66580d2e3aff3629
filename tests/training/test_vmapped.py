"""Runs that train together are the runs that they would be alone."""

import dataclasses
import operator
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from distill.config import ExperimentConfig, build, to_flat
from distill.model import sharding
from distill.model.transformer import Transformer
from distill.records.runs import RunTable
from distill.study import sweep, workers
from distill.system import preemption
from distill.training import step, vmapped
from distill.types import Batch, TeacherSignal

CALLS, EACH = 4, 5


def member(tiny, seed, **objective):
    numbers = dataclasses.replace(tiny.optim, learning_rate=0.01 / (seed + 1), clip=0.5 + seed)
    return dataclasses.replace(
        tiny, seed=seed, optim=numbers, objective=dataclasses.replace(tiny.objective, **objective)
    )


def train(config, batches, teacher, train_steps, calls=CALLS):
    state = step.init_state(config)
    for i in range(calls):
        part = jax.tree.map(operator.itemgetter(slice(i * EACH, (i + 1) * EACH)), batches)
        placed = sharding.place(part, jax.sharding.get_mesh(), leading=1)
        state, sums = train_steps(step.step_spec(config), state, teacher, placed, EACH)
    return state, sums


def together(configs, batches, teacher, calls):
    """Every run in a thread of its own; (state, last metrics) each."""
    found, here = {}, jax.sharding.get_mesh()
    pack_ = vmapped.VmappedRuns(len(configs), preemption.PreemptionFlag())

    def run(i):
        try:
            with jax.set_mesh(here):
                found[i] = train(configs[i], batches[i], teacher, pack_.train_steps, calls[i])
        finally:
            pack_.leave()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(configs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    return [found[i] for i in range(len(configs))]


def assert_equal_runs(got, want):
    for (state, sums), (alone, alone_sums) in zip(got, want, strict=True):
        for a, b in zip(jax.tree.leaves(state.stored()), jax.tree.leaves(alone.stored()), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
        assert sums.keys() == alone_sums.keys()
        for name in sums:
            np.testing.assert_allclose(sums[name], alone_sums[name], atol=1e-5, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 1)], ids=["one device", "four devices"])
@pytest.mark.parametrize("taught", ["", "online", "batch"])
def test_after_twenty_steps_each_is_what_it_is_alone(tiny, make_batch, mesh_of, taught, shape):
    """Other seeds, rates, clips, lambdas and temperatures; with a teacher of all, or signals that come with batches."""
    configs = [member(tiny, i, lambda_=0.5 + 0.25 * i, temperature=1.0 + i) if taught else member(tiny, i)
               for i in range(3)]  # fmt: skip
    batches = [make_batch(CALLS * EACH, seed=i) for i in range(3)]
    with jax.set_mesh(mesh_of(*shape)):
        teacher = Transformer(tiny.model, jax.random.key(9)) if taught == "online" else None
        if taught == "batch":
            batches = [signalled(batch, i) for i, batch in enumerate(batches)]
        got = together(configs, batches, teacher, [CALLS] * 3)
        alone = [train(config, batch, teacher, step.train_steps) for config, batch in zip(configs, batches)]
        assert_equal_runs(got, alone)
        assert len({float(sums["loss"]) for _, sums in got}) == 3


def signalled(batch, seed):
    drawn = np.random.default_rng(seed).standard_normal((*batch.weight.shape, 32))
    return Batch(batch.tokens, batch.weight, signal=TeacherSignal(log_probs=np.asarray(jax.nn.log_softmax(drawn))))


def test_microbatches_together(tiny, make_batch):
    configs = [dataclasses.replace(member(tiny, i), microbatches=2) for i in range(2)]
    batches = [make_batch(CALLS * EACH, seed=i) for i in range(2)]
    alone = [train(config, batch, None, step.train_steps) for config, batch in zip(configs, batches)]
    assert_equal_runs(together(configs, batches, None, [CALLS] * 2), alone)


def test_who_ends_early_holds_nobody_up(tiny, make_batch):
    configs, calls = [member(tiny, i) for i in range(3)], [1, CALLS, 2]
    batches = [make_batch(CALLS * EACH, seed=i) for i in range(3)]
    alone = [train(config, batch, None, step.train_steps, n) for config, batch, n in zip(configs, batches, calls)]
    assert_equal_runs(together(configs, batches, None, calls), alone)


def test_an_error_of_the_step_reaches_every_member(tiny, make_batch):
    pack_, heard, here = vmapped.VmappedRuns(2, preemption.PreemptionFlag()), [], jax.sharding.get_mesh()

    def run(seed):
        config = member(tiny, seed)
        wrong = Batch(np.zeros((EACH, 4, 17), np.int32), np.ones((EACH, 4, 3), np.float32))
        try:
            with jax.set_mesh(here):
                pack_.train_steps(step.step_spec(config), step.init_state(config), None, wrong, EACH)
        except Exception as error:
            heard.append(type(error))
        finally:
            pack_.leave()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(heard) == 2


TINY = {
    "model": {"d_model": 16, "n_layers": 1, "n_heads": 1, "vocab_size": 256},
    "seq_len": 32, "tokens": 8192, "batch_size": 4, "eval": {"tokens": 1024, "batch_size": 4},
    "optim": {"warmup_steps": 5}, "data": {"source": "embedded"},
}  # fmt: skip


def test_a_sweep_in_packs_is_the_sweep(tmp_path, monkeypatch):
    """One worker, three runs at once, of which one is not to be had: the others go on, and are what they are alone."""
    monkeypatch.setenv("XLA_FLAGS", "")  # workers with one device each
    config = build(ExperimentConfig, TINY | {"data": {"cache": str(tmp_path / "data")}})
    axes = [sweep.axis("seed=0,1"), sweep.axis("optim.learning_rate=1e-2,3e-3"), sweep.axis("tokens=4096,8192")]
    assert sweep.run(config, axes, tmp_path / "alone", sweep.SweepOptions(n_workers=1)) == 0
    first = sweep.expand(config, axes, tmp_path / "packed", "")[-1]
    broken = tmp_path / "packed" / "runs" / first.run / "config.txt"
    broken.parent.mkdir(parents=True)
    broken.write_text("seed = nonsense\n")
    assert sweep.run(config, axes, tmp_path / "packed", sweep.SweepOptions(n_workers=1, pack=3)) == 1
    assert (broken.parent / "error.txt").read_text()
    broken.unlink()
    assert sweep.run(config, axes, tmp_path / "packed", sweep.SweepOptions(n_workers=1, pack=3)) == 0
    alone, packed = (RunTable(tmp_path / name / "runs.csv").runs() for name in ("alone", "packed"))
    assert alone.keys() == packed.keys() and len(alone) == 8
    for run in alone:
        assert packed[run].loss == pytest.approx(alone[run].loss, rel=1e-5)
    assert len({record.loss for record in alone.values()}) == 8


def test_what_may_be_packed(tmp_path):
    config = build(ExperimentConfig, TINY)

    def key(line):
        return [workers.vmap_key(task) for task in sweep.expand(config, [sweep.axis(line)], tmp_path, "")]

    for line in ("seed=0,1", "optim.learning_rate=1e-2,1e-3", "objective.temperature=2,4", "optim.weight_decay=0,0.1"):
        one, other = key(line)
        assert one == other, line
    lines = ("tokens=8192,16384", "model.n_layers=1,2", "batch_size=4,8", "objective.divergence=forward,reverse")
    for line in (*lines, "data.seed=0,1"):
        one, other = key(line)
        assert one != other, line


def test_a_pack_that_is_asked_to_end_saves_each_of_its_runs(tmp_path):
    """A real SIGTERM in the middle: exit code 75, and the same command ends where one left alone does."""
    flags = [f"--config.{name}={value}" for name, value in to_flat(build(ExperimentConfig, TINY)).items()
             if name in ("model.d_model", "model.n_layers", "model.n_heads", "seq_len", "batch_size", "eval.tokens",
                         "eval.batch_size", "optim.warmup_steps")]  # fmt: skip
    flags += ["--config=configs/train.py:micro", "--sweep=seed=0,1,2", "--config.tokens=200K", "--workers=1"]
    flags += [f"--config.data.cache={tmp_path / 'data'}", "--config.loop.steps_per_call=4"]
    environment = os.environ | {"XLA_FLAGS": ""}

    def start(name, *more):
        command = [sys.executable, "-m", "launch.sweep", *flags, *more, f"--workdir={tmp_path / name}"]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    alone = start("alone")
    packed = start("packed", "--pack=3")
    deadline = time.monotonic() + 240
    logs = lambda: [path.stat().st_size for path in (tmp_path / "packed").glob("runs/*/metrics.jsonl")]
    while sum(map(bool, logs())) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    packed.send_signal(signal.SIGTERM)
    said = packed.communicate(timeout=120)[0]
    assert packed.returncode == 75, said
    assert not list((tmp_path / "packed").glob("runs/*/result.json"))
    assert len(list((tmp_path / "packed").glob("runs/*/checkpoints/*/_CHECKPOINT_METADATA"))) == 3
    again = start("packed", "--pack=3")
    assert again.wait(240) == 0 and alone.wait(240) == 0
    want, got = (RunTable(tmp_path / name / "runs.csv").runs() for name in ("alone", "packed"))
    assert len(want) == 3 and {run: got[run].loss for run in got} == pytest.approx(
        {run: want[run].loss for run in want},
        rel=5e-4,  # a tenth of what seeds differ by, after 1562 steps
    )
