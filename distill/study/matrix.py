"""Expands a study's lines into runs: their models, budgets, teachers and order."""

import dataclasses
import functools
import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from distill import config as configs
from distill.config import (
    ConfigError,
    ExperimentConfig,
    ModelConfig,
    StudyExperimentConfig,
    TeacherConfig,
    counts,
    nearest,
    tree,
)
from distill.study import ablations, places
from distill.study.places import Place

Split = Literal["teacher", "student"]

# The stage of the students of the largest budget: they start after all other runs have ended.
LAST_STAGE = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a study. Its `stage`: 0 without a teacher, 1 students, LAST students of the largest budget.

    In an ablation, `base` names the student that is varied and `settings` are the (field, value) pairs of this run.
    `config` is that of its `place`.
    """

    name: str
    config: ExperimentConfig
    run: str
    trunk: str
    stage: int
    base: str = ""
    settings: tuple[tuple[str, str], ...] = ()
    place: Place = Place()

    @property
    def flops(self) -> float:
        """The student's training FLOPs, by which a scheduler orders runs."""
        return counts.run_flops(self.config).student


@functools.lru_cache(maxsize=8)  # called for every run
def models(config: StudyExperimentConfig) -> Mapping[str, ModelConfig]:
    """The named sizes 'name = width x layers'; heads follow from model.d_head, the rest from `config.model`."""
    models_by_name = {}
    for line in config.study.models:
        match = re.fullmatch(r"\s*([\w.]+)\s*=\s*([0-9]{1,9})\s*x\s*([0-9]{1,9})\s*", line)
        if not match:
            raise ConfigError(f"config.study.models: got {line!r}, wanted 'name = width x layers', e.g. 'c = 32x2'")
        name, width, layers = match[1], int(match[2]), int(match[3])
        heads = max(width // config.model.d_head, 1) if config.model.d_head else config.model.n_heads
        models_by_name[name] = dataclasses.replace(config.model, d_model=width, n_layers=layers, n_heads=heads)
    return types.MappingProxyType(models_by_name)


def expand(config: StudyExperimentConfig, workdir: Path) -> list[PlannedRun]:
    """Every run of the study once, teachers first. Raises ConfigError, naming the line, if the matrix is invalid."""
    models(config)  # an invalid size is an error even if no line uses it
    ablations.settings(config)  # and so is an invalid setting
    planned_runs: dict[str, PlannedRun] = {}
    lines = {field: _seeded(config, field) for field in ("teachers", "supervised", "distilled")}
    for seed in sorted({seed for seeded in lines.values() for _, seeds in seeded for seed in seeds}):
        wanted = {field: [line for line, seeds in seeded if seed in seeds] for field, seeded in lines.items()}
        teachers = {}
        for planned in _group(config, "teachers", wanted["teachers"], seed, "teacher"):
            teachers[planned.name.partition("#")[0]] = planned  # a student's teacher has the student's seed
            planned_runs[planned.run] = planned
        for planned in _group(config, "supervised", wanted["supervised"], seed, "student"):
            planned_runs[planned.run] = planned
        for planned in _students(config, wanted["distilled"], teachers, seed, workdir):
            planned_runs[planned.run] = planned
    return _placed(config, sorted(planned_runs.values(), key=lambda planned: planned.stage))


def _placed(config: StudyExperimentConfig, tasks: list[PlannedRun]) -> list[PlannedRun]:
    """The runs at their places, which changes the name of none."""
    lines = places.parse(config.study.places)
    configs_by_run = {task.run: task.config for task in tasks}
    placed = []
    for task in tasks:
        place = places.find(lines, task.config, configs_by_run.get(task.config.teacher.run), task.name)
        placed.append(dataclasses.replace(task, place=place, config=place.placed(task.config, task.name)))
    return placed


def _seeded(config: StudyExperimentConfig, field: str) -> list[tuple[str, tuple[int, ...]]]:
    """The lines of a field, each with the seeds after its '#', or those of the study."""
    seeded = []
    for line in getattr(config.study, field):
        text, separator, seeds = line.partition("#")
        if separator and not (seeds.split() and all(re.fullmatch("[0-9]{1,9}", seed) for seed in seeds.split())):
            raise ConfigError(f"config.study.{field}: got {line!r}, wanted seeds behind the '#', e.g. 'c @ 1M # 0 1 2'")
        seeded.append((text, tuple(int(seed) for seed in seeds.split()) if separator else config.study.seeds))
    return seeded


def _group(
    config: StudyExperimentConfig, field: str, lines: list[str], seed: int, split: Split
) -> Iterator[PlannedRun]:
    for line in lines:
        names, separator, budgets = line.partition("@")
        if not separator:
            raise ConfigError(f"config.study.{field}: got {line!r}, wanted 'models @ budgets', e.g. 'p c @ 125K 1M'")
        for name, budget in _product(config, field, line, names, budgets):
            run = _experiment(config, field, name, budget, seed, split)
            yield _plan(f"{name}@{budget}", run, stage=0)


def _students(
    config: StudyExperimentConfig, lines: list[str], teachers: dict[str, PlannedRun], seed: int, workdir: Path
) -> Iterator[PlannedRun]:
    """The students of every line. Those of one line may teach those of the next: `c@1M>c@1M` is the label of one."""
    teachers = dict(teachers)
    for line in lines:
        by, _, rest = line.rpartition(">")
        names, at, budgets = rest.partition("@")
        if not by or not at:
            raise ConfigError(
                f"config.study.distilled: got {line!r}, wanted 'teachers > models @ budgets', "
                "e.g. 'c@250K > p q @ 125K 250K'"
            )
        students: list[PlannedRun] = []
        for label in by.split():
            teacher = _teacher(config, line, label, teachers, seed, workdir)
            students += _students_of(config, line, teacher, label, seed)
        largest, late = _largest(config), {teacher.run for teacher in teachers.values() if teacher.stage == LAST_STAGE}
        for i, student in enumerate(students):
            # A student of one of the last stage cannot come before it.
            last = not student.base and (student.config.tokens == largest or student.config.teacher.run in late)
            students[i] = dataclasses.replace(student, stage=LAST_STAGE if last else 1)
        teachers |= {student.name.partition("#")[0]: student for student in students if not student.settings}
        yield from students


def _teacher(
    config: StudyExperimentConfig, line: str, label: str, teachers: dict[str, PlannedRun], seed: int, workdir: Path
) -> TeacherConfig:
    """The teacher of this label: one of study.teachers, or a student of a line above. Raises ConfigError for others."""
    if label not in teachers:
        raise ConfigError(
            f"config.study.distilled: {line!r} names teacher {label!r}, which is not among study.teachers"
            f"{f' of seed {seed}' if seed else ''}, nor a student of a line above.{nearest(label, teachers)}"
        )
    # A study keeps its runs in one folder, so a teacher's path follows from its name.
    run = teachers[label].run
    return dataclasses.replace(config.teacher, run=run, source=str(workdir / "runs" / run))


def _students_of(
    config: StudyExperimentConfig, line: str, teacher: TeacherConfig, label: str, seed: int
) -> Iterator[PlannedRun]:
    """The students of one teacher, each under every setting of an ablation."""
    names, _, budgets = line.rpartition(">")[2].partition("@")
    for name, budget in _product(config, "distilled", line, names, budgets):
        run = dataclasses.replace(_experiment(config, "distilled", name, budget, seed, "student"), teacher=teacher)
        student = f"{label}>{name}@{budget}"
        if config.study.ablations:
            yield from _ablated(config, student, run)
        else:
            yield _plan(student, run, stage=1)


def _ablated(config: StudyExperimentConfig, student: str, run: ExperimentConfig) -> Iterator[PlannedRun]:
    """The unchanged student and the student under every setting; settings with the same run are merged."""
    plain = _plan(student, run, stage=1)
    students = {plain.run: dataclasses.replace(plain, base=student)}
    for setting in ablations.settings(config):
        name = f"{student} {setting.field.rstrip('_')}={setting.value}"
        planned = _plan(name, dataclasses.replace(run, objective=setting.objective), stage=1)
        planned = students.get(planned.run, dataclasses.replace(planned, base=student))
        pair = (setting.field, setting.value)
        students[planned.run] = dataclasses.replace(planned, settings=(*planned.settings, pair))
    yield from students.values()


def _largest(config: StudyExperimentConfig) -> int:
    """The tokens of the longest student."""
    largest = 0
    for line, _ in _seeded(config, "distilled"):
        names, _, budgets = line.rpartition(">")[2].partition("@")
        lengths = [_tokens(config, "distilled", *pair) for pair in _product(config, "distilled", line, names, budgets)]
        largest = max(largest, *lengths)
    return largest


def _tokens(config: StudyExperimentConfig, field: str, name: str, budget: str) -> int:
    """A budget in tokens: '250K', '20N' (20 per non-embedding parameter), or the tokens that 'C1e12' FLOPs train.

    The unique tokens behind a '/' do not count.
    """
    model = models(config)[name]
    budget = budget.partition("/")[0]
    try:
        if budget[-1:] == "N":
            return round(float(budget[:-1]) * counts.non_embedding(model))
        if budget[:1] == "C":
            return round(float(budget[1:]) / (3 * counts.forward_flops(model, config.seq_len)))
        return tree.parse_count(budget)
    except (ValueError, OverflowError):
        raise ConfigError(
            f"config.study.{field}: got the budget {budget!r}, wanted tokens (250K), tokens a parameter (20N) or FLOPs "
            "of training (C1e12), and unique tokens behind a '/' (1M/125K)"
        ) from None


def _unique(config: StudyExperimentConfig, field: str, name: str, budget: str) -> int:
    """The tokens behind the '/' of a budget, which the run repeats; the experiment's own without one."""
    _, separator, unique = budget.partition("/")
    return _tokens(config, field, name, unique) if separator else config.data.unique


def _product(
    config: StudyExperimentConfig, field: str, line: str, names: str, budgets: str
) -> Iterator[tuple[str, str]]:
    known = models(config)
    if not names.split() or not budgets.split():
        raise ConfigError(f"config.study.{field}: {line!r} names no models or no budgets")
    for name in names.split():
        if name not in known:
            raise ConfigError(
                f"config.study.{field}: {line!r} names model {name!r}, which is not among study.models."
                f"{nearest(name, known)}"
            )
        yield from ((name, budget) for budget in budgets.split())


def _experiment(
    config: StudyExperimentConfig, field: str, name: str, budget: str, seed: int, split: Split
) -> ExperimentConfig:
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(ExperimentConfig)}
    data = dataclasses.replace(config.data, split=split, unique=_unique(config, field, name, budget))
    changed = {
        "model": models(config)[name],
        "data": data,
        "tokens": _tokens(config, field, name, budget),
        "seed": seed,
    }
    return ExperimentConfig(**shared | {"teacher": TeacherConfig()} | changed)


def _plan(name: str, config: ExperimentConfig, stage: int) -> PlannedRun:
    name = name if config.seed == 0 else f"{name}#{config.seed}"
    run, trunk = configs.fingerprint(config), configs.trunk_fingerprint(config)
    return PlannedRun(name=name, config=config, run=run, trunk=trunk, stage=stage)
