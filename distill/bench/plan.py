"""The planner against SciPy: the data of Figures 17 to 34, and SLSQP with 50 random starts on a sample of its cases.

    python -m launch.bench plan [--cases=24] [--starts=50] [--seed=0]

SLSQP is what the paper used: N_T, D_S and D_T in [1e6, 1e17] with the budget as an equality constraint (Appendix D).
The two alternate case by case in one process; SLSQP's time on the whole grid is its mean per case times the cases.
"""

import time
from collections.abc import Sequence

import numpy as np

from distill import laws
from distill.config.flags import Parser
from distill.laws.forms.law import Law
from distill.laws.planning.scenarios import SCENARIOS, Flops, Scenario
from distill.report.paper.curves import BUDGETS, SIZES, curves

_BOX = (np.log(1e6), np.log(1e17))


def slsqp(
    supervised: Law,
    distillation: Law,
    N_S: float,
    compute: float,
    scenario: Scenario,
    flops: Flops,
    starts: int,
    seed: int,
) -> float:
    """The lowest L_S over `starts` random starts in log N_T, log D_S, log D_T; inf if no end point is feasible."""
    from scipy.optimize import minimize

    random = np.random.default_rng(seed)
    F_S = flops(N_S)

    def loss(z: np.ndarray) -> float:
        N_T, D_S, D_T = np.exp(z)
        return float(distillation(N_S, D_S, supervised(N_T, D_T)))

    def overspent(z: np.ndarray) -> float:
        N_T, D_S, D_T = np.exp(z)
        F_T = flops(N_T)
        spent = 3 * F_S * D_S + F_T * (scenario.logits * D_S + scenario.pretraining * 3 * D_T)
        return float(np.log(spent / compute))

    best = np.inf
    for _ in range(starts):
        solution = minimize(
            loss,
            random.uniform(*_BOX, size=3),
            method="SLSQP",
            bounds=[_BOX] * 3,
            constraints={"type": "eq", "fun": overspent},
            options={"maxiter": 300, "ftol": 1e-12},
        )
        if abs(overspent(solution.x)) < 1e-7:
            best = min(best, float(solution.fun))
    return best


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the time of the whole grid, cold and warm, the ratio to SLSQP, and the worst of L_S - SLSQP's L_S."""
    parser = Parser("bench plan", __doc__)
    parser.add_argument("--cases", type=int, default=24, help="cases given to SLSQP (default 24)")
    parser.add_argument("--starts", type=int, default=50, help="random starts of SLSQP (default 50)")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args(argv)
    supervised, distillation = laws.paper()
    flops = Flops.closed()

    begin, began = time.perf_counter(), time.process_time()
    grid = curves(supervised, distillation, flops=flops)
    cold, busy = time.perf_counter() - begin, time.process_time() - began
    solved = (len(SCENARIOS) + 1) * grid.supervised_L.size
    size = f"{solved} optima (8 sizes x 5 curves x 61 budgets)"
    print(f"{size}, compilation included: {cold:.2f} s, {busy:.2f} s of processor time on all cores")

    random = np.random.default_rng(flags.seed)
    ours, theirs, excess = [], [], []
    for case in range(flags.cases):
        name = tuple(SCENARIOS)[case % len(SCENARIOS)]
        i, j = random.integers(len(SIZES)), random.integers(len(BUDGETS))
        begin = time.perf_counter()
        warm = curves(supervised, distillation, flops=flops)
        ours.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        peer = slsqp(
            supervised,
            distillation,
            SIZES[i],
            BUDGETS[j],
            SCENARIOS[name],
            flops,
            flags.starts,
            int(random.integers(2**31)),
        )
        theirs.append(time.perf_counter() - begin)
        excess.append(float(warm.optima[name].L_S[i, j]) - peer)
    whole = float(np.mean(theirs)) * len(SCENARIOS) * grid.supervised_L.size
    print(f"the same again, compiled: {np.median(ours):.2f} s (median of {len(ours)}, alternating with SLSQP)")
    print(f"SLSQP, {flags.starts} starts: {np.mean(theirs):.2f} s a case, {whole:.0f} s for the grid's four scenarios")
    print(f"ratio: {whole / cold:.0f} with compilation, {whole / np.median(ours):.0f} without")
    print(f"L_S - SLSQP's L_S over {flags.cases} cases: at most {max(excess):.1e}, at least {min(excess):.1e}")
    return 0
