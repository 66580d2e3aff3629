"""Chosen runs on ScaleBench's protocol (2604.22753): R2 in the target region for 1, 5 and 10% of the runs' cost.

    DISTILL_DATA=../data python -m launch.bench scalebench

A task's runs are candidates with a price; a way of choosing spends a share of the price of them all, the law is fitted
to the chosen runs, and predicts the task's held-out runs, which cost more than most. `laws.design` begins, as the
benchmark's own method, with the cheapest runs (2.5 for each parameter), and sees inputs alone of what it has not paid
for. R2 is of raw losses and clipped to [-1, 1]; a law without enough runs counts -1. docs/results/laws.md has the
published numbers beside these.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from distill import laws
from distill.bench import outside, public
from distill.config import ConfigError
from distill.config.flags import Parser
from distill.laws.fitting.rows import rows_of
from distill.laws.forms.registry import get
from distill.system import process

SHARES = (0.01, 0.05, 0.1)
# The forms of ours for a task, and the columns whose product is its price.
TASKS = {
    "farseer": (("farseer",), ("N", "D")),
    "data_constrained": (("chinchilla", "data-constrained", "additive-penalty"), ("N", "D")),
    "moe": (("routed-experts",), ("N", "experts")),
}
_PILOT = 2.5  # cheapest runs for each parameter
_GROW = 1.5  # factor of runs from which the law is fitted again, to choose the next
_STARTS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Candidates with prices [n] (shares of their sum), the held-out targets, and the form of the law."""

    form: str
    candidates: laws.Table
    targets: laws.Table
    price: np.ndarray

    @property
    def parameters(self) -> int:
        return len(get(self.form).parameters())

    def fit(self, rows: np.ndarray, seed: int) -> laws.Fit:
        """The law of the chosen rows."""
        return laws.fit(
            self.form, self.candidates.where(np.sort(rows)), delta=1e-2, start_count=_STARTS, seed=seed, units=False
        )

    def score(self, rows: np.ndarray, seed: int) -> float:
        """R2 of the held-out losses by the law of the chosen rows."""
        if len(rows) < self.parameters:
            return -1.0
        law = self.fit(rows, seed).law
        held = rows_of(type(law), self.targets, units=False)
        missed = float(((law(*held.inputs) - held.target) ** 2).sum())
        return float(np.clip(1 - missed / ((held.target - held.target.mean()) ** 2).sum(), -1, 1))


Choice = Callable[[Task, float, np.random.Generator], np.ndarray]


def affordable(order: np.ndarray, price: np.ndarray, share: float) -> np.ndarray:
    """The first entries of an order that a share pays for."""
    return order[np.cumsum(price[order]) <= share + 1e-12]


def randomly(task: Task, share: float, generator: np.random.Generator) -> np.ndarray:
    """Runs in any order."""
    return affordable(generator.permutation(len(task.price)), task.price, share)


def cheapest(task: Task, share: float, generator: np.random.Generator) -> np.ndarray:
    """The cheapest runs."""
    return affordable(np.argsort(task.price, kind="stable"), task.price, share)


def designed(task: Task, share: float, generator: np.random.Generator) -> np.ndarray:
    """The cheapest runs as a pilot, then those of `laws.design`, fitted anew whenever there are half as many more."""
    pilot = int(_PILOT * task.parameters)
    chosen = cheapest(task, share, generator)[:pilot]
    while len(chosen) >= task.parameters + 2:
        left = share - task.price[chosen].sum()
        rest = np.setdiff1d(np.flatnonzero(task.price <= left), chosen)
        if not len(rest):
            break
        fit = task.fit(chosen, int(generator.integers(1 << 30)))
        count = min(max(int((_GROW - 1) * len(chosen)), 1), len(rest))
        found = laws.design(fit, task.candidates.where(rest), task.targets, count, cost=task.price[rest])
        paid = affordable(rest[found.rows], task.price, left)
        chosen = np.concatenate([chosen, paid if len(paid) else rest[:1]])
    return chosen


def everything(task: Task, share: float, generator: np.random.Generator) -> np.ndarray:
    """All runs, whatever the share."""
    return np.arange(len(task.price))


WAYS: dict[str, Choice] = {
    "random": randomly,
    "cheapest": cheapest,
    "laws.design": designed,
    "all runs": everything,
}


def tasks(folder: Path, name: str) -> list[Task]:
    """The forms of a task of ScaleBench that are at hand; none where its files are not."""
    forms, paid = TASKS[name]
    parts = public.scalebench(folder, name, public.SCALEBENCH[name][0])
    if parts is None:
        return []
    price = np.prod([parts[0].numbers(column) for column in paid], axis=0)
    return [Task(form=form, candidates=parts[0], targets=parts[1], price=price / price.sum()) for form in forms]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints mean R2 and its standard deviation by task, way of choosing and share."""
    parser = Parser("bench scalebench", __doc__)
    parser.add_argument("--repetitions", type=int, default=5, help="random orders and starts")
    parser.add_argument("--task", choices=tuple(TASKS), default=None, help="one task instead of all")
    parser.add_argument("--way", choices=tuple(WAYS), default=None, help="one way of choosing instead of all")
    flags = parser.parse_args(argv)
    process.cache_compilations()
    folder = outside.folder()
    if folder is None:
        raise ConfigError(outside.MISSING)
    ways = WAYS if flags.way is None else {flags.way: WAYS[flags.way]}
    for name in (flags.task,) if flags.task else TASKS:
        for task in tasks(folder, name):
            for way, choose in ways.items():
                said = []
                for share in SHARES[-1:] if way == "all runs" else SHARES:
                    scores = []
                    for seed in range(1 if way == "all runs" else flags.repetitions):
                        generator = np.random.default_rng((seed, int(1000 * share)))
                        scores.append(task.score(choose(task, share, generator), seed))
                    said.append(f"{np.mean(scores):+.2f} +- {np.std(scores):.2f}")
                print(f"{name:16s} {task.form:18s} {way:12s} {'  '.join(said)}", flush=True)
    return 0
