"""How sure a plan is: intervals and the probability of winning, from the resampled laws of a bootstrap."""

import dataclasses
from typing import Any

import jax
import numpy as np

from distill.laws.forms.resampled import ResampledLaws, supervised_inside
from distill.laws.planning.crossover import crossover_compute, crossover_stack, crossover_tokens
from distill.laws.planning.problem import Alternative, Problem
from distill.laws.planning.scenarios import Bill

LEVEL = 0.9  # of every interval
_DRAWS = 512  # laws of a bootstrap that a plan uses
_SCANNING_DRAWS = 64  # of them for the crossover in compute and the best N_S, which scan budgets and sizes for each
_SIZES = 33  # student sizes of such a scan


def _stack(boot: ResampledLaws, given: Any, draws: int) -> tuple[Any, Any]:
    """(supervised, distillation) of the first `draws` resamples, every leaf [draws]."""
    laws = boot.kept
    count = max((np.shape(leaf)[0] for leaf in jax.tree_util.tree_leaves(laws) if np.ndim(leaf)), default=1)
    kept = min(count, draws)
    laws = jax.tree_util.tree_map(
        lambda leaf: np.asarray(leaf)[:kept] if np.ndim(leaf) else np.full(kept, float(leaf)), laws
    )
    inside = supervised_inside(laws)
    return (inside if inside is not None else given), laws


def _size(laws: Any) -> int:
    return len(jax.tree_util.tree_leaves(laws)[0])


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def doubt(
    problem: Problem,
    boot: ResampledLaws | None,
    best,
    cost: Bill,
    other: Alternative,
    constraint: str,
    sizes: tuple[float, float] | None = None,
):
    """Intervals by name and the probability that this very plan beats supervised training at equal cost.

    `sizes` is the range (least, most) from which N_S was chosen, if it was: then N_S has an interval too.
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
    if constraint == "loss":
        D_other = problem.supervised_tokens(np.array([other.N]), cost.total)
    L_S = each.taught(np.array([best["N_S"]]), np.array([best["D_S"]]), L_T)[:, 0]
    alone = each.alone(np.array([other.N]), D_other)[:, 0]
    interval = {"L_S": _percentiles(L_S), "supervised_L": _percentiles(alone)}
    again = (
        each.by_tokens([best["N_S"]], best["D_S"])
        if constraint == "tokens"
        else each.by_compute([best["N_S"]], cost.total)
    )
    for name in ("N_T", "D_T", "D_S", "L_T"):
        if np.isfinite(again[name]).all() and not (name == "L_T" and problem.teachers):
            interval[name] = _percentiles(again[name][:, 0])
    if sizes is not None and constraint == "compute":
        supervised, distillation = _stack(boot, problem.supervised, _SCANNING_DRAWS)
        each = dataclasses.replace(problem, supervised=supervised, distillation=distillation)
        grid = np.geomspace(sizes[0], sizes[1], _SIZES)
        interval["N_S"] = _percentiles(_valley(grid, each.by_compute(grid, cost.total)["L_S"]))
    return interval, float(np.mean(alone > L_S))


def _valley(x: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The minimisers [R] of values [R, x] in log x: the least of the grid, moved to the vertex of its parabola."""
    middle = np.clip(values.argmin(-1), 1, len(x) - 2)
    left, least, right = (values[np.arange(len(values)), middle + k] for k in (-1, 0, 1))
    bend = left - 2 * least + right
    moved = np.divide(left - right, 2 * bend, out=np.zeros_like(bend), where=bend > 0)
    return x[middle] * (x[1] / x[0]) ** np.clip(moved, -1.0, 1.0)


def crossings(problem: Problem, best, boot: ResampledLaws | None, interval: dict) -> tuple[float | None, float | None]:
    """(compute, tokens) at which supervised training catches up; their intervals go into `interval`."""
    rest: dict[str, Any] = {"unique": problem.unique, "bounds": problem.bounds}
    pair = problem.supervised, problem.distillation
    by_tokens = float(crossover_tokens(*pair, best["N_S"], best["L_T"], **rest))
    by_compute = float("nan")
    if not problem.teachers:
        by_compute = float(crossover_compute(*pair, best["N_S"], problem.scenario, flops=problem.flops, **rest))
    if boot is not None:
        supervised, distillation = _stack(boot, problem.supervised, _SCANNING_DRAWS)
        scans = {}
        if np.isfinite(by_tokens):
            scans["crossover_tokens"] = crossover_tokens(
                supervised, distillation, best["N_S"], np.full(_size(distillation), best["L_T"]), **rest
            )
        if np.isfinite(by_compute):
            scans["crossover_compute"] = crossover_stack(
                supervised, distillation, best["N_S"], problem.scenario, by_compute, flops=problem.flops, **rest
            )
        for name, values in scans.items():
            found = values[np.isfinite(values)]
            if len(found) > len(values) / 2:
                interval[name] = _percentiles(found)
    return (by_compute if np.isfinite(by_compute) else None), (by_tokens if np.isfinite(by_tokens) else None)


def conditional(boot: ResampledLaws | None) -> list[str]:
    """Told where only the distillation law was resampled, as for tables without supervised runs."""
    inside = supervised_inside(boot.kept) if boot is not None else None
    if boot is None or any(np.ndim(leaf) for leaf in jax.tree_util.tree_leaves(inside)):
        return []
    return ["the supervised law is taken as known, so its error is in no interval and not in the probability"]
