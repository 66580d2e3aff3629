"""A study whose units are asked to end, at twenty random moments, ends in the table of one that was left alone."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill.records.predictions import PredictionTable
from distill.study import run, units
from tests.study.compare import differences
from tests.study.test_elsewhere import launch

ROOT = Path(__file__).parents[2]
TIMES = 20
NOTICES_A_UNIT = 4
LONGER = [
    "--config.study.supervised=a b @ 16K 32K 48K",
    "--config.study.teachers=b @ 48K",
    "--config.study.distilled=b@48K > a b @ 8K 12K 16K 20K 24K 32K",  # enough that those of 32K are predicted
    "--config.study.resamples=16",
    "--config.optim.warmup_steps=5",
    "--config.loop.steps_per_call=4",
]


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


class Notices:
    """Runs units, and gives each a few notices on its way.

    `codes`: what each process that got one ended with; `saved`: the last step that each run was saved at.
    """

    def __init__(self, seed):
        self.moments, self.codes, self.saved = random.Random(seed), [], {}

    def carry_out(self, workdir, unit):
        """One unit to its end, which is that of a process without a notice, or of one that came too late for it."""
        for _ in range(NOTICES_A_UNIT if len(self.codes) < TIMES else 0):
            if self._interrupted(workdir, unit) == 0:
                return
        last = start(workdir, unit.part)
        assert last.wait(600) == 0, last.stderr.read()

    def _interrupted(self, workdir, unit):
        process = start(workdir, unit.part)
        if unit.runs and len(self.codes) % 4:  # while it trains; the others, at a random moment of its start
            wait_for_a_line(process, workdir)
        time.sleep(self.moments.uniform(0.0, 1.0 if unit.runs else 6.0))
        process.send_signal(signal.SIGTERM)
        self.codes.append(code := process.wait(240))
        said = process.stderr.read().decode()
        # Saved (75), or not yet training (143); a notice never fails a run.
        assert code in (0, 75, -signal.SIGTERM), said
        if code == 75:
            step, folder = re.search(r"step (\d+) of \d+ is saved in (\S+);", said).groups()
            assert int(step) > self.saved.get(folder, 0), f"{folder} began anew: {said}"
            self.saved[folder] = int(step)
        return code


@pytest.mark.slow
def test_preempted_twenty_times_a_study_ends_in_the_same_table(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # one device, for the workers of the study that is left alone
    left_alone, notices = tmp_path / "alone", Notices(seed=0)
    assert launch(left_alone, *LONGER) == 0
    assert len(PredictionTable(left_alone / "predictions.csv").by_run()) == 2
    studies = 0
    while len(notices.codes) < TIMES:  # a study that ends before all are given is followed by a new one
        studies += 1
        preempted = tmp_path / f"preempted-{studies}"
        assert launch(preempted, *LONGER, "--backend=print") == 0
        for unit in units.make(run.prepared(preempted)[1]):
            notices.carry_out(preempted, unit)
        # A notice ends a window of the training loss early, so that curves.csv has other points; nothing else differs.
        assert [each for each in differences(left_alone, preempted) if each != "curves.csv"] == []
    codes, saved = notices.codes, notices.codes.count(75)
    print(
        f"{len(codes)} notices in {studies} studies: {saved} while a run trained, saved; {codes.count(0)} after its "
        f"end; {codes.count(-signal.SIGTERM)} at other moments"
    )
    assert saved >= TIMES // 4, codes
