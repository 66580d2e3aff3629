"""Published laws of the loss with other inputs or another interaction: Farseer, experts, pruned models."""

import dataclasses
from collections.abc import Mapping

from distill.laws.forms.arrays import ArrayModule, Values
from distill.laws.forms.law import Law
from distill.laws.forms.parameters import FitSetting, Parameter, crossed, declare, floor, positive, real, scaled
from distill.laws.forms.powers import EXPONENT


def _elasticity(power: str, low: float, high: float) -> float:
    """a of a N**power in an exponent: its coordinate is the elasticity a power N**power at the table's centre."""

    def scale(xp: ArrayModule, values: Mapping[str, Values], setting: FitSetting) -> Values:
        return values[power] * xp.exp(values[power] * setting.centre["N"])

    return declare(
        Parameter(
            lambda xp, a, values, setting: a * scale(xp, values, setting),
            lambda xp, u, values, setting: u / scale(xp, values, setting),
            lambda setting: (low, high),
            needs=(power,),
            sign="real",
        )
    )


def _power(xp: ArrayModule, values: Mapping[str, Values], a: str, power: str, n: Values) -> Values:
    return values[a] * xp.exp(values[power] * n)


def _exponent_b() -> float:
    """b1 of the exponent exp(a1 N**alpha + b1): its coordinate is the logarithm of the exponent at the centre."""

    def part(xp: ArrayModule, values: Mapping[str, Values], setting: FitSetting) -> Values:
        return _power(xp, values, "a1", "alpha", setting.centre["N"])

    return declare(
        Parameter(
            lambda xp, b, values, setting: b + part(xp, values, setting),
            lambda xp, u, values, setting: u - part(xp, values, setting),
            lambda setting: (-3.0, 0.0),
            (-6.0, 1.5),
            ("a1", "alpha"),
            "real",
        )
    )


def _log_term_b(data: bool, share: tuple[float, float]) -> float:
    """b2 or b3: its coordinate is the logarithm of the whole term at the centre, over the typical loss."""

    def part(xp: ArrayModule, values: Mapping[str, Values], setting: FitSetting) -> Values:
        n = setting.centre["N"]
        if not data:
            return _power(xp, values, "a3", "gamma", n) - xp.log(setting.typical)
        falling = xp.exp(_power(xp, values, "a1", "alpha", n) + values["b1"]) * setting.centre["D"]
        return _power(xp, values, "a2", "beta", n) - falling - xp.log(setting.typical)

    return declare(
        Parameter(
            lambda xp, b, values, setting: b + part(xp, values, setting),
            lambda xp, u, values, setting: u - part(xp, values, setting),
            lambda setting: share,
            (-14.0, 3.0),
            ("a1", "b1", "alpha", "a2", "beta") if data else ("a3", "gamma"),
            "real",
        )
    )


@dataclasses.dataclass(frozen=True)
class Farseer(Law):
    """L(N, D) = exp(a3 N**gamma + b3) + exp(a2 N**beta + b2) D**-exp(a1 N**alpha + b1): Li et al. (arXiv 2506.10972).

    Chinchilla's data term with a coefficient and an exponent that depend on N. Nine parameters: it needs a grid of
    sizes and budgets, and small tables leave it open. The formula is that of ScaleBench's code (arXiv 2604.22753), and
    the printed coefficients predict the published runs with it.
    """

    a1: float = _elasticity("alpha", -0.3, 0.1)
    b1: float = _exponent_b()
    alpha: float = real(0.05, 0.4)
    a2: float = _elasticity("beta", -0.5, 0.5)
    b2: float = _log_term_b(True, (-4.0, 0.0))
    beta: float = real(-0.3, 0.3)
    a3: float = _elasticity("gamma", -0.3, 0.0)
    b3: float = _log_term_b(False, (-1.2, 0.0))
    gamma: float = real(0.05, 0.4)

    inputs = ("N", "D")

    def loss(self, xp: ArrayModule, N: Values, D: Values) -> Values:
        n, values = xp.log(N), self.values()
        falling = xp.exp(_power(xp, values, "a1", "alpha", n) + self.b1) * xp.log(D)
        data = xp.exp(_power(xp, values, "a2", "beta", n) + self.b2 - falling)
        return xp.exp(_power(xp, values, "a3", "gamma", n) + self.b3) + data


def _experts(xp: ArrayModule, start: Values, most: Values, experts: Values) -> Values:
    """log of the effective number of experts: that of a dense model is `start`, and it saturates at `most`."""
    first = 1.0 / (1.0 / start - 1.0 / most)
    return -xp.log(1.0 / (experts - 1.0 + first) + 1.0 / most)


def _at_centre(xp: ArrayModule, values: Mapping[str, Values], centre: Mapping[str, Values]) -> Values:
    return _experts(xp, values["E_start"], values["E_max"], xp.exp(centre["experts"]))


def _model_part(xp: ArrayModule, values: Mapping[str, Values], centre: Mapping[str, Values]) -> Values:
    e = _at_centre(xp, values, centre)
    return values["delta"] * e + (values["gamma"] * e - values["alpha"]) * centre["N"]


def _data_part(xp: ArrayModule, values: Mapping[str, Values], centre: Mapping[str, Values]) -> Values:
    e = _at_centre(xp, values, centre)
    return values["omega"] * e + (values["zeta"] * e - values["beta"]) * centre["D"]


def _log_routed(xp: ArrayModule, values: Mapping[str, Values], centre: Mapping[str, Values]) -> Values:
    n, e = centre["N"], _at_centre(xp, values, centre)
    return -values["a"] * n - values["b"] * e + values["c"] * n * e


_EXPERTS = ("E_start", "E_max")


@dataclasses.dataclass(frozen=True)
class SparseExperts(Law):
    """The joint law of dense and sparse models of N active parameters: Ludziejewski et al. (arXiv 2502.05172).

    L = A X**delta N**(gamma log X - alpha) + B X**omega D**(zeta log X - beta) + E, X the effective number of experts:
    1/X = 1/(experts - 1 + 1/(1/E_start - 1/E_max)) + 1/E_max. At X = 1 it is Chinchilla's law. The two terms and their
    printed coefficients were read on public pages about the paper, not in it; E_start and E_max are on neither. As
    printed there exponents are those of reciprocals; ours are alpha .1889, beta .1775, delta -.2285, gamma .0098,
    omega .5529, zeta -.0259.
    """

    A: float = scaled(("alpha", "delta", "gamma", *_EXPERTS), _model_part)
    B: float = scaled(("beta", "omega", "zeta", *_EXPERTS), _data_part)
    E: float = floor()
    alpha: float = crossed("gamma", "experts", *EXPONENT)
    beta: float = crossed("zeta", "experts", *EXPONENT)
    delta: float = crossed("gamma", "N", -0.4, 0.1)
    omega: float = crossed("zeta", "D", -0.4, 0.1)
    gamma: float = real(-0.02, 0.02)
    zeta: float = real(-0.02, 0.02)
    E_start: float = positive(1.0, 3.0, within=(1.0, 10.0))
    E_max: float = positive(50.0, 1000.0, within=(20.0, 1e5))

    inputs = ("N", "D", "experts")
    name = "sparse-experts"

    def loss(self, xp: ArrayModule, N: Values, D: Values, experts: Values) -> Values:
        e, n, d = _experts(xp, self.E_start, self.E_max, experts), xp.log(N), xp.log(D)
        model = xp.exp(xp.log(self.A) + self.delta * e + (self.gamma * e - self.alpha) * n)
        data = xp.exp(xp.log(self.B) + self.omega * e + (self.zeta * e - self.beta) * d)
        return self.E + model + data


@dataclasses.dataclass(frozen=True)
class RoutedExperts(Law):
    """log L = log A - a log N - b log X + c log N log X: Clark et al., Eq. 1 (arXiv 2202.01169), at fixed tokens.

    N counts the parameters of the dense base, X is the effective number of experts (`sparse-experts`). Our a and b are
    positive where a loss falls; logarithms are natural. Checked against a public implementation with coefficients for
    the MoE table of 2604.22753, whose X is the same curve (its E_start is another: `tests/laws/test_oracles.py`); the
    paper itself was not at hand.
    """

    A: float = scaled(("a", "b", "c", *_EXPERTS), _log_routed, share=(0.5, 2.0))
    a: float = crossed("c", "experts", 0.02, 0.3)
    b: float = crossed("c", "N", 0.0, 0.3)
    c: float = real(-0.01, 0.02)
    E_start: float = positive(1.0, 3.0, within=(1.0, 10.0))
    E_max: float = positive(50.0, 1000.0, within=(20.0, 1e5))

    inputs = ("N", "experts")
    name = "routed-experts"

    def loss(self, xp: ArrayModule, N: Values, experts: Values) -> Values:
        n, e = xp.log(N), _experts(xp, self.E_start, self.E_max, experts)
        return xp.exp(xp.log(self.A) - self.a * n - self.b * e + self.c * n * e)


def _pruned(*more: str, data: bool = False) -> float:
    """A coefficient of the P2 law's bracket, times (1/rho)**gamma (1/N_0)**delta, at the table's centre."""

    def log_factor(xp: ArrayModule, values: Mapping[str, Values], centre: Mapping[str, Values]) -> Values:
        factor = -values["gamma"] * centre["rho"] - values["delta"] * centre["N_0"]
        if not more:
            return factor
        return factor - values[more[0]] * (centre["D"] if data else centre["N_0"])

    return scaled(("gamma", "delta", *more), log_factor, share=(5e-3, 0.5))


@dataclasses.dataclass(frozen=True)
class Pruned(Law):
    """The P2 law: a model of N_0 parameters and loss L_0, pruned by the share rho, after D tokens of training.

    L = L_0 + (1/rho)**gamma (1/N_0)**delta (N_C/N_0**alpha + D_C/D**beta + E): Chen et al. (arXiv 2411.10272). gamma is
    negative where more pruning costs more.
    """

    N_C: float = _pruned("alpha")
    D_C: float = _pruned("beta", data=True)
    E: float = _pruned()
    alpha: float = positive(*EXPONENT)
    beta: float = positive(*EXPONENT)
    gamma: float = real(-2.0, 0.0)
    delta: float = real(-0.5, 0.5)

    inputs = ("N_0", "D", "rho", "L_0")

    def loss(self, xp: ArrayModule, N_0: Values, D: Values, rho: Values, L_0: Values) -> Values:
        n = xp.log(N_0)
        bracket = xp.exp(xp.log(self.N_C) - self.alpha * n) + xp.exp(xp.log(self.D_C) - self.beta * xp.log(D)) + self.E
        return L_0 + xp.exp(-self.gamma * xp.log(rho) - self.delta * n) * bracket
