"""A unit that is asked to end, at twenty random moments, ends in the row of one that was left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill.records.runs import load_record
from distill.study import run, units
from tests.study.compare import MACHINE
from tests.study.test_elsewhere import launch

ROOT = Path(__file__).parents[2]
TIMES = 20


def start(workdir, part):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    words = [sys.executable, "-m", "launch.study", f"--workdir={workdir}", f"--part={part}"]
    return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for_a_line(process, workdir):
    """Until a run has written a line of metrics more, or the process has ended."""
    lines = lambda: sum(path.stat().st_size for path in workdir.glob("runs/*/metrics.jsonl"))
    before = lines()
    while process.poll() is None and lines() <= before:
        time.sleep(0.05)


@pytest.mark.slow
def test_preempted_twenty_times_a_unit_ends_in_the_same_rows(tmp_path):
    left_alone, preempted = tmp_path / "a", tmp_path / "b"
    for workdir in (left_alone, preempted):
        assert (
            launch(workdir, "--backend=print", "--config.study.supervised=a b @ 128K", "--config.loop.steps_per_call=4")
            == 0
        )
    unit = next(unit for unit in units.make(run.prepared(preempted)[1]) if len(unit.runs) > 1 and not unit.last)
    whole = start(left_alone, unit.part)
    assert whole.wait(600) == 0, whole.stderr.read()
    moments, codes = random.Random(0), []
    while len(codes) < TIMES and not (codes and codes[-1] == 0):
        process = start(preempted, unit.part)
        if len(codes) % 4:  # while it trains; the others, at a random moment of its start
            wait_for_a_line(process, preempted)
        time.sleep(moments.uniform(0.0, 1.0))
        process.send_signal(signal.SIGTERM)
        codes.append(process.wait(240))
        # Saved (75), or not yet training (143); a notice never fails a run.
        assert codes[-1] in (0, 75, -signal.SIGTERM), process.stderr.read()
    assert codes.count(75) >= 2, codes
    assert codes[-1] == 0 or start(preempted, unit.part).wait(600) == 0
    for task in unit.runs:
        one, other = (load_record(workdir / "runs" / task.run / "result.json") for workdir in (left_alone, preempted))
        assert one is not None and other is not None
        same = [name for name in vars(one) if name not in MACHINE and getattr(one, name) != getattr(other, name)]
        assert not same, same
