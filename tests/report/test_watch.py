"""Live curves and the page of a run, from logs written here."""

import io
import json
import math
import os
import subprocess
import sys

import pytest
from rich.console import Console

from distill import config as configs
from distill.config import ExperimentConfig
from distill.errors import ReportError
from distill.report.charts import picture
from distill.report.runs import curves, run, watch
from distill.report.theme import LIGHT


def log(folder, losses, left=90.0, **more):
    """A run's folder with a line of metrics for each loss."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.txt").write_text(configs.to_text(ExperimentConfig()))
    lines = [
        {"step": 10 * i, "tokens": 5120 * i, "time": 1e9 + i, "ntp": loss, "grad_norm": 0.5, "learning_rate": 0.01,
         "param_norm": 7.0, "tokens_per_second": 1234.0, "seconds_left": left, **more}
        for i, loss in enumerate(losses, 1)
    ]  # fmt: skip
    # Never seen half written: a server may read it at this moment.
    (folder / "metrics.jsonl.new").write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.replace(folder / "metrics.jsonl.new", folder / "metrics.jsonl")
    return folder


def text(picture, width=100):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(picture)
    return console.export_text()


def test_a_run_is_drawn_with_its_numbers(tmp_path):
    folder = log(tmp_path / "one", [3.0, 2.0, 1.5, 1.25], mfu=0.5)
    path = folder / "metrics.jsonl"
    shown = text(watch.screen(folder, now=path.stat().st_mtime))
    for want in ("one: 1 min 30 s left", "ntp 1.25", "mfu 0.5", "tokens_per_second 1234", "3.0000", "1.2500", "█"):
        assert want in shown, want
    assert "silent for 16 min 40 s" in text(watch.screen(folder, now=path.stat().st_mtime + 1000))


def test_a_study_shows_the_latest_run_first_and_all_in_a_table(tmp_path):
    for i in range(14):
        folder = log(tmp_path / "runs" / f"r{i:02d}", [2.0 + i, 1.0 + i])
        (folder / "result.json").write_text("{}") if i == 13 else None
    paths = watch.find(tmp_path)
    assert len(paths) == 14
    shown = text(watch.screen(tmp_path, now=paths[0].stat().st_mtime))
    assert "2 older runs not shown" in shown and f"{paths[0].parent.name}: " in shown


def test_runs_have_the_names_that_their_study_shows(tmp_path):
    folders = [log(tmp_path / "runs" / run, [2.0, 1.0]) for run in ("0123456789ab", "ba9876543210", "unplanned")]
    planned = {"0123456789ab": "r@1M>s@500K", "ba9876543210": "s@500K#1"}
    (tmp_path / "study.json").write_text(json.dumps({"planned": planned}))
    shown = text(watch.screen(tmp_path))
    for want in (*planned.values(), "unplanned"):
        assert want in shown, want
    assert "0123456789ab" not in shown
    assert text(watch.screen(folders[0])).startswith("r@1M>s@500K: ")
    (tmp_path / "study.json").write_text("{")
    assert text(watch.screen(folders[0])).startswith("0123456789ab: ")


def test_a_run_whose_process_has_ended_is_dead(tmp_path):
    folder = log(tmp_path / "one", [2.0, 1.0])
    hold = "import sys; from distill.system import process\nwith process.folder_lock(sys.argv[1]): print(1); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        holder.stdout.readline()
        assert "one: 1 min 30 s left" in text(watch.screen(folder))
        holder.kill()
    assert f"one: dead: process {holder.pid} has ended; the same command continues the run" in text(
        watch.screen(folder)
    )
    (folder / "lock").write_text(f"process {holder.pid} on another-machine\n")
    assert "one: 1 min 30 s left" in text(watch.screen(folder)), "a process elsewhere cannot be seen"
    (folder / "lock").write_text("process x on\n")
    assert "one: 1 min 30 s left" in text(watch.screen(folder))
    (folder / "result.json").write_text("{}")
    assert "one: finished" in text(watch.screen(folder))


def test_a_failed_run_says_so_until_it_is_tried_again(tmp_path):
    folder = log(tmp_path / "runs" / "one", [2.0, 1.0])
    (folder / "error.txt").write_text("diverged")
    os.utime(folder / "metrics.jsonl", (1e9, 1e9))
    os.utime(folder / "error.txt", (1e9 + 1, 1e9 + 1))
    assert "one: failed" in text(watch.screen(folder))
    os.utime(folder / "metrics.jsonl", (1e9 + 5, 1e9 + 5))
    assert "one: 1 min 30 s left" in text(watch.screen(folder, now=1e9 + 6))


def test_what_is_not_finite_is_a_gap(tmp_path):
    folder = log(tmp_path / "bad", [2.0, math.nan, 1.0])
    assert "█" in text(watch.screen(folder))
    assert watch.spark([2.0, math.nan, 1.0], 10) == "█ ▁"
    assert "nothing finite" in text(watch.screen(log(tmp_path / "worse", [math.nan])))


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(ReportError, match="no metrics.jsonl"):
        watch.screen(tmp_path)


def test_the_page_of_a_run_holds_curves_numbers_and_config(tmp_path):
    folder = log(tmp_path / "one", [3.0, 2.0, 1.5])
    assert run.is_run(folder) and not run.is_run(tmp_path)
    page = run.write(folder).read_text("utf-8")
    for want in ("Run one", "At step 30, not finished", "data:image/png", "tokens_per_second", "model.d_model"):
        assert want in page, want
    # log() writes a time of 1e9 seconds and 3 more, and 90 seconds left.
    for want in ("2001-09-09 01:46:43 UTC", "1 min 30 s"):
        assert f">{want}<" in page, want
    assert "1e+09" not in page


def test_every_panel_of_the_curves_names_its_axis(tmp_path):
    folder = log(tmp_path / "one", [3.0, 2.0, 1.5])
    chart = curves.chart([curves.load(folder, 10)], "curves")
    with LIGHT.applied():
        panels = [axes for axes in picture.draw(chart, LIGHT).axes if axes.get_visible()]
    assert len(panels) == 5 and {axes.get_xlabel() for axes in panels} == {"tokens"}
    assert all(axes.get_ylabel() for axes in panels)


def test_a_point_that_is_one_line_has_no_band(tmp_path):
    known = [curves.load(log(tmp_path / "one", [3.0, 2.0, 1.5, 1.0]), points) for points in (10, 2)]
    fine, coarse = (curves.chart([one], "curves") for one in known)
    assert len(fine.panels[0].series[0].low) == 0 and fine.caption.startswith("A point is a line of metrics.jsonl.")
    series = coarse.panels[0].series[0]
    assert (series.low.tolist(), series.high.tolist()) == ([2.0, 1.0], [3.0, 1.5])
    assert "the band their lowest and highest" in coarse.caption


def test_a_page_needs_a_line(tmp_path):
    folder = log(tmp_path / "empty", [])
    with pytest.raises(ReportError, match="no metrics.jsonl with a line"):
        run.write(folder)
