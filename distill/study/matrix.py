"""Expands a study's lines into runs: their models, budgets, teachers and order."""

import dataclasses
import functools
import re
import types
from collections.abc import Iterator, Mapping, Sequence
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
    mixture_run,
    nearest,
    teachers_of,
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
    def teachers(self) -> tuple[str, ...]:
        """The fingerprints of the runs that teach it: none, one, or those of an ensemble."""
        return teachers_of(self.config.teacher.run)

    @property
    def flops(self) -> float:
        """The student's training FLOPs, by which a scheduler orders runs."""
        return counts.run_flops(self.config).student


Teachers = Mapping[tuple[str, int], PlannedRun]  # by label and seed


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
    teachers = _teachers(config, lines["teachers"])
    for seed in sorted({seed for seeded in lines.values() for _, seeds in seeded for seed in seeds}):
        wanted = {field: [line for line, seeds in seeded if seed in seeds] for field, seeded in lines.items()}
        planned_runs |= {planned.run: planned for (_, own), planned in teachers.items() if own == seed}
        for planned in _group(config, "supervised", wanted["supervised"], seed, "student"):
            planned_runs[planned.run] = planned
        for planned in _students(config, wanted["distilled"], teachers, seed, workdir):
            planned_runs[planned.run] = planned
    return placed(config.study.places, sorted(planned_runs.values(), key=lambda planned: planned.stage))


def _teachers(config: StudyExperimentConfig, lines: Sequence[tuple[str, Sequence[int]]]) -> Teachers:
    """The runs of study.teachers, all seeds."""
    return {
        (planned.name.partition("#")[0], seed): planned
        for seed in sorted({seed for _, seeds in lines for seed in seeds})
        for planned in _group(config, "teachers", [line for line, seeds in lines if seed in seeds], seed, "teacher")
    }


def placed(lines: Sequence[str], tasks: Sequence[PlannedRun]) -> list[PlannedRun]:
    """The runs at their places (places.py), which changes the name of none. Raises ConfigError, naming the line."""
    known = places.parse(lines)
    models_by_run = {task.run: task.config.model for task in tasks}
    result = []
    for task in tasks:
        teachers = [models_by_run[run] for run in task.teachers if run in models_by_run]
        place = places.find(known, task.config, teachers, task.name)
        result.append(dataclasses.replace(task, place=place, config=place.placed(task.config, task.name)))
    return result


def refuse_several_hosts(tasks: Sequence[PlannedRun]) -> None:
    """Raises ConfigError where a place is of several hosts, for a backend that has this one."""
    if several := [task for task in tasks if task.place.hosts > 1]:
        raise ConfigError(
            f"places: {several[0].name} is for {several[0].place.hosts} hosts, and --backend=local has this one; "
            "choose another backend"
        )


def refuse_memory_of_several(tasks: Sequence[PlannedRun]) -> None:
    """Raises ConfigError for signals in the memory of one process where a run has several."""
    if bad := [
        task for task in tasks if task.place.hosts > 1 and task.teachers and task.config.teacher.signal == "memory"
    ]:
        raise ConfigError(
            f"config.teacher.signal='memory': {bad[0].name} is for {bad[0].place.hosts} hosts, and one would keep what "
            "another computed; wanted --config.teacher.signal=online, or stored"
        )


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
    config: StudyExperimentConfig, lines: list[str], teachers: Teachers, seed: int, workdir: Path
) -> Iterator[PlannedRun]:
    """The students of every line. Those of one line may teach those of the next: `c@1M>c@1M` is the label of one."""
    known = dict(teachers)
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
            teacher = _teacher(config, _named(line, label, known, seed), workdir)
            students += _students_of(config, line, teacher, label, seed)
        largest, late = _largest(config), {teacher.run for teacher in known.values() if teacher.stage == LAST_STAGE}
        for i, student in enumerate(students):
            # A student of one of the last stage cannot come before it.
            last = not student.base and (student.config.tokens == largest or late & set(student.teachers))
            students[i] = dataclasses.replace(student, stage=LAST_STAGE if last else 1)
        known |= {(student.name.partition("#")[0], seed): student for student in students if not student.settings}
        yield from students


def _named(line: str, label: str, teachers: Teachers, seed: int) -> list[PlannedRun]:
    """The runs that a label names for a seed, each a run of study.teachers or a student of a line above.

    'c@1M+r@1M' is both; '2*c@1M' is c@1M of the seeds 2 seed and 2 seed + 1. Raises ConfigError for other labels.
    """
    if (label, seed) in teachers:
        return [teachers[label, seed]]
    named: list[PlannedRun] = []
    for part in label.split("+"):
        match = re.fullmatch(r"([1-9][0-9]{0,2})\*(.+)", part)
        times, own = (int(match[1]), match[2]) if match else (1, part)
        for each in range(times * seed, times * (seed + 1)):
            if (own, each) not in teachers:
                known = [name for name, of in teachers if of == each]
                raise ConfigError(
                    f"config.study.distilled: {line!r} names teacher {own!r}, which is not among study.teachers"
                    f"{f' of seed {each}' if each else ''}, nor a student of a line above.{nearest(own, known)}"
                )
            named.append(teachers[own, each])
    if len({teacher.run for teacher in named}) < len(named):
        raise ConfigError(f"config.study.distilled: {line!r}: {label!r} names a teacher twice; leave each once")
    return named


def _teacher(config: StudyExperimentConfig, named: Sequence[PlannedRun], workdir: Path) -> TeacherConfig:
    """One run as the teacher, or several with equal weights."""
    # A study keeps its runs in one folder, so a teacher's path follows from its name.
    folders = [str(workdir / "runs" / teacher.run) for teacher in named]
    if len(named) == 1:
        return dataclasses.replace(config.teacher, run=named[0].run, source=folders[0])
    mixture = dataclasses.replace(config.teacher, mixture=tuple(f"{folder}@1" for folder in folders))
    weights = [(teacher.run, weight) for teacher, (_, weight) in zip(named, mixture.sources)]
    return dataclasses.replace(mixture, run=mixture_run(weights))


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
