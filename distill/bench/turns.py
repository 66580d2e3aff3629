"""Contenders that take turns in one process, so that a busy machine slows them all, and how their times are printed."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


def take_turns(
    contenders: Mapping[str, Callable[[], T]], rounds: int, *, warm_up: bool = True, seconds: float = math.inf
) -> dict[str, list[T]]:
    """The values of each contender in each round, in order; every other round runs them in reverse.

    With `warm_up` a first round, which compiles, is not counted. No round starts later than `seconds` after the start,
    but there is always one.
    """
    values: dict[str, list[T]] = {name: [] for name in contenders}
    end = time.perf_counter() + seconds
    for i in range(rounds + warm_up):
        counted = i >= warm_up
        if i > warm_up and time.perf_counter() > end:
            break
        for name in contenders if i % 2 == 0 else reversed(list(contenders)):
            value = contenders[name]()
            values[name] += [value] if counted else []
    return values


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """A contender whose value is the seconds that `work` takes."""

    def run() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return run


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Ratios round by round, so that a slowdown of a whole round cancels."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """The median, and the range: '1.93 [1.80, 2.10]'."""
    return f"{statistics.median(values):{form}} [{min(values):{form}}, {max(values):{form}}]"
