"""The uncertainty of a plan: intervals and the probability of winning, from the resampled laws of a bootstrap."""

import dataclasses
from collections.abc import Mapping
from typing import TypedDict

import jax
import numpy as np

from distill.laws.forms.arrays import Floats
from distill.laws.forms.law import Law
from distill.laws.forms.resampled import ResampledLaws, supervised_inside
from distill.laws.planning.allocation import Bounds
from distill.laws.planning.crossover import crossover_compute, crossover_stack, crossover_tokens
from distill.laws.planning.problem import Alternative, Problem
from distill.laws.planning.question import Question
from distill.laws.planning.scenarios import Bill
from distill.laws.planning.signatures import ForwardFlops, SupervisedLaw

LEVEL = 0.9  # of every interval
_DRAWS = 512  # resampled laws that a plan uses
_SCANNING_DRAWS = 64  # fewer for the crossover in compute and the best N_S, which scan budgets and sizes for each law
_SIZES = 33  # student sizes of such a scan


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


def plan_intervals(
    question: Question,
    problem: Problem,
    boot: ResampledLaws | None,
    best: Mapping[str, float],
    cost: Bill,
    other: Alternative,
) -> tuple[dict[str, tuple[float, float]], float | None]:
    """Intervals by name, and the probability that this exact plan beats supervised training at equal cost.

    `best` is the plan's split, `other` the supervised alternative. Without a bootstrap: ({}, None).
    """
    if boot is None:
        return {}, None
    supervised, distillation = _stack(boot, problem.supervised, _DRAWS)
    each = dataclasses.replace(problem, supervised=supervised, distillation=distillation)
    if problem.teachers or not np.isfinite(best["N_T"]):
        L_T = np.asarray(best["L_T"])
    else:
        L_T = each.teacher_loss(np.array([best["N_T"]]), np.array([best["D_T"]]))
    D_other = np.array([other.D])
    if question.constraint == "loss":
        D_other = problem.supervised_tokens(np.array([other.N]), cost.total)
    L_S = each.taught(np.array([best["N_S"]]), np.array([best["D_S"]]), L_T)[:, 0]
    alone = each.alone(np.array([other.N]), D_other)[:, 0]
    interval = {"L_S": _percentiles(L_S), "supervised_L": _percentiles(alone)}
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
    return interval, float(np.mean(alone > L_S))


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
    by_compute = float("nan")
    costs: _Costs = {"flops": problem.flops, "unique": problem.unique, "bounds": problem.bounds}
    if not problem.teachers:
        by_compute = float(crossover_compute(*pair, best["N_S"], problem.scenario, **costs))
    interval = {}
    if boot is not None:
        supervised, distillation = _stack(boot, problem.supervised, _SCANNING_DRAWS)
        scans = {}
        if np.isfinite(by_tokens):
            L_T = np.full(_size(distillation), best["L_T"])
            scans["crossover_tokens"] = crossover_tokens(
                supervised, distillation, best["N_S"], L_T, problem.unique, problem.bounds
            )
        if np.isfinite(by_compute):
            scans["crossover_compute"] = crossover_stack(
                supervised, distillation, best["N_S"], problem.scenario, by_compute, **costs
            )
        for name, values in scans.items():
            finite = values[np.isfinite(values)]
            if len(finite) > len(values) / 2:
                interval[name] = _percentiles(finite)
    never = lambda value: value if np.isfinite(value) else None
    return never(by_compute), never(by_tokens), interval


class _Costs(TypedDict):
    """Arguments shared by the searches for a crossover."""

    flops: ForwardFlops
    unique: float
    bounds: Bounds


def bootstrap_caveats(boot: ResampledLaws | None) -> list[str]:
    """A warning if only the distillation law was resampled, as for tables without supervised runs."""
    if boot is None or any(np.ndim(leaf) for leaf in jax.tree_util.tree_leaves(supervised_inside(boot.kept))):
        return []
    return ["the supervised law is taken as known, so its error is in no interval and not in the probability"]
