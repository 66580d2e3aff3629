"""Laws of scores, not of losses: accuracies Q of downstream tasks, and error rates of on-policy distillation."""

import dataclasses
from collections.abc import Mapping

from distill.laws.forms.arrays import ArrayModule, Values
from distill.laws.forms.law import Law
from distill.laws.forms.parameters import coefficient, crossed, positive, real, scaled
from distill.laws.forms.powers import EXPONENT, log_sum_of_powers


@dataclasses.dataclass(frozen=True)
class Accuracy(Law):
    """-log Q = A/N**alpha + B/D**beta, Q the accuracy on a task: Krajewski et al. (arXiv 2512.08894).

    Q is in (0, 1]. A task with a level of chance q takes (Q - q)/(1 - q) in its place. Predicts Q itself.
    """

    A: float = coefficient("N", exponent="alpha")
    B: float = coefficient("D", exponent="beta")
    alpha: float = positive(*EXPONENT)
    beta: float = positive(*EXPONENT)

    inputs = ("N", "D")
    output = "Q"

    def loss(self, xp: ArrayModule, N: Values, D: Values) -> Values:
        return xp.exp(-xp.exp(log_sum_of_powers(xp, self.A, self.B, self.alpha, self.beta, N, D)))


def _pass(xp: ArrayModule, values: Mapping[str, Values], centre: Mapping[str, Values]) -> Values:
    c, k = centre["C"], centre["k"]
    return -values["alpha"] * c - values["beta"] * k + values["delta"] * c * k


@dataclasses.dataclass(frozen=True)
class PassAtK(Law):
    """log(-log Q) = log A - alpha log C - beta log k + delta log C log k, Q = pass@k (arXiv 2512.08894).

    C counts training FLOPs at a fixed ratio of tokens to parameters, k the samples of a problem. Our alpha and beta are
    positive where Q rises. Predicts Q.
    """

    A: float = scaled(("alpha", "beta", "delta"), _pass, share=(0.1, 5.0))
    alpha: float = crossed("delta", "k", *EXPONENT)
    beta: float = crossed("delta", "C", 0.0, 0.8)
    delta: float = real(-0.02, 0.02)

    inputs = ("C", "k")
    output = "Q"
    name = "pass-at-k"

    def loss(self, xp: ArrayModule, C: Values, k: Values) -> Values:
        c, log_k = xp.log(C), xp.log(k)
        return xp.exp(-xp.exp(xp.log(self.A) - self.alpha * c - self.beta * log_k + self.delta * c * log_k))


@dataclasses.dataclass(frozen=True)
class StudentAccuracy(Law):
    """-log Q = L_T**zeta (A/N_S**alpha + B/D_S**beta): the law of accuracies for students, ours.

    At zeta = 0 it is `accuracy`: the teacher's loss says nothing that size and tokens do not.
    """

    A: float = coefficient("N_S", exponent="alpha")
    B: float = coefficient("D_S", exponent="beta")
    alpha: float = positive(*EXPONENT)
    beta: float = positive(*EXPONENT)
    zeta: float = real(-1.0, 3.0)

    inputs = ("N_S", "D_S", "L_T")
    output = "Q"
    name = "student-accuracy"

    def loss(self, xp: ArrayModule, N_S: Values, D_S: Values, L_T: Values) -> Values:
        size = log_sum_of_powers(xp, self.A, self.B, self.alpha, self.beta, N_S, D_S)
        return xp.exp(-xp.exp(size + self.zeta * xp.log(L_T)))


@dataclasses.dataclass(frozen=True)
class AccuracyOfLoss(Law):
    """-log Q = A L_S**zeta: the second of two stages, from a student's loss (that of its law) to its accuracy; ours."""

    A: float = scaled(("zeta",), lambda xp, values, centre: values["zeta"] * centre["L_S"], share=(0.1, 5.0))
    zeta: float = real(0.5, 6.0)

    inputs = ("L_S",)
    output = "Q"
    name = "accuracy-of-loss"

    def loss(self, xp: ArrayModule, L_S: Values) -> Values:
        return xp.exp(-xp.exp(xp.log(self.A) + self.zeta * xp.log(L_S)))


def _peak(xp: ArrayModule, values: Mapping[str, Values], centre: Mapping[str, Values]) -> Values:
    least = xp.minimum(centre["N_S"], centre["N_T"])
    return -values["alpha"] * centre["N_S"] - values["beta"] * least + values["zeta"] * centre["error_T"]


@dataclasses.dataclass(frozen=True)
class OnPolicyPeak(Law):
    """1 - G = A N_S**-alpha min(N_T, N_S)**-beta (1 - G_T)**zeta: on-policy distillation (arXiv 2609.32722).

    G is the best score that a student reaches while its teacher judges its own samples, G_T the teacher's score; the
    columns are error rates, error_S = 1 - G and error_T = 1 - G_T. beta < 0: a larger teacher of the same score teaches
    worse, so L_T (here error_T) does not subsume N_T. Published for plain on-policy distillation, sizes in billions:
    A .974, alpha .304, beta -.267, zeta .952.
    """

    A: float = scaled(("alpha", "beta", "zeta"), _peak, share=(0.3, 3.0))
    alpha: float = real(0.05, 0.6)
    beta: float = real(-0.5, 0.3)
    zeta: float = real(0.3, 1.5)

    inputs = ("N_S", "N_T", "error_T")
    output = "error_S"
    name = "on-policy-peak"

    def loss(self, xp: ArrayModule, N_S: Values, N_T: Values, error_T: Values) -> Values:
        log_error = xp.log(self.A) - self.alpha * xp.log(N_S) + self.zeta * xp.log(error_T)
        return xp.exp(log_error - self.beta * xp.log(xp.minimum(N_T, N_S)))
