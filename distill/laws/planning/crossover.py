"""Crossovers at which supervised training catches up with distillation: in student tokens or in total compute."""

from typing import TypeVar

import jax
import numpy as np

from distill.laws.forms.arrays import Floats, Values
from distill.laws.planning.allocation import PAPER_BOUNDS, Bounds, allocate
from distill.laws.planning.repeats import alone, taught
from distill.laws.planning.scenarios import UNLIMITED, Scenario
from distill.laws.planning.signatures import ForwardFlops, StudentLaw, SupervisedLaw

_GRID = 64
_AnyLaw = TypeVar("_AnyLaw", SupervisedLaw, StudentLaw)


def column(law: _AnyLaw) -> _AnyLaw:
    """A stack of laws [R] that broadcasts against a trailing axis of cases; a single law unchanged."""
    return jax.tree_util.tree_map(lambda leaf: leaf[..., None] if np.ndim(leaf) else leaf, law)


def last_catch_up(x: Floats, gain: Floats) -> tuple[Floats, Floats]:
    """(low, high) of the last interval of x in which gain = L_S - L turns from negative to positive; nan: none."""
    behind = (gain[..., :-1] < 0) & (gain[..., 1:] >= 0)
    last = behind.shape[-1] - 1 - np.argmax(behind[..., ::-1], axis=-1)
    some = behind.any(axis=-1)
    return np.where(some, x[last], np.nan), np.where(some, x[last + 1], np.nan)


def interpolate(x: Floats, gain: Floats) -> Floats:
    """The last crossover, by linear interpolation of the gain in log x; nan if there is none. gain: [..., x]."""
    low, high = last_catch_up(x, gain)
    at = np.clip(np.searchsorted(x, np.nan_to_num(low, nan=x[0])), 0, len(x) - 2)
    g0 = np.take_along_axis(gain, at[..., None], -1)[..., 0]
    g1 = np.take_along_axis(gain, at[..., None] + 1, -1)[..., 0]
    share = np.divide(g0, g0 - g1, out=np.zeros_like(g0), where=g0 != g1)
    return np.exp(np.log(low) + share * (np.log(high) - np.log(low)))


def crossover_tokens(
    supervised: SupervisedLaw,
    distillation: StudentLaw,
    N_S: float,
    L_T: Values,
    unique: float = UNLIMITED,
    bounds: Bounds = PAPER_BOUNDS,
) -> Floats:
    """D_S beyond which supervised training of N_S beats distillation from a teacher of loss L_T; nan if it never does.

    Laws may be stacks [R], with L_T [R]; the result then is [R].
    """
    stacked, student = column(supervised), column(distillation)
    teacher = np.asarray(L_T, np.float64)[..., None]

    def gain(D: Floats) -> Floats:
        return np.asarray(taught(student, N_S, D, teacher, unique)) - np.asarray(alone(stacked, N_S, D, unique))

    grid = np.geomspace(bounds.low / 1e3, bounds.high, 512)
    low, high = last_catch_up(grid, gain(grid))
    some = np.isfinite(low)
    low, high = np.where(some, low, 1.0), np.where(some, high, 1.0)
    for _ in range(50):
        middle = np.sqrt(low * high)
        ahead = gain(middle[..., None])[..., 0] < 0
        low, high = np.where(ahead, middle, low), np.where(ahead, high, middle)
    return np.where(some, np.sqrt(low * high), np.nan)


def crossover_compute(
    supervised: SupervisedLaw,
    distillation: StudentLaw,
    N_S: float,
    scenario: Scenario,
    *,
    flops: ForwardFlops,
    unique: float = UNLIMITED,
    bounds: Bounds = PAPER_BOUNDS,
) -> float:
    """Total compute beyond which supervised training of N_S beats its best distillation; nan if it never does.

    The search covers supervised budgets from `bounds.low` to a tenth of `bounds.high` tokens.
    """
    scale = 3 * float(flops(N_S))
    low, high = scale * bounds.low, scale * bounds.high / 10
    for _ in range(3):
        compute = np.geomspace(low, high, _GRID)
        gain = _gain(supervised, distillation, N_S, compute, scenario, flops, unique, bounds)
        low, high = (float(x) for x in last_catch_up(compute, gain))
        if not np.isfinite(low):
            return float("nan")
    return float(interpolate(compute, gain))


def crossover_stack(
    supervised: SupervisedLaw,
    distillation: StudentLaw,
    N_S: float,
    scenario: Scenario,
    near: float,
    *,
    flops: ForwardFlops,
    unique: float = UNLIMITED,
    bounds: Bounds = PAPER_BOUNDS,
) -> Floats:
    """`crossover_compute` under each law of a stack [R], from one scan of four decades around `near`."""
    compute = np.geomspace(near / 100, near * 100, 24)
    return interpolate(compute, _gain(supervised, distillation, N_S, compute, scenario, flops, unique, bounds))


def _gain(
    supervised: SupervisedLaw,
    distillation: StudentLaw,
    N_S: float,
    compute: Floats,
    scenario: Scenario,
    flops: ForwardFlops,
    unique: float,
    bounds: Bounds,
) -> Floats:
    """Loss of the best distillation minus that of supervised training, at every budget (and for every law)."""
    split = allocate(supervised, distillation, N_S, compute, scenario, flops=flops, unique=unique, bounds=bounds)
    tokens = np.minimum(compute / (3 * float(flops(N_S))), bounds.high)
    return split.L_S - np.asarray(alone(column(supervised), N_S, tokens, unique))
