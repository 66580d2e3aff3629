"""Chinchilla's three approaches to the compute-optimal size, as functions on a table (Hoffmann et al. 2203.15556, 3).

1: the lower envelope of training curves; 2: minima of parabolas along IsoFLOPs; 3: the parametric law. The first two
return, per budget, the best size and the power law N* ~ C**a through them; the third is `laws.fit("chinchilla", ...)`
with the law's optimum from its first-order condition. Parabolas are biased if an IsoFLOP is asymmetric or its sizes
are off-centre (2603.22339), and envelopes if schedules do not end at the envelope: compare all three.
"""

import dataclasses

import numpy as np

from distill.laws.fitting.table import Table
from distill.laws.forms.forms import Chinchilla
from distill.laws.forms.law import LawError


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Optima:
    """Per budget `flops` [k] the optimal size [k] and loss [k], and N* = scale * C**exponent through them."""

    flops: np.ndarray
    size: np.ndarray
    loss: np.ndarray
    exponent: float
    scale: float


def _through(flops: np.ndarray, size: np.ndarray, loss: np.ndarray, source: str) -> Optima:
    if len(np.unique(flops)) < 2:
        raise LawError(f"{source}: {len(flops)} usable budgets; wanted at least two to see how the optimum grows.")
    exponent, intercept = np.polyfit(np.log(flops), np.log(size), 1)
    return Optima(flops=flops, size=size, loss=loss, exponent=float(exponent), scale=float(np.exp(intercept)))


def envelope(runs: Table, curves: Table, budgets: int = 200) -> Optima:
    """Approach 1: at each budget of a grid, the size of the run whose training curve is lowest.

    `curves` has run, flops and loss, one row per point; `runs` has run and N. Curves are interpolated in log FLOPs.
    """
    sizes = dict(zip(runs["run"].astype(str), runs.numbers("N")))
    names = curves["run"].astype(str)
    flops, loss = curves.numbers("flops"), curves.numbers("loss")
    traces = {}
    for name in np.unique(names):
        if name in sizes:
            mine = np.flatnonzero((names == name) & (flops > 0))
            traces[name] = mine[np.argsort(flops[mine])]
    if not traces:
        raise LawError(f"{curves.source}: no curve belongs to a run of {runs.source}.")
    ends = [flops[rows[[0, -1]]] for rows in traces.values()]
    grid = np.geomspace(min(end[0] for end in ends), max(end[1] for end in ends), budgets)
    best, at = np.full(budgets, np.inf), np.zeros(budgets)
    for name, rows in traces.items():
        here = np.interp(np.log(grid), np.log(flops[rows]), loss[rows], left=np.inf, right=np.inf)
        at = np.where(here < best, sizes[name], at)
        best = np.minimum(best, here)
    covered = np.isfinite(best)
    return _through(grid[covered], at[covered], best[covered], curves.source)


def isoflops(runs: Table, tolerance: float = 0.15) -> Optima:
    """Approach 2: groups of runs whose FLOPs agree within `tolerance`; a parabola in log N per group, its minimum.

    FLOPs are the column `flops_student`, or 6 N D. Groups of fewer than three sizes, and parabolas without a minimum
    between their sizes, are skipped.
    """
    N, loss = runs.numbers("N"), runs.numbers("L" if "L" in runs.columns else "loss")
    flops = runs.numbers("flops_student") if "flops_student" in runs.columns else 6 * N * runs.numbers("D")
    order = np.argsort(flops)
    starts = np.flatnonzero(np.diff(np.log(flops[order]), prepend=-np.inf) > tolerance)
    rows = []
    for group in np.split(order, starts[1:]):
        x, y = np.log(N[group]), loss[group]
        if len(np.unique(x)) < 3:
            continue
        bend, slope, level = np.polyfit(x - x.mean(), y, 2)
        where = -slope / (2 * bend) if bend > 0 else np.nan
        if x.min() - x.mean() <= where <= x.max() - x.mean():
            budget = np.exp(np.log(flops[group]).mean())
            rows.append((budget, np.exp(where + x.mean()), level - slope**2 / (4 * bend)))
    if not rows:
        raise LawError(f"{runs.source}: no IsoFLOP with three sizes and a minimum between them.")
    budgets, sizes, losses = np.array(rows).T
    return _through(budgets, sizes, losses, runs.source)


def parametric(law: Chinchilla, flops: np.ndarray) -> Optima:
    """Approach 3: N* and L of a Chinchilla law at C = 6 N D, from alpha A / N**alpha = beta B / D**beta."""
    flops = np.asarray(flops, np.float64)
    exponent = law.beta / (law.alpha + law.beta)
    scale = (law.alpha * law.A / (law.beta * law.B)) ** (1 / (law.alpha + law.beta)) * 6**-exponent
    size = scale * flops**exponent
    return Optima(
        flops=flops, size=size, loss=law(size, flops / 6 / size), exponent=float(exponent), scale=float(scale)
    )
