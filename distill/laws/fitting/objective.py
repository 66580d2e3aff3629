"""A fit's objective: the sum over rows of weight * rho(residual), in log space or on the raw loss.

The residual is log Lhat - log L (or Lhat - L for "mse"), and rho is Huber's function. All four objectives use it:

    huber    rho = r**2/2 within delta, delta (|r| - delta/2) beyond   (the paper: delta = 1e-4; Hoffmann et al.: 1e-3)
    log-mse  delta = infinity                                           (least squares on log loss)
    mse      the same on the raw loss
    lad      delta = 1e-7, small enough that the minimiser is that of sum |r|, reported divided by delta

The objective is a sum: a mean would shrink it below the tolerances of line searches, which then stop early.
"""

import dataclasses
import math

from distill.config import nearest
from distill.laws.forms.arrays import ArrayModule, Values
from distill.laws.forms.law import LawError

KINDS = ("huber", "log-mse", "mse", "lad")
_LAD_DELTA = 1e-7


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """The loss of a fit over residuals; only "huber" uses `delta`."""

    kind: str = "huber"
    delta: float = 1e-3

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise LawError(f"objective {self.kind!r}; wanted one of {', '.join(KINDS)}.{nearest(self.kind, KINDS)}")
        if not (isinstance(self.delta, int | float) and self.delta > 0):
            raise LawError(f"delta = {self.delta!r}; wanted a positive number, such as 1e-3.")

    @property
    def raw(self) -> bool:
        """Whether residuals are differences of losses rather than of their logarithms."""
        return self.kind == "mse"

    @property
    def width(self) -> float:
        """The residual at which rho turns from a square into an absolute value."""
        return {"huber": self.delta, "lad": _LAD_DELTA}.get(self.kind, math.inf)

    @property
    def unit(self) -> float:
        """The factor from the minimised sum to the reported objective (sum |r| for "lad")."""
        return _LAD_DELTA if self.kind == "lad" else 1.0


def rho(xp: ArrayModule, residual: Values, delta: Values) -> Values:
    """Huber's function, elementwise; a square for delta = infinity."""
    inside = xp.minimum(xp.abs(residual), delta)
    return inside * (xp.abs(residual) - 0.5 * inside)


def psi(xp: ArrayModule, residual: Values, delta: Values) -> Values:
    """The derivative of rho."""
    return xp.clip(residual, -delta, delta)


def curvature(xp: ArrayModule, residual: Values, delta: Values) -> Values:
    """The second derivative of rho: 1 within delta, 0 beyond."""
    return xp.where(xp.abs(residual) <= delta, 1.0, 0.0)


def majorant(xp: ArrayModule, residual: Values, delta: Values) -> Values:
    """psi(r)/r, the weight of iteratively reweighted least squares: an upper bound of rho's curvature."""
    return xp.minimum(1.0, delta / xp.maximum(xp.abs(residual), 1e-300))
