"""Cells of a study: runs that differ in their seed alone, compared seed by seed."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from distill import laws

Label = float | str
Key = tuple[Label, ...]


@dataclasses.dataclass(frozen=True)
class Cells(Mapping[Key, Mapping[int, float]]):
    """Losses of a table by cell and seed, nats a token; `noise` is the standard deviation between seeds, pooled."""

    by_seed: Mapping[Key, Mapping[int, float]]

    @classmethod
    def of(cls, table: laws.Table, by: Sequence[str], value: str = "loss") -> "Cells":
        """The cells of a table by these columns. A teacher's fingerprint differs by seed: use its N_T, D_T instead."""
        by_seed: dict[Key, dict[int, float]] = {}
        columns = [table[name] for name in by]
        for row, (seed, loss) in enumerate(zip(table["seed"], table[value])):
            by_seed.setdefault(tuple(_plain(column[row]) for column in columns), {})[int(seed)] = float(loss)
        return cls(by_seed)

    def __getitem__(self, key: Key) -> Mapping[int, float]:
        return self.by_seed[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self.by_seed)

    def __len__(self) -> int:
        return len(self.by_seed)

    @property
    def noise(self) -> float:
        repeated = [list(cell.values()) for cell in self.by_seed.values() if len(cell) > 1]
        freedom = sum(len(cell) - 1 for cell in repeated)
        return math.sqrt(sum(np.var(cell) * len(cell) for cell in repeated) / freedom) if freedom else math.nan

    def mean(self, key: Key) -> float:
        return float(np.mean(list(self.by_seed[key].values())))


def difference(a: Mapping[int, float], b: Mapping[int, float]) -> float:
    """The mean of a - b over the seeds that both have: what a seed does to both cancels."""
    return float(np.mean([a[seed] - b[seed] for seed in a.keys() & b.keys()]))


def spread(pairs: Sequence[tuple[Mapping[int, float], Mapping[int, float]]]) -> float:
    """The standard error of one cell's `difference`, from how much a - b differs between the seeds of all pairs."""
    deviations, freedom, seeds = 0.0, 0, []
    for a, b in pairs:
        each = [a[seed] - b[seed] for seed in a.keys() & b.keys()]
        deviations += float(np.var(each)) * len(each)
        freedom += len(each) - 1
        seeds.append(len(each))
    return math.sqrt(deviations / freedom / float(np.mean(seeds))) if freedom else math.nan


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def count(cell: Label) -> str:
    """A size or a budget as people write it: 6.8K, 1M."""
    value = float(cell)
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= 0.9995 * unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def _plain(cell: object) -> Label:
    return float(cell) if isinstance(cell, int | float | np.floating | np.integer) else str(cell)
