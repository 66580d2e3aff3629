"""Which runs next? Those that most narrow the predictions a plan rests on, per FLOP spent.

Near a fit the law is linear in its coordinates, log L(x) = f + J(x) u, with the coordinates known to a covariance S
(the Gauss-Newton one, with the noise of a run). A run at x shrinks S by the rank-one update of least squares, so the
variance of the predictions at the targets, tr(J_t S J_t'), falls by |J_t S J(x)'|**2 / (noise**2 + J(x) S J(x)'):
exactly computable before the run is made. `design` picks greedily the run with the largest fall per cost, again and
again. D-optimality would maximise det(S**-1) instead, and spends its runs on ridges that no prediction needs.

A law is never exact: `misfit` adds a floor to the noise that runs at neighbouring points share, so that the picks
spread out instead of repeating one most informative corner.
"""

import dataclasses

import numpy as np

from distill.laws import identify
from distill.laws.fitting import Fit
from distill.laws.law import LawError
from distill.laws.table import Table, rows_of


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Design:
    """The chosen rows of the candidates in order, and the predictions' standard error (log loss) after each choice."""

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
    misfit: float = 3.0,
    reach: float = 1.0,
    prior: float = 3.0,
) -> Design:
    """Chooses `count` candidates one by one. Candidates and targets need the law's inputs (and any positive output).

    `cost` [candidates] is each run's price (all equal by default). `misfit` is the law's own error as a multiple of
    the noise, shared by candidates whose log inputs lie within about `reach`; `prior` is the standard deviation of
    the coordinates before any run.
    """
    if not 0 < count <= len(candidates):
        raise LawError(f"a design of {count} runs from {len(candidates)} candidates; wanted between 1 and all of them.")
    price = np.ones(len(candidates)) if cost is None else np.asarray(cost, np.float64)
    if price.shape != (len(candidates),) or not (price > 0).all():
        raise LawError(f"cost of shape {price.shape}; wanted {len(candidates)} positive prices.")
    noise = identify.noise(fit.residuals, len(fit.law.parameters()))
    here = identify.coordinate_slopes(fit.law, fit.rows, fit.rows.setting)
    options = rows_of(type(fit.law), candidates, fit.rows.given, units=False)
    J = identify.coordinate_slopes(fit.law, options, fit.rows.setting)
    J_t = identify.coordinate_slopes(
        fit.law, rows_of(type(fit.law), targets, fit.rows.given, units=False), fit.rows.setting
    )
    cover = np.linalg.inv(here.T @ here / noise**2 + np.eye(J.shape[1]) / prior**2)
    # Joint covariance of log losses at candidates (and of them with the targets): the law's, plus a shared misfit.
    logs = np.log(np.stack(options.inputs, axis=1))
    apart = ((logs[:, None] - logs[None]) ** 2).sum(-1)
    shared = (misfit * noise) ** 2 * np.exp(-apart / (2 * reach**2))
    among = J @ cover @ J.T + shared
    across = J_t @ cover @ J.T
    variance = np.einsum("tp,pq,tq->t", J_t, cover, J_t)
    before = float(np.sqrt(variance.mean()))
    chosen: list[int] = []
    errors = []
    for _ in range(count):
        own = np.diagonal(among) + noise**2
        fall = (across**2).sum(0) / own / price
        fall[chosen] = -np.inf
        pick = int(np.argmax(fall))
        chosen.append(pick)
        # Conditioning on the chosen run: a rank-one update of every covariance.
        gain, spread = among[:, pick] / own[pick], across[:, pick].copy()
        variance = variance - spread**2 / own[pick]
        across = across - np.outer(spread, gain)
        among = among - np.outer(among[:, pick], gain)
        errors.append(np.sqrt(max(variance.mean(), 0.0)))
    return Design(rows=np.array(chosen), error=np.array(errors), before=before)
