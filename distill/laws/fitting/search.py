"""The search of one fit from many starts; of a large table on a sample of its rows first.

A start's basin shows on a few thousand rows, so a table of a hundred thousand need not be read once for every step of
every start: the starts are solved on a random sample, and the distinct solutions, the lowest first, on all rows.
"""

import concurrent.futures
import dataclasses

import numpy as np

from distill.laws.fitting import newton, solver
from distill.laws.fitting.objective import Objective

WIDEN = 30.0  # factor of the first delta for random starts
AGREE = 1e-6  # relative excess of the objective within which two starts reached the same optimum
SAMPLE = 2048  # rows on which the starts of a large table are solved first
_LARGE = 4 * SAMPLE  # rows from which a table is large: below, a second program to compile costs more than it saves
_DISTINCT = 8  # solutions of the sample that are solved on all rows


def search(
    form: newton.Form,
    rows: solver.Rows,
    points: np.ndarray,
    weights: np.ndarray,
    measure: Objective,
    seed: int = 0,
    progress: solver.Progress | None = None,
) -> solver.Solutions:
    """The solutions of all starts `points` [R, p] on rows with weights [n], in their order.

    Of a table of 8192 rows or more, starts that agree on the sample share one solution on all rows; those whose
    solution was not among the eight lowest distinct ones have the objective infinity.
    """
    counted = np.flatnonzero(weights > 0)
    if len(counted) < _LARGE:
        return solver.solve(form, rows, points, weights, measure, widen=WIDEN, progress=progress)
    kept = np.sort(np.random.default_rng(seed).choice(counted, SAMPLE, replace=False))
    part = dataclasses.replace(rows, inputs=tuple(x[kept] for x in rows.inputs), target=rows.target[kept])
    with concurrent.futures.ThreadPoolExecutor(1) as pool:  # the second program compiles while the first does
        pool.submit(solver.compile_ahead, form, rows, weights, measure)
        first = solver.solve(form, part, points, weights[kept], measure, widen=WIDEN, progress=progress)
    owner = _distinct(first.objective)
    leaders = np.unique(owner)
    leaders = leaders[np.argsort(first.objective[leaders], kind="stable")][:_DISTINCT]
    whole = solver.solve(form, rows, first.theta[leaders], weights, measure)
    place = np.full(len(points), -1)
    place[leaders] = np.arange(len(leaders))
    place = place[owner]
    found = whole.take(np.maximum(place, 0))
    return dataclasses.replace(
        found,
        theta=np.where((place >= 0)[:, None], found.theta, first.theta),
        objective=np.where(place >= 0, found.objective, np.inf),
        converged=found.converged & (place >= 0),
    )


def _distinct(objective: np.ndarray) -> np.ndarray:
    """For each start the start of lowest objective that agrees with it [R]."""
    values = np.where(np.isfinite(objective), objective, np.inf)
    owner, lowest = np.arange(len(values)), -1
    for at in np.argsort(values, kind="stable"):
        if lowest < 0 or values[at] > values[lowest] * (1 + AGREE) + 1e-300:
            lowest = int(at)
        owner[at] = lowest
    return owner
