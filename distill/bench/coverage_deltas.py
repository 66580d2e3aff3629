"""Which delta for a small noisy study? Synthetic tables of 46 runs with 1% noise, fitted with several deltas.

    python -m launch.bench coverage_deltas --repetitions=100

The design is that of the smoke study: 16 supervised runs, 30 students of four teachers, three budgets. Each table is
fitted in two stages with every delta, and its predictions are compared with the law that made it: at students inside
the table, and at four times its budgets. With --resamples the 90% intervals of the law there are counted as well.
"""

from collections.abc import Sequence

import numpy as np

from distill import laws
from distill.config.flags import Parser
from distill.system import progress

SUPERVISED, STUDENT = laws.paper()
NOISE = 0.01
OBJECTIVES = {
    "delta 1e-4": laws.Objective(delta=1e-4),
    "delta 1e-3": laws.Objective(delta=1e-3),
    "delta 1e-2": laws.Objective(delta=1e-2),
    "delta 3e-2": laws.Objective(delta=3e-2),
    "least squares": laws.Objective(kind="log-mse"),
}
_SIZES = np.array([1.5e8, 2.7e8, 4.5e8, 9e8, 1.5e9])
_BUDGETS = np.array([4e9, 8e9, 1.6e10, 3.2e10])
_TEACHERS = ((2, 1), (2, 3), (4, 2), (4, 3))  # (size, budget) of each
_PROBES = {"inside": 1.0, "four times the budget": 4.0}


def tables(seed: int, tail: float) -> tuple[laws.Table, laws.Table]:
    """(16 supervised runs, 30 students), each loss with its own noise; a teacher's loss is its noisy one.

    Noise is Student's t with `tail` degrees of freedom, scaled to a standard deviation of NOISE; inf: normal.
    """
    generator = np.random.default_rng((11, seed))

    def noisy(loss: np.ndarray) -> np.ndarray:
        if np.isinf(tail):
            return loss * np.exp(NOISE * generator.standard_normal(len(loss)))
        return loss * np.exp(NOISE * np.sqrt(1 - 2 / tail) * generator.standard_t(tail, len(loss)))

    runs = [(i, j) for i in range(4) for j in range(3)] + [(2, 3), (4, 1), (4, 2), (4, 3)]
    N, D = _SIZES[[i for i, _ in runs]], _BUDGETS[[j for _, j in runs]]
    L = noisy(SUPERVISED(N, D))
    teacher = {run: loss for run, loss in zip(runs, L)}
    students = [(t, i, j) for t in _TEACHERS for i in (0, 2) for j in range(3)]
    students += [(t, 3, j) for t in (_TEACHERS[0], _TEACHERS[3]) for j in range(3)]
    L_T = np.array([teacher[t] for t, _, _ in students])
    N_S, D_S = _SIZES[[i for _, i, _ in students]], _BUDGETS[[j for _, _, j in students]]
    taught = laws.from_arrays(N_S=N_S, D_S=D_S, L_T=L_T, L_S=noisy(STUDENT(N_S, D_S, L_T)))
    return laws.from_arrays(N=N, D=D, L=L), taught


def repeat(seed: int, objective: laws.Objective, resamples: int, tail: float = np.inf) -> dict[str, list[float]]:
    """(relative error of the fitted law, whether its interval contains the truth) by probe, of all students there."""
    alone, taught = tables(seed, tail)
    first = laws.fit("supervised", alone, objective=objective, seed=seed, start_count=64)
    second = laws.fit("distillation", taught, supervised=first.law, objective=objective, seed=seed, start_count=64)
    boot = laws.bootstrap((first, second), resamples=resamples, seed=seed) if resamples else None
    measures = {}
    for name, factor in _PROBES.items():
        probe = dict(N_S=taught["N_S"], D_S=factor * taught["D_S"], L_T=taught["L_T"])
        truth = STUDENT(**probe)
        measures[name] = [float(np.abs(second.law(**probe) / truth - 1).mean())]
        if boot:
            said = boot.predict(noise=False, **probe)
            measures[name].append(float(((said.low <= truth) & (truth <= said.high)).mean()))
    return measures


def main(argv: Sequence[str] | None = None) -> int:
    """Prints, by delta, the mean error of the law (and its coverage) inside and beyond the table."""
    parser = Parser("bench coverage_deltas", __doc__)
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--resamples", type=int, default=0)
    parser.add_argument("--tail", type=float, default=np.inf, help="degrees of freedom of the noise, above 2")
    flags = parser.parse_args(argv)
    every: dict[str, list[dict[str, list[float]]]] = {name: [] for name in OBJECTIVES}
    with progress.counter("deltas", flags.repetitions) as tick:
        for seed in range(flags.repetitions):
            for name, objective in OBJECTIVES.items():
                every[name].append(repeat(seed, objective, flags.resamples, flags.tail))
            tick(1)
    for name, repeats in every.items():
        said = []
        for probe in _PROBES:
            errors = np.array([one[probe][0] for one in repeats])
            baseline = np.array([one[probe][0] for one in every["delta 1e-3"]])
            text = f"{probe} {errors.mean():.3%} +- {errors.std() / np.sqrt(len(errors)):.3%}"
            text += f" (better than 1e-3 in {(errors < baseline).mean():.0%})" if name != "delta 1e-3" else ""
            if flags.resamples:
                text += f", {np.mean([one[probe][1] for one in repeats]):.0%} inside"
            said.append(text)
        print(f"{name:14s} {'; '.join(said)}", flush=True)
    return 0
