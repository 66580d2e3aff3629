"""Tests whether a form describes its runs: curvature left in the residuals, and repeated runs.

Curvature. A form that is right leaves residuals that no smooth function of the inputs predicts. The score test adds the
squares and products of the standardised log inputs, less what the parameters could have absorbed (their slopes), and
asks whether the residuals follow them: T' V**-1 T with T the sum over clusters of slope times residual and V its
covariance from the clusters (each row its own without trunks), scaled to an F as Hotelling's T**2.

Repeats. Runs of equal inputs tell the noise without any form: F is the variance of the groups' mean residuals over it
(the classical lack-of-fit test, Fisher 1922; Draper & Smith, Applied Regression Analysis, 2.1).

A large table rejects any form, so a lack of fit needs size too: residuals of which a tenth is curvature, or groups that
lie twice as far from the law as their noise explains.
"""

import dataclasses

import numpy as np

from distill.laws.fitting import identifiability
from distill.laws.fitting.checks import groups
from distill.laws.fitting.solver import Rows
from distill.laws.forms.law import Law

P_VALUE = 1e-3  # below it a test counts
_SHARE = 0.1  # of the residuals' variance that is curvature, from which it counts
_FACTOR = 2.0  # of the groups' distance from the law over their noise, from which it counts
_CLIP = 3.0  # robust deviations at which residuals are cut, so that no single row decides
_SPARE = 8  # clusters beyond the tested functions, and repeats beyond the groups, below which nothing is tested


@dataclasses.dataclass(frozen=True, kw_only=True)
class Misfit:
    """One test: what it looked at, its p-value, and the relative error of the law that it found."""

    what: str
    p_value: float
    size: float

    def words(self) -> str:
        """'residuals bend by 0.31% (p = 2e-08)'."""
        return f"{self.what} by {self.size:.2%} (p = {max(self.p_value, 1e-99):.0e})"


def misfits(
    law: Law, rows: Rows, residuals: np.ndarray, weights: np.ndarray, clusters: np.ndarray | None = None
) -> tuple[Misfit, ...]:
    """The tests that reject the form; residuals [n] are log Lhat - log L, clusters [n] label runs that share errors."""
    if not np.isfinite(residuals).all():
        return ()
    scale = identifiability.noise(residuals, len(law.parameters()))
    cut = np.clip(residuals, -_CLIP * scale, _CLIP * scale)
    return tuple(one for one in (_curvature(law, rows, cut, weights, clusters), _repeats(law, rows, cut)) if one)


def _curvature(
    law: Law, rows: Rows, residuals: np.ndarray, weights: np.ndarray, clusters: np.ndarray | None
) -> Misfit | None:
    from scipy.special import fdtrc  # takes 0.1 s to import, once

    root = np.sqrt(weights)
    logs = [x if name in law.may_be_zero else np.log(x) for name, x in zip(law.inputs, rows.inputs)]
    spread = [(x - x.mean()) / x.std() for x in logs if x.std() > 1e-6]
    bends = np.stack([a * b for i, a in enumerate(spread) for b in spread[: i + 1]], axis=1) * root[:, None]
    J = identifiability.coordinate_slopes(law, rows, rows.setting) * root[:, None]
    inside = _basis(np.concatenate([J, root[:, None]], axis=1))
    left = residuals * root - inside @ (inside.T @ (residuals * root))
    tested = _basis(bends - inside @ (inside.T @ bends), least=1e-3 * float(np.linalg.norm(bends)))
    index = np.arange(len(left)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    count, q = int(index.max()) + 1, tested.shape[1]
    if q == 0 or count < q + _SPARE or len(left) < inside.shape[1] + q + _SPARE:
        return None
    scores = np.zeros((count, q))
    np.add.at(scores, index, tested * left[:, None])
    total = scores.sum(0)
    statistic = float(total @ np.linalg.solve(scores.T @ scores + 1e-30 * np.eye(q), total))
    hotelling = statistic * (count - q) / (q * max(count - statistic, 1e-9))
    p_value = float(fdtrc(q, count - q, hotelling))
    explained = float((total**2).sum())
    if p_value > P_VALUE or explained < _SHARE * float((left**2).sum()):
        return None
    return Misfit(what="residuals bend", p_value=p_value, size=float(np.sqrt(explained / len(left))))


def _repeats(law: Law, rows: Rows, residuals: np.ndarray) -> Misfit | None:
    from scipy.special import fdtrc

    index = groups(list(rows.inputs))
    counts = np.bincount(index)
    within = len(residuals) - len(counts)
    between = len(counts) - len(law.parameters())
    if within < _SPARE or between < 1:
        return None
    means = np.bincount(index, residuals) / counts
    pure = float(((residuals - means[index]) ** 2).sum()) / within
    apart = float((counts * means**2).sum()) / between
    F = apart / max(pure, 1e-300)
    p_value = float(fdtrc(between, within, F))
    if p_value > P_VALUE or F < _FACTOR**2:
        return None
    return Misfit(what="repeated runs lie off the law", p_value=p_value, size=float(np.sqrt(apart / counts.mean())))


def _basis(columns: np.ndarray, least: float = 0.0) -> np.ndarray:
    """Orthonormal columns [n, rank] that span these; directions shorter than `least` are left out."""
    vectors, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    return vectors[:, sizes > max(least, 1e-10 * sizes.max(initial=0.0))]
