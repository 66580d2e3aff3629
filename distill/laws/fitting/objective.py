"""A fit's objective: the sum over rows of weight * rho(residual), in log space or on the raw loss.

The residual is log Lhat - log L (or Lhat - L for "mse"), and rho is Huber's function. All four objectives use it:

    huber    rho = r**2/2 within delta, delta (|r| - delta/2) beyond   (the paper: delta = 1e-4; Hoffmann et al.: 1e-3)
    log-mse  delta = infinity                                           (least squares on log loss)
    mse      the same on the raw loss
    lad      delta = 1e-7, small enough that the minimiser is that of sum |r|, reported divided by delta

Each may be tilted: a residual counts 2q times where the observed loss lies above the law, and 2 (1 - q) times where it
lies below. q = .5, the default, is no tilt. `lad` with q is quantile regression: a share q of the runs lies below the
law. `huber` with q < .5 is an asymmetric Huber: rungs of a ladder are undertuned, and a law is of the best loss.

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
    """The loss of a fit over residuals; only "huber" uses `delta`. `quantile` in (0, 1) tilts it (.5: no tilt)."""

    kind: str = "huber"
    delta: float = 1e-3
    quantile: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise LawError(f"objective {self.kind!r}; wanted one of {', '.join(KINDS)}.{nearest(self.kind, KINDS)}")
        if not (isinstance(self.delta, int | float) and self.delta > 0):
            raise LawError(f"delta = {self.delta!r}; wanted a positive number, such as 1e-3.")

        if not (isinstance(self.quantile, int | float) and 0 < self.quantile < 1):
            raise LawError(
                f"quantile = {self.quantile!r}; wanted a number between 0 and 1, such as 0.1 (0.5: no tilt)."
            )

    def __str__(self) -> str:
        delta = f" delta {self.delta:g}" if self.kind == "huber" else ""
        return f"{self.kind}{delta}" + (f" quantile {self.quantile:g}" if self.quantile != 0.5 else "")

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


def side(xp: ArrayModule, residual: Values, quantile: float) -> Values:
    """The factor of a row's weight by the sign of its residual, positive where the law lies above the loss."""
    return 1.0 if quantile == 0.5 else xp.where(residual < 0, 2 * quantile, 2 * (1 - quantile))


def psi(xp: ArrayModule, residual: Values, delta: Values) -> Values:
    """The derivative of rho."""
    return xp.clip(residual, -delta, delta)


def curvature(xp: ArrayModule, residual: Values, delta: Values) -> Values:
    """The second derivative of rho: 1 within delta, 0 beyond."""
    return xp.where(xp.abs(residual) <= delta, 1.0, 0.0)


def majorant(xp: ArrayModule, residual: Values, delta: Values) -> Values:
    """psi(r)/r, the weight of iteratively reweighted least squares: an upper bound of rho's curvature."""
    return xp.minimum(1.0, delta / xp.maximum(xp.abs(residual), 1e-300))
