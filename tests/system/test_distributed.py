"""Several processes train as one does, stop together, and end together; with real processes and real signals."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from distill.config import ConfigError, ExperimentConfig
from distill.system import distributed, preemption
from distill.training import loop
from launch.support import cli

FLAGS = [
    "--config=configs/train.py:micro", "--config.data.source=generated", "--config.data.generated.tokens=20_000",
    "--config.data.generated.validation_tokens=4096", "--config.batch_size=8", "--config.seq_len=16",
    "--config.tokens=28_800", "--config.eval.tokens=1500", "--config.loop.steps_per_call=4",
    "--config.loop.log_steps=4", "--config.loop.checkpoint_seconds=1e9", "--config.optim.warmup_steps=10",
]  # fmt: skip
STEPS = 225  # more than pass between a line of metrics and the signal that it calls for, on a fast machine too


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    return [*FLAGS, f"--config.data.cache={tmp_path_factory.mktemp('text') / 'store'}"]


@pytest.fixture(scope="module")
def alone(flags, tmp_path_factory):
    """The same run in one process, on the tests' eight devices."""
    return loop.train(configured(flags), tmp_path_factory.mktemp("alone"))


def configured(flags):
    return cli.resolve(ExperimentConfig, flags)


@pytest.fixture
def start(tmp_path):
    """start(count, workdir, flags, devices): that many processes of one run; none of them outlives the test."""
    started, here = [], tmp_path

    def run(count, workdir, flags, devices=1):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_backend_optimization_level=1 --xla_force_host_platform_device_count={devices}",
        }
        several = [f"--coordinator=127.0.0.1:{port}", f"--processes={count}"] if count > 1 else []
        found = []
        for i in range(count):
            log = open(here / f"{len(started)}.log", "w+")  # noqa: SIM115
            command = [sys.executable, "-m", "launch.train", *flags, f"--workdir={workdir}", *several]
            command += [f"--process={i}"] if several else []
            found.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment))
            found[-1].log = log
            started.append(found[-1])
        return found

    yield run
    for process in started:
        process.kill()
        process.wait()
        process.log.close()


def finish(started, timeout=400):
    """[(exit code, what it printed)]; Gloo's own greeting is left out."""
    deadline, found = time.monotonic() + timeout, []
    for process in started:
        code = process.wait(max(deadline - time.monotonic(), 0.1))
        process.log.seek(0)
        found.append((code, "".join(line for line in process.log if not line.startswith("[Gloo]"))))
    return found


def logged(workdir, lines, started):
    """Returns when the run has written so many lines of metrics."""
    log, deadline = workdir / "metrics.jsonl", time.monotonic() + 400
    while not (log.exists() and len(log.read_text().splitlines()) >= lines):
        assert all(process.poll() is None for process in started), finish(started)
        assert time.monotonic() < deadline, "it did not begin to train"
        time.sleep(0.02)


def checkpoints(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def loss(workdir):
    return json.loads((workdir / "result.json").read_text())["loss"]


@pytest.mark.dear("pairs of processes, which compile alone")
def test_two_processes_stop_together_end_together_and_learn_what_one_learns(start, flags, alone, tmp_path):
    run = tmp_path / "run"
    first = start(2, run, flags)
    logged(run, 2, first)
    first[1].send_signal(signal.SIGTERM)  # to one of them
    (code, said), (other, silence) = finish(first)
    (step,) = checkpoints(run)
    assert (code, other) == (preemption.REQUEUE, preemption.REQUEUE), said + silence
    assert f"asked to end: step {step} of {STEPS} is saved" in said and 0 < step < STEPS
    assert silence == ""

    # One process, on other devices, goes on with what two have saved.
    shutil.copytree(run, tmp_path / "copy")
    assert loop.train(configured(flags), tmp_path / "copy").loss == pytest.approx(alone.loss, rel=1e-5)

    second = start(2, run, flags)
    logged(run, step // 4 + 2, second)
    second[1].kill()
    began = time.monotonic()
    (code, said), _ = finish(second, timeout=30)
    assert code == distributed.LOST and time.monotonic() - began < 30
    assert "[process 0 of 2 on " in said and "error: another process has ended" in said and "Traceback" not in said

    (code, said), (other, silence) = finish(start(2, run, flags))
    assert (code, other, silence) == (0, 0, ""), said + silence
    assert loss(run) == pytest.approx(alone.loss, rel=1e-5)
    lines = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines == sorted(set(lines)) and lines[-1] == STEPS
    assert {path.name for path in run.iterdir()} == {
        "checkpoints",
        "config.txt",
        "lock",
        "metrics.jsonl",
        "result.json",
        "tensorboard",
    }
    assert len(list((run / "tensorboard").iterdir())) == 3  # one file a start, by process 0 alone


@pytest.mark.slow
def test_four_processes_with_every_axis_and_their_checkpoint_read_by_one_and_by_two(start, flags, alone, tmp_path):
    run, axes = tmp_path / "run", ["--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"]
    first = start(4, run, [*flags, *axes], devices=2)
    logged(run, 2, first)
    first[2].send_signal(signal.SIGTERM)
    assert [code for code, _ in finish(first)] == [preemption.REQUEUE] * 4
    for count in (1, 2):
        copy = tmp_path / f"by {count}"
        shutil.copytree(run, copy)
        assert [code for code, _ in finish(start(count, copy, flags))] == [0] * count
        assert loss(copy) == pytest.approx(alone.loss, rel=1e-5)

    second = start(4, run, [*flags, *axes], devices=2)
    logged(run, checkpoints(run)[0] // 4 + 2, second)
    second[0].kill()  # the one that coordinates
    for code, said in finish(second, timeout=30)[1:]:
        assert code not in (0, preemption.REQUEUE) and ("another process has ended" in said or "task died" in said), (
            said
        )
    assert [code for code, _ in finish(start(4, run, [*flags, *axes], devices=2))] == [0] * 4
    assert loss(run) == pytest.approx(alone.loss, rel=1e-5)


@pytest.mark.slow
def test_processes_that_hold_the_same_rows_read_the_same_rows(start, flags, alone, tmp_path):
    """The tensor axis goes across the two processes: each has half of the model and all of the batch."""
    found = finish(start(2, tmp_path / "run", [*flags, "--config.mesh.tensor=2"]))
    assert [code for code, _ in found] == [0, 0], found
    assert loss(tmp_path / "run") == pytest.approx(alone.loss, rel=1e-5)


@pytest.mark.slow
def test_students_of_two_processes(start, flags, tmp_path):
    """Taught online and from a store as by one process; a signal in memory is refused in one line."""
    from distill.teacher.signals.spec import SignalSpec
    from distill.training import cache

    teacher = tmp_path / "teacher"
    loop.train(configured([*flags, "--config.data.split=teacher"]), teacher)
    taught = [*flags, f"--config.teacher.source={teacher}"]
    cache.cache_signals(configured(taught), SignalSpec(kind="topk", top_k=8), tmp_path / "store")
    stored = [*taught, "--config.teacher.signal=stored", f"--config.teacher.store={tmp_path / 'store'}"]
    stored += ["--config.objective.target=topk", "--config.objective.top_k=8"]
    for name, given in {"online": taught, "stored": stored}.items():
        one = loop.train(configured(given), tmp_path / f"{name} one")
        found = finish(start(2, tmp_path / name, given))
        assert [code for code, _ in found] == [0, 0], found
        two = json.loads((tmp_path / name / "result.json").read_text())
        for number in ("loss", "kl", "L_T", "agreement", "ece"):
            assert two[number] == pytest.approx(getattr(one, number), rel=1e-4 if number == "kl" else 1e-5), number
        assert two["run"] == one.run
    (code, said), (other, silence) = finish(start(2, tmp_path / "memory", [*taught, "--config.teacher.signal=memory"]))
    assert (code, other, silence) == (2, 2, "")
    assert said.count("error: config.teacher.signal='memory'") == 1


@pytest.mark.slow
def test_a_damaged_checkpoint_is_set_aside_by_all_at_once(start, flags, alone, tmp_path):
    run = tmp_path / "run"
    first = start(2, run, [*flags, "--config.loop.checkpoint_seconds=0"])
    logged(run, 4, first)
    first[0].send_signal(signal.SIGTERM)
    finish(first)
    newest = checkpoints(run)[-1]
    (victim, *_) = (run / "checkpoints" / str(newest) / "params").rglob("ocdbt.process_1/d/*")
    data = bytearray(victim.read_bytes())
    data[random.Random(0).randrange(len(data))] ^= 1
    victim.write_bytes(data)
    (code, said), (other, silence) = finish(start(2, run, flags))
    assert (code, other, silence) == (0, 0, ""), said
    assert f"step {newest} is damaged: params/ocdbt.process_1/d/" in said and said.count("set aside in") == 1
    assert [path.name for path in (tmp_path / "run" / "checkpoints-damaged").iterdir()] == [str(newest)]
    assert loss(run) == pytest.approx(alone.loss, rel=1e-5)


SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "tiger[007-009,12],lion3",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_PROCID": "3",
}
JOBSET = {
    "COORDINATOR": "train-slice-0-0.train",
    "JOBS": "2",
    "PODS": "4",
    "JOB_INDEX": "1",
    "JOB_COMPLETION_INDEX": "2",
}


@pytest.mark.parametrize(
    "cluster, given, environ, want",
    [
        ("slurm", {}, SLURM, ("tiger007:61441", 5, 3)),
        ("slurm", {}, SLURM | {"SLURM_STEP_NODELIST": "a-b1"}, ("a-b1:61441", 5, 3)),
        ("slurm", {}, SLURM | {"SLURM_STEP_NODELIST": "a1,b[1-2]"}, ("a1:61441", 5, 3)),
        ("slurm", {}, SLURM | {"SLURM_STEP_NODELIST": "n[1-2].cluster.local"}, ("n1.cluster.local:61441", 5, 3)),
        ("slurm", {}, SLURM | {"SLURM_STEP_NODELIST": "tux[0-1]n[3-4]"}, ("tux0n3:61441", 5, 3)),
        ("slurm", {"coordinator": "127.0.0.1:7"}, SLURM, ("127.0.0.1:7", 5, 3)),
        ("jobset", {}, JOBSET, ("train-slice-0-0.train:8476", 8, 6)),
        ("", {"coordinator": "h:1", "processes": "2", "process": "1"}, {}, ("h:1", 2, 1)),
    ],
)
def test_a_process_finds_its_place(cluster, given, environ, want):
    flags = {"coordinator": "", "processes": "", "process": ""} | given
    place = distributed.find(cluster, **flags, environ=environ)
    assert (place.coordinator, place.count, place.index) == want


@pytest.mark.parametrize(
    "cluster, given, message",
    [
        ("slurm", {}, "SLURM_STEP_NODELIST is not set here; start it with srun"),
        ("jobset", {}, "PODS is not set here; "),
        ("mpi", {}, "--cluster=mpi: wanted one of slurm, jobset, tpu"),
        ("tpu", {"process": "1"}, "JAX reads the addresses from the machine"),
        ("", {"processes": "2"}, "--coordinator=: wanted HOST:PORT of process 0"),
        ("", {"coordinator": "h:1", "processes": "2", "process": "2"}, "--process=2: wanted 0 to 1 of --processes=2"),
        ("", {"coordinator": "h:1", "processes": "two", "process": "0"}, "--processes=two: wanted a number"),
    ],
)
def test_a_place_that_is_none_is_refused(cluster, given, message):
    flags = {"coordinator": "", "processes": "", "process": ""} | given
    with pytest.raises(ConfigError, match=message):
        distributed.find(cluster, **flags, environ={})


def test_one_process_asks_nobody():
    """Alone, a question is answered when the answer is wanted, and what fails here fails here."""
    said = []
    answers = distributed.any_process(jax.sharding.get_mesh(), lambda: bool(said), lambda: False)
    said.append("SIGTERM")
    assert answers() == (True, False)
    assert distributed.exchange("x") == ["x"] and distributed.rank() == (0, 1) and distributed.first()
    with pytest.raises(ConfigError, match="mine"), distributed.raise_everywhere(), distributed.process_zero_first():
        raise ConfigError("mine")
    assert distributed.batch_slice(jax.sharding.get_mesh()) == (0, 1)


def test_a_cluster_flag_is_for_commands_that_know_it(capsys, tmp_path):
    """A study is not one program on many hosts; its parts may be."""
    from launch import study, sweep

    assert cli.guard(sweep.main, [f"--workdir={tmp_path}/x", "--cluster=slurm"]) == 2
    assert "--cluster, --coordinator, --processes and --process are of --part" in capsys.readouterr().err
    assert cli.guard(study.main, [f"--workdir={tmp_path}/x", "--cluster=slurm"]) == 2
    assert "wanted --backend=slurm, ray or gke" in capsys.readouterr().err
