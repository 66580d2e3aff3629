"""Tests extrapolation: fit the weak runs, predict the strong ones, count how often intervals contain the loss.

`holdout` takes a rule ("L_S <= 2.3") or a mask; `roll_forward` orders the runs by compute and predicts each share of
them from all that came before. Unlike interpolation errors, these are not small for every form.
"""

import dataclasses
from typing import Unpack

import numpy as np

from distill.laws.fitting.fit import Fit, FitOptions, fit
from distill.laws.fitting.rows import rows_of, select
from distill.laws.fitting.table import Runs
from distill.laws.forms import registry
from distill.laws.forms.law import Law, LawError
from distill.laws.uncertainty.bootstrap import Bootstrap, bootstrap
from distill.laws.uncertainty.extrapolation import extrapolate


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Holdout:
    """A fit to the kept rows and its predictions of the held-out ones (losses [m], intervals of single runs).

    `low` and `high` are of the plain bootstrap; `inputs` are those of the held-out rows by name.
    """

    fit: Fit
    boot: Bootstrap
    observed: np.ndarray
    predicted: np.ndarray
    low: np.ndarray
    high: np.ndarray
    level: float
    inputs: dict[str, np.ndarray]

    @property
    def errors(self) -> np.ndarray:
        """Relative errors of the predictions, [m]."""
        return np.abs(self.predicted / self.observed - 1)

    @property
    def coverage(self) -> float:
        """The share of held-out runs inside their predictive interval."""
        return float(((self.low <= self.observed) & (self.observed <= self.high)).mean())

    @property
    def calibrated(self) -> float:
        """The share of held-out runs inside the calibrated interval of the kept ones (`laws.extrapolate`)."""
        guess = extrapolate(self.fit, cluster=self.boot.cluster).predict(self.level, **self.inputs)
        return float(((guess.low <= self.observed) & (self.observed <= guess.high)).mean())


class HoldoutOptions(FitOptions, total=False):
    """The options of `holdout` that `roll_forward` forwards."""

    supervised: Law | Fit | None
    resamples: int
    kind: str
    cluster: str | None
    level: float
    seed: int


def holdout(
    form: str | type[Law],
    runs: Runs,
    rule: str | np.ndarray,
    *,
    supervised: Law | Fit | None = None,
    resamples: int = 1000,
    kind: str = "pairs",
    cluster: str | None = None,
    level: float = 0.9,
    seed: int = 0,
    **options: Unpack[FitOptions],
) -> Holdout:
    """Fits on the rows outside `rule` and predicts those inside it. Further options are those of `fit`.

    If `supervised` is a Fit, its runs are resampled too.
    """
    cls = registry.get(form)
    selected = select(cls, runs)
    held = selected.matching(rule) if isinstance(rule, str) else np.asarray(rule, bool)
    if held.all() or not held.any():
        raise LawError(f"the rule {rule!r} holds out {int(held.sum())} of {len(selected)} rows; wanted some, not all.")
    first = supervised if isinstance(supervised, Fit) else None
    given = supervised.law if isinstance(supervised, Fit) else supervised
    one = fit(cls, selected.where(~held), supervised=given, seed=seed, **options)
    boot = bootstrap((first, one) if first else one, resamples=resamples, kind=kind, cluster=cluster, seed=seed)
    rows = rows_of(cls, selected.where(held), units=False)
    inputs = dict(zip(cls.inputs, rows.inputs))
    guess = boot.predict(level, noise=True, **inputs)
    return Holdout(
        fit=one,
        boot=boot,
        observed=rows.target,
        predicted=guess.estimate,
        low=guess.low,
        high=guess.high,
        level=level,
        inputs=inputs,
    )


def roll_forward(
    form: str | type[Law],
    runs: Runs,
    *,
    shares: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9),
    **options: Unpack[HoldoutOptions],
) -> list[Holdout]:
    """Holdouts by compute (size times tokens): for each share, fit on that much and predict up to the next share."""
    cls = registry.get(form)
    selected = select(cls, runs)
    rows = rows_of(cls, selected, units=False)
    rank = np.argsort(np.argsort(rows.inputs[0] * (rows.inputs[1] if len(rows.inputs) > 1 else 1.0), kind="stable"))
    edges = [round(share * len(selected)) for share in (*shares, 1.0)]
    holdouts = []
    for low, high in zip(edges, edges[1:]):
        below = selected.where(rank < high)
        holdouts.append(holdout(cls, below, rank[rank < high] >= low, **options))
    return holdouts
