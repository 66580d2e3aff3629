"""How the parameters of a law are declared: their range, where a search starts, and the scale they are fitted on.

A law is fitted in unconstrained coordinates u, one per parameter. A declaration says how a parameter becomes its
coordinate (`encode`), how it comes back (`decode`), and between which values random starts are drawn. Some parameters
are better behaved together: the data fix a power-law term where the data lie, not its value at N = 1 that `A` is, so
the coordinate of a `coefficient` is the logarithm of its whole term at the centre of the table.

In a form, write one declaration per parameter:

    A: float = coefficient("N", exponent="alpha")   # A / N**alpha, positive
    E: float = floor()                              # below the smallest observed loss, positive
    alpha: float = positive(0.1, 1.0)               # starts are drawn log-uniformly in between
    w: float = real(-1.0, 1.0)                      # any sign
    p: float = bounded(0.0, 1.0)                    # never leaves the interval
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

KEY = "parameter"


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a declaration may know of the table: the mean log of every input, and the target's size."""

    centre: Mapping[str, float]
    smallest: float
    typical: float


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One declared parameter: `encode`/`decode` between its value and its coordinate; `start` the range of starts.

    Both maps take (xp, value or coordinate, values of the parameters in `needs`, Setting) and are traceable.
    `start` gives (low, high) of the coordinate of a random start, from the Setting.
    """

    encode: Callable[..., Any]
    decode: Callable[..., Any]
    start: Callable[[Setting], tuple[float, float]]
    needs: tuple[str, ...] = ()
    sign: str = "positive"


def _declare(parameter: Parameter) -> Any:
    return dataclasses.field(metadata={KEY: parameter})


def positive(low: float = 0.1, high: float = 10.0) -> Any:
    """A positive parameter, fitted as its logarithm; starts are log-uniform in (low, high)."""
    bounds = (float(np.log(low)), float(np.log(high)))
    return _declare(Parameter(lambda xp, x, values, s: xp.log(x), lambda xp, u, values, s: xp.exp(u), lambda s: bounds))


def real(low: float = -1.0, high: float = 1.0) -> Any:
    """A parameter of any sign, fitted as it is; starts are uniform in (low, high)."""
    return _declare(
        Parameter(lambda xp, x, values, s: x, lambda xp, u, values, s: u, lambda s: (low, high), sign="real")
    )


def bounded(low: float, high: float) -> Any:
    """A parameter inside (low, high), fitted as a logit; starts cover the middle nine tenths."""

    def encode(xp, x, values, s):
        return xp.log((x - low) / (high - x))

    def decode(xp, u, values, s):
        return low + (high - low) / (1.0 + xp.exp(-u))

    return _declare(Parameter(encode, decode, lambda s: (-3.0, 3.0), sign="bounded"))


def floor() -> Any:
    """An irreducible loss: positive, started between three tenths of the smallest observed loss and just below it."""

    def start(setting):
        return float(np.log(0.3 * setting.smallest)), float(np.log(0.98 * setting.smallest))

    return _declare(Parameter(lambda xp, x, values, s: xp.log(x), lambda xp, u, values, s: xp.exp(u), start))


def coefficient(of: str, exponent: str | float, power: str | None = None, share: tuple[float, float] = (0.02, 1.0)):
    """The coefficient A of a term (A / x**exponent)**power, x being the input named `of`; positive.

    Its coordinate is the logarithm of the term at the table's centre, mean(log x), so it hardly depends on the
    exponents; starts give the term a `share` of the typical loss.
    """
    named = isinstance(exponent, str)

    def slope(values):
        return values[exponent] if named else exponent

    def encode(xp, x, values, s):
        return (xp.log(x) - slope(values) * s.centre[of]) * (values[power] if power else 1.0)

    def decode(xp, u, values, s):
        return xp.exp(u / (values[power] if power else 1.0) + slope(values) * s.centre[of])

    def start(setting):
        return float(np.log(share[0] * setting.typical)), float(np.log(share[1] * setting.typical))

    needs = tuple(name for name in (exponent, power) if isinstance(name, str))
    return _declare(Parameter(encode, decode, start, needs))


def linked(needs: tuple[str, ...], encode: Callable, decode: Callable, start: tuple[float, float]) -> Any:
    """A parameter fitted through a combination with others: encode(xp, x, values) -> u, decode(xp, u, values) -> x."""
    return _declare(
        Parameter(
            lambda xp, x, values, s: encode(xp, x, values),
            lambda xp, u, values, s: decode(xp, u, values),
            lambda s: start,
            needs,
        )
    )
