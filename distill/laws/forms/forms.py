"""The forms: one dataclass per law, its parameters declared in the paper's symbols, its formula in `loss`.

Formulas use logarithms (A / N**alpha as exp(log A - alpha log N)), which neither overflow nor lose digits for the
coefficients that occur in fits. All losses are cross-entropies against data in nats per token; N counts non-embedding
parameters and D tokens.
"""

import dataclasses
from collections.abc import Mapping

from distill.laws.forms.arrays import ArrayModule, Values
from distill.laws.forms.law import Law
from distill.laws.forms.parameters import (
    FitSetting,
    Parameter,
    bounded,
    coefficient,
    declare,
    floor,
    linked,
    positive,
    real,
)

# Starts of the exponents: all published values lie inside (from 0.03, Kaplan's data exponent over its power, to 1.5).
_EXPONENT = (0.05, 1.5)


def _sum_of_powers(xp: ArrayModule, A: Values, B: Values, alpha: Values, beta: Values, N: Values, D: Values) -> Values:
    """log(A / N**alpha + B / D**beta)."""
    return xp.logaddexp(xp.log(A) - alpha * xp.log(N), xp.log(B) - beta * xp.log(D))


@dataclasses.dataclass(frozen=True)
class PowerLaw(Law):
    """L(x) = E + A / x**alpha: one variable (N, D or C) and an offset."""

    A: float = coefficient("x", exponent="alpha")
    E: float = floor()
    alpha: float = positive(*_EXPONENT)

    inputs = ("x",)

    def loss(self, xp: ArrayModule, x: Values) -> Values:
        return self.E + xp.exp(xp.log(self.A) - self.alpha * xp.log(x))


@dataclasses.dataclass(frozen=True)
class Kaplan(Law):
    """L(N, D) = ((N_c/N)**(alpha_N/alpha_D) + D_c/D)**alpha_D, Eq. 1.5 of Kaplan et al. (arXiv 2001.08361)."""

    N_c: float = coefficient("N", exponent=1.0, power="alpha_N", share=(0.5, 1.0))
    D_c: float = coefficient("D", exponent=1.0, power="alpha_D", share=(0.3, 1.0))
    alpha_N: float = positive(0.02, 0.5)
    alpha_D: float = positive(0.02, 0.5)

    inputs = ("N", "D")

    def loss(self, xp: ArrayModule, N: Values, D: Values) -> Values:
        model = self.alpha_N / self.alpha_D * (xp.log(self.N_c) - xp.log(N))
        return xp.exp(self.alpha_D * xp.logaddexp(model, xp.log(self.D_c) - xp.log(D)))


@dataclasses.dataclass(frozen=True)
class Chinchilla(Law):
    """L(N, D) = E + A / N**alpha + B / D**beta, Eq. 2 of Hoffmann et al. (arXiv 2203.15556)."""

    A: float = coefficient("N", exponent="alpha")
    B: float = coefficient("D", exponent="beta")
    E: float = floor()
    alpha: float = positive(*_EXPONENT)
    beta: float = positive(*_EXPONENT)

    inputs = ("N", "D")

    def loss(self, xp: ArrayModule, N: Values, D: Values) -> Values:
        return self.E + xp.exp(_sum_of_powers(xp, self.A, self.B, self.alpha, self.beta, N, D))


def _mixed(start: tuple[float, float], box: tuple[float, float]) -> float:
    """A coordinate of a _PowerSum, which encodes and decodes its five parameters as a whole."""
    unused = lambda *a: float("nan")
    return declare(Parameter(unused, unused, lambda setting: start, box))


class _PowerSum(Law):
    """Forms with a term T = (A / N**alpha + B / D**beta)**gamma: five parameters with a curved ridge between them.

    Runs fix, nearly independently, the term's size at the centre of the table and its two elasticities there,
    -dlog T/dlog N and -dlog T/dlog D; the ratio of the bracket's parts, and gamma, affect only the curvature. So the
    coordinates are log T, log(N's part / D's part), the two log elasticities and log gamma, all at the centre. In them
    the ridge is straight, and a bootstrap takes a fifth of the iterations.
    """

    @classmethod
    def _decode(cls, xp: ArrayModule, coordinates: dict[str, Values], setting: FitSetting) -> dict[str, Values]:
        size, parts, by_model, by_data, log_gamma = (coordinates[k] for k in ("A", "B", "alpha", "beta", "gamma"))
        log_model, log_data = -xp.logaddexp(0.0, -parts), -xp.logaddexp(0.0, parts)
        gamma = xp.exp(log_gamma)
        alpha, beta = xp.exp(by_model - log_gamma - log_model), xp.exp(by_data - log_gamma - log_data)
        n, d = (setting.centre[name] for name in cls.inputs[:2])
        A, B = xp.exp(size / gamma + log_model + alpha * n), xp.exp(size / gamma + log_data + beta * d)
        rest = {name: u for name, u in coordinates.items() if name not in ("A", "B", "alpha", "beta", "gamma")}
        return {"A": A, "B": B, "alpha": alpha, "beta": beta, "gamma": gamma} | super()._decode(xp, rest, setting)

    @classmethod
    def _encode(cls, xp: ArrayModule, values: dict[str, Values], setting: FitSetting) -> dict[str, Values]:
        n, d = (setting.centre[name] for name in cls.inputs[:2])
        model, data = xp.log(values["A"]) - values["alpha"] * n, xp.log(values["B"]) - values["beta"] * d
        whole = xp.logaddexp(model, data)
        return super()._encode(xp, values, setting) | {
            "A": values["gamma"] * whole,
            "B": model - data,
            "alpha": xp.log(values["alpha"] * values["gamma"]) + model - whole,
            "beta": xp.log(values["beta"] * values["gamma"]) + data - whole,
            "gamma": xp.log(values["gamma"]),
        }


@dataclasses.dataclass(frozen=True)
class Supervised(_PowerSum):
    """L(N, D) = E + (A / N**alpha + B / D**beta)**gamma: Eq. 1 of Busbridge et al. (arXiv 2502.08606)."""

    A: float = _mixed((-2.0, 1.5), (-8.0, 6.0))
    B: float = _mixed((-3.0, 3.0), (-12.0, 12.0))
    E: float = floor()
    alpha: float = _mixed((-4.0, -0.7), (-9.0, 4.0))
    beta: float = _mixed((-4.0, -0.7), (-9.0, 4.0))
    gamma: float = _mixed((-1.6, 1.2), (-4.0, 3.0))

    inputs = ("N", "D")

    def loss(self, xp: ArrayModule, N: Values, D: Values) -> Values:
        return self.E + xp.exp(self.gamma * _sum_of_powers(xp, self.A, self.B, self.alpha, self.beta, N, D))


@dataclasses.dataclass(frozen=True)
class DataConstrained(Law):
    """Chinchilla with repeated tokens: N, D and the U <= D unique tokens, Eq. 5-6 of Muennighoff et al. (2305.16264).

    Repetitions R = D/U - 1 are worth R_D (1 - exp(-R/R_D)) fresh passes; parameters beyond the optimum for U tokens
    decay in the same way with R_N.
    """

    A: float = coefficient("N", exponent="alpha")
    B: float = coefficient("D", exponent="beta")
    E: float = floor()
    alpha: float = positive(*_EXPONENT)
    beta: float = positive(*_EXPONENT)
    R_D: float = positive(2.0, 60.0)
    R_N: float = positive(1.0, 60.0)

    inputs = ("N", "D", "U")
    name = "data-constrained"

    def loss(self, xp: ArrayModule, N: Values, D: Values, U: Values) -> Values:
        # The optimal model for U tokens: N = G (G U)**(beta/alpha), G**(alpha + beta) = alpha A / (beta B).
        log_g = (xp.log(self.alpha * self.A) - xp.log(self.beta * self.B)) / (self.alpha + self.beta)
        log_enough = log_g + self.beta / self.alpha * (log_g + xp.log(U))
        base = xp.exp(xp.minimum(log_enough, xp.log(N)))
        data = U * (1.0 - self.R_D * xp.expm1(-(D / U - 1.0) / self.R_D))
        model = base * (1.0 - self.R_N * xp.expm1(-(N / base - 1.0) / self.R_N))
        return self.E + xp.exp(_sum_of_powers(xp, self.A, self.B, self.alpha, self.beta, model, data))


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
class _Student(_PowerSum):
    """The base of Eq. 8 and its variants: L_T**-c0 (A/N_S**alpha + B/D_S**beta)**gamma, Lsup = supervised(N_S, D_S)."""

    A: float = _mixed((-1.5, 3.0), (-8.0, 10.0))
    B: float = _mixed((-3.0, 3.0), (-12.0, 12.0))
    alpha: float = _mixed((-4.0, -0.7), (-9.0, 4.0))
    beta: float = _mixed((-4.0, -0.7), (-9.0, 4.0))
    gamma: float = _mixed((-1.6, 1.2), (-4.0, 3.0))
    c0: float = real(0.0, 4.0)
    supervised: Law = dataclasses.field(kw_only=True)

    inputs = ("N_S", "D_S", "L_T")
    output = "L_S"

    def _log_size(self, xp: ArrayModule, N_S: Values, D_S: Values, L_T: Values) -> Values:
        size = self.gamma * _sum_of_powers(xp, self.A, self.B, self.alpha, self.beta, N_S, D_S)
        return size - self.c0 * xp.log(L_T)

    def _log_ratio(self, xp: ArrayModule, N_S: Values, D_S: Values, L_T: Values) -> Values:
        return xp.log(L_T) - xp.log(self.supervised.loss(xp, N_S, D_S))


@dataclasses.dataclass(frozen=True)
class Distillation(_Student):
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
        inner = (self._log_ratio(xp, N_S, D_S, L_T) - xp.log(self.d1)) / self.f1
        gate = -self.c1 * self.f1 * xp.logaddexp(0.0, inner)
        return L_T + xp.exp(gate + self._log_size(xp, N_S, D_S, L_T))


@dataclasses.dataclass(frozen=True)
class DistillationLimit(_Student):
    """Eq. 8 in the limit that fits of real runs reach (c1, d1 -> infinity at fixed kappa), with one parameter fewer.

    L_S = L_T + L_T**-c0 exp(-kappa (L_T/Lsup)**(1/f1)) (A/N_S**alpha + B/D_S**beta)**gamma.
    """

    kappa: float = _gate_position()
    f1: float = positive(0.03, 0.6, within=(0.005, 5.0))

    name = "distillation-limit"

    def loss(self, xp: ArrayModule, N_S: Values, D_S: Values, L_T: Values) -> Values:
        gate = -self.kappa * xp.exp(self._log_ratio(xp, N_S, D_S, L_T) / self.f1)
        return L_T + xp.exp(gate + self._log_size(xp, N_S, D_S, L_T))


@dataclasses.dataclass(frozen=True)
class Overtaking(_Student):
    """Eq. 8's limit form with one more parameter, so that a student may beat a weak teacher (L_S < L_T).

    Where the gate has closed (L_T above Lsup) the floor is no longer L_T but L_T (Lsup/L_T)**w: w = 0 is the limit
    form, w = 1 a student that ignores such a teacher. Eq. 8 cannot express L_S < L_T for any parameters.
    """

    kappa: float = _gate_position()
    f1: float = positive(0.03, 0.6, within=(0.005, 5.0))
    w: float = real(-0.1, 0.3)

    def loss(self, xp: ArrayModule, N_S: Values, D_S: Values, L_T: Values) -> Values:
        log_ratio = self._log_ratio(xp, N_S, D_S, L_T)
        gate = -self.kappa * xp.exp(log_ratio / self.f1)
        base = L_T * xp.exp(self.w * xp.expm1(gate) * log_ratio)
        return base + xp.exp(gate + self._log_size(xp, N_S, D_S, L_T))


@dataclasses.dataclass(frozen=True)
class Additive(Law):
    """The sum that secondary articles give for Eq. 8: E + A/N_S**alpha + B/D_S**beta + g (L_T - E) (D_S/N_S)**-delta.

    It is not the paper's law; it is included for comparison (docs/results/errors.md).
    """

    A: float = coefficient("N_S", exponent="alpha")
    B: float = coefficient("D_S", exponent="beta")
    E: float = floor()
    alpha: float = positive(*_EXPONENT)
    beta: float = positive(*_EXPONENT)
    g: float = positive(0.05, 2.0)
    delta: float = bounded(-1.0, 1.0)

    inputs = ("N_S", "D_S", "L_T")
    output = "L_S"

    def loss(self, xp: ArrayModule, N_S: Values, D_S: Values, L_T: Values) -> Values:
        size = xp.exp(_sum_of_powers(xp, self.A, self.B, self.alpha, self.beta, N_S, D_S))
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
