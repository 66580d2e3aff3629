"""The distillation law and its variants: the loss of a student that a teacher of loss L_T trains (Busbridge et al.).

Losses in nats per token. Each form holds the supervised law of its student (Lsup), which a fit is given.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from distill.laws.forms.arrays import ArrayModule, Values
from distill.laws.forms.forms import Supervised
from distill.laws.forms.law import Law
from distill.laws.forms.parameters import bounded, coefficient, floor, linked, positive, real
from distill.laws.forms.powers import EXPONENT, PowerSum, log_sum_of_powers, mixed

# The gate of Eq. 8 is (1 + (r/d1)**(1/f1))**(-c1 f1), r = L_T/Lsup. The data fix kappa = c1 f1 d1**(-1/f1), its
# strength for small (r/d1)**(1/f1), and hardly s = d1**(-1/f1): in terms of them the gate is
# exp(-kappa log(1 + s r**(1/f1)) / s), smooth down to s = 0, where it is the limit form. So c1 is fitted as the gate's
# position kappa**-f1, and d1 as log(1 + s/s0), a scale that is linear near 0 and ends at s = 1e-7 (c1 about 1e8):
# fits of real runs end there.
_S0 = 0.1
_LOWEST = 1e-6


def _encode_d1(xp: ArrayModule, d1: Values, values: Mapping[str, Values]) -> Values:
    return xp.maximum(_LOWEST, xp.log1p(xp.exp(-xp.log(d1) / values["f1"]) / _S0))


def _decode_d1(xp: ArrayModule, u: Values, values: Mapping[str, Values]) -> Values:
    return xp.exp(-values["f1"] * xp.log(_S0 * xp.expm1(u)))


def _encode_kappa(xp: ArrayModule, kappa: Values, values: Mapping[str, Values]) -> Values:
    return -values["f1"] * xp.log(kappa)


def _decode_kappa(xp: ArrayModule, u: Values, values: Mapping[str, Values]) -> Values:
    return xp.exp(-u / values["f1"])


def _gate_position() -> float:
    """kappa as log r0, the ratio L_T/Lsup at which the gate exp(-(r/r0)**(1/f1)) has fallen to 1/e."""
    return linked(("f1",), _encode_kappa, _decode_kappa, (-0.3, 0.2), (-1.5, 1.5))


def _encode_c1(xp: ArrayModule, c1: Values, values: Mapping[str, Values]) -> Values:
    return -values["f1"] * (xp.log(c1) + xp.log(values["f1"])) + xp.log(values["d1"])


def _decode_c1(xp: ArrayModule, u: Values, values: Mapping[str, Values]) -> Values:
    return xp.exp((xp.log(values["d1"]) - u) / values["f1"] - xp.log(values["f1"]))


@dataclasses.dataclass(frozen=True)
class Student(PowerSum):
    """The base of Eq. 8 and its variants: L_T**-c0 (A/N_S**alpha + B/D_S**beta)**gamma, Lsup = supervised(N_S, D_S)."""

    A: float = mixed((-1.5, 3.0), (-8.0, 10.0))
    B: float = mixed((-3.0, 3.0), (-12.0, 12.0))
    alpha: float = mixed((-4.0, -0.7), (-9.0, 4.0))
    beta: float = mixed((-4.0, -0.7), (-9.0, 4.0))
    gamma: float = mixed((-1.6, 1.2), (-4.0, 3.0))
    c0: float = real(0.0, 4.0)
    supervised: Law = dataclasses.field(kw_only=True)

    inputs: ClassVar[tuple[str, ...]] = ("N_S", "D_S", "L_T")
    output = "L_S"

    def log_size(self, xp: ArrayModule, N_S: Values, D_S: Values, L_T: Values) -> Values:
        size = self.gamma * log_sum_of_powers(xp, self.A, self.B, self.alpha, self.beta, N_S, D_S)
        return size - self.c0 * xp.log(L_T)

    def log_ratio(self, xp: ArrayModule, N_S: Values, D_S: Values, L_T: Values) -> Values:
        return xp.log(L_T) - xp.log(self.supervised.loss(xp, N_S, D_S))


@dataclasses.dataclass(frozen=True)
class Distillation(Student):
    """The distillation law, Eq. 8 of Busbridge et al.: the loss of a student of N_S parameters on D_S tokens.

    L_S = L_T + L_T**-c0 (1 + (L_T/(Lsup d1))**(1/f1))**(-c1 f1) (A/N_S**alpha + B/D_S**beta)**gamma, with
    Lsup = supervised(N_S, D_S). A, B, alpha, beta and gamma are the primed coefficients of Table 6.
    """

    c1: float = linked(("f1", "d1"), _encode_c1, _decode_c1, (-0.3, 0.2), (-1.5, 1.5))
    f1: float = positive(0.03, 0.6, within=(0.005, 5.0))
    d1: float = linked(("f1",), _encode_d1, _decode_d1, (_LOWEST, 2.0), (_LOWEST, 8.0))

    combinations = ("kappa",)

    @property
    def kappa(self) -> Values:
        """c1 f1 d1**(-1/f1), the only combination of c1 and d1 that runs identify."""
        return self.c1 * self.f1 * self.d1 ** (-1.0 / self.f1)

    def loss(self, xp: ArrayModule, N_S: Values, D_S: Values, L_T: Values) -> Values:
        inner = (self.log_ratio(xp, N_S, D_S, L_T) - xp.log(self.d1)) / self.f1
        gate = -self.c1 * self.f1 * xp.logaddexp(0.0, inner)
        return L_T + xp.exp(gate + self.log_size(xp, N_S, D_S, L_T))


@dataclasses.dataclass(frozen=True)
class LimitStudent(Student):
    """The base of Eq. 8's limit form and its extensions: two parameters of the gate."""

    kappa: float = _gate_position()
    f1: float = positive(0.03, 0.6, within=(0.005, 5.0))

    def excess(self, xp: ArrayModule, N_S: Values, D_S: Values, L_T: Values, alone: Values) -> Values:
        """L_S - L_T of the limit form for a student whose supervised loss is `alone`."""
        gate = -self.kappa * xp.exp((xp.log(L_T) - xp.log(alone)) / self.f1)
        return xp.exp(gate + self.log_size(xp, N_S, D_S, L_T))


@dataclasses.dataclass(frozen=True)
class DistillationLimit(LimitStudent):
    """Eq. 8 in the limit that fits of real runs reach (c1, d1 -> infinity at fixed kappa), with one parameter fewer.

    L_S = L_T + L_T**-c0 exp(-kappa (L_T/Lsup)**(1/f1)) (A/N_S**alpha + B/D_S**beta)**gamma.
    """

    name = "distillation-limit"

    def loss(self, xp: ArrayModule, N_S: Values, D_S: Values, L_T: Values) -> Values:
        return L_T + self.excess(xp, N_S, D_S, L_T, self.supervised.loss(xp, N_S, D_S))


@dataclasses.dataclass(frozen=True)
class Overtaking(Student):
    """Eq. 8's limit form with one more parameter, so that a student may beat a weak teacher (L_S < L_T).

    Where the gate has closed (L_T above Lsup) the floor is no longer L_T but L_T (Lsup/L_T)**w: w = 0 is the limit
    form, w = 1 a student that ignores such a teacher. Eq. 8 cannot express L_S < L_T for any parameters.
    """

    kappa: float = _gate_position()
    f1: float = positive(0.03, 0.6, within=(0.005, 5.0))
    w: float = real(-0.1, 0.3)

    def loss(self, xp: ArrayModule, N_S: Values, D_S: Values, L_T: Values) -> Values:
        log_ratio = self.log_ratio(xp, N_S, D_S, L_T)
        gate = -self.kappa * xp.exp(log_ratio / self.f1)
        base = L_T * xp.exp(self.w * xp.expm1(gate) * log_ratio)
        return base + xp.exp(gate + self.log_size(xp, N_S, D_S, L_T))


@dataclasses.dataclass(frozen=True)
class Additive(Law):
    """The sum that secondary articles give for Eq. 8: E + A/N_S**alpha + B/D_S**beta + g (L_T - E) (D_S/N_S)**-delta.

    It is not the paper's law; it is included for comparison (docs/results/errors.md).
    """

    A: float = coefficient("N_S", exponent="alpha")
    B: float = coefficient("D_S", exponent="beta")
    E: float = floor()
    alpha: float = positive(*EXPONENT)
    beta: float = positive(*EXPONENT)
    g: float = positive(0.05, 2.0)
    delta: float = bounded(-1.0, 1.0)

    inputs = ("N_S", "D_S", "L_T")
    output = "L_S"

    def loss(self, xp: ArrayModule, N_S: Values, D_S: Values, L_T: Values) -> Values:
        size = xp.exp(log_sum_of_powers(xp, self.A, self.B, self.alpha, self.beta, N_S, D_S))
        return self.E + size + self.g * (L_T - self.E) * xp.exp(-self.delta * (xp.log(D_S) - xp.log(N_S)))


def paper() -> tuple[Supervised, Distillation]:
    """(supervised, distillation) with the coefficients of Table 6 (C4, that architecture only)."""
    supervised = Supervised(A=3355.0, B=18186.0, E=1.220, alpha=0.408, beta=0.431, gamma=0.452)
    distillation = Distillation(
        A=2243.0,
        B=24181.0,
        alpha=0.321,
        beta=0.637,
        gamma=0.764,
        c0=2.549,
        c1=522.6,
        f1=0.090,
        d1=1.315,
        supervised=supervised,
    )
    return supervised, distillation
