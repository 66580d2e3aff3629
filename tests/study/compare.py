"""Two workdirs of one study, whichever machines it ran on: the tables, laws and predictions that must be the same."""

import csv
import json
from pathlib import Path

from distill.records.predictions import PredictionTable, carried

# What depends on the machine and on the moment.
MACHINE = {"start", "end", "machine", "commit"}


def rows(workdir: Path) -> dict[str, dict[str, str]]:
    """The rows of runs.csv by run, without MACHINE."""
    with open(workdir / "runs.csv", newline="") as file:
        return {row["run"]: {k: v for k, v in row.items() if k not in MACHINE} for row in csv.DictReader(file)}


def differences(one: Path, other: Path) -> list[str]:
    """What differs: a row of runs.csv in any column, a law beyond 1e-9 of a parameter, a prediction, a curve."""
    found = []
    mine, theirs = rows(one), rows(other)
    found += [
        f"run {run}: {mine.get(run)} {theirs.get(run)}" for run in mine | theirs if mine.get(run) != theirs.get(run)
    ]
    laws = {path.name for path in (*one.glob("laws/*.json"), *other.glob("laws/*.json"))} - {"plan.json"}
    for name in laws:
        a, b = (json.loads((workdir / "laws" / name).read_text())["parameters"] for workdir in (one, other))
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

    print("\n".join(found := differences(Path(sys.argv[1]), Path(sys.argv[2]))) or "the same")
    sys.exit(bool(found))
