"""Declarations of a law's parameters: their range, the start of a search, and the scale they are fitted on.

A law is fitted in coordinates u, one per parameter. A declaration says how a parameter becomes its coordinate
(`encode`) and back (`decode`), the range of random starts, and the box that a fit stays in. Some parameters need a
joint coordinate: the data fix a power-law term at the runs' sizes, not at N = 1, where its value is `A`, so the
coordinate of a `coefficient` is the logarithm of the whole term at the centre of the table.

In a form, write one declaration per parameter:

    A: float = coefficient("N", exponent="alpha")   # A / N**alpha, positive
    E: float = floor()                              # the irreducible loss, positive
    alpha: float = positive(0.1, 1.0)               # starts are drawn log-uniformly in between
    w: float = real(-1.0, 1.0)                      # any sign
    p: float = bounded(0.0, 1.0)                    # never leaves the interval
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import numpy as np

from distill.laws.forms.arrays import ArrayModule, Values

KEY = "parameter"
_WIDE = 100.0  # factor by which a positive parameter may leave the range of its starts


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FitSetting:
    """The properties of the table that a declaration may use: the mean log of every input, and the size of the target.

    Traceable: `centre` and `typical` may be jax arrays; only starts use `smallest`.
    """

    centre: Mapping[str, Values]
    typical: Values = 1.0
    smallest: float = 1.0


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One declared parameter: `encode` and `decode` between its value and its coordinate.

    Both take (xp, value or coordinate, values of the parameters in `needs`, FitSetting) and are traceable. `start`
    returns (low, high) of the coordinate of a random start from the FitSetting; `box` the same for every solution.
    """

    encode: Callable[..., Values]
    decode: Callable[..., Values]
    start: Callable[[FitSetting], tuple[float, float]]
    box: tuple[float, float] = (-math.inf, math.inf)
    needs: tuple[str, ...] = ()
    sign: str = "positive"


def declare(parameter: Parameter) -> float:
    """The dataclass field of a parameter, typed as its value, like `dataclasses.field`."""
    return dataclasses.field(metadata={KEY: parameter})


def _log(xp: ArrayModule, x: Values, values: Mapping[str, Values], setting: FitSetting) -> Values:
    return xp.log(x)


def _exp(xp: ArrayModule, u: Values, values: Mapping[str, Values], setting: FitSetting) -> Values:
    return xp.exp(u)


def _same(xp: ArrayModule, x: Values, values: Mapping[str, Values], setting: FitSetting) -> Values:
    return x


def positive(low: float = 0.1, high: float = 10.0, within: tuple[float, float] | None = None) -> float:
    """A positive parameter, fitted as its logarithm; starts are log-uniform in (low, high).

    It stays `within` a range, by default a hundred times wider than the starts on either side.
    """
    within = within or (low / _WIDE, high * _WIDE)
    start, box = (math.log(low), math.log(high)), (math.log(within[0]), math.log(within[1]))
    return declare(Parameter(_log, _exp, lambda setting: start, box))


def real(low: float = -1.0, high: float = 1.0) -> float:
    """A parameter of any sign, fitted without a transformation; starts are uniform in (low, high)."""
    return declare(Parameter(_same, _same, lambda setting: (low, high), sign="real"))


def bounded(low: float, high: float) -> float:
    """A parameter between low and high, both included; starts cover the interval."""
    return declare(Parameter(_same, _same, lambda setting: (low, high), (low, high), sign="real"))


def floor() -> float:
    """An irreducible loss, fitted as a share of the typical loss; starts lie below the smallest loss.

    The scale is linear and ends just above zero, so that data without a floor reach a bound instead of diverging.
    """

    def start(setting: FitSetting) -> tuple[float, float]:
        share = setting.smallest / float(np.asarray(setting.typical))
        return 0.3 * share, 0.98 * share

    return declare(
        Parameter(
            lambda xp, x, values, setting: x / setting.typical,
            lambda xp, u, values, setting: u * setting.typical,
            start,
            (1e-5, 1.0),
        )
    )


def coefficient(
    of: str, exponent: str | float, power: str | None = None, share: tuple[float, float] = (0.02, 1.0)
) -> float:
    """The coefficient A of a term (A / x**exponent)**power, x being the input named `of`; positive.

    Its coordinate is the logarithm of the term at the table's centre, over the typical loss, so it hardly depends on
    the exponents; starts give the term a `share` of the typical loss.
    """

    def slope(values: Mapping[str, Values]) -> Values:
        return values[exponent] if isinstance(exponent, str) else exponent

    def raised(values: Mapping[str, Values]) -> Values:
        return values[power] if power else 1.0

    def encode(xp: ArrayModule, x: Values, values: Mapping[str, Values], setting: FitSetting) -> Values:
        return (xp.log(x) - slope(values) * setting.centre[of]) * raised(values) - xp.log(setting.typical)

    def decode(xp: ArrayModule, u: Values, values: Mapping[str, Values], setting: FitSetting) -> Values:
        return xp.exp((u + xp.log(setting.typical)) / raised(values) + slope(values) * setting.centre[of])

    needs = tuple(name for name in (exponent, power) if isinstance(name, str))
    start, box = (math.log(share[0]), math.log(share[1])), (math.log(1e-6), math.log(1e3))
    return declare(Parameter(encode, decode, lambda setting: start, box, needs))


def scaled(
    needs: tuple[str, ...],
    log_factor: Callable[[ArrayModule, Mapping[str, Values], Mapping[str, Values]], Values],
    share: tuple[float, float] = (0.02, 1.0),
) -> float:
    """The positive coefficient of any term: A * exp(log_factor(xp, values of `needs`, log of every input)).

    Its coordinate is the logarithm of the term at the table's centre, over the typical loss, as for a `coefficient`,
    which is the special case of one power.
    """

    def encode(xp: ArrayModule, x: Values, values: Mapping[str, Values], setting: FitSetting) -> Values:
        return xp.log(x) + log_factor(xp, values, setting.centre) - xp.log(setting.typical)

    def decode(xp: ArrayModule, u: Values, values: Mapping[str, Values], setting: FitSetting) -> Values:
        return xp.exp(u + xp.log(setting.typical) - log_factor(xp, values, setting.centre))

    start, box = (math.log(share[0]), math.log(share[1])), (math.log(1e-6), math.log(1e3))
    return declare(Parameter(encode, decode, lambda setting: start, box, needs))


def crossed(cross: str, by: str, low: float, high: float) -> float:
    """A slope of any sign beside a product term: its coordinate is the slope at the centre of the input `by`.

    In -alpha x + delta x z (logarithms) the runs fix alpha - delta z at the centre of z, and alpha, the slope at z = 0,
    hardly: `cross` names delta, `by` the input whose logarithm is z.
    """

    def encode(xp: ArrayModule, x: Values, values: Mapping[str, Values], setting: FitSetting) -> Values:
        return x - values[cross] * setting.centre[by]

    def decode(xp: ArrayModule, u: Values, values: Mapping[str, Values], setting: FitSetting) -> Values:
        return u + values[cross] * setting.centre[by]

    return declare(Parameter(encode, decode, lambda setting: (low, high), needs=(cross,), sign="real"))


def linked(
    needs: tuple[str, ...],
    encode: Callable[..., Values],
    decode: Callable[..., Values],
    start: tuple[float, float],
    box: tuple[float, float] = (-math.inf, math.inf),
) -> float:
    """A parameter fitted through a combination with others: encode(xp, x, values) -> u, decode(xp, u, values) -> x."""
    return declare(
        Parameter(
            lambda xp, x, values, setting: encode(xp, x, values),
            lambda xp, u, values, setting: decode(xp, u, values),
            lambda setting: start,
            box,
            needs,
        )
    )
