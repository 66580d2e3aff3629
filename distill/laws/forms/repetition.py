"""Laws of repeated tokens: N, D and the U <= D unique tokens among them, so R = D/U - 1 repetitions."""

import dataclasses
from collections.abc import Callable, Mapping

from distill.laws.forms.arrays import ArrayModule, Values
from distill.laws.forms.law import Law
from distill.laws.forms.parameters import coefficient, floor, positive, real, scaled
from distill.laws.forms.powers import EXPONENT, log_sum_of_powers
from distill.laws.forms.students import LimitStudent

_FEWEST = 0.1  # repetitions at the centre of a table where it has none: a penalty needs some scale there

_LogFactor = Callable[[ArrayModule, Mapping[str, Values], Mapping[str, Values]], Values]


@dataclasses.dataclass(frozen=True)
class DataConstrained(Law):
    """Chinchilla with repeated tokens: N, D and the U <= D unique tokens, Eq. 5-6 of arXiv 2305.16264.

    Repetitions R = D/U - 1 are worth R_D (1 - exp(-R/R_D)) fresh passes; parameters beyond the optimum for U tokens
    decay in the same way with R_N.
    """

    A: float = coefficient("N", exponent="alpha")
    B: float = coefficient("D", exponent="beta")
    E: float = floor()
    alpha: float = positive(*EXPONENT)
    beta: float = positive(*EXPONENT)
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
        return self.E + xp.exp(log_sum_of_powers(xp, self.A, self.B, self.alpha, self.beta, model, data))


def penalty(xp: ArrayModule, P: Values, delta: Values, kappa: Values, N: Values, D: Values, U: Values) -> Values:
    """P R**delta (N/U)**kappa with R = D/U - 1; exactly 0 for one epoch or less (its slope there is 0 too)."""
    R = xp.maximum(D / U - 1.0, 0.0)
    repeated = R > 0.0
    term = xp.exp(xp.log(P) + delta * xp.log(xp.where(repeated, R, 1.0)) + kappa * (xp.log(N) - xp.log(U)))
    return xp.where(repeated, term, 0.0)


def _at_centre(names: tuple[str, str, str], power: str) -> _LogFactor:
    """log of penalty / P at the centre of a table whose inputs for N, D and U are `names`."""
    model, data, unique = names

    def log_factor(xp: ArrayModule, values: Mapping[str, Values], centre: Mapping[str, Values]) -> Values:
        R = xp.maximum(xp.expm1(centre[data] - centre[unique]), _FEWEST)
        return values["delta"] * xp.log(R) + values[power] * (centre[model] - centre[unique])

    return log_factor


@dataclasses.dataclass(frozen=True)
class AdditivePenalty(Law):
    """E + A/N**alpha + B/D**beta + P R**delta (N/U)**kappa, R = D/U - 1: Lovelace et al. (arXiv 2605.01640).

    Repeated tokens count as fresh ones, and overfitting is a term of its own: more epochs may raise the loss, which
    effective tokens (`data-constrained`) cannot say. At one epoch it is Chinchilla's law.
    """

    A: float = coefficient("N", exponent="alpha")
    B: float = coefficient("D", exponent="beta")
    E: float = floor()
    alpha: float = positive(*EXPONENT)
    beta: float = positive(*EXPONENT)
    P: float = scaled(("delta", "kappa"), _at_centre(("N", "D", "U"), "kappa"), share=(1e-3, 0.3))
    delta: float = positive(0.2, 3.0)
    kappa: float = real(0.0, 1.5)

    inputs = ("N", "D", "U")
    name = "additive-penalty"

    def loss(self, xp: ArrayModule, N: Values, D: Values, U: Values) -> Values:
        fresh = xp.exp(log_sum_of_powers(xp, self.A, self.B, self.alpha, self.beta, N, D))
        return self.E + fresh + penalty(xp, self.P, self.delta, self.kappa, N, D, U)


@dataclasses.dataclass(frozen=True)
class DistillationUnique(LimitStudent):
    """Eq. 8's limit form for a student that sees U_S unique tokens, D_S/U_S times each: ours, after arXiv 2605.01640.

    L_S = L_T + L_T**-c0 exp(-kappa (L_T/Lsup)**(1/f1)) (A/N_S**alpha + B/D_S**beta)**gamma + P R**delta (N_S/U_S)**eta,
    R = D_S/U_S - 1. Lsup is the supervised law of (N, D), or of (N, D, U) with the student's own U_S. At one epoch it
    is the limit form. P compares with that of a supervised `additive-penalty`: is a taught student less prone to
    overfit?
    """

    P: float = scaled(("delta", "eta"), _at_centre(("N_S", "D_S", "U_S"), "eta"), share=(1e-3, 0.3))
    delta: float = positive(0.2, 3.0)
    eta: float = real(0.0, 1.5)

    inputs = ("N_S", "D_S", "L_T", "U_S")
    name = "distillation-unique"

    def loss(self, xp: ArrayModule, N_S: Values, D_S: Values, L_T: Values, U_S: Values) -> Values:
        unique = (U_S,) if "U" in self.supervised.inputs else ()
        alone = self.supervised.loss(xp, N_S, D_S, *unique)
        fresh = L_T + self.excess(xp, N_S, D_S, L_T, alone)
        return fresh + penalty(xp, self.P, self.delta, self.eta, N_S, D_S, U_S)
