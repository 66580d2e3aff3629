"""The data of Figures 8, 9 and 17 to 34: the optimum of every student size, budget and scenario."""

import concurrent.futures
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from distill.laws.forms.law import Law
from distill.laws.planning.allocation import Allocation, allocate
from distill.laws.planning.crossover import column
from distill.laws.planning.scenarios import SCENARIOS, Flops

SIZES = (3e8, 5e8, 1e9, 3e9, 5e9, 1e10, 3e10, 5e10)  # N_S of Figures 17 to 34
BUDGETS = np.geomspace(1e20, 1e26, 61)  # FLOPs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curves:
    """Optima [sizes, budgets] by scenario, and supervised training of the same student with the same compute."""

    sizes: np.ndarray
    budgets: np.ndarray
    optima: Mapping[str, Allocation]
    supervised_D: np.ndarray
    supervised_L: np.ndarray


def curves(
    supervised: Law,
    distillation: Law,
    *,
    flops: Flops | None = None,
    sizes: ArrayLike = SIZES,
    budgets: ArrayLike = BUDGETS,
    scenarios: Sequence[str] = tuple(SCENARIOS),
) -> Curves:
    """Optima of all scenarios, in two threads: compiling and solving release the GIL.

    The two scenarios that pay for the teacher's training share one compiled solver, so one thread runs both.
    """
    flops = Flops.closed() if flops is None else flops
    N_S, C = np.asarray(sizes, np.float64)[:, None], np.asarray(budgets, np.float64)[None, :]

    groups = [
        [n for n in scenarios if SCENARIOS[n].pretraining],
        [n for n in scenarios if not SCENARIOS[n].pretraining],
    ]

    def solve(name: str) -> Allocation:
        return allocate(supervised, distillation, N_S, C, SCENARIOS[name], flops=flops)

    with concurrent.futures.ThreadPoolExecutor(len(groups)) as pool:
        solved = {n: a for part in pool.map(lambda names: [(n, solve(n)) for n in names], groups) for n, a in part}
    D = np.minimum(C / (3 * flops(N_S)), 1e17)
    return Curves(
        sizes=N_S[:, 0],
        budgets=C[0],
        optima={name: solved[name] for name in scenarios},
        supervised_D=D,
        supervised_L=np.asarray(column(column(supervised))(N_S, D)),
    )
