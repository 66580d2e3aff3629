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
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from configs import study as study_config
from distill import data, laws
from distill.bench import study as bench
from distill.config import ConfigError, StudyExperimentConfig, build, counts
from distill.records.predictions import PredictionTable, settled
from distill.records.runs import RunTable
from distill.records.study_table import StudyTable
from distill.report.study import write as page
from distill.report.study.results import FittedLaw
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


def test_the_smoke_matrix():
    tasks = matrix.expand(study(), Path("w"))
    assert len(tasks) == len({task.run for task in tasks}) == 46
    assert [sum(task.stage == s for task in tasks) for s in range(3)] == [16, 20, 10]
    teachers = {task.run for task in tasks if task.config.data.split == "teacher"}
    taught = [task for task in tasks if task.stage]
    assert {task.config.teacher.run for task in taught} == teachers and len(teachers) == 4
    assert all(task.config.data.split == "student" for task in taught)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"models": ("a: 16x2",)}, "wanted 'name = width x layers'"),
        ({"models": ("cat = 16x2",), "supervised": ("cap @ 4K",)}, "Did you mean 'cat'"),
        ({"models": ("a = 16x2",), "supervised": ("a 4K",)}, "wanted 'models @ budgets'"),
        ({"models": ("a = 16x2",), "supervised": ("a @ many",)}, "wanted tokens"),
        ({"models": ("a = 16x2",), "teachers": ("a @ 8K",), "distilled": ("a@9K > a @ 4K",)}, "Did you mean 'a@8K'"),
        ({"models": ("a = 16x2",), "teachers": ("a @ 8K",), "distilled": ("a@8K a @ 4K",)}, "wanted 'teachers >"),
        ({"models": ("a = 16x2",), "supervised": ("a @ 4K # 0, 1",)}, "wanted seeds behind the '#'"),
        (
            {"models": ("a = 16x2",), "teachers": ("a @ 8K # 0",), "distilled": ("a@8K > a @ 4K # 1",)},
            "not among study.teachers of seed 1",
        ),
    ],
)
def test_a_wrong_line_is_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        matrix.expand(study(study=changes), Path("w"))


def test_a_budget_of_repeated_text():
    """'8K/2K' are 8K tokens of 2K unique ones, for all three kinds of runs; the budget alone says the length."""
    lines = {
        "models": ("a = 16x2",), "teachers": ("a @ 8K/2K",), "supervised": ("a @ 4K 4K/1K",),
        "distilled": ("a@8K/2K > a @ 4K/1K 4K",),
    }  # fmt: skip
    tasks = {task.name: task.config for task in matrix.expand(study(study=lines), Path("w"))}
    assert {name: (c.tokens, c.data.unique) for name, c in tasks.items()} == {
        "a@8K/2K": (8000, 2000), "a@4K": (4000, 0), "a@4K/1K": (4000, 1000),
        "a@8K/2K>a@4K/1K": (4000, 1000), "a@8K/2K>a@4K": (4000, 0),
    }  # fmt: skip
    assert len({task.trunk for task in matrix.expand(study(study=lines), Path("w"))}) == 5


def test_a_student_teaches_the_next():
    lines = {
        "models": ("a = 16x2",), "teachers": ("a @ 8K",), "seeds": (0, 1),
        "distilled": ("a@8K > a @ 4K", "a@8K>a@4K > a @ 4K 6K", "a@8K>a@4K>a@6K > a @ 4K"),
    }  # fmt: skip
    tasks = {task.name: task for task in matrix.expand(study(study=lines), Path("w"))}
    for end in ("", "#1"):
        chain = [f"a@8K{end}", f"a@8K>a@4K{end}", f"a@8K>a@4K>a@6K{end}", f"a@8K>a@4K>a@6K>a@4K{end}"]
        for teacher, taught in zip(chain, chain[1:]):
            assert tasks[taught].config.teacher.run == tasks[teacher].run
            assert tasks[taught].config.teacher.source == str(Path("w") / "runs" / tasks[teacher].run)
    assert len(tasks) == 10, sorted(tasks)
    with pytest.raises(ConfigError, match="nor a student of a line above"):
        matrix.expand(study(study=lines | {"distilled": lines["distilled"][::-1]}), Path("w"))


FINDINGS = {"chains": 96, "ensembles": 88, "repeats": 152, "teachers": 138, "lambda": 376, "stored": 160}


@pytest.mark.parametrize("preset, runs", FINDINGS.items())
def test_the_presets_of_findings_have_their_runs(preset, runs):
    config = build(StudyExperimentConfig, study_config.get_config(preset).to_dict())
    assert len(matrix.expand(config, Path("w"))) == runs


ABLATED = {
    "models": ("a = 16x1",),
    "teachers": ("a @ 8K",),
    "distilled": ("a@8K > a @ 4K 6K",),
    "ablations": ("lambda_ = 0 0.5 1", "target = soft topk:4 topk:16 argmax"),
}


def test_a_line_may_name_its_seeds():
    lines = {
        "models": ("c = 32x2", "p = 16x2"),
        "teachers": ("c @ 1M", "c @ 250K # 0 2"),
        "distilled": ("c@1M > p @ 125K", "c@250K > p @ 125K # 2"),
        "seeds": (0, 1),
    }
    found = {task.name for task in matrix.expand(study(study=lines), Path("w"))}
    teachers = {"c@1M", "c@1M#1", "c@250K", "c@250K#2"}
    assert found == teachers | {"c@1M>p@125K", "c@1M>p@125K#1", "c@250K>p@125K#2"}


@pytest.mark.parametrize("scale", ["", "paper-"])
@pytest.mark.parametrize("name", study_config.PROTOCOLS)
def test_the_protocols_hold_fixed_what_they_say(name, scale):
    """Tokens a parameter, or FLOPs of training, to within one step."""
    config = build(StudyExperimentConfig, study_config.get_config(scale + name).to_dict())
    tasks = matrix.expand(config, Path("w"))
    taught = [task for task in tasks if task.config.teacher.run]
    teachers = {task.run: task for task in tasks if task.config.data.split == "teacher"}
    alone = [task for task in tasks if not task.config.teacher.run and task.run not in teachers]
    kinds = {
        "fixed-M": (alone, "N"),
        "isoflop": (alone, "C"),
        "A": (taught, "C"),
        "B": (taught, "N"),
        "C": (taught, ""),
    }
    held, by = kinds[name]
    assert len(held) >= 5 and {task.config.teacher.run for task in taught} == set(teachers)
    step = config.batch_size * config.seq_len

    def per_parameter(task, wanted):
        N, D = counts.non_embedding(task.config.model), counts.training_tokens(task.config)
        return min(abs(D - M * N) for M in wanted) <= step

    if by == "C":
        wanted = (3e19, 1e20, 3e20, 1e21) if scale else (3e10, 1e11, 3e11, 1e12)
        assert all(min(abs(t.flops - C) for C in wanted) <= t.flops / t.config.steps for t in held)
    else:
        assert all(per_parameter(task, (20, 40, 80, 160, 320) if name == "C" else (20,)) for task in held)
    if name in "AC":
        assert all(per_parameter(task, (20,)) for task in teachers.values())


def test_a_fitted_E_stands_beside_the_entropy_of_a_generated_language():
    supervised, distilled = laws.paper()
    told = {"path": Path(), "status": "ok", "message": "", "rows": 9, "error": None, "level": 0.9, "resamples": 9}
    fitted = [
        FittedLaw(name="law", law=law, intervals={"E": (1.1, 1.4)}, failed=0, **told) for law in (distilled, supervised)
    ]
    # One context, so that the entropy is that of a single distribution.
    config = study(data={"source": "generated", "generated": {"depth": 0, "symbols": 5}})
    p = data.make_language(config.data.generated).emission[0]
    said = analysis.entropy_sentence(config, fitted)
    assert f"is {-(p * np.log(p)).sum():.4f} nats" in said and f"fitted as {supervised.E:.4f} [1.1000, 1.4000]" in said
    assert analysis.entropy_sentence(study(), fitted) == "" and analysis.entropy_sentence(config, fitted[:1]) == ""


def test_the_bench_of_studies_has_the_rows_that_it_says():
    tasks = matrix.expand(bench._config(2), Path("w"))
    assert len(tasks) == 2 * 25 and sum(bool(task.config.teacher.run) for task in tasks) == 2 * 12


def test_an_ablation_varies_one_setting_at_a_time():
    config = study(study=ABLATED | {"seeds": (0, 1)})
    tasks = matrix.expand(config, Path("w"))
    students = [task for task in tasks if task.base]
    assert len(tasks) == 2 * (1 + 2 * 6) and len(students) == 24  # lambda 1 and the soft target are the student itself
    assert {task.stage for task in students} == {1}
    plain = [task for task in students if task.config.objective == config.objective]
    assert {task.settings for task in plain} == {(("lambda_", "1"), ("target", "soft"))} and len(plain) == 4
    assert {task.name for task in students if task.base == "a@8K>a@4K" and not task.config.seed} == {
        "a@8K>a@4K", *(f"a@8K>a@4K {x}" for x in ("lambda=0", "lambda=0.5", "target=topk:4", "target=topk:16",
                                                  "target=argmax")),
    }  # fmt: skip
    (four,) = (t for t in students if t.settings == (("target", "topk:4"),) and t.config.tokens == 4000 and not
               t.config.seed)  # fmt: skip
    assert (four.config.objective.target, four.config.objective.top_k) == ("topk", 4)
    # Every seed has its own teacher.
    teachers = {task.config.seed: task.run for task in tasks if not task.base}
    assert all(task.config.teacher.run == teachers[task.config.seed] for task in students)


@pytest.mark.parametrize(
    "line, message",
    [
        ("lambda_ 0 1", "wanted 'field = values'"),
        ("lambda_ =", "wanted 'field = values'"),
        ("lambd = 0 1", "names 'lambd', which is no field .* Did you mean 'lambda_'"),
        ("lambda_ = 0 2", "'lambda_ = 0 2': objective.lambda_: got 2.0, wanted a number from 0 to 1"),
        ("lambda_ = few", "config.objective.lambda_: got 'few', wanted a number"),
        ("target = hard", "config.objective.target: got 'hard', wanted one of"),
        ("target = argmax:3", "'argmax' takes no number; topk, topp"),
    ],
)
def test_a_wrong_setting_is_named(line, message):
    with pytest.raises(ConfigError, match=message):
        matrix.expand(study(study=ABLATED | {"ablations": (line,)}), Path("w"))


def test_a_setting_that_the_table_refuses_is_refused_before_anything_runs():
    config = study(study=ABLATED | {"ablations": ("target = soft sampled",)}, objective={"temperature": 2.0})
    with pytest.raises(ConfigError, match="'target = soft sampled': objective: .* of target='sampled' .* is refused"):
        matrix.expand(config, Path("w"))


def test_the_preset_of_ablations():
    config = build(StudyExperimentConfig, study_config.get_config("ablations").to_dict())
    tasks = matrix.expand(config, Path("w"))
    assert len(tasks) == 57 and sum(bool(task.base) for task in tasks) == 51


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
