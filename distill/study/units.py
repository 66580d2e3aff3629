"""A study's runs as units, what a cluster places: some runs in turn, in one program, on some hosts. Pure; no engine.

A unit needs the teachers of its runs, and comes after the shorter runs of their trunks, whose states it continues. Two
units have no runs: `predict` comes after all runs but the last stage's, which need it; `conclude` after everything.
"""

import dataclasses
import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from distill.config import ModelConfig, chips, counts
from distill.study.matrix import LAST_STAGE, PlannedRun
from distill.study.places import Place

PREDICT, CONCLUDE = "predict", "conclude"

# Assumptions of the estimate of a run's seconds; a wrong one makes units longer or shorter, and nothing else.
RUN_SECONDS = 3.0  # opening and compiling
HOST_FLOPS = 2e10  # FLOPs a second of a host that no slice describes: two cores (4.5e12 of smoke in 165 s)
MFU = 0.4  # of a slice's peak
UNIT_SECONDS = 60.0  # of small runs in one unit: twenty times what a program takes to start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """Runs in turn in one program, or one of PREDICT and CONCLUDE.

    `needs` and `after` name runs of other units, or PREDICT: what must have succeeded, and what must have ended.
    """

    name: str
    runs: tuple[PlannedRun, ...] = ()
    place: Place = Place()
    needs: frozenset[str] = frozenset()
    after: frozenset[str] = frozenset()
    seconds: float = RUN_SECONDS  # estimated

    @property
    def part(self) -> str:
        """What --part says: the fingerprints of the runs, PREDICT or CONCLUDE."""
        return ",".join(task.run for task in self.runs) or self.name

    @property
    def keys(self) -> frozenset[str]:
        """What others may need of it."""
        return frozenset(task.run for task in self.runs) or frozenset({self.name})

    @property
    def last(self) -> bool:
        """Whether it holds students of the largest budget."""
        return any(task.stage == LAST_STAGE for task in self.runs)


def teachers(task: PlannedRun, by_run: Mapping[str, PlannedRun]) -> list[ModelConfig]:
    """The models that teach a run, of those that the study trains."""
    return [by_run[run].config.model for run in task.teachers if run in by_run]


def run_flops(task: PlannedRun, by_run: Mapping[str, PlannedRun]) -> float:
    """FLOPs that a run takes: its own, and its teachers' forward passes."""
    flops = [counts.run_flops(task.config, teacher) for teacher in teachers(task, by_run) or (None,)]
    return flops[0].student + sum(each.teacher_forward for each in flops)


def run_seconds(task: PlannedRun, by_run: Mapping[str, PlannedRun]) -> float:
    """Seconds that a run takes at its place, estimated."""
    return RUN_SECONDS + run_flops(task, by_run) / speed(task.place)


def speed(place: Place, mfu: float = MFU) -> float:
    """FLOPs a second of a place."""
    return place.chips * chips.find(place.chip).flops * mfu if place.chip else HOST_FLOPS * place.hosts


def make(tasks: Sequence[PlannedRun]) -> list[Unit]:
    """The units of all runs, each after what it needs or comes after.

    A run that teaches is a unit of its own, so that its students wait for nothing else; other small runs share one, by
    teacher, until it takes UNIT_SECONDS: whole trunks, or a part of one. The same runs make the same units.
    """
    by_run = {task.run: task for task in tasks}
    taught_by = {run for task in tasks for run in task.teachers} & set(by_run)
    trunks_of_teachers = {by_run[run].trunk for run in taught_by}

    def order(task: PlannedRun) -> tuple[int, str, float, str, int, str]:
        if task.trunk in trunks_of_teachers:
            return 0, "", 0.0, "", task.config.tokens, task.run
        stage = 1 + (task.stage == LAST_STAGE)
        return stage, task.config.teacher.run, task.place.most, task.trunk, task.config.tokens, task.run

    def fits(runs: Sequence[PlannedRun]) -> bool:
        cost = sum(run_seconds(task, by_run) for task in runs)
        return len(runs) == 1 or (len(runs) <= runs[0].place.runs and cost <= UNIT_SECONDS)

    packs: list[list[PlannedRun]] = []
    whole = False  # whether the last pack holds whole trunks: only then another joins, or one trunk would wait for two
    for _, group in itertools.groupby(sorted(tasks, key=order), key=lambda task: order(task)[:4]):
        trunk = list(group)
        if order(trunk[0])[0] == 0:
            packs += [[task] for task in trunk]
            continue
        alike = whole and order(packs[-1][0])[:3] == order(trunk[0])[:3]
        if alike and fits(packs[-1] + trunk):
            packs[-1] += trunk
            continue
        whole = fits(trunk)
        packs.append([])
        for task in trunk:
            if not fits(packs[-1] + [task]):
                packs.append([])
            packs[-1].append(task)
    return _in_order([*_with_the_rest([_unit(pack, by_run) for pack in packs], tasks)])


def _unit(pack: Sequence[PlannedRun], by_run: Mapping[str, PlannedRun]) -> Unit:
    first, own = pack[0], {task.run for task in pack}
    shorter = {
        other.run
        for task in pack
        for other in by_run.values()
        if other.trunk == task.trunk and other.config.tokens < task.config.tokens
    }
    needs = {run for task in pack for run in task.teachers} & set(by_run)
    if any(task.stage == LAST_STAGE for task in pack):
        needs |= {PREDICT}
    label = re.sub(r"[^A-Za-z0-9.]+", "_", first.name).strip("_")[:40]
    return Unit(
        name=f"{label}.{first.run[:6]}",
        runs=tuple(pack),
        place=first.place,
        needs=frozenset(needs - own),
        after=frozenset(shorter - own - needs),
        seconds=sum(run_seconds(task, by_run) for task in pack),
    )


def _with_the_rest(units: Sequence[Unit], tasks: Sequence[PlannedRun]) -> Iterable[Unit]:
    """The units with PREDICT before the last stage, if there is one, and CONCLUDE at the end."""
    yield from (unit for unit in units if not unit.last)
    everything = frozenset(task.run for task in tasks)
    if any(unit.last for unit in units):
        yield Unit(name=PREDICT, after=frozenset(task.run for task in tasks if task.stage != LAST_STAGE))
        yield from (unit for unit in units if unit.last)
        everything |= {PREDICT}
    yield Unit(name=CONCLUDE, after=everything)


def _in_order(units: Sequence[Unit]) -> list[Unit]:
    """The units so that each comes after what it needs: a student may teach the next one."""
    ordered, known = list[Unit](), set[str]()
    waiting = list(units)
    while waiting:
        ready = [unit for unit in waiting if unit.needs | unit.after <= known]
        if not ready:
            raise AssertionError(f"these units wait for each other: {', '.join(unit.name for unit in waiting)}")
        ordered += ready
        known |= {key for unit in ready for key in unit.keys}
        waiting = [unit for unit in waiting if unit not in ready]
    return ordered


def remaining(units: Sequence[Unit], done: Collection[str], queued: Collection[str] = ()) -> list[Unit]:
    """The units without what is `done` or `queued` elsewhere already; edges to what is done are dropped.

    PREDICT stays while runs of the last stage do; CONCLUDE always.
    """
    left = []
    for unit in units:
        runs = tuple(task for task in unit.runs if task.run not in done and task.run not in queued)
        if (unit.runs and not runs) or (unit.name == PREDICT and PREDICT in queued):
            continue
        left.append(dataclasses.replace(unit, runs=runs, needs=unit.needs - set(done), after=unit.after - set(done)))
    if any(unit.last for unit in left) or PREDICT in queued:
        return left
    return [dataclasses.replace(unit, after=unit.after - {PREDICT}) for unit in left if unit.name != PREDICT]
