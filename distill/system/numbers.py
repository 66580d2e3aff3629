"""Human-readable numbers: sizes, FLOPs, durations, differences, plurals. Standard library only."""

import datetime
import math


def si(value: float) -> str:
    """1680000 as '1.68M': sizes and tokens with three digits; '1e+15' below 1 and from 1e15 on."""
    if not math.isfinite(value) or value >= 1e15:
        return f"{value:.3g}"
    value = float(f"{value:.3g}")  # first, so that 999,936 is 1M and not 1000K
    for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= scale:
            return f"{value / scale:.3g}{suffix}"
    return f"{value:.3g}"


def number(value: float) -> str:
    """Three digits, without an exponent between a thousandth and a hundred thousand: '1290', '0.0123', '1e8'."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{float(f'{value:.3g}'):g}"
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def flops(value: float) -> str:
    """FLOPs with three digits: '4.9e12'."""
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return "0" if value == 0 else f"{mantissa}e{int(exponent)}"


def duration(seconds: float) -> str:
    """'2 min 5 s', '3 h 20 min', '41 s'; '?' for a value that is not finite."""
    if not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def utc(time: str | float) -> str:
    """An ISO time (UTC if it has no zone) or seconds since 1970 as '2026-01-31 12:00:00', in UTC."""
    if isinstance(time, str):
        when = datetime.datetime.fromisoformat(time)
        when = when.astimezone(datetime.UTC) if when.tzinfo else when
    else:
        when = datetime.datetime.fromtimestamp(time, datetime.UTC)
    return when.strftime("%Y-%m-%d %H:%M:%S")


def signed(value: float) -> str:
    """A difference of losses with its sign, four decimals and a Unicode minus."""
    return f"{value:+.4f}".replace("-", "\N{MINUS SIGN}")


def plural(number: int, noun: str) -> str:
    """'1 run', '2 runs'."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
