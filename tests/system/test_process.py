"""One process a folder, and requests to end; with real processes and real signals."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from distill.errors import DistillError
from distill.system import preemption
from distill.system import process as runtime

HOLD = """
import sys, time
from distill.system import process as runtime
with runtime.folder_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_has_one_process_at_a_time(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        message = rf"is locked by process {holder.pid} on \S+; wait for it, stop it, or choose another folder"
        with pytest.raises(DistillError, match=message), runtime.folder_lock(tmp_path):
            pass
        holder.kill()
        holder.wait()
        with runtime.folder_lock(tmp_path):  # the system let go of it
            assert f"process {os.getpid()} " in (tmp_path / "lock").read_text()
    finally:
        holder.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_request_to_end_is_caught_and_the_old_handlers_come_back(number):
    before = signal.getsignal(number)
    with preemption.catch_preemption() as flag:
        assert flag.signal == ""
        signal.raise_signal(number)
        assert flag.signal == signal.Signals(number).name
        signal.raise_signal(signal.SIGTERM)  # a second one does not interrupt the saving
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(number) == before


def test_an_ignored_signal_stays_ignored():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with preemption.catch_preemption() as flag:
            signal.raise_signal(signal.SIGHUP)
            assert flag.signal == ""
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


CLOSED = """
import sys, time
from distill.system import preemption
with preemption.catch_preemption() as flag:
    print("ready", flush=True)
    while not flag.signal:
        time.sleep(0.01)
    print("saving", flush=True)  # would raise OSError on the closed terminal
    with open(sys.argv[1], "w") as file:
        file.write(flag.signal)
"""


def test_work_saves_itself_when_its_terminal_is_closed(tmp_path):
    primary, secondary = pty.openpty()
    opened = ["sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(secondary), sys.executable, "-c", CLOSED]
    process = subprocess.Popen([*opened, str(tmp_path / "saved")], start_new_session=True, stdin=subprocess.DEVNULL)
    assert b"ready" in os.read(primary, 100)
    os.close(secondary)  # not before the child has opened it: a terminal that nobody has open cannot be read
    os.close(primary)
    assert process.wait(60) == 0 and (tmp_path / "saved").read_text() == "SIGHUP"


RUN = [
    "-m", "launch.train", "--config=configs/train.py:micro", "--config.tokens=2M", "--config.eval.tokens=2048",
    "--config.loop.checkpoint_seconds=1e9", "--config.loop.steps_per_call=4",
]  # fmt: skip


def test_a_run_that_is_asked_to_end_saves_itself_and_asks_to_be_requeued(tmp_path, monkeypatch):
    """No checkpoint was due in this run: the one that is there was made for the notice, in spite of a second one."""
    monkeypatch.delenv("XLA_FLAGS")  # the tests' eight devices
    process = subprocess.Popen(
        [sys.executable, *RUN, f"--workdir={tmp_path}"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    log, deadline = tmp_path / "metrics.jsonl", time.monotonic() + 120
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)  # the grace time that most clusters give
    assert process.returncode == preemption.REQUEUE, said
    steps = [int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
    assert len(steps) == 1 and steps[0] > 0
    assert f"SIGTERM: step {steps[0]} of 3906 is saved in {tmp_path}; run the same command again" in said
    assert "Traceback" not in said


def test_programs_are_let_go_before_a_process_runs_out_of_memory_maps():
    def maps():
        return len(Path("/proc/self/maps").read_text().splitlines())

    def program(factor):
        return jax.jit(jax.grad(lambda x: jnp.sum(jnp.tanh(x @ x) * factor)))

    held = [program(factor) for factor in range(12)]
    for run in held:
        run(jnp.ones((9, 9)))
    before = maps()
    assert not runtime.clear_jit_caches(most=before + 1000) and maps() >= before - 50  # other threads may unmap
    assert runtime.clear_jit_caches(most=1) and maps() < before
    assert held[0](jnp.zeros((9, 9))).shape == (9, 9)


def test_what_has_saved_itself_ends_with_its_own_code():
    """As srun --kill-on-bad-exit does to the last task, when the first has ended with 75."""
    code = (
        "import atexit, sys, time\n"
        "from distill.system import preemption\n"
        "from launch.support import cli\n"
        "atexit.register(lambda: (print('ending', flush=True), time.sleep(2)))\n"
        "def main(argv):\n"
        "    raise preemption.Preempted('saved')\n"
        "sys.exit(cli.guard(main))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ending\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == preemption.REQUEUE


@pytest.mark.parametrize(
    "n, gpus, wanted",
    [
        (2, [], [("01", (), 0.0), ("23", (), 0.0)]),
        (2, ["0", "1", "2", "3"], [("01", ("0", "1"), 0.0), ("23", ("2", "3"), 0.0)]),
        (4, ["5", "7"], [("0", ("5",), 0.45), ("1", ("7",), 0.45), ("2", ("5",), 0.45), ("3", ("7",), 0.45)]),
        (3, ["0"], [("0", ("0",), 0.3), ("1", ("0",), 0.3), ("2", ("0",), 0.3)]),
    ],
)
def test_workers_share_the_machine_out(n, gpus, wanted):
    got = runtime.shares(n, [0, 1, 2, 3], gpus)
    assert [("".join(map(str, s.cores)), s.gpus, pytest.approx(s.memory)) for s in got] == wanted


def test_a_worker_sees_its_own_gpus_only(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert runtime.gpus() == ["3", "5"]
    monkeypatch.setattr(runtime, "pin_to_cores", lambda cores: None)
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    runtime.take(runtime.shares(4, [0], runtime.gpus())[1])
    assert runtime.gpus() == ["5"] and os.environ.pop("XLA_PYTHON_CLIENT_MEM_FRACTION") == "0.450"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert runtime.gpus() == []
