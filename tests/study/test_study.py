"""A tiny study end to end, killed and repeated; its matrix, its order and its failures."""

import csv
import dataclasses
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from configs import study as study_config
from distill import laws
from distill.config import StudyExperimentConfig, build
from distill.records.predictions import PredictionTable, settled
from distill.records.runs import RunTable
from distill.records.study_table import StudyTable
from distill.report.study import write as page
from distill.study import analysis, matrix, scheduler
from distill.study import run as study_module
from tests.report.conftest import rows, write_study

TINY = {
    "study.models": "a = 16x1,b = 32x1",
    "study.teachers": "b @ 8K",
    "study.supervised": "a b @ 4K 6K 8K",
    "study.distilled": "b@8K > a b @ 4K 6K 8K",
    "study.resamples": "16",
    "seq_len": "32",
    "batch_size": "4",
    "eval.tokens": "1024",
    "optim.warmup_steps": "5",
}


def study(**changes):
    return build(StudyExperimentConfig, study_config.get_config("smoke").to_dict() | changes)


def command(workdir, **changes):
    overrides = [f"--config.{name}={value}" for name, value in (TINY | changes).items()]
    return [sys.executable, "-m", "launch.study", "--config=configs/study.py:smoke", f"--workdir={workdir}", *overrides]


def environment(cache):
    # One cache for all of them: what is tested is the runs, not the compiler.
    return os.environ | {"DISTILL_CACHE": str(cache), "XLA_FLAGS": "", "COLUMNS": "120"}


def table(workdir):
    """The rows that must not depend on when and how often a study was killed."""
    with open(workdir / "runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return sorted((r["run"], r["kind"], r["N"], r["D"], r["loss"], r["L_T"], r["kl"], r["trunk"]) for r in rows)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The same study, left alone."""
    workdir, cache = tmp_path_factory.mktemp("study"), tmp_path_factory.mktemp("cache")
    done = subprocess.run(command(workdir), env=environment(cache), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return workdir, cache, done.stdout


@pytest.mark.dear("a whole study")
def test_a_tiny_study_ends_with_tables_laws_and_a_report(finished):
    workdir, _, screen = finished
    records = RunTable(workdir / "runs.csv").load()
    assert len(records) == 1 + 6 + 6
    taught = [r for r in records if r.kind == "distillation"]
    teacher = next(r for r in records if r.run == taught[0].teacher)
    for record in taught:
        assert pytest.approx(teacher.loss, rel=1e-6) == record.L_T
        assert record.flops_teacher == pytest.approx(record.D * teacher.flops_student / (3 * teacher.D))
    assert len({r.trunk for r in records}) == 5  # one a model, split and teacher
    curves = (workdir / "curves.csv").read_text().splitlines()
    assert {line.split(",")[0] for line in curves[1:]} == {r.run for r in records}
    page = (workdir / "report" / "index.html").read_text()
    assert "data:image/png;base64," in page and "http" not in page.split("<body")[1].split("href=")[0]
    assert "report:" in screen and "supervised" in screen
    learnt, _, next_steps = screen.partition("report:")[2].partition("To try next:\n")
    assert "What was learnt: " in learnt and next_steps.count("\n") == 3, "the last lines"
    assert all(line.startswith("  python -m launch.") for line in next_steps.splitlines())


def test_done_is_done(finished):
    workdir, cache, _ = finished
    before = (workdir / "runs.csv").read_bytes()
    again = subprocess.run(command(workdir), env=environment(cache), capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert "13 of them finished" in again.stdout
    assert (workdir / "runs.csv").read_bytes() == before


def test_what_is_added_to_a_study_is_predicted_before_it_starts(finished, tmp_path):
    """Runs without a teacher too, from the law that the study had left (Eq. 8 needs more students than these)."""
    workdir, cache, _ = finished
    shutil.copytree(workdir, tmp_path / "more")
    more = command(tmp_path / "more", **{"study.supervised": "a b @ 4K 6K 8K 10K"})
    done = subprocess.run(more, env=environment(cache), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = RunTable(tmp_path / "more" / "runs.csv").runs()
    said = PredictionTable(tmp_path / "more" / "predictions.csv").by_run()
    new = set(runs) - set(RunTable(workdir / "runs.csv").runs())
    assert len(new) == 2 and {said[run].law for run in new} == {"supervised, bootstrap alone"}
    assert len(list(settled(said.values(), {run: runs[run] for run in new}))) == 2  # each before its run began


def test_laws_are_fitted_at_the_start_and_before_the_last_stage(tmp_path, monkeypatch):
    """In a study that has a law already; a run that had begun in an earlier call is not predicted any more."""
    config, fits, predicted = study(), [], []
    (tmp_path / "laws").mkdir()
    (tmp_path / "laws" / "supervised.json").touch()
    tasks = matrix.expand(config, tmp_path)
    begun = next(task for task in tasks if task.stage == 1)
    (tmp_path / "runs" / begun.run).mkdir(parents=True)
    (tmp_path / "runs" / begun.run / "config.txt").touch()

    def run_all(tasks, done, workdir, console, *, n_workers, pack, before_start):
        for task in tasks:
            before_start([task])
        return scheduler.Outcome(finished=(), failed={})

    monkeypatch.setattr(scheduler, "run_all", run_all)
    monkeypatch.setattr(analysis, "fit", lambda config, table: fits.append(len(predicted)) or analysis.StudyLaws())
    monkeypatch.setattr(analysis, "predict", lambda laws, new, table: predicted.extend(t.run for t in new) or len(new))
    assert study_module.run(config, tmp_path) == 0
    assert fits == [0, 16 + 19]
    assert sorted(predicted) == sorted({task.run for task in tasks} - {begun.run})


def test_the_end_of_a_study_reads_its_table_once(tmp_path, monkeypatch):
    """Laws, plan, report and the summary on screen draw on one StudyTable."""
    write_study(tmp_path, rows())
    reads = []
    parse = RunTable.parse
    monkeypatch.setattr(RunTable, "parse", lambda self, content: reads.append(self.path.name) or parse(self, content))
    monkeypatch.setattr(laws, "load_table", lambda *_: pytest.fail("runs.csv was parsed a second time"))
    fitted = []

    def fit(form, table, **_):
        fitted.append((form, len(table)))
        raise laws.LawError("too few rows for this test")

    monkeypatch.setattr(laws, "fit", fit)
    monkeypatch.setattr(page, "write", lambda results: results.workdir)
    screen = Console(file=io.StringIO(), width=120)
    study_module._analyse(study(), tmp_path, screen)
    assert reads.count("runs.csv") == 1 and fitted == [("supervised", len(rows()))]
    assert "report: " in screen.file.getvalue()


def test_laws_are_up_to_date_while_the_table_is_the_same(tmp_path):
    write_study(tmp_path, rows())
    table = StudyTable.read(tmp_path / "runs.csv")
    law = tmp_path / "laws" / "distillation.json"
    tree = json.loads(law.read_text())
    assert not analysis.is_up_to_date(table)  # fitted to another table
    law.write_text(json.dumps(tree | {"table": {"sha256": table.sha256}}))
    assert analysis.is_up_to_date(table)
    RunTable(table.path).append([dataclasses.replace(rows()[0], run="new")])
    assert not analysis.is_up_to_date(StudyTable.read(table.path))
    law.write_text("{")
    assert not analysis.is_up_to_date(table)  # a damaged file is fitted again


def test_killed_at_random_moments_it_ends_in_the_same_table(finished, tmp_path):
    whole, cache, _ = finished
    moments = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen(
            command(tmp_path), env=environment(cache), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        # Most of a start is imports; from then on a kill may fall anywhere: into steps, saves and rows.
        time.sleep(moments.uniform(4, 16))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    last = subprocess.run(command(tmp_path), env=environment(cache), capture_output=True, text=True, timeout=300)
    assert last.returncode == 0, last.stdout + last.stderr
    assert table(tmp_path) == table(whole)
    curves = (tmp_path / "curves.csv").read_text().splitlines()[1:]
    assert len(curves) == len({tuple(line.split(",")[:2]) for line in curves})  # no point twice


def test_a_failed_run_does_not_stop_the_others(tmp_path, monkeypatch):
    """The teacher's vocabulary is too small for the text: it fails, its student is not run, the other run finishes."""
    monkeypatch.setenv("XLA_FLAGS", "")  # the worker is a process of its own, with one device
    config = build(
        StudyExperimentConfig,
        study_config.get_config().to_dict()
        | {
            "seq_len": 32,
            "tokens": 4096,
            "eval": {"tokens": 256, "batch_size": 4},
            "study": {
                "models": ("a = 16x1",),
                "teachers": ("a @ 2K",),
                "supervised": ("a @ 2K",),
                "distilled": ("a@2K > a @ 2K",),
            },
        },
    )
    tasks = matrix.expand(config, tmp_path)
    teacher = next(t for t in tasks if t.config.data.split == "teacher")
    small = dataclasses.replace(teacher.config.model, vocab_size=100)
    broken = dataclasses.replace(teacher, config=dataclasses.replace(teacher.config, model=small))
    (student,) = (t.run for t in tasks if t.stage == matrix.LAST_STAGE)
    (tmp_path / "unpredicted.json").write_text(json.dumps({student: "no law in this test"}))
    tasks = [broken if task is teacher else task for task in tasks]
    outcome = scheduler.run_all(tasks, set(), tmp_path, Console(quiet=True), n_workers=1)
    assert outcome.finished == ("a@2K",), outcome.failed
    assert "vocabulary of 256" in outcome.failed["a@2K"]
    assert outcome.failed["a@2K>a@2K"] == "not run: it needs a@2K, which failed"
    assert (tmp_path / "runs" / teacher.run / "error.txt").read_text()
    # The same study without the mistake: only what failed, and what needed it, is run.
    table = RunTable(tmp_path / "runs.csv")
    (finished,) = table.load()
    sound = matrix.expand(config, tmp_path)
    again = scheduler.run_all(sound, set(table.runs()), tmp_path, Console(quiet=True), n_workers=1)
    assert again.failed == {} and len(again.finished) == 2
    assert table.load()[0] == finished and set(table.runs()) == {task.run for task in sound}
