"""Tuned frontiers: how much of a law's exponents is the tuning? Rate x warm-up x batch on 12 cells of N and D."""

import itertools

import numpy as np

from distill import laws
from distill.bench.findings.cells import count, markdown

TABLE = "tuned"
_KNOBS = ("optim.learning_rate", "optim.warmup_steps", "batch_size")
_HOW = {"delta": 1e-2, "units": False}


def section() -> str:
    """The best recipe of each cell, and the exponents of one recipe for all cells beside those of the best of each."""
    table = laws.load_table(TABLE)
    return "\n\n".join([_cells(table), _exponents(table)])


def _cells(table: laws.Table) -> str:
    header = ["N", "D", "best loss", "rate", "warm-up", "batch", "rate .014, warm-up 20, batch 4: worse by"]
    rows = []
    for N, D in sorted({(float(N), float(D)) for N, D in zip(table["N"], table["budget"])}):
        mine = table.where((table["N"] == N) & (table["budget"] == D))
        best = int(np.argmin(mine["loss"]))
        usual = mine["loss"][_recipe(mine, (0.014, 20, 4))][0]
        knobs = [f"{mine[name][best]:g}" for name in _KNOBS]
        rows.append([count(N), count(D), f"{mine['loss'][best]:.4f}", *knobs, f"{usual / mine['loss'][best] - 1:.2%}"])
    return markdown(header, rows)


def _recipe(table: laws.Table, values: tuple[float, ...]) -> np.ndarray:
    masks = [np.isclose(table[name], value) for name, value in zip(_KNOBS, values)]
    return np.logical_and.reduce(masks)


def _exponents(table: laws.Table) -> str:
    """alpha, beta and the share of compute that goes to N, by recipe."""
    header = ["rate, warm-up, batch", "runs", "alpha", "beta", "beta / (alpha + beta)", "mean excess over the best"]
    best = _best(table)
    lowest = dict(zip(zip(best["N"], best["budget"]), best["loss"]))
    fits = {"the best of each cell": best}
    for values in itertools.product(*(sorted(set(table[name])) for name in _KNOBS)):
        fits[", ".join(f"{value:g}" for value in values)] = table.where(_recipe(table, values))
    rows, exponents = [], []
    for name, mine in fits.items():
        law = laws.fit("chinchilla", mine, **_HOW).law
        excess = np.mean([loss / lowest[N, D] - 1 for N, D, loss in zip(mine["N"], mine["budget"], mine["loss"])])
        share = law.beta / (law.alpha + law.beta)
        exponents.append((law.alpha, law.beta, share))
        rows.append([name, str(len(mine)), f"{law.alpha:.3f}", f"{law.beta:.3f}", f"{share:.3f}", f"{excess:.2%}"])
    fixed = np.array(exponents[1:], float)
    ranges = [f"{low:.3f} to {high:.3f}" for low, high in zip(fixed.min(0), fixed.max(0))]
    rows.append(["range over fixed recipes", "", *ranges, ""])
    return markdown(header, rows)


def _best(table: laws.Table) -> laws.Table:
    """The lowest loss of every cell."""
    order = np.argsort(table["loss"])
    seen: dict[tuple[float, float], int] = {}
    for row in order:
        seen.setdefault((float(table["N"][row]), float(table["budget"][row])), int(row))
    return table.where(np.array(sorted(seen.values())))
