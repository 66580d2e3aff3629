"""Ensembles as teachers: what a label names, what a student waits for, and what its row says."""

import dataclasses
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from configs import study as study_config
from distill.config import ConfigError, StudyExperimentConfig, build, counts
from distill.records.predictions import PredictionTable
from distill.records.runs import RunRecord, load_record
from distill.records.study_table import StudyTable
from distill.report.runs import heading
from distill.study import analysis, execute, forecast, matrix, run, scheduler, units
from distill.study.matrix import LAST_STAGE, PlannedRun
from distill.system import files
from tests.study.test_scheduler import Player

LINES = {
    "models": ("a = 16x1", "b = 32x1"),
    "teachers": ("a @ 4K # 0 1 2 3", "b @ 6K"),
    "supervised": ("a @ 4K",),
    "distilled": ("a@4K a@4K+b@6K 2*a@4K > a @ 4K 8K",),
    "seeds": (0, 1),
}
SMALL = {"seq_len": 32, "batch_size": 4, "eval": {"tokens": 1024}}


def config(**lines: object) -> StudyExperimentConfig:
    tree = study_config.get_config("smoke").to_dict() | SMALL
    tree["optim"] |= {"warmup_steps": 5}
    tree["study"] |= LINES | lines
    return build(StudyExperimentConfig, tree)


@pytest.fixture(scope="module")
def tasks() -> list[PlannedRun]:
    return matrix.expand(config(), Path("w"))


def test_a_label_names_several_runs(tasks):
    """Seen to fail with seeds s and s + 1 for 2*a@4K, whose students of two seeds then share a teacher."""
    by_name, by_run = {task.name: task for task in tasks}, {task.run: task for task in tasks}
    named = {
        "a@4K>a@8K": ["a@4K"],
        "a@4K+b@6K>a@8K": ["a@4K", "b@6K"],
        "a@4K+b@6K>a@8K#1": ["a@4K#1", "b@6K#1"],
        "2*a@4K>a@8K": ["a@4K", "a@4K#1"],
        "2*a@4K>a@8K#1": ["a@4K#2", "a@4K#3"],
    }
    for student, teachers in named.items():
        task = by_name[student]
        # The run of study.supervised has the same size, tokens and seed, and reads the other half of the text.
        assert sorted(by_run[run].name for run in task.teachers) == sorted(teachers)
        assert all(by_run[run].config.data.split == "teacher" for run in task.teachers)
        folders = [str(Path("w") / "runs" / run) for run in task.teachers]
        assert sorted(folder for folder, _ in task.config.teacher.sources) == sorted(folders)
        assert {weight for _, weight in task.config.teacher.sources} == {1 / len(teachers)}
    assert len({task.config.teacher.run for task in tasks if task.name.startswith("2*")}) == 2


@pytest.mark.parametrize(
    "line, message",
    [
        ("a@4K+b@4K > a @ 4K", "'a@4K\\+b@4K > a @ 4K' names teacher 'b@4K', which is not among study.teachers"),
        ("3*a@4K > a @ 4K", "names teacher 'a@4K', which is not among study.teachers of seed 4"),
        ("a@4K+2*a@4K > a @ 4K", "'a@4K\\+2\\*a@4K' names a teacher twice"),
        ("0*a@4K > a @ 4K", "names teacher '0\\*a@4K'"),
        ("a@4K+ > a @ 4K", "names teacher ''"),
    ],
)
def test_a_wrong_label_is_named(line, message):
    with pytest.raises(ConfigError, match=message):
        matrix.expand(config(distilled=(line,)), Path("w"))


def test_a_student_waits_for_all_its_teachers(tasks):
    """On every engine: units name all as needs; local workers start nothing before all are finished."""
    made = units.make(tasks)
    for unit in made:
        needs = {run for task in unit.runs for run in task.teachers}
        assert needs <= unit.needs and (not needs or len(needs) == len(unit.runs[0].teachers))
    ensemble = next(task for task in tasks if task.name == "a@4K+b@6K>a@4K")
    waiting, done = list(tasks), set[str]()
    while waiting:
        (chosen,) = scheduler.pick_next(waiting, Player(), [])
        assert set(chosen.teachers) <= done
        done.add(chosen.run)
        waiting.remove(chosen)
    shuffled = random.Random(0).sample(tasks, len(tasks))
    for teacher in ensemble.teachers:
        left = [task for task in shuffled if task.run == teacher or task.run == ensemble.run]
        assert scheduler.pick_next(left, Player(), [])[0].run == teacher


def test_its_cost_is_that_of_all_teachers(tasks):
    by_name, by_run = {task.name: task for task in tasks}, {task.run: task for task in tasks}
    both = by_name["a@4K+b@6K>a@8K"]
    forward = [counts.forward_flops(model, 32) for model in units.teachers(both, by_run)]
    alone = counts.run_flops(both.config).student
    assert units.run_flops(both, by_run) == pytest.approx(alone + sum(forward) * counts.training_tokens(both.config))
    memory = lambda c, teacher: 100.0 + (counts.total(teacher) if teacher else 0)
    placed = [
        dataclasses.replace(task, place=dataclasses.replace(task.place, chip="h100", topology="1")) for task in tasks
    ]
    (mine,) = [each for each in forecast.forecast(placed, memory) if each.task.name == both.name]
    assert mine.memory == 100 + sum(counts.total(model) for model in units.teachers(both, by_run))


def test_the_last_stage_is_predicted_from_the_loss_that_students_measured(tasks, tmp_path):
    """No run of its own tells an ensemble's loss; its finished students do, and without one there is no prediction."""
    by_name = {task.name: task for task in tasks}
    early, late = by_name["2*a@4K>a@4K"], by_name["2*a@4K>a@8K"]
    other = by_name["2*a@4K>a@8K#1"]
    assert late.stage == other.stage == LAST_STAGE
    taught = {"kind": "distillation", "teacher": early.config.teacher.run, "L_T": 1.25}
    row = RunRecord(run=early.run, N=1, trunk="t", model="m", tokenizer="bytes", **taught)
    table = StudyTable(path=tmp_path / "runs.csv", runs=(row,), sha256="")
    boot = SimpleNamespace(
        calibration=None,
        estimate=lambda N_S, D_S, L_T: L_T + 1,
        predict=lambda level, **known: SimpleNamespace(low=2.0, high=3.0),
    )
    fitted = SimpleNamespace(law=SimpleNamespace(inputs=("N_S", "D_S", "L_T")))
    assert analysis.predict(analysis.StudyLaws(distillation=fitted, boot=boot), [late, other], table) == 1
    assert PredictionTable(tmp_path / "predictions.csv").by_run()[late.run].predicted == 2.25


@pytest.mark.dear("three runs, trained")
def test_its_row_has_the_loss_of_the_mixture_and_the_sum_of_sizes(tmp_path):
    """The command of a unit, as every backend starts it. Log is concave: the mixture is below the mean of both."""
    lines = {"teachers": ("a @ 4K", "b @ 6K"), "distilled": ("a@4K+b@6K > a @ 4K 8K",), "seeds": (0,)}
    _, planned = run.prepare(config(supervised=(), **lines), tmp_path)
    execute.write_note(planned, tmp_path, {})
    chosen = [task for task in planned if task.stage < LAST_STAGE]
    unit = ["-m", "launch.study", f"--workdir={tmp_path}", "--part=" + ",".join(task.run for task in chosen)]
    one_device = os.environ | {"XLA_FLAGS": "", "DISTILL_CACHE": str(tmp_path / "cache")}
    subprocess.run([sys.executable, *unit], env=one_device, check=True, timeout=300)
    a, b, student = (load_record(tmp_path / "runs" / task.run / "result.json") for task in chosen)
    assert student.N_T == a.N + b.N and student.D_T == a.D + b.D
    assert sorted(student.teachers) == sorted((a.run, b.run))
    assert (a.loss + b.loss) / 2 > student.L_T, "of the mixture: log is concave"
    (tmp_path / "runs" / chosen[1].run / "result.json").unlink()
    files.atomic_write(tmp_path / "runs" / chosen[1].run / "error.txt", "lost\n")
    told = heading.lines(tmp_path, now=0.0)
    assert f"1 of those that wait need {chosen[1].name}, which failed" in told
