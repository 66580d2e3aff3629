"""Two workdirs of one study, whichever machines it ran on: the tables, laws and predictions that must be the same."""

import csv
import json
import math
from pathlib import Path

from distill.records.predictions import PredictionTable, carried

# What depends on the machine and on the moment.
MACHINE = {"start", "end", "machine", "commit"}
# What differs by more than the loss where sums run in another order: differences of sums, and shares of tokens.
DERIVED = {"loss_se", "kl", "agreement", "ece"}


def rows(workdir: Path) -> dict[str, dict[str, str]]:
    """The rows of runs.csv by run, without MACHINE and empty cells (tables of before lack the last columns)."""
    with open(workdir / "runs.csv", newline="") as file:
        return {row["run"]: {k: v for k, v in row.items() if v and k not in MACHINE} for row in csv.DictReader(file)}


def table(one: Path, other: Path) -> list[str]:
    """The runs whose rows of runs.csv differ in any column but MACHINE, or that only one workdir has."""
    mine, theirs = rows(one), rows(other)
    return [
        f"run {run}: {mine.get(run)} {theirs.get(run)}" for run in mine | theirs if mine.get(run) != theirs.get(run)
    ]


def near(one: Path, other: Path, relative: float = 1e-5) -> list[str]:
    """The same with losses that differ by the order of sums: of a run on several hosts and the same on one.

    DERIVED may differ by a hundred times as much.
    """
    mine, theirs = rows(one), rows(other)
    if mine.keys() != theirs.keys():
        return table(one, other)
    pairs = [(run, key, mine[run].get(key, ""), theirs[run].get(key, "")) for run in mine for key in mine[run]]
    return [
        f"run {run}: {key}: {a} {b}"
        for run, key, a, b in pairs
        if a != b and not _close(a, b, relative * (100 if key in DERIVED else 1))
    ]


def _close(one: str, other: str, relative: float) -> bool:
    try:
        return math.isclose(float(one), float(other), rel_tol=relative)
    except ValueError:
        return False


def differences(one: Path, other: Path) -> list[str]:
    """What differs: a row of runs.csv in any column, a law beyond 1e-9 of a parameter, a prediction, a curve."""
    found = table(one, other)
    laws = {path.name for path in (*one.glob("laws/*.json"), *other.glob("laws/*.json"))} - {"plan.json"}
    for name in laws:
        a, b = (json.loads((workdir / "laws" / name).read_text())["parameters"] for workdir in (one, other))
        if a.keys() != b.keys():
            found.append(f"{name}: laws of other forms: {sorted(a)} {sorted(b)}")
            continue
        found += [f"{name}: {key}: {a[key]} {b[key]}" for key in a if abs(a[key] - b[key]) > 1e-9 * abs(a[key])]
    said = [PredictionTable(workdir / "predictions.csv").by_run() for workdir in (one, other)]
    found += [f"predicted: {run}" for run in said[0].keys() ^ said[1].keys()]
    found += [
        f"prediction of {run}" for run, p in said[0].items() if abs(p.predicted / said[1][run].predicted - 1) > 1e-9
    ]
    begun_before = said[1].keys() - carried(other, said[1].values())
    found += [f"{run} began without its prediction" for run in begun_before]
    curves = [sorted((workdir / "curves.csv").read_text().splitlines()) for workdir in (one, other)]
    return found + (["curves.csv"] if curves[0] != curves[1] else [])


if __name__ == "__main__":
    import sys

    # With a third word, tables alone: python -m tests.study.compare docs/study/chains docs/study/chains-ray table
    compared = {"table": table, "near": near, "": differences}[sys.argv[3] if sys.argv[3:] else ""]
    found = compared(Path(sys.argv[1]), Path(sys.argv[2]))
    print("\n".join(found) or f"the same: {len(rows(Path(sys.argv[1])))} runs, in all columns but {sorted(MACHINE)}")
    sys.exit(bool(found))
