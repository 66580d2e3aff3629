"""One fit repeated on parts of its rows, each from several starts, as one batch of problems."""

import numpy as np

from distill.laws.fitting import solver, starts
from distill.laws.fitting.fit import Fit, solved_rows
from distill.laws.fitting.search import WIDEN
from distill.laws.forms.law import Law

_STARTS = 24  # random ones, beside the solution of all rows


def refits(fit: Fit, kept: np.ndarray) -> list[Law]:
    """The laws of the rows that `kept` names, [parts, rows] of bool: the lowest objective of 25 starts each.

    Coordinates, and so the ranges of starts, are those of the whole table; the solutions are of the kept rows alone.
    """
    form = type(fit.law)
    points = np.concatenate([fit.theta[None], starts.random(form, fit.rows.setting, _STARTS, 0)])
    weights = np.repeat(fit.weights * kept, len(points), axis=0)
    problem = solved_rows(fit.rows, fit.minimised)
    found = solver.solve(form, problem, np.tile(points, (len(kept), 1)), weights, fit.minimised, widen=WIDEN)
    values = np.where(np.isfinite(found.objective), found.objective, np.inf).reshape(len(kept), -1)
    best = np.arange(len(kept)) * len(points) + values.argmin(1)
    return [form.unpack(np, found.theta[at], fit.rows.setting, fit.rows.given) for at in best]


def errors(fit: Fit, law: Law, held: np.ndarray) -> np.ndarray:
    """Relative errors of a law on the rows where `held`."""
    inputs = (values[held] for values in fit.rows.inputs)
    return np.abs(law(*inputs) / fit.rows.target[held] - 1)
