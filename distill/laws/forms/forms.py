"""Laws of supervised training: one dataclass per law, its parameters in the paper's symbols, its formula in `loss`.

All losses are cross-entropies against data in nats per token; N counts non-embedding parameters and D tokens. The other
forms lie beside this module: students.py (the distillation law), lambdas.py, repetition.py, published.py, scores.py.
"""

import dataclasses

from distill.laws.forms.arrays import ArrayModule, Values
from distill.laws.forms.law import Law
from distill.laws.forms.parameters import coefficient, floor, positive
from distill.laws.forms.powers import EXPONENT, PowerSum, log_sum_of_powers, mixed


@dataclasses.dataclass(frozen=True)
class PowerLaw(Law):
    """L(x) = E + A / x**alpha: one variable (N, D or C) and an offset."""

    A: float = coefficient("x", exponent="alpha")
    E: float = floor()
    alpha: float = positive(*EXPONENT)

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
    alpha: float = positive(*EXPONENT)
    beta: float = positive(*EXPONENT)

    inputs = ("N", "D")

    def loss(self, xp: ArrayModule, N: Values, D: Values) -> Values:
        return self.E + xp.exp(log_sum_of_powers(xp, self.A, self.B, self.alpha, self.beta, N, D))


@dataclasses.dataclass(frozen=True)
class Supervised(PowerSum):
    """L(N, D) = E + (A / N**alpha + B / D**beta)**gamma: Eq. 1 of Busbridge et al. (arXiv 2502.08606)."""

    A: float = mixed((-2.0, 1.5), (-8.0, 6.0))
    B: float = mixed((-3.0, 3.0), (-12.0, 12.0))
    E: float = floor()
    alpha: float = mixed((-4.0, -0.7), (-9.0, 4.0))
    beta: float = mixed((-4.0, -0.7), (-9.0, 4.0))
    gamma: float = mixed((-1.6, 1.2), (-4.0, 3.0))

    inputs = ("N", "D")

    def loss(self, xp: ArrayModule, N: Values, D: Values) -> Values:
        return self.E + xp.exp(self.gamma * log_sum_of_powers(xp, self.A, self.B, self.alpha, self.beta, N, D))
