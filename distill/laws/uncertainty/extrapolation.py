"""Predictions beyond the runs, with intervals that hold the form's own error: calibrated by rolling forward.

A bootstrap knows how far a law would move if the runs were repeated, not that its form is wrong. So the fit is
repeated on the runs below a series of cutoffs in compute, and predicts those above each: their errors, at their
distance, are what the law gets wrong beyond its runs. With mu the predicted log loss, s its standard error from the
noise of a run and the parameters, and d the distance beyond the runs (`Edges`),

    interval = mu +- sqrt((factor S)**2 + (1.645 B)**2)
    S**2 = sum over forms w s**2 (1 + (GROWTH d)**2),   B**2 = sum over forms w (mu_form - mu)**2

where the factor is a quantile of the held-out errors, less the forms' difference, over S. Every cutoff counts alike,
and in it every trunk (runs of a trunk share their error, so they are one observation of a conformal score). Cutoffs
share runs as well, so few of them know a quantile badly: the factor is shrunk towards that of public tables, as if
PRIOR cutoffs had shown it.

Several forms of one table are averaged with weights by held-out likelihood: exp of the mean log density of the held-out
runs, summed over cutoffs and divided by TEMPER.

GROWTH, TEMPER, PRIOR, its factor and the quantiles were chosen on public tables; docs/results/laws.md says what they
reach there, and what such choices reach on tables that did not take part in them.
"""

import dataclasses
import functools
import statistics
from collections.abc import Sequence, Sized

import numpy as np
from numpy.typing import ArrayLike

from distill.laws.fitting import identifiability, solver, starts
from distill.laws.fitting.fit import (
    LACK_OF_FIT,
    NOT_ASSESSED,
    NOT_CONVERGED,
    OK,
    Fit,
    FitOptions,
    Status,
    solved_rows,
)
from distill.laws.fitting.fit import fit as fit_form
from distill.laws.fitting.search import WIDEN
from distill.laws.forms.law import Law, LawError
from distill.laws.forms.resampled import supervised_inside
from distill.laws.uncertainty.bootstrap import Bootstrap, PredictionInterval, bootstrap
from distill.laws.uncertainty.calibration import DEVIATE, Calibration
from distill.laws.uncertainty.edges import Edges

LEVEL = 0.9  # of the interval that the factor is for
FURTHEST = 10.5  # factor beyond the runs up to which held-out errors calibrate; nothing is claimed beyond
GROWTH = {"one": 0.9, "many": 0.3}  # of the error with the log distance: an average of forms errs less far out
TEMPER = 0.7
FAMILIES = (("chinchilla", "supervised"), ("distillation-limit", "overtaking"), ("distillation", "overtaking"))
PRIOR = 2.0  # cutoffs
_PRIOR_FACTOR = 2.2
_QUANTILE = {"one": 0.95, "many": 0.93}  # of the scores: one form errs in one direction for long
_LEAST = 0.1  # score of an error that the forms' difference explains
_STEP, _MOST = 1.3, 12  # factor of compute between cutoffs, and their number
_STARTS, _MANY_ROWS = 8, 2000  # starts a cutoff, and rows above which there are two
_PRIOR_SPREAD = 3.0  # standard deviation of a coordinate before any run
_LACK = (
    2.5  # times what noise and parameters explain, within a factor of two beyond the runs, from which a form is wrong
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Rolled:
    """One form's forecasts from every cutoff, [K, n]: errors log Lhat - log L and their standard errors."""

    errors: np.ndarray
    spread: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Extrapolation:
    """Calibrated predictions of one or several fits to the same runs; `weights` [forms] sum to 1.

    `factor` multiplies the standard error S within forms; `cutoffs` is their number (0: nothing could be tested);
    `tested` is the largest distance, as a factor, at which runs were held out, at most FURTHEST; `excess` the errors
    just beyond the runs over what noise and parameters explain (root mean square, of the best form; nan untested).
    """

    fits: tuple[Fit, ...]
    weights: np.ndarray
    factor: float
    cutoffs: int
    tested: float
    excess: float
    edges: Edges

    def __repr__(self) -> str:
        return f"{self.named()}: {self.status}"

    def named(self) -> str:
        """'supervised', or 'chinchilla 30%, supervised 70%'."""
        if len(self.fits) == 1:
            return self.fits[0].law.name
        return ", ".join(f"{fit.law.name} {weight:.0%}" for fit, weight in zip(self.fits, self.weights))

    def predict(self, level: float = LEVEL, **inputs: ArrayLike) -> PredictionInterval:
        """The calibrated interval of a new run's loss at inputs by name (arrays broadcast)."""
        names = self.fits[0].law.inputs
        if set(inputs) != set(names):
            raise LawError(f"predict: got {', '.join(inputs) or 'nothing'}; wanted {', '.join(names)}.")
        arrays = np.broadcast_arrays(*(np.asarray(inputs[name], np.float64) for name in names))
        flat = tuple(array.ravel() for array in arrays)
        logs = np.stack([np.log(fit.law(*flat)) for fit in self.fits])
        spread = np.stack([_spread(fit, flat) for fit in self.fits])
        centre, S, B = _combined(self.weights, logs, spread, self.edges.beyond(*flat))
        half = np.sqrt((self.factor * S) ** 2 + (DEVIATE * B) ** 2) * _deviate(level) / DEVIATE
        shape = arrays[0].shape
        ends = (np.exp(centre + sign * half).reshape(shape) for sign in (0.0, -1.0, 1.0))
        return PredictionInterval(**dict(zip(("estimate", "low", "high"), ends)))

    @functools.cached_property
    def reach(self) -> tuple[tuple[float, float], ...]:
        """(factor beyond the runs, half width of the 90% interval as a share of the loss), up to `tested`.

        At the runs of most compute (the top tenth), with every amount scaled alike; the median over them.
        """
        first = self.fits[0]
        compute = self.edges.compute(*first.rows.inputs)
        top = compute >= np.quantile(compute, 0.9)
        steps = [f for f in (2.0, 4.0, 10.0) if f <= self.tested * 1.05] or ([self.tested] if self.tested > 1 else [])
        ends = []
        for step in steps:
            moved = self.edges.moved(step, *(x[top] for x in first.rows.inputs))
            guess = self.predict(LEVEL, **dict(zip(first.law.inputs, moved)))
            ends.append((step, float(np.median(np.log(guess.high / guess.low) / 2))))
        return tuple(ends)

    @property
    def status(self) -> Status:
        """How good predictions are and how far: "ok" with the reach in words, "lack of fit" or "not assessed"."""
        if not self.cutoffs:
            return Status(kind=NOT_ASSESSED, message="too few budgets to predict the largest from the others")
        shown = [pair for pair in self.reach if pair[0] != 4.0 or len(self.reach) < 3]
        words = ", ".join(f"{error:.2g}% to {step:.2g}x".replace("e+01", "0") for step, error in _percent(shown))
        words = f"{words} the compute, not beyond"
        lacks = [fit.predictions.message for fit in self.fits if fit.predictions.kind == LACK_OF_FIT]
        if len(lacks) == len(self.fits):
            return Status(kind=LACK_OF_FIT, message=f"{words}; {lacks[int(np.argmax(self.weights))]}")
        if self.cutoffs > 2 and self.excess > _LACK:
            why = (
                f"the form does not describe these runs: predicted from smaller ones they are off by {self.excess:.2g}"
            )
            return Status(kind=LACK_OF_FIT, message=f"{words}; {why} times what noise and parameters explain")
        return Status(kind=OK, message=words)

    @property
    def calibration(self) -> Calibration:
        """Its numbers, for law files and plans."""
        status = self.status
        return Calibration(
            kind=status.kind,
            message=status.message,
            factor=self.factor,
            growth=GROWTH[_kind(self.fits)],
            apart=DEVIATE,
            noise=tuple(noise_of(fit) for fit in self.fits),
            weights=tuple(float(weight) for weight in self.weights),
            edges=self.edges,
        )


def extrapolate(fits: Fit | Sequence[Fit], *, cluster: str | None = None, seed: int = 0) -> Extrapolation:
    """Rolls one or several fits of the same runs forward and calibrates their predictions.

    `cluster` names the column of runs that share errors, by default `trunk` where there is one. Raises LawError.
    """
    fits = (fits,) if isinstance(fits, Fit) else tuple(fits)
    first = fits[0]
    if not all(_same(fit, first) for fit in fits):
        raise LawError("extrapolate: the fits are of different runs; wanted several forms of the same rows.")
    edges = Edges.of(first.law, first.rows.inputs)
    compute = edges.compute(*first.rows.inputs)
    masks = _cutoffs(compute, max(len(fit.law.parameters()) for fit in fits))
    if not len(masks):
        equal = np.full(len(fits), 1 / len(fits))
        return Extrapolation(
            fits=fits, weights=equal, factor=_PRIOR_FACTOR, cutoffs=0, tested=1.0, excess=float("nan"), edges=edges
        )
    below = [Edges.of(first.law, tuple(x[mask] for x in first.rows.inputs)) for mask in masks]
    beyond = np.stack([one.beyond(*first.rows.inputs) for one in below])
    rolled = [_rolled(fit, masks, seed) for fit in fits]
    held = ~masks & (beyond <= np.log(FURTHEST)) & np.all([np.isfinite(one.errors) for one in rolled], axis=0)
    name = cluster or ("trunk" if "trunk" in first.table.columns else None)
    labels = first.table[name].astype(str) if name else np.arange(len(first.rows)).astype(str)
    share = np.stack([_shares(mask, labels) for mask in held])
    weights = _weights(rolled, beyond, share)
    count = int((share.sum(1) > 0).sum())
    return Extrapolation(
        fits=fits,
        weights=weights,
        factor=_factor(rolled, weights, beyond, share, count) if count else _PRIOR_FACTOR,
        cutoffs=count,
        tested=float(np.exp(beyond[held].max(initial=0.0))),
        excess=min(_excess(one, share * (beyond <= np.log(2.05))) for one in rolled),
        edges=edges,
    )


def _factor(rolled: Sequence[Rolled], weights: np.ndarray, beyond: np.ndarray, share: np.ndarray, count: int) -> float:
    """The quantile of the scores of all held-out runs, shrunk towards that of public tables."""
    scores = np.zeros_like(beyond)
    for k in range(len(beyond)):
        errors, spread = (np.stack(each) for each in zip(*((one.errors[k], one.spread[k]) for one in rolled)))
        error, S, B = _combined(weights, errors, spread, beyond[k])
        scores[k] = np.sqrt(np.maximum(error**2 - (DEVIATE * B) ** 2, (_LEAST * S) ** 2)) / S
    held = share > 0
    quantile = _quantile(scores[held], share[held], _QUANTILE[_kind(rolled)])
    return float(np.exp((count * np.log(quantile) + PRIOR * np.log(_PRIOR_FACTOR)) / (count + PRIOR)))


def _excess(one: Rolled, share: np.ndarray) -> float:
    """The root mean square of errors over their standard errors, nan where nothing is held out."""
    held = share > 0
    squares = (one.errors[held] / one.spread[held]) ** 2
    return float(np.sqrt(np.average(squares, weights=share[held]))) if held.any() else float("nan")


def noise_of(fit: Fit) -> float:
    """The robust standard deviation of one run's log loss."""
    return identifiability.noise(fit.residuals, len(fit.law.parameters()))


def _same(one: Fit, other: Fit) -> bool:
    return len(one.rows) == len(other.rows) and all(
        np.array_equal(x, y)
        for x, y in zip((*one.rows.inputs, one.rows.target), (*other.rows.inputs, other.rows.target))
    )


def _cutoffs(compute: np.ndarray, parameters: int) -> np.ndarray:
    """The rows below each cutoff, bool [K, n]: at least twice as many as parameters, at three budgets or more."""
    masks: list[np.ndarray] = []
    level = float(compute.max())
    while len(masks) < _MOST:
        level -= float(np.log(_STEP))
        mask = compute <= level + 1e-9
        if mask.sum() < max(2 * parameters, parameters + 4) or len(np.unique(compute[mask].round(3))) < 3:
            break
        if (~mask).sum() > 1 and not (masks and masks[-1].sum() == mask.sum()):
            masks.append(mask)
    return np.array(masks)


def _rolled(fit: Fit, masks: np.ndarray, seed: int) -> Rolled:
    """Refits to the rows of every mask, from the fit and from random starts, and its forecasts of all rows."""
    form, rows, K = type(fit.law), fit.rows, len(masks)
    each = _STARTS if len(rows) <= _MANY_ROWS else 2
    random = starts.random(form, rows.setting, (each - 1) * K, seed).reshape(K, each - 1, -1)
    points = np.concatenate([np.tile(fit.theta, (K, 1, 1)), random], axis=1)
    weights = np.repeat(masks * fit.weights, each, axis=0)
    problem = solved_rows(rows, fit.minimised)
    solutions = solver.solve(form, problem, points.reshape(K * each, -1), weights, fit.minimised, widen=WIDEN)
    values = np.where(np.isfinite(solutions.objective), solutions.objective, np.inf).reshape(K, each)
    best = values.argmin(1) + each * np.arange(K)
    errors, spread = np.full((2, K, len(rows)), np.nan)
    for k in range(K):
        law = form.unpack(np, solutions.theta[best[k]], rows.setting, rows.given)
        with np.errstate(all="ignore"):
            misses = np.log(law(*rows.inputs)) - np.log(rows.target)
        if np.isfinite(misses).all() and solutions.converged[best[k]]:
            errors[k], spread[k] = misses, _standard_error(law, rows, misses, masks[k], fit.weights)
    return Rolled(errors=errors, spread=spread)


def _standard_error(
    law: Law, rows: solver.Rows, residuals: np.ndarray, seen: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Of the log loss of a run at every row, [n]: its noise and that of the parameters, fitted to the rows seen."""
    J = identifiability.coordinate_slopes(law, rows, rows.setting)
    noise = max(identifiability.noise(residuals[seen], J.shape[1]), 1e-6)
    return np.sqrt(noise**2 + _variance(J, J[seen], weights[seen], noise))


def _variance(J: np.ndarray, fitted: np.ndarray, weights: np.ndarray, noise: float) -> np.ndarray:
    """Of the law at rows with slopes J [m, p], from fitted rows of slopes [n, p]: J P J'."""
    information = (fitted * weights[:, None]).T @ fitted / noise**2 + np.eye(J.shape[1]) / _PRIOR_SPREAD**2
    return np.einsum("ij,jk,ik->i", J, np.linalg.inv(information), J)


def _spread(fit: Fit, inputs: tuple[np.ndarray, ...]) -> np.ndarray:
    """The standard error of a new run's log loss at inputs [m]."""
    new = dataclasses.replace(fit.rows, inputs=inputs, target=np.ones(len(inputs[0])))
    parts = [identifiability.coordinate_slopes(fit.law, rows, fit.rows.setting) for rows in (new, fit.rows)]
    noise = max(noise_of(fit), 1e-6)
    return np.sqrt(noise**2 + _variance(parts[0], parts[1], fit.weights, noise))


def _kind(forms: Sized) -> str:
    return "one" if len(forms) == 1 else "many"


def _combined(
    weights: np.ndarray, logs: np.ndarray, spread: np.ndarray, beyond: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The average [m] of forms' log losses (or errors) [forms, m], the standard error S [m] within forms, and B [m]
    between them."""
    centre = weights @ logs
    within = weights @ (spread**2 * (1 + (GROWTH[_kind(logs)] * beyond) ** 2))
    return centre, np.sqrt(within), np.sqrt(weights @ (logs - centre) ** 2)


def _weights(rolled: Sequence[Rolled], beyond: np.ndarray, share: np.ndarray) -> np.ndarray:
    """The forms' weights by held-out likelihood (Student's t with 4 degrees of freedom), [forms]."""
    scores = []
    for one in rolled:
        S = 1.5 * one.spread * np.sqrt(1 + (GROWTH["many"] * beyond) ** 2)
        density = -2.5 * np.log1p((one.errors / S) ** 2 / 4) - np.log(S)
        scores.append(float((share * np.nan_to_num(density)).sum()) / TEMPER)
    weights = np.exp(np.array(scores) - max(scores))
    return weights / weights.sum()


def _shares(held: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The weight of every held-out row of one cutoff, [n]: trunks alike, summing to 1 (all 0 where none is held)."""
    shares = np.zeros(len(held))
    if held.any():
        names, index, counts = np.unique(labels[held], return_inverse=True, return_counts=True)
        shares[held] = 1 / counts[index] / len(names)
    return shares


def _quantile(values: np.ndarray, weights: np.ndarray, q: float) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][min(int(np.searchsorted(total, q * total[-1])), len(values) - 1)])


def _deviate(level: float) -> float:
    return statistics.NormalDist().inv_cdf(0.5 + level / 2)


def _percent(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(step, 100 * error) for step, error in pairs]


def calibrated(boot: Bootstrap, forms: Sequence[str] = (), *, resamples: int = 512) -> Bootstrap:
    """The bootstrap with its calibration, averaged over its form and other `forms` of the same runs.

    Plans with it print calibrated intervals, and a probability over the forms. Both stages of a pair are calibrated. A
    form that does not converge is left out. Raises LawError.
    """
    fit, given = boot.fit, boot.laws.given()
    inside = supervised_inside(boot.laws) if boot.staged else None
    options: FitOptions = {"objective": fit.minimised, "weights": fit.weights, "units": False}
    others = []
    for form in forms:
        if form != fit.law.name:
            other = fit_form(form, fit.table, supervised=supervised_inside(fit.law) if given else None, **options)
            if other.coefficients.kind != NOT_CONVERGED and _same(other, fit):
                others.append(
                    bootstrap(
                        other, resamples=resamples, kind=boot.kind, cluster=boot.cluster, given=inside, seed=boot.seed
                    )
                )
    reach = extrapolate((fit, *(other.fit for other in others)), cluster=boot.cluster)
    below = boot.supervised
    if below:
        below = dataclasses.replace(below, calibration=extrapolate(below.fit, cluster=boot.cluster).calibration)
    return dataclasses.replace(boot, calibration=reach.calibration, others=tuple(others), supervised=below)


def plausible(form: type[Law]) -> tuple[str, ...]:
    """The forms that are averaged with a form by default, itself included; it alone where nothing is known."""
    return next((family for family in FAMILIES if form.name in family), (form.name,))
