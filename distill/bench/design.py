"""Chosen runs against random ones: how well do 24, 40 or 80 of Apple's weak students predict the 26 strong ones?

    python -m launch.bench design --repetitions=20

Both start from the same random pilot of 12 runs. One adds random runs, the other those of `laws.design`, which sees
the inputs of the candidates and the fit of the pilot, never a loss it has not paid for. D-optimal choice, which
maximises the determinant of the information, is the usual alternative.
"""

from collections.abc import Sequence

import numpy as np

from distill import laws
from distill.config.flags import Parser
from distill.laws.fitting import identifiability
from distill.laws.fitting.rows import rows_of
from distill.system import progress

PILOT = 12


def d_optimal(fit: laws.Fit, candidates: laws.Table, count: int) -> np.ndarray:
    """Greedy D-optimal rows: each maximises the determinant of the Gauss-Newton matrix in coordinates."""
    rows = rows_of(type(fit.law), candidates, fit.rows.given, units=False)
    J = identifiability.coordinate_slopes(fit.law, rows, fit.rows.setting)
    known = identifiability.coordinate_slopes(fit.law, fit.rows, fit.rows.setting)
    information = known.T @ known + 1e-9 * np.eye(J.shape[1])
    chosen: list[int] = []
    for _ in range(count):
        gain = np.einsum("np,pq,nq->n", J, np.linalg.inv(information), J)
        gain[chosen] = -np.inf
        chosen.append(int(np.argmax(gain)))
        information += np.outer(J[chosen[-1]], J[chosen[-1]])
    return np.array(chosen)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the mean relative error on the strong students for each way of choosing."""
    parser = Parser("bench design", __doc__)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    flags = parser.parse_args(argv)
    apple, supervised = laws.load_table("apple"), laws.paper()[0]
    weak, strong = apple.where("L_S > 2.3"), apple.where("L_S <= 2.3")

    def fit(rows: np.ndarray) -> laws.Fit:
        return laws.fit("distillation-limit", weak.where(rows), supervised=supervised, start_count=64)

    def error(rows: np.ndarray) -> float:
        predicted = fit(rows).law(strong["N_S"], strong["D_S_nominal"], strong["L_T"])
        return float(np.abs(predicted / strong["L_S"] - 1).mean())

    generator = np.random.default_rng(flags.seed)
    with progress.counter("designs", 3 * flags.repetitions) as tick:
        for count in (24, 40, 80):
            errors: dict[str, list[float]] = {"random": [], "laws.design": [], "D-optimal": []}
            for _ in range(flags.repetitions):
                order = generator.permutation(len(weak))
                pilot, rest = order[:PILOT], np.sort(order[PILOT:])
                start = fit(pilot)
                picked = laws.design(start, weak.where(rest), strong, count - PILOT)
                errors["random"].append(error(order[:count]))
                errors["laws.design"].append(error(np.concatenate([pilot, rest[picked.rows]])))
                errors["D-optimal"].append(
                    error(np.concatenate([pilot, rest[d_optimal(start, weak.where(rest), count - PILOT)]]))
                )
                tick(1)
            gains = np.array(errors["random"]) - np.array(errors["laws.design"])
            said = ", ".join(
                f"{name} {np.mean(v):.3%} +- {np.std(v) / np.sqrt(len(v)):.3%}" for name, v in errors.items()
            )
            print(f"{count} runs: {said}; design wins in {(gains > 0).mean():.0%} of {len(gains)} pilots", flush=True)
    return 0
