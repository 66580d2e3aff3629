"""Units of a study, and their order on engines of simulated clocks."""

import heapq
import math
import random
from pathlib import Path

import pytest

from configs import study as study_config
from distill.config import ConfigError, StudyExperimentConfig, build, counts
from distill.study import driver, matrix, places, units
from distill.study.matrix import LAST_STAGE, PlannedRun
from distill.study.units import CONCLUDE, PREDICT, Unit

PLACES = ("to 1e9: hosts=1", "to 3e9: hosts=2 mesh=data=2,fsdp=8", "to 1e10: hosts=8 mesh=data=8,fsdp=8")


def planned(preset: str, lines: tuple[str, ...] = (), **changes: object) -> list[PlannedRun]:
    tree = study_config.get_config(preset).to_dict()
    tree["study"] |= {"places": lines, **changes}
    return matrix.expand(build(StudyExperimentConfig, tree), Path("w"))


@pytest.mark.parametrize(
    "preset, lines",
    [("smoke", ()), ("micro", ()), ("ablations", ()), ("chains", ()), ("repeats", ()), ("paper-A", PLACES)],
)
def test_every_run_is_in_one_unit_that_comes_after_what_it_needs(preset, lines):
    tasks = planned(preset, lines)
    made = units.make(tasks)
    assert sorted(run.run for unit in made for run in unit.runs) == sorted(task.run for task in tasks)
    assert len({unit.name for unit in made}) == len(made)
    before: set[str] = set()
    for unit in made:
        own = [task.run for task in unit.runs]
        for i, task in enumerate(unit.runs):
            ready = before | set(own[:i])
            shorter = {t.run for t in tasks if t.trunk == task.trunk and t.config.tokens < task.config.tokens}
            assert shorter <= ready and shorter - set(own) <= unit.after | unit.needs
            if teacher := task.config.teacher.run:
                assert teacher in unit.needs and teacher in ready
            assert (PREDICT in unit.needs) == (task.stage == LAST_STAGE)
        assert unit.needs | unit.after <= before
        before |= unit.keys
    assert made[-1].name == CONCLUDE and made[-1].after == before - {CONCLUDE}


def test_a_student_of_one_of_the_last_stage_is_of_the_last_stage():
    """Seen to fail with the stage by budget alone: `predict` waits for the small student, and it for `predict`."""
    lines = ("c@250K > p @ 250K 500K", "c@250K>p@500K > q @ 125K")
    tasks = planned("smoke", teachers=("c @ 250K",), supervised=("p @ 125K",), distilled=lines)
    small = next(task for task in tasks if task.name == "c@250K>p@500K>q@125K")
    assert small.stage == LAST_STAGE
    assert PREDICT in next(unit for unit in units.make(tasks) if small in unit.runs).needs


def test_a_teacher_is_alone_and_small_runs_share_a_program():
    tasks = planned("smoke")
    taught_by = {task.config.teacher.run for task in tasks} - {""}
    made = units.make(tasks)
    assert all(len(unit.runs) == 1 for unit in made if {task.run for task in unit.runs} & taught_by)
    assert max(len(unit.runs) for unit in made) > 1 and len(made) < len(tasks)
    assert max(unit.seconds for unit in made if len(unit.runs) > 1) <= units.UNIT_SECONDS
    one_each = units.make(planned("smoke", ("to 1e9: runs=1",)))
    assert len(one_each) == len(tasks) + 2
    assert units.make(tasks) == made


def test_what_is_left_has_no_edges_to_what_is_done():
    tasks = planned("smoke")
    made = units.make(tasks)
    first = {task.run for task in tasks if task.stage == 0}
    left = units.remaining(made, first)
    assert not any(first & (unit.needs | unit.after | unit.keys) for unit in left)
    assert {unit.name for unit in left} >= {PREDICT, CONCLUDE}
    early = {task.run for task in tasks if task.stage < LAST_STAGE}
    queued = units.remaining(made, set(), early | {PREDICT})
    assert all(unit.last or unit.name == CONCLUDE for unit in queued)
    assert all(PREDICT in unit.needs for unit in queued if unit.last)  # of the queue
    (end,) = units.remaining(made, {task.run for task in tasks})
    assert end.name == CONCLUDE and not end.after


class Clock:
    """An engine whose hosts are numbers and whose time passes at once; it loses what `fate` says."""

    def __init__(self, hosts: int, fate=lambda unit: 0):
        self.hosts, self.now, self.busy, self.fate = hosts, 0.0, 0, fate
        self.heap: list[tuple[float, str, int, int]] = []
        self.spans: dict[str, tuple[float, float]] = {}
        self.used = 0.0

    def capacity(self) -> float:
        return self.hosts

    def start(self, unit: Unit) -> None:
        code = self.fate(unit)
        seconds = unit.seconds * (0.5 if code else 1.0)
        self.busy += unit.place.hosts
        assert self.busy <= self.hosts, "more hosts than there are"
        heapq.heappush(self.heap, (self.now + seconds, unit.name, unit.place.hosts, code))
        self.spans[unit.name] = self.now, self.now + seconds
        self.used += seconds * unit.place.hosts

    def ended(self, seconds: float) -> list[tuple[str, int]]:
        assert self.heap, "nothing runs, and something waits"
        self.now, name, hosts, code = heapq.heappop(self.heap)
        self.busy -= hosts
        return [(name, code)]


def paper() -> list[PlannedRun]:
    """693 runs of the paper's ladder: protocol A, three seeds."""
    return planned("paper-A", PLACES, seeds=(0, 1, 2))


@pytest.mark.parametrize("hosts", [8, 32, 128, 512])
def test_seven_hundred_runs_of_the_paper_on_any_number_of_hosts(hosts):
    tasks = paper()
    assert len(tasks) == 693
    made = units.make(tasks)
    clock = Clock(hosts)
    outcome = driver.drive(made, clock)
    assert len(outcome.succeeded) == len(made) and not outcome.failed
    start = {key: clock.spans[unit.name][0] for unit in made for key in unit.keys}
    end = {key: clock.spans[unit.name][1] for unit in made for key in unit.keys}
    for unit in made:
        assert all(end[key] <= min(start[own] for own in unit.keys) for key in unit.needs | unit.after)
    # No list schedule is better than its longest way, nor than all hosts busy throughout; this one is near the larger.
    longest: dict[str, float] = {}
    for unit in made:
        way = unit.seconds + max((longest[key] for key in unit.needs | unit.after), default=0.0)
        longest |= dict.fromkeys(unit.keys, way)
    least = max(max(longest.values()), clock.used / hosts)
    print(f"{hosts} hosts: {100 * clock.used / hosts / clock.now:.0f}% busy, {clock.now / least:.2f} of the least time")
    assert clock.now <= 1.5 * least


def test_a_unit_of_many_hosts_is_not_starved():
    """Small units keep coming; the large one, ready from the start and with the longest way, waits for one of them."""
    small, large = places.Place(), places.Place(hosts=4)
    made = [Unit(name=f"s{i}", place=small, seconds=1.0 + i % 3) for i in range(100)]
    clock = Clock(4)
    driver.drive([*made, Unit(name="large", place=large, seconds=10.0)], clock)
    assert clock.spans["large"][0] == 0.0
    late = [Unit(name=f"s{i}", place=small, seconds=1.0 + i % 3) for i in range(100)]
    gang = Unit(name="large", place=large, seconds=10.0, after=frozenset({"s0"}))
    clock = Clock(4)
    driver.drive([*late, gang], clock)
    assert clock.spans["large"][0] <= clock.spans["s0"][1] + 3.0


def test_lost_hosts_and_notices_start_a_unit_again_and_failures_do_not():
    tasks = planned("smoke")
    made = units.make(tasks)
    chance = random.Random(1)
    codes = {}

    def fate(unit: Unit) -> int:
        codes.setdefault(unit.name, []).append(
            chance.choice([0, 75, 75, 137]) if len(codes.get(unit.name, [])) < 3 else 0
        )
        return codes[unit.name][-1]

    outcome = driver.drive(made, Clock(5, fate))
    assert len(outcome.succeeded) == len(made) and any(len(tries) > 1 for tries in codes.values())
    doomed = driver.drive(made, Clock(5, lambda unit: 139 if unit is made[0] else 0))
    assert doomed.failed[made[0].name] == "its hosts were lost 4 times"


def test_a_failed_teacher_stops_its_students_only():
    tasks = planned("smoke")
    made = units.make(tasks)
    teacher = next(task for task in tasks if task.run in {t.config.teacher.run for t in tasks})
    outcome = driver.drive(made, Clock(3, lambda unit: int(teacher.run in unit.keys)))
    names = {task.run: unit.name for unit in made for task in unit.runs}
    lost = {names[task.run] for task in tasks if teacher.run in (task.run, task.config.teacher.run)}
    assert set(outcome.failed) == lost and CONCLUDE in outcome.succeeded
    assert any("not run: it needs" in why for why in outcome.failed.values())


def test_more_hosts_than_there_are_is_a_sentence():
    with pytest.raises(ConfigError, match="needs 8 hosts at once, and there are 4"):
        driver.drive(units.make(paper()), Clock(4))


# Places.


def test_a_place_is_chosen_by_the_larger_of_student_and_teacher_and_names_no_run():
    here, there = planned("paper-A"), planned("paper-A", PLACES)
    assert [task.run for task in here] == [task.run for task in there]
    assert [task.trunk for task in here] == [task.trunk for task in there]
    by_run = {task.run: task for task in there}
    for task in there:
        N = counts.non_embedding(task.config.model)
        if teacher := by_run.get(task.config.teacher.run):
            N = max(N, counts.non_embedding(teacher.config.model))
        assert task.place.hosts == (1 if N <= 1e9 else 2 if N <= 3e9 else 8)
        assert task.config.mesh.fsdp == (1 if N <= 1e9 else 8)


def test_hosts_follow_from_a_slice():
    (tpu, gpu) = places.parse(
        ("to 1e9: slice=v5e:4x4 time=90m", "to 1e10: slice=h100:64 mesh=data=8,fsdp=8 remat=full")
    )
    assert (tpu.hosts, tpu.chips, tpu.time, gpu.hosts, gpu.remat) == (4, 16, "01:30:00", 8, "full")
    assert math.isinf(places.Place().most) and places.parse(()) == ()


def test_a_comma_of_a_mesh_in_a_flag_ends_no_line():
    """Seen to fail with "'to 1e9: mesh=data=8': the mesh has 8 devices and the slice 16"."""
    whole = ("to 1e8: hosts=1 runs=8", "to 1e9: mesh=data=8,fsdp=2 slice=v5e:4x4", "to 1e10: mesh=fsdp=64")
    assert places.parse(",".join(whole).split(",")) == places.parse(whole)


@pytest.mark.parametrize(
    "line, message",
    [
        ("1e9: hosts=1", "wanted 'to PARAMETERS"),
        ("to many: hosts=1", "wanted 'to PARAMETERS"),
        ("to 1e9: host=1", "Did you mean 'hosts'"),
        ("to 1e9: hosts=0", "hosts=0, wanted a number of at least 1"),
        ("to 1e9: mesh=data=4,fdsp=8", "wanted such as data=4,fsdp=8"),
        ("to 1e9: remat=all", "wanted none, dots or full"),
        ("to 1e9: time=1d", "wanted such as 24h"),
        ("to 1e9: slice=v5:4x4", "wanted CHIP:SHAPE"),
        ("to 1e9: slice=v5e:4x4 hosts=2", "has 4 hosts; leave them out"),
        ("to 1e9: slice=v5e:4x4 mesh=data=8", "the mesh has 8 devices and the slice 16"),
    ],
)
def test_a_place_that_cannot_be_is_named(line, message):
    with pytest.raises(ConfigError, match=message):
        planned("smoke", (line,))


def test_a_run_that_is_too_large_for_every_place_is_named():
    with pytest.raises(ConfigError, match=r"s@500K has N=.* the last line ends at 50000; add a line"):
        planned("smoke", ("to 5e4: hosts=1",))
