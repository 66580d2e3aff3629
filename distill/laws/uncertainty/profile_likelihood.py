"""Profile likelihood: how far a quantity can move before the other parameters can no longer compensate.

The quantity is a parameter, a combination such as kappa, or any function of the law, such as a prediction. For each of
a range of values all parameters are fitted again with the quantity pulled towards that value; the result is the best
fit at the value that the quantity reaches. The interval contains the values whose objective stays below the minimum
times 1 + t**2/(n - p), the likelihood-ratio region of least squares with Student's quantile t. For Huber objectives it
is an approximation, and the bootstrap is the reference. A side on which the profile never rises that far is unbounded:
the data do not bound the quantity there.
"""

import dataclasses
import functools
import math
from typing import Any

import numpy as np

from distill.config import nearest
from distill.laws.fitting import solver
from distill.laws.fitting.fit import Fit, solved_rows
from distill.laws.fitting.newton import Quantity
from distill.laws.forms.arrays import ArrayModule, Values
from distill.laws.forms.law import Law, LawError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """The minimal objective [points] at the quantity's ascending `values` [points]; ends may be 0 or infinite."""

    values: np.ndarray
    objective: np.ndarray
    low: float
    high: float


def profile(fit: Fit, quantity: str | Quantity, *, level: float = 0.9, reach: float = 2.0, points: int = 41) -> Profile:
    """The profile of a positive quantity over [value / reach, value * reach].

    `quantity` names a parameter or combination, or is a function of (xp, law). Raises LawError for an unknown name or
    a quantity that is not positive.
    """
    from scipy.stats import t as student

    form: Any = type(fit.law)
    asked = named(form, quantity) if isinstance(quantity, str) else quantity
    best = float(asked(np, fit.law))
    if not best > 0:
        raise LawError(f"the profile of {quantity} needs a positive quantity; at the fit it is {best:g}.")
    wanted = np.log(best) + np.log(reach) * np.linspace(-1.0, 1.0, points)
    problem = solved_rows(fit.rows, fit.minimised)
    target = np.concatenate([np.broadcast_to(problem.target, (points, len(fit.rows))), wanted[:, None]], axis=1)
    # Strong enough to hold the quantity near each value, weak enough to leave the system well conditioned.
    strength = 1e4 * max(fit.objective * fit.minimised.unit, 1e-12) / np.log(reach) ** 2
    weights = np.append(fit.weights, strength)
    pulled = dataclasses.replace(problem, target=target, pull=asked)
    solutions = solver.solve(type(fit.law), pulled, np.tile(fit.theta, (points, 1)), weights, fit.minimised, widen=10.0)
    laws = type(fit.law).unpack(np, solutions.theta.T, fit.rows.setting, fit.rows.given)
    values = np.asarray(asked(np, laws), np.float64)
    objective = (solutions.objective - 0.5 * strength * (np.log(values) - wanted) ** 2) / fit.minimised.unit
    order = np.argsort(values)
    values, objective = values[order], np.maximum(objective[order], fit.objective)
    freedom = max(len(fit.rows) - len(fit.law.parameters()), 1)
    limit = fit.objective * (1 + float(student.ppf(0.5 + level / 2, freedom)) ** 2 / freedom)
    low = _end(values[values <= best][::-1], objective[values <= best][::-1], limit, 0.0)
    high = _end(values[values >= best], objective[values >= best], limit, math.inf)
    return Profile(values=values, objective=objective, low=low, high=high)


def _end(values: np.ndarray, objective: np.ndarray, limit: float, open_end: float) -> float:
    """Where the objective first exceeds the limit, walking away from the best value."""
    above = np.flatnonzero(objective > limit)
    if not len(above):
        return open_end
    i = int(above[0])
    if i == 0:
        return float(values[0])
    share = (limit - objective[i - 1]) / (objective[i] - objective[i - 1])
    return float(values[i - 1] + share * (values[i] - values[i - 1]))


@functools.cache
def named(form: type[Law], name: str) -> Quantity:
    """The named quantity as a function; the same object each time, so that it compiles once."""
    known = [*form.parameters(), *form.combinations]
    if name not in known:
        raise LawError(f"{form.name} has no {name!r}; it has {', '.join(known)}.{nearest(name, known)}")
    return lambda xp, law: getattr(law, name)


def predicted(fit: Fit, **inputs: float) -> Quantity:
    """The loss at one point as a quantity to profile."""
    at = [float(inputs[name]) for name in fit.law.inputs]

    def loss(xp: ArrayModule, law: Law) -> Values:
        return law.loss(xp, *at)

    return loss
