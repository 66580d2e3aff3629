"""The order in which a study's runs start, played with a clock of its own: a run lasts as its FLOPs say."""

import dataclasses
from pathlib import Path

import pytest

from configs import study as study_config
from distill.config import StudyExperimentConfig, build
from distill.study import matrix, schedule, workers
from distill.study.matrix import LAST, Planned


@dataclasses.dataclass
class Player:
    """What `_choose` sees of a worker."""

    teacher: str = ""
    shapes: set = dataclasses.field(default_factory=set)


def play(tasks: list[Planned], n: int) -> dict[str, tuple[float, float]]:
    """(start, end) of every run on `n` workers."""
    waiting, team, busy = list(tasks), [Player() for _ in range(n)], {}
    now, spans = 0.0, {}
    while waiting or busy:
        for i, player in enumerate(team):
            chosen = [] if i in busy else schedule._choose(waiting, player, [task for _, task in busy.values()])
            for task in chosen:
                waiting.remove(task)
                player.teacher = task.config.teacher.run
                player.shapes.add(workers.shape(task))
                busy[i] = now + task.flops, task
                spans[task.run] = now, now + task.flops
        assert busy, "nothing may start, and something waits"
        first = min(busy, key=lambda i: busy[i][0])
        now, _ = busy.pop(first)
    return spans


@pytest.fixture(scope="module")
def tasks() -> list[Planned]:
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
            if task.stage == LAST > other.stage:
                assert spans[other.run][1] <= begin


def test_students_do_not_wait_for_runs_that_they_do_not_need(tasks):
    spans = play(tasks, 5)
    alone = max(end for task in tasks if task.stage == 0 for _, end in [spans[task.run]])
    assert min(spans[task.run][0] for task in tasks if task.stage == 1) < alone


def test_no_long_trunk_is_left_for_the_end(tasks):
    """Three workers are busy for four fifths of a study whose sizes cost from one to eight times the smallest."""
    spans = play(tasks, 3)
    busy = sum(end - begin for begin, end in spans.values())
    assert busy / (3 * max(end for _, end in spans.values())) > 0.8
