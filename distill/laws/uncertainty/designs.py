"""Chooses the next runs: those that most reduce the variance of the predictions a plan needs, per FLOP spent.

Near a fit the law is linear in its coordinates, log L(x) = f(x) + J(x) u, with a known covariance of u. But no law is
exact: near any point all runs share an error that the law cannot fit. So log losses are modelled as a Gaussian process,

    cov(x, x') = J(x) P J(x')' + misfit**2 k(x, x')      (P: the prior of the coordinates, k: near inputs are alike)

observed with the noise of a run. The variance at the targets that a run at x would remove is then known in advance:
cov(t, x)**2 / (noise**2 + var(x)), given all runs so far. `design` repeatedly picks the run with the largest reduction
per cost. Without the misfit this is classical optimal design for predictions, which trusts the law fully, picks far
corners, and does no better than chance on real runs. With it, runs near the targets count too. D-optimality instead
maximises the information on all coordinates, including ridges that no prediction needs.
"""

import dataclasses

import numpy as np

from distill.laws.fitting import identifiability
from distill.laws.fitting.fit import Fit
from distill.laws.fitting.rows import rows_of
from distill.laws.fitting.table import Table
from distill.laws.forms.law import LawError

PRIOR = 3.0  # standard deviation of the coordinates before any run


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Design:
    """The chosen rows of the candidates in order; the standard error of the log losses at the targets (root mean
    square) before any choice and after each, [count]."""

    rows: np.ndarray
    error: np.ndarray
    before: float


def design(
    fit: Fit,
    candidates: Table,
    targets: Table,
    count: int,
    *,
    cost: np.ndarray | None = None,
    misfit: float = 1.0,
    reach: float = 1.0,
) -> Design:
    """Chooses `count` candidates greedily. Candidates and targets need the law's inputs (and any positive output).

    `cost` [candidates] is each run's price (all equal by default). `misfit` is the law's own error as a multiple of a
    run's noise, shared by runs whose log inputs lie within about `reach` of their spread over the candidates.
    """
    if not 0 < count <= len(candidates):
        raise LawError(f"a design of {count} runs from {len(candidates)} candidates; wanted between 1 and all of them.")
    price = np.ones(len(candidates)) if cost is None else np.asarray(cost, np.float64)
    if price.shape != (len(candidates),) or not (price > 0).all():
        raise LawError(f"cost of shape {price.shape}; wanted {len(candidates)} positive prices.")
    form = type(fit.law)
    noise = identifiability.noise(fit.residuals, len(fit.law.parameters()))
    parts = [fit.rows] + [rows_of(form, table, fit.rows.given, units=False) for table in (candidates, targets)]
    J = np.concatenate([identifiability.coordinate_slopes(fit.law, rows, fit.rows.setting) for rows in parts])
    logs = np.concatenate([np.log(np.stack(rows.inputs, axis=1)) for rows in parts])
    done, end = len(fit.rows), len(fit.rows) + len(candidates)
    logs = logs / np.maximum(logs[done:end].std(0), 1e-3)
    apart = ((logs[:, None] - logs[None]) ** 2).sum(-1)
    joint = PRIOR**2 * J @ J.T + (misfit * noise) ** 2 * np.exp(-apart / (2 * reach**2))
    # Condition on the existing runs.
    seen = joint[:done, :done] + noise**2 * np.eye(done)
    joint = joint - joint[:, :done] @ np.linalg.solve(seen, joint[:done])
    among, across = joint[done:end, done:end], joint[end:, done:end]
    variance = np.diagonal(joint)[end:].copy()
    before = float(np.sqrt(variance.mean()))
    chosen: list[int] = []
    errors = []
    for _ in range(count):
        own = np.diagonal(among) + noise**2
        fall = (across**2).sum(0) / own / price
        fall[chosen] = -np.inf
        pick = int(np.argmax(fall))
        chosen.append(pick)
        gain, spread = among[:, pick] / own[pick], across[:, pick]
        variance = variance - spread**2 / own[pick]
        across = across - np.outer(spread, gain)
        among = among - np.outer(among[:, pick], gain)
        errors.append(float(np.sqrt(max(variance.mean(), 0.0))))
    return Design(rows=np.array(chosen), error=np.array(errors), before=before)
