"""Students of more than a teacher's loss: lambda between labels and teacher, and the teacher's size and tokens."""

import dataclasses
from collections.abc import Mapping

from distill.laws.forms.arrays import ArrayModule, Values
from distill.laws.forms.parameters import positive, real, scaled
from distill.laws.forms.students import LimitStudent


def _dip(xp: ArrayModule, values: Mapping[str, Values], centre: Mapping[str, Values]) -> Values:
    return values["h"] * centre["L_T"]


@dataclasses.dataclass(frozen=True)
class LambdaMixture(LimitStudent):
    """The loss of a student trained on lambda (the teacher's distribution) + (1 - lambda) (the labels): ours.

    L_S = (1 - lambda**s) Lsup + lambda**s L_8 - G L_T**h lambda (1 - lambda), with Lsup = supervised(N_S, D_S) and L_8
    Eq. 8's limit form. It is Eq. 1 at lambda = 0 and Eq. 8 (for c1, d1 to infinity) at lambda = 1. In between the last
    term lets a student beat both, and its teacher: weak teachers help once lambda is tuned (arXiv 2605.23857).
    """

    s: float = positive(0.5, 2.0)
    G: float = scaled(("h",), _dip, share=(1e-3, 0.3))
    h: float = real(0.0, 4.0)

    inputs = ("N_S", "D_S", "L_T", "lambda_")
    may_be_zero = ("lambda_",)
    name = "lambda-mixture"

    def loss(self, xp: ArrayModule, N_S: Values, D_S: Values, L_T: Values, lambda_: Values) -> Values:
        alone = self.supervised.loss(xp, N_S, D_S)
        taught = L_T + self.excess(xp, N_S, D_S, L_T, alone)
        some = lambda_ > 0.0
        share = xp.where(some, xp.exp(self.s * xp.log(xp.where(some, lambda_, 1.0))), 0.0)
        dip = xp.exp(xp.log(self.G) + self.h * xp.log(L_T)) * lambda_ * (1.0 - lambda_)
        return alone + share * (taught - alone) - dip


@dataclasses.dataclass(frozen=True)
class TeacherSize(LimitStudent):
    """Eq. 8's limit form with the teacher's size as a covariate: its second term times (N_T/N_S)**eta; ours.

    The paper says that a teacher counts through L_T alone: eta = 0. A test of that is the bootstrap interval of eta, by
    teacher (cluster="teacher"). The law of on-policy distillation (`on-policy-peak`) says otherwise.
    """

    eta: float = real(-0.3, 0.3)

    inputs = ("N_S", "D_S", "L_T", "N_T")
    name = "teacher-size"

    def loss(self, xp: ArrayModule, N_S: Values, D_S: Values, L_T: Values, N_T: Values) -> Values:
        excess = self.excess(xp, N_S, D_S, L_T, self.supervised.loss(xp, N_S, D_S))
        return L_T + excess * xp.exp(self.eta * (xp.log(N_T) - xp.log(N_S)))


@dataclasses.dataclass(frozen=True)
class TeacherTokens(LimitStudent):
    """Eq. 8's limit form with the teacher's tokens as a covariate: its second term times (D_T/D_S)**eta; ours."""

    eta: float = real(-0.3, 0.3)

    inputs = ("N_S", "D_S", "L_T", "D_T")
    name = "teacher-tokens"

    def loss(self, xp: ArrayModule, N_S: Values, D_S: Values, L_T: Values, D_T: Values) -> Values:
        excess = self.excess(xp, N_S, D_S, L_T, self.supervised.loss(xp, N_S, D_S))
        return L_T + excess * xp.exp(self.eta * (xp.log(D_T) - xp.log(D_S)))
