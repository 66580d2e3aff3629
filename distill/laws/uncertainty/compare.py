"""Compares forms: cross-validation, and a test of whether a larger form's extra parameters improve the fit.

`compare` fits forms to the same rows and leaves every row out once, in folds of whole clusters if runs are not
independent. `nested` tests two forms, the smaller one contained in the larger: if the smaller one were true, how often
would the larger one gain as much? It bootstraps under the smaller law (its residuals redrawn around it, both forms
fitted again), because chi-squared tables are invalid for Huber objectives and for an extra parameter at a bound.

`choose` decides between forms and options of a fit by what a law is for, predicting larger runs: it fits on the
smallest runs, chooses on the middle ones, and reports the error of the choice on the largest, which no choice saw.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Unpack

import numpy as np

from distill.laws.fitting.fit import Fit, FitOptions, fit
from distill.laws.fitting.rows import rows_of, select
from distill.laws.fitting.table import Runs, Table
from distill.laws.forms import registry
from distill.laws.forms.law import Law, LawError
from distill.laws.uncertainty.bootstrap import refit


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Compared:
    """One form: its fit, and the relative errors of rows that were left out [n] (nan where a fold failed)."""

    fit: Fit
    left_out: np.ndarray

    @property
    def error(self) -> float:
        """The mean relative error of left-out rows; inf where every fold failed."""
        return float(np.nanmean(self.left_out)) if np.isfinite(self.left_out).any() else math.inf

    @property
    def standard_error(self) -> float:
        """The standard error of `error`; inf where every fold failed."""
        count = int(np.isfinite(self.left_out).sum())
        return float(np.nanstd(self.left_out) / np.sqrt(count)) if count else math.inf


def compare(
    forms: Sequence[str | type[Law]],
    runs: Table,
    *,
    supervised: Law | None = None,
    folds: int = 10,
    cluster: str | None = None,
    seed: int = 0,
    **options: Unpack[FitOptions],
) -> list[Compared]:
    """Fits forms to one table and cross-validates each on the same folds; sorted by the left-out error.

    Further options are those of `fit`.
    """
    compared = []
    for form in forms:
        one = fit(form, runs, supervised=supervised, seed=seed, **options)
        compared.append(Compared(fit=one, left_out=left_out(one, folds, cluster, seed)))
    return sorted(compared, key=lambda one: one.error)


def left_out(one: Fit, folds: int = 10, cluster: str | None = None, seed: int = 0) -> np.ndarray:
    """Relative errors of every row, predicted by the fit to the other folds, [n]."""
    n = len(one.rows)
    labels = one.table[cluster].astype(str) if cluster else np.arange(n)
    groups, index = np.unique(labels, return_inverse=True)
    folds = min(folds, len(groups))
    if folds < 2:
        raise LawError("cross-validation needs at least two rows, or two clusters of them.")
    fold = np.random.default_rng(seed).permutation(np.arange(len(groups)) % folds)[index]
    weights = one.weights * (fold != np.arange(folds)[:, None])
    refits = refit(one, one.rows, weights, folds, np.random.default_rng(seed))
    errors = np.full(n, np.nan)
    for k in np.flatnonzero(refits.converged):
        law = type(one.law).unpack(np, refits.theta[k], one.rows.setting, one.rows.given)
        held = fold == k
        errors[held] = np.abs(law(*(x[held] for x in one.rows.inputs)) / one.rows.target[held] - 1)
    return errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to fit: a form and the options of `fit` that go with it, such as an Objective."""

    form: str | type[Law]
    options: FitOptions = dataclasses.field(default_factory=FitOptions)

    def __str__(self) -> str:
        shown = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return registry.get(self.form).name + (f" ({shown})" if shown else "")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Chosen:
    """The candidate of the lowest error on the development runs, and its errors on the test runs, which chose nothing.

    `development` holds the mean relative error of every candidate, `test` those of the chosen law, [runs], after a fit
    to all runs below the test runs; `beside` are the test errors that each candidate would have had, to look at and
    never to choose by.
    """

    best: Candidate
    fit: Fit
    development: dict[str, float]
    test: np.ndarray
    beside: dict[str, float]
    sizes: tuple[float, float]  # the lowest size of the development runs, and of the test runs

    @property
    def error(self) -> float:
        """The mean relative error of the chosen law on the test runs."""
        return float(self.test.mean())


def choose(
    candidates: Sequence[Candidate],
    runs: Runs,
    *,
    shares: tuple[float, float] = (0.6, 0.8),
    supervised: Law | None = None,
    seed: int = 0,
) -> Chosen:
    """Chooses a form and its options by a split of the runs by size: fit, development, test (arXiv 2608.11859).

    The size is the first input of the forms, which all share. Its distinct values are cut at `shares` of their number:
    the smallest fit, the next develop, the largest test. Runs of one size stay together. Raises LawError where a part
    would be empty.
    """
    if not candidates or len({str(one) for one in candidates}) < len(candidates):
        raise LawError("choose: wanted at least one candidate, each of another form or other options.")
    below, small, middle, large, sizes = _split(candidates, runs, shares)

    def errors(one: Candidate, known: Table, held: Table) -> tuple[Fit, np.ndarray]:
        cls = registry.get(one.form)
        fitted = fit(cls, known, supervised=supervised, seed=seed, **one.options)
        rows = rows_of(cls, held, units=False)
        return fitted, np.abs(fitted.law(*rows.inputs) / rows.target - 1)

    development = {str(one): float(errors(one, small, middle)[1].mean()) for one in candidates}
    best = min(candidates, key=lambda one: development[str(one)])
    tested = {str(one): errors(one, below, large) for one in candidates}
    chosen, test = tested[str(best)]
    beside = {name: float(errors.mean()) for name, (_, errors) in tested.items()}
    return Chosen(best=best, fit=chosen, development=development, test=test, beside=beside, sizes=sizes)


def _split(
    candidates: Sequence[Candidate], runs: Runs, shares: tuple[float, float]
) -> tuple[Table, Table, Table, Table, tuple[float, float]]:
    """(below the test runs, to fit, to develop, to test, the two sizes between them)."""
    forms = [registry.get(one.form) for one in candidates]
    if len({(form.inputs[0], form.output) for form in forms}) > 1:
        raise LawError("choose: candidates of different first inputs or outputs; wanted forms of the same runs.")
    table = select(forms[0], runs)
    size = rows_of(forms[0], table, units=False).inputs[0]
    values = np.unique(size)
    first, second = (max(round(share * len(values)), k + 1) for k, share in enumerate(shares))
    if not 0 < shares[0] < shares[1] < 1 or second >= len(values):
        raise LawError(
            f"choose: {len(values)} distinct {forms[0].inputs[0]} cut at {shares}; wanted at least three sizes and "
            "shares such as (0.6, 0.8), so that none of the three parts is empty."
        )
    low, high = float(values[first]), float(values[second])
    parts = (size < high, size < low, (size >= low) & (size < high), size >= high)
    below, small, middle, large = (table.where(mask) for mask in parts)
    return below, small, middle, large, (low, high)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nested:
    """A test of a smaller form against a larger one: the gain in the objective, and how often chance gains as much."""

    smaller: str
    larger: str
    gain: float  # relative decrease of the objective
    p_value: float
    resamples: int


def nested(smaller: Fit, larger: Fit, *, resamples: int = 400, seed: int = 0) -> Nested:
    """Tests whether the larger form's extra parameters improve the fit; both fits have the same rows and objective."""
    if len(smaller.rows) != len(larger.rows) or smaller.minimised != larger.minimised:
        raise LawError("a nested test takes two fits of the same rows with the same objective.")
    if len(smaller.law.parameters()) >= len(larger.law.parameters()):
        raise LawError(f"{smaller.law.name} is not smaller than {larger.law.name}; give the smaller form first.")
    generator = np.random.default_rng(seed)
    n, p = len(smaller.rows), len(smaller.law.parameters())
    centred = (smaller.residuals - smaller.residuals.mean()) * np.sqrt(n / max(n - p, 1))
    fitted = np.log(smaller.law(*smaller.rows.inputs))
    target = np.exp(fitted - generator.choice(centred, (resamples, n)))
    objectives = []
    for one in (smaller, larger):
        rows = dataclasses.replace(one.rows, target=target)
        again = refit(one, rows, one.weights, resamples, generator)
        objectives.append(np.where(again.converged, again.objective, np.nan))
    chance = 1 - np.minimum(objectives[1], objectives[0]) / objectives[0]
    chance = chance[np.isfinite(chance)]
    gain = 1 - larger.objective / smaller.objective
    p_value = float((1 + (chance >= gain).sum()) / (1 + len(chance)))
    return Nested(smaller=smaller.law.name, larger=larger.law.name, gain=gain, p_value=p_value, resamples=len(chance))
