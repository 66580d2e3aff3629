"""What was predicted before: laws of the runs that had ended, on runs that had not begun."""

import datetime
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distill import laws
from distill.bench.findings.cells import markdown
from distill.config import ConfigError
from distill.records.predictions import PredictionTable, settled
from distill.records.runs import RunTable

FOLDER = Path("docs/study")  # from the repository's root
STUDIES = ("repeats", "chains", "chains-half", "teachers")
# When docs/study/lambda/predicted.csv was committed, from 124 runs of one seed.
_COMMITTED = datetime.datetime(2026, 11, 30, 17, 16, tzinfo=datetime.UTC)
_CELL = ("N", "D", "N_T", "D_T", "lambda")
_STRONGEST = 3e6  # tokens of the strongest teacher, at least


def section() -> str:
    """Errors of the studies' own predictions, and of `lambda-mixture` on the study of lambda."""
    if not FOLDER.is_dir():
        raise ConfigError(f"{FOLDER}: not here; wanted the repository's root as the current folder")
    header = ["study", "predicted from", "runs", "mean error", "largest", "inside their 90%"]
    return markdown(header, [*(_of_study(name) for name in STUDIES), *_of_lambda()])


def _of_study(name: str) -> list[str]:
    """The last stage of a study, by its own law of students."""
    made = PredictionTable(FOLDER / name / "predictions.csv").load()
    runs = RunTable(FOLDER / name / "runs.csv").runs()
    pairs = list(settled(made, runs))
    errors = [abs(prediction.predicted / run.loss - 1) for prediction, run in pairs]
    inside = sum(prediction.contains(run.loss) for prediction, run in pairs)
    return [name, "its smaller budgets, by Eq. 8", *_errors(errors), f"{inside} of {len(pairs)}"]


def _of_lambda() -> list[list[str]]:
    """Runs that began after the commit, by whether their cell had been seen, and under the strongest teacher."""
    predicted = laws.load_table(FOLDER / "lambda" / "predicted.csv")
    cells = {_cell(row): row for row in zip(*(predicted[name] for name in (*_CELL, "predicted", "identity", "fitted")))}
    runs = laws.load_table("lambda").where("kind == distillation")
    late = np.array([datetime.datetime.fromisoformat(start) > _COMMITTED for start in runs["start"].tolist()])
    groups: dict[str, list[tuple[float, float]]] = {}
    for *cell, loss in zip(*(runs.where(late)[name] for name in (*_CELL, "loss"))):
        *_, mixture, plain, fitted = cells[_cell(cell)]
        seen = "new seeds" if str(fitted) == "True" else "new cells"
        group = "the strongest teacher" if cell[3] > _STRONGEST else seen
        groups.setdefault(group, []).append((abs(mixture / loss - 1), abs(plain / loss - 1)))
    rows = []
    for group, errors in groups.items():
        for at, form in enumerate(("`lambda-mixture`", "(1 - lambda) Lsup + lambda L_T")):
            rows.append([f"lambda: {group}", f"124 runs of one seed, by {form}", *_errors([e[at] for e in errors]), ""])
    return rows


def _cell(row: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in row[: len(_CELL)])


def _errors(errors: Sequence[float]) -> tuple[str, str, str]:
    """How many, their mean and the largest."""
    return str(len(errors)), f"{np.mean(errors):.2%}", f"{max(errors):.2%}"
