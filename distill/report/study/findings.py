"""The findings in a study's rows: pairs with supervised training, better and worse teachers, noise, costs."""

import dataclasses
import datetime
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeVar

import numpy as np

from distill.records.predictions import settled
from distill.records.runs import RunRecord
from distill.report.study.results import FittedLaw, Results

K = TypeVar("K")

_TWO_SIDED = 2.0  # standard deviations beyond which a difference counts as larger than noise
_FREEDOM = 4  # least repetitions for which a standard deviation over seeds is reported


@dataclasses.dataclass(frozen=True, kw_only=True)
class Noise:
    """The noise between equal runs: a relative standard deviation of the loss, and its source."""

    relative: float
    source: Literal["seeds", "law", "validation"]
    cells: int  # groups of runs that differ only in the seed

    def exceeded(self, difference: float, loss: float, others: int = 1) -> bool:
        """Whether a run differs from the mean of `others` runs by more than noise explains."""
        return abs(difference) > _TWO_SIDED * self.relative * loss * math.sqrt(1 + 1 / others)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """A student and supervised training of the same N and D (the mean of `count` runs)."""

    student: RunRecord
    alone: float
    count: int
    strongest: bool  # whether its teacher is the strongest of its N and D

    @property
    def difference(self) -> float:
        """L_S minus the supervised loss: negative if distillation wins."""
        return self.student.loss - self.alone


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tally:
    """Pairs counted: how many, how many distillation wins, the mean difference, wins and losses beyond noise."""

    pairs: int
    wins: int
    mean: float
    wins_beyond: int
    losses_beyond: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentGroup:
    """Students that differ only in their teacher: (L_T, L_S) from the weakest teacher to the strongest."""

    N: int
    D: int
    seed: int
    students: tuple[RunRecord, ...]

    @property
    def best(self) -> int:
        """The index of the student of lowest loss."""
        return int(np.argmin([run.loss for run in self.students]))

    @property
    def gap(self) -> float:
        """The cost of the strongest teacher: L_S of its student minus the lowest L_S."""
        return self.students[-1].loss - self.students[self.best].loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ordering:
    """Whether the better of two teachers has the lower student, over all pairs of teachers of equal N and D."""

    cells: int
    pairs: int
    agree: int
    clear_pairs: int  # whose students differ by more than noise
    clear_agree: int
    gaps: int  # cells whose lowest student is not the strongest teacher's
    clear_gaps: int
    cost: float  # mean cost of the strongest teacher in those cells, nats per token


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """FLOPs as if every run had been trained from its first step, and the time that the runs took.

    seconds: wall-clock time in which at least one run was active, without pauses between two calls of a study.
    run_seconds: the sum over runs.
    """

    student: float
    teacher_forward: float
    teacher_training: float
    seconds: float
    run_seconds: float
    runs: int
    trunks: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ledger:
    """Predictions made before their runs began: how many held, how many are expected at the level, the mean error."""

    inside: int
    total: int
    level: float
    error: float  # mean relative error of the predicted loss
    waiting: int  # predicted, not finished
    how: Mapping[str, int] = dataclasses.field(default_factory=dict)  # settled predictions by where intervals are from


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that the report states about the rows."""

    noise: Noise
    pairs: tuple[Pair, ...]
    by_tokens: dict[int, tuple[Tally, Tally]]  # D -> of all teachers, of the strongest
    ordering: Ordering | None
    beaten: tuple[int, int]  # students with a lower loss than their teacher: all, and beyond noise
    ledger: Ledger | None
    costs: Costs


def find(results: Results) -> Findings:
    """Computes everything that the report states."""
    noise = seed_noise(results)
    paired = pair(results.runs)
    tokens = sorted({p.student.D for p in paired})
    return Findings(
        noise=noise,
        pairs=paired,
        by_tokens={
            D: (
                tally([p for p in paired if p.student.D == D], noise),
                tally([p for p in paired if p.student.D == D and p.strongest], noise),
            )
            for D in tokens
        },
        ordering=order(student_groups(results.distilled), noise),
        beaten=_beaten(results, noise),
        ledger=_ledger(results),
        costs=costs(results.runs),
    )


def seed_noise(results: Results) -> Noise:
    """From runs that differ only in the seed; else from the laws' residuals; else the validation set's error."""
    teachers = {teacher for run in results.runs for teacher in run.teachers}
    groups = _grouped(results.runs, lambda run: (*recipe(run), run.run in teachers))
    logs = [np.log([run.loss for run in group]) for group in groups.values() if len({run.seed for run in group}) > 1]
    freedom = sum(len(log) - 1 for log in logs)
    if freedom >= _FREEDOM:
        squares = sum(float(((log - log.mean()) ** 2).sum()) for log in logs)
        return Noise(relative=math.sqrt(squares / freedom), source="seeds", cells=len(logs))
    errors = [_spread(law) for law in results.laws if law.error]
    if errors:
        return Noise(relative=max(errors), source="law", cells=0)
    relative = float(np.mean([run.loss_se / run.loss for run in results.runs]))
    return Noise(relative=relative, source="validation", cells=0)


def _spread(law: FittedLaw) -> float:
    """The standard deviation of a law's errors, corrected for its fitted parameters."""
    rows, parameters = law.rows or 0, len(law.law.values())
    spent = rows / max(rows - parameters, 1) if rows else 1.0
    # The standard deviation of a normal error is sqrt(pi/2) times its mean absolute value.
    return (law.error[0] if law.error else 0.0) * math.sqrt(math.pi / 2 * spent)


def recipe(run: RunRecord) -> tuple[object, ...]:
    """What defines a run, except its seed (and its teacher's)."""
    return run.kind, run.model, run.N, run.D, run.N_T, run.D_T, run.lambda_, run.tau


def baselines(runs: Iterable[RunRecord]) -> dict[tuple[int, int], list[RunRecord]]:
    """Supervised runs by (N, D). A teacher, trained on other text, is used only if there is no other run."""
    runs = list(runs)
    teachers = {teacher for run in runs for teacher in run.teachers}
    groups = _grouped([run for run in runs if run.kind == "supervised"], lambda run: (run.N, run.D))
    return {key: [run for run in group if run.run not in teachers] or group for key, group in groups.items()}


def pair(runs: Iterable[RunRecord]) -> tuple[Pair, ...]:
    """Every student with supervised training of its N and D, if the table has it; by N, D and falling L_T."""
    runs = list(runs)
    alone = baselines(runs)
    strongest = {group.students[-1].run for group in student_groups(run for run in runs if run.kind == "distillation")}
    pairs = []
    for run in sorted(runs, key=lambda run: (run.N, run.D, -(run.L_T or 0.0))):
        others = alone.get((run.N, run.D))
        if run.kind == "distillation" and others:
            mean = float(np.mean([other.loss for other in others]))
            pairs.append(Pair(student=run, alone=mean, count=len(others), strongest=run.run in strongest))
    return tuple(pairs)


def tally(pairs: Sequence[Pair], noise: Noise) -> Tally:
    """Counts pairs."""
    beyond = [p for p in pairs if noise.exceeded(p.difference, p.alone, p.count)]
    return Tally(
        pairs=len(pairs),
        wins=sum(p.difference < 0 for p in pairs),
        mean=float(np.mean([p.difference for p in pairs])) if pairs else math.nan,
        wins_beyond=sum(p.difference < 0 for p in beyond),
        losses_beyond=sum(p.difference > 0 for p in beyond),
    )


def student_groups(students: Iterable[RunRecord]) -> tuple[StudentGroup, ...]:
    """Students of one N, D, seed and objective, by falling L_T."""
    groups = _grouped(students, lambda run: (run.N, run.D, run.seed, run.model, run.lambda_ or 0.0, run.tau or 0.0))
    return tuple(
        StudentGroup(N=key[0], D=key[1], seed=key[2], students=tuple(sorted(group, key=lambda run: -(run.L_T or 0.0))))
        for key, group in sorted(groups.items())
    )


def order(groups: Sequence[StudentGroup], noise: Noise) -> Ordering | None:
    """Counts pairs of teachers; None if no group has two."""
    groups = [group for group in groups if len(group.students) > 1]
    if not groups:
        return None
    pairs = [
        (weaker, better)
        for group in groups
        for i, weaker in enumerate(group.students)
        for better in group.students[i + 1 :]
        if better.L_T != weaker.L_T
    ]
    clear = [p for p in pairs if noise.exceeded(p[1].loss - p[0].loss, p[0].loss)]
    gaps = [group for group in groups if group.best < len(group.students) - 1]
    return Ordering(
        cells=len(groups),
        pairs=len(pairs),
        agree=sum(better.loss < weaker.loss for weaker, better in pairs),
        clear_pairs=len(clear),
        clear_agree=sum(better.loss < weaker.loss for weaker, better in clear),
        gaps=len(gaps),
        clear_gaps=sum(noise.exceeded(group.gap, group.students[group.best].loss) for group in gaps),
        cost=float(np.mean([group.gap for group in gaps])) if gaps else 0.0,
    )


def costs(runs: Sequence[RunRecord]) -> Costs:
    """Sums over runs; a teacher's training is that of the runs that teach."""
    teachers = {teacher for run in runs for teacher in run.teachers}
    spans = [(datetime.datetime.fromisoformat(run.start), datetime.datetime.fromisoformat(run.end)) for run in runs]
    training = sum(run.flops_student for run in runs if run.run in teachers)
    return Costs(
        student=sum(run.flops_student for run in runs) - training,
        teacher_forward=sum(run.flops_teacher for run in runs),
        teacher_training=training,
        seconds=_covered(spans),
        run_seconds=sum((end - start).total_seconds() for start, end in spans),
        runs=len(runs),
        trunks=len({run.trunk for run in runs}),
    )


def _covered(spans: Sequence[tuple[datetime.datetime, datetime.datetime]]) -> float:
    """Seconds covered by at least one of the (start, end) spans."""
    total, until = datetime.timedelta(), None
    for start, end in sorted(spans):
        start = start if until is None else max(start, until)
        if end > start:
            total, until = total + (end - start), end
    return total.total_seconds()


def _beaten(results: Results, noise: Noise) -> tuple[int, int]:
    below = [run for run in results.distilled if run.L_T is not None and run.loss < run.L_T]
    return len(below), sum(noise.exceeded(run.loss - (run.L_T or 0.0), run.loss) for run in below)


def _ledger(results: Results) -> Ledger | None:
    if not results.predictions:
        return None
    predicted = list(settled(results.predictions, results.runs, results.carried))
    finished = {run.run for run in results.runs}
    return Ledger(
        inside=sum(prediction.contains(run.loss) for prediction, run in predicted),
        total=len(predicted),
        level=float(np.mean([prediction.level for prediction in results.predictions])),
        error=float(np.mean([abs(p.predicted / run.loss - 1) for p, run in predicted])) if predicted else math.nan,
        waiting=len({p.run for p in results.predictions} - finished),
        how=Counter(p.law.partition(", ")[2] for p, _ in predicted if ", " in p.law),
    )


def _grouped(runs: Iterable[RunRecord], key: Callable[[RunRecord], K]) -> dict[K, list[RunRecord]]:
    groups: dict[K, list[RunRecord]] = defaultdict(list)
    for run in runs:
        groups[key(run)].append(run)
    return dict(groups)
