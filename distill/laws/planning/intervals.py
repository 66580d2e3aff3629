"""The uncertainty of a plan: intervals and the probability of winning, from the resampled laws of a bootstrap."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

import jax
import numpy as np

from distill.laws.fitting.fit import NOT_ASSESSED
from distill.laws.forms.arrays import Floats, Values
from distill.laws.forms.law import Law
from distill.laws.forms.resampled import ResampledLaws, supervised_inside
from distill.laws.planning.allocation import Bounds
from distill.laws.planning.crossover import crossover_compute, crossover_stack, crossover_tokens, interpolate
from distill.laws.planning.problem import Alternative, Problem
from distill.laws.planning.question import Question
from distill.laws.planning.scenarios import Bill, effective_tokens
from distill.laws.planning.signatures import ForwardFlops, SupervisedLaw
from distill.laws.uncertainty.bootstrap import MOST_FAILED
from distill.laws.uncertainty.calibration import CalibratedLaws, Calibration

LEVEL = 0.9  # of every interval
FAILED = "of the resamples failed, so no interval is printed; add runs or take a simpler form"
KNOWN = "the supervised law is taken as known, so its error is in no interval and not in the probability"
_DRAWS = 512  # resampled laws that a plan uses
_SCANNING_DRAWS = 64  # fewer for the crossover in compute and the best N_S, which scan budgets and sizes for each law
_SIZES = 33  # student sizes of such a scan
_BUDGETS = 1024  # of the scan for the crossover with given teachers, whose losses need no search


def _stack(boot: ResampledLaws, given: SupervisedLaw, draws: int) -> tuple[SupervisedLaw, Law]:
    """(supervised, distillation) of the first `draws` resamples, every leaf [draws]."""
    laws = boot.kept
    count = max((np.shape(leaf)[0] for leaf in jax.tree_util.tree_leaves(laws) if np.ndim(leaf)), default=1)
    kept = min(count, draws)
    laws = jax.tree_util.tree_map(
        lambda leaf: np.asarray(leaf)[:kept] if np.ndim(leaf) else np.full(kept, float(leaf)), laws
    )
    inside = supervised_inside(laws)
    return (inside if inside is not None else given), laws


def _size(laws: Law) -> int:
    return len(jax.tree_util.tree_leaves(laws)[0])


def _percentiles(values: Floats) -> tuple[float, float]:
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """The 90% intervals of a plan by name, those of losses from the bootstrap alone, and the probability of winning.

    `interval` of L_S and supervised_L is calibrated where the law was rolled forward, and then includes a run's noise;
    `bootstrap` has the plain ones beside. `forms` says which laws the probability is under, by weight.
    """

    interval: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    bootstrap: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    probability: float | None = None
    forms: Mapping[str, float] = dataclasses.field(default_factory=dict)


def uncertainty(
    question: Question,
    problem: Problem,
    boot: ResampledLaws | None,
    best: Mapping[str, float],
    cost: Bill,
    other: Alternative,
) -> Uncertainty:
    """The intervals of a plan, and the probability that this exact plan beats supervised training at equal cost.

    `best` is the plan's split, `other` the supervised alternative. Empty without a bootstrap, and where more than a
    tenth of its resamples failed.
    """
    if boot is None or failure(boot) > MOST_FAILED:
        return Uncertainty()
    D_other = other.D
    if question.constraint == "loss":
        D_other = float(problem.supervised_tokens(np.array([other.N]), cost.total)[0])
    names = ("N_S", "D_S", "N_T", "D_T", "L_T")
    at = _Point(**{name: best[name] for name in names}, N=other.N, D=D_other)
    forms, weights = _forms(boot)
    counts = [_DRAWS, *(max(round(_DRAWS * weight), 8) for weight in weights[1:])]
    parts = [_losses(problem, part, at, count) for part, count in zip(forms, counts)]
    plain = {"L_S": _percentiles(parts[0].L_S), "supervised_L": _percentiles(parts[0].alone)}
    L_S, alone = _calibrated(problem, boot, forms, weights, parts, at)
    return Uncertainty(
        interval={"L_S": _percentiles(L_S), "supervised_L": _percentiles(alone)}
        | _splits(question, problem, boot, best, cost),
        bootstrap=plain if trust(boot) else {},
        probability=float(np.mean(alone > L_S)),
        forms={_student(part).name: w for part, w in zip(forms, weights)} if trust(boot) else {},
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Point:
    """A plan and its alternative: sizes, tokens, and the teacher's loss under the laws themselves."""

    N_S: float
    D_S: float
    N_T: float
    D_T: float
    L_T: float
    N: float
    D: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Losses:
    """Under each resampled law [R]: the teacher's loss, the student's, that of supervised training."""

    L_T: Floats
    L_S: Floats
    alone: Floats


def _losses(problem: Problem, boot: ResampledLaws, at: _Point, draws: int) -> _Losses:
    supervised, distillation = _stack(boot, problem.supervised, draws)
    each = dataclasses.replace(problem, supervised=supervised, distillation=distillation)
    count = _size(distillation)
    if problem.teachers or not np.isfinite(at.N_T):
        L_T = np.full((count, 1), at.L_T)
    else:
        L_T = np.broadcast_to(each.teacher_loss(np.array([at.N_T]), np.array([at.D_T])), (count, 1))
    L_S = each.taught(np.array([at.N_S]), np.array([at.D_S]), L_T)[:, 0]
    alone = np.broadcast_to(each.alone(np.array([at.N]), np.array([at.D])), (count, 1))[:, 0]
    return _Losses(L_T=L_T[:, 0], L_S=L_S, alone=alone)


def _calibrated(
    problem: Problem,
    boot: ResampledLaws,
    forms: Sequence[ResampledLaws],
    weights: Sequence[float],
    parts: Sequence[_Losses],
    at: _Point,
) -> tuple[Floats, Floats]:
    """(L_S, supervised L) of a run [R each], moved apart as rolling forward asks; else the resamples."""
    trusted = trust(boot)
    if trusted is None:
        return parts[0].L_S, parts[0].alone
    # The same resamples of the supervised law in the same places of both, so that what they share cancels.
    L_S, alone = (np.concatenate([_resized(x, w) for x, w in zip(each, weights)]) for each in _columns(parts))
    if trusted.below is not None:
        tokens = effective_tokens(min(at.D, problem.bounds.high), problem.unique)

        def loss(law: SupervisedLaw) -> Floats:
            return dataclasses.replace(problem, supervised=law).alone(np.array([at.N]), np.array([at.D]))

        if len(trusted.below.weights) > 1:
            alone = supervised_draws(trusted, trusted.below, problem.supervised, loss, (at.N, tokens))
        else:
            own = np.log(loss(problem.supervised))
            alone = np.exp(trusted.below.draws(list(own), [np.log(alone)], (at.N, tokens), seed=1))
    if trusted.calibration is not None:
        tokens = effective_tokens(min(at.D_S, problem.bounds.high), problem.unique)
        each = [dataclasses.replace(problem, distillation=_student(part)) for part in forms]
        logs = [np.log(one.taught(np.array([at.N_S]), np.array([at.D_S]), np.array([at.L_T])))[0] for one in each]
        resampled = [np.log(_resized(part.L_S, w)) for part, w in zip(parts, weights)]
        L_S = np.exp(trusted.calibration.draws(logs, resampled, (at.N_S, tokens, at.L_T), seed=2))
    count = max(len(L_S), len(alone))
    return np.resize(L_S, count), np.resize(alone, count)


def _columns(parts: Sequence[_Losses]) -> tuple[list[Floats], list[Floats]]:
    """The students' losses and those of supervised training, [forms][R]."""
    return [part.L_S for part in parts], [part.alone for part in parts]


def supervised_draws(
    boot: CalibratedLaws,
    below: Calibration,
    given: SupervisedLaw,
    loss: Callable[[SupervisedLaw], Floats],
    inputs: tuple[Values, ...],
) -> Floats:
    """The supervised loss of a run [R], calibrated, over the forms that `below` averages.

    `loss` evaluates a law or a stack of them, [1] or [R, 1]; `given` is the law where none is nested in a form's.
    """
    logs, resampled = [], []
    for part, weight in zip((boot, *boot.others), below.weights):
        inside = supervised_inside(part.estimate)
        logs.append(np.log(loss(given if inside is None else inside))[0])
        stack, _ = _stack(part, given, _DRAWS)
        resampled.append(np.log(_resized(np.ravel(loss(stack)), weight)))
    return np.exp(below.draws(logs, resampled, inputs, seed=1))


def _student(boot: ResampledLaws) -> Law:
    """The law that was resampled."""
    return boot.estimate if isinstance(boot, CalibratedLaws) else boot.kept


def _resized(draws: Floats, weight: float) -> Floats:
    """As many draws as a form's weight asks of _DRAWS."""
    return np.resize(draws, max(round(_DRAWS * weight), 1))


def _forms(boot: ResampledLaws) -> tuple[Sequence[ResampledLaws], Sequence[float]]:
    """The forms that a plan averages, and their weights."""
    trusted = trust(boot)
    if trusted is None or trusted.calibration is None:
        return [boot], [1.0]
    return [trusted, *trusted.others], list(trusted.calibration.weights)


def trust(boot: ResampledLaws | None) -> CalibratedLaws | None:
    """The resampled laws as those that were rolled forward, or None."""
    if isinstance(boot, CalibratedLaws) and (boot.calibration or boot.below):
        return boot
    return None


def predictions(boot: ResampledLaws | None) -> str:
    """What rolling forward has shown of the laws, in words; 'not assessed' of a bootstrap that was not, '' without."""
    if boot is None:
        return ""
    trusted = trust(boot)
    shown = (trusted.calibration or trusted.below) if trusted else None
    return f"{shown.kind}: {shown.message}" if shown else NOT_ASSESSED


def failure(boot: ResampledLaws) -> float:
    """The share of resamples that failed."""
    return boot.failure if isinstance(boot, CalibratedLaws) else 0.0


def _splits(
    question: Question, problem: Problem, boot: ResampledLaws, best: Mapping[str, float], cost: Bill
) -> dict[str, tuple[float, float]]:
    """Intervals of the optimum itself, recomputed under each resampled law."""
    supervised, distillation = _stack(boot, problem.supervised, _DRAWS)
    each = dataclasses.replace(problem, supervised=supervised, distillation=distillation)
    interval = {}
    again = (
        each.by_tokens([best["N_S"]], best["D_S"])
        if question.constraint == "tokens"
        else each.by_compute([best["N_S"]], cost.total)
    )
    for name in ("N_T", "D_T", "D_S", "L_T"):
        if np.isfinite(again[name]).all() and not (name == "L_T" and problem.teachers):
            interval[name] = _percentiles(again[name][:, 0])
    if question.sizes is not None and question.constraint == "compute":
        supervised, distillation = _stack(boot, problem.supervised, _SCANNING_DRAWS)
        each = dataclasses.replace(problem, supervised=supervised, distillation=distillation)
        grid = np.geomspace(*question.sizes, _SIZES)
        interval["N_S"] = _percentiles(_valley(grid, each.by_compute(grid, cost.total)["L_S"]))
    return interval


def _valley(x: Floats, values: Floats) -> Floats:
    """The minimisers [R] of values [R, x] in log x: the lowest grid point, moved to the vertex of its parabola."""
    middle = np.clip(values.argmin(-1), 1, len(x) - 2)
    left, least, right = (values[np.arange(len(values)), middle + k] for k in (-1, 0, 1))
    bend = left - 2 * least + right
    moved = np.divide(left - right, 2 * bend, out=np.zeros_like(bend), where=bend > 0)
    return x[middle] * (x[1] / x[0]) ** np.clip(moved, -1.0, 1.0)


def crossover_points(
    problem: Problem, best: Mapping[str, float], boot: ResampledLaws | None
) -> tuple[float | None, float | None, dict[str, tuple[float, float]]]:
    """(compute, tokens) at which supervised training catches up, None if it never does, and their intervals."""
    pair = problem.supervised, problem.distillation
    by_tokens = float(crossover_tokens(*pair, best["N_S"], best["L_T"], problem.unique, problem.bounds))
    costs: _Costs = {"flops": problem.flops, "unique": problem.unique, "bounds": problem.bounds}
    if problem.teachers:
        by_compute = float(_given_crossover(problem, best["N_S"]))
    else:
        by_compute = float(crossover_compute(*pair, best["N_S"], problem.scenario, **costs))
    interval = {}
    if boot is not None and failure(boot) <= MOST_FAILED:
        supervised, distillation = _stack(boot, problem.supervised, _SCANNING_DRAWS)
        scans = {}
        if np.isfinite(by_tokens):
            L_T = np.full(_size(distillation), best["L_T"])
            scans["crossover_tokens"] = crossover_tokens(
                supervised, distillation, best["N_S"], L_T, problem.unique, problem.bounds
            )
        if np.isfinite(by_compute) and problem.teachers:
            each = dataclasses.replace(problem, supervised=supervised, distillation=distillation)
            scans["crossover_compute"] = _given_crossover(each, best["N_S"])
        elif np.isfinite(by_compute):
            scans["crossover_compute"] = crossover_stack(
                supervised, distillation, best["N_S"], problem.scenario, by_compute, **costs
            )
        for name, values in scans.items():
            finite = values[np.isfinite(values)]
            if len(finite) > len(values) / 2:
                interval[name] = _percentiles(finite)
    never = lambda value: value if np.isfinite(value) else None
    return never(by_compute), never(by_tokens), interval


def _given_crossover(problem: Problem, N_S: float) -> Floats:
    """Training compute beyond which supervised training of N_S beats the best of the given teachers; nan: never.

    Under a stack of laws [R]: [R]. With one teacher whose logits are free, it is 3 F(N_S) times the tokens' crossover.
    """
    problem = dataclasses.replace(problem, served=0.0)
    scale = 3 * float(problem.F(N_S))
    compute = np.geomspace(scale * problem.bounds.low / 1e3, scale * problem.bounds.high / 10, _BUDGETS)
    sizes = np.full(_BUDGETS, N_S)
    gain = problem.by_compute(sizes, compute)["L_S"] - problem.alone(sizes, problem.supervised_tokens(sizes, compute))
    return interpolate(compute, gain)


class _Costs(TypedDict):
    """Arguments shared by the searches for a crossover."""

    flops: ForwardFlops
    unique: float
    bounds: Bounds


def bootstrap_caveats(boot: ResampledLaws | None) -> list[str]:
    """Warnings about the intervals: failed resamples, or a supervised law taken as known."""
    if boot is None:
        return []
    if failure(boot) > MOST_FAILED:
        return [f"{failure(boot):.0%} {FAILED}"]
    resampled = any(np.ndim(leaf) for leaf in jax.tree_util.tree_leaves(supervised_inside(boot.kept)))
    return [] if resampled else [KNOWN]
