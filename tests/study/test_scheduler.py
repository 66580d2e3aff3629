"""The order in which a study's runs start, played with a clock of its own: a run lasts as its FLOPs say."""

import dataclasses
from pathlib import Path

import pytest

from configs import study as study_config
from distill.config import StudyExperimentConfig, build
from distill.study import matrix, scheduler, workers
from distill.study.matrix import LAST_STAGE, PlannedRun


@dataclasses.dataclass
class Player:
    """What `pick_next` sees of a worker."""

    teacher: str = ""
    compiled: set = dataclasses.field(default_factory=set)


def play(tasks: list[PlannedRun], n: int) -> dict[str, tuple[float, float]]:
    """(start, end) of every run on `n` workers."""
    waiting, team, busy = list(tasks), [Player() for _ in range(n)], {}
    now, spans = 0.0, {}
    while waiting or busy:
        for i, player in enumerate(team):
            chosen = [] if i in busy else scheduler.pick_next(waiting, player, [task for _, task in busy.values()])
            for task in chosen:
                waiting.remove(task)
                player.teacher = task.config.teacher.run
                player.compiled.add(workers.compile_key(task))
                busy[i] = now + task.flops, task
                spans[task.run] = now, now + task.flops
        assert busy, "nothing may start, and something waits"
        first = min(busy, key=lambda i: busy[i][0])
        now, _ = busy.pop(first)
    return spans


@pytest.fixture(scope="module")
def tasks() -> list[PlannedRun]:
    return matrix.expand(build(StudyExperimentConfig, study_config.get_config("smoke").to_dict()), Path("w"))


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_every_run_starts_after_what_it_needs(tasks, n):
    spans = play(tasks, n)
    assert len(spans) == len(tasks)
    for task in tasks:
        begin, _ = spans[task.run]
        if teacher := task.config.teacher.run:
            assert spans[teacher][1] <= begin
        for other in tasks:
            if other.trunk == task.trunk and other.config.tokens < task.config.tokens:
                assert spans[other.run][1] <= begin
            if task.stage == LAST_STAGE > other.stage:
                assert spans[other.run][1] <= begin


def test_students_do_not_wait_for_runs_that_they_do_not_need(tasks):
    spans = play(tasks, 5)
    alone = max(end for task in tasks if task.stage == 0 for _, end in [spans[task.run]])
    assert min(spans[task.run][0] for task in tasks if task.stage == 1) < alone


def choose(*names: str, waiting: list[PlannedRun], **worker: str) -> str:
    """The first choice of a new worker among the named runs."""
    (chosen,) = scheduler.pick_next([t for t in waiting if t.name in names], Player(**worker), [])
    return chosen.name


def test_the_trunk_with_the_most_left_to_do_goes_first(tasks):
    """Three runs of the middle size are more than the shortest of the largest, though each costs less."""
    three = ("q@125K", "q@250K", "q@500K")
    flops = {task.name: task.flops for task in tasks}
    assert flops["q@125K"] < flops["r@125K"] < sum(flops[name] for name in three)
    assert choose(*three, "r@125K", waiting=tasks) == "q@125K"


def test_a_teacher_goes_first_and_what_its_trunk_needs_before_it():
    study = {"models": ("p = 16x2", "s = 64x2"), "teachers": ("p @ 125K 250K",), "supervised": ("s @ 1M",)}
    config = study_config.get_config("smoke").to_dict() | {"study": study | {"distilled": ("p@250K > p @ 125K",)}}
    tasks = matrix.expand(build(StudyExperimentConfig, config), Path("w"))
    spans = play(tasks, 1)
    order = sorted((span, task.name) for task in tasks for span in [spans[task.run]])
    assert [name for _, name in order] == ["p@125K", "p@250K", "s@1M", "p@250K>p@125K"]


def test_a_worker_keeps_its_teacher(tasks):
    students = [task for task in tasks if task.stage == 1]
    assert choose("c@250K>p@125K", "s@1M>r@125K", waiting=students) == "s@1M>r@125K"  # the dearer one
    held = next(task.config.teacher.run for task in students if task.name == "c@250K>p@125K")
    assert choose("c@250K>p@125K", "s@1M>r@125K", waiting=students, teacher=held) == "c@250K>p@125K"
