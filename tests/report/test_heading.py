"""The lines above the curves of a study: how many runs are where, and why."""

import json
import os

from distill.report.runs import heading, watch
from tests.report.test_watch import log, text


def touch(path, content="", at=1000.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    os.utime(path, (at, at))


def study(folder):
    """Six runs: finished, running, silent, failed, waiting for the failed one, waiting."""
    names = ("done", "runs", "silent", "teacher", "student", "next")
    tree = {"planned": {run: run.upper() for run in names}, "teachers": {"student": "teacher", "next": "done"}}
    touch(folder / "study.json", json.dumps(tree))
    runs = folder / "runs"
    touch(runs / "done" / "result.json", "{}")
    for run, at in (("runs", 2000.0), ("silent", 1000.0), ("teacher", 1500.0)):
        touch(runs / run / "config.txt", at=at)
    touch(runs / "teacher" / "error.txt", "Traceback\nValueError: too small\n", at=1600.0)
    return folder


def test_runs_are_counted_and_failures_told(tmp_path):
    head, *rest = heading.lines(study(tmp_path), now=2010.0)
    assert head == "6 runs: 1 finished, 2 running, 2 waiting, 1 failed"
    assert rest == [
        "1 of those that run have written nothing for 10 min 0 s",
        "failed TEACHER: ValueError: too small",
        "1 of those that wait need TEACHER, which failed",
    ]
    # Tried again: no failure any more.
    touch(tmp_path / "runs" / "teacher" / "lock", "process 1 on elsewhere", at=1700.0)
    assert heading.lines(tmp_path, now=2010.0)[0] == "6 runs: 1 finished, 3 running, 2 waiting, 0 failed"


def test_it_stands_above_the_curves_and_alone_where_nothing_has_begun(tmp_path):
    assert "6 runs: 1 finished" in text(watch.screen(study(tmp_path), now=2010.0))
    log(tmp_path / "runs" / "runs", [3.0, 2.0])
    shown = text(watch.screen(tmp_path))
    assert shown.index("6 runs: 1 finished") < shown.index("RUNS: ") and "█" in shown
    assert heading.lines(tmp_path / "runs" / "runs", now=0.0) == []
