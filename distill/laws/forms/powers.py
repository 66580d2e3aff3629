"""What several forms share: the sum of two powers, its logarithm, and coordinates of (A/N**alpha + B/D**beta)**gamma.

Formulas use logarithms (A / N**alpha as exp(log A - alpha log N)), which neither overflow nor lose digits for the
coefficients that occur in fits.
"""

from distill.laws.forms.arrays import ArrayModule, Values
from distill.laws.forms.law import Law
from distill.laws.forms.parameters import FitSetting, Parameter, declare

# Starts of the exponents: all published values lie inside (from 0.03, Kaplan's data exponent over its power, to 1.5).
EXPONENT = (0.05, 1.5)


def log_sum_of_powers(
    xp: ArrayModule, A: Values, B: Values, alpha: Values, beta: Values, N: Values, D: Values
) -> Values:
    """log(A / N**alpha + B / D**beta)."""
    return xp.logaddexp(xp.log(A) - alpha * xp.log(N), xp.log(B) - beta * xp.log(D))


def mixed(start: tuple[float, float], box: tuple[float, float]) -> float:
    """A coordinate of a PowerSum, which encodes and decodes its five parameters as a whole."""
    unused = lambda *a: float("nan")
    return declare(Parameter(unused, unused, lambda setting: start, box))


class PowerSum(Law):
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
        values = {"A": A, "B": B, "alpha": alpha, "beta": beta, "gamma": gamma}
        rest = {name: u for name, u in coordinates.items() if name not in values}
        return values | super()._decode(xp, rest, setting)

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
