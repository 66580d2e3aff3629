"""Repeated text: does a teacher's signal make repetition cheaper? U unique tokens of D, alone and taught."""

import numpy as np
from scipy.optimize import brentq

from distill import laws
from distill.bench.findings.cells import Cells, count, difference, markdown, spread
from distill.report.charts.chart import Axis, Chart, Panel, Series, floats

TABLE = "repeats"
_HOW = {"delta": 1e-2, "units": False}


def section() -> str:
    """Losses by share of unique text, what an epoch of signals is worth in fresh text, and the laws held out."""
    table = laws.load_table(TABLE)
    return "\n\n".join([_losses(table), _worth(table), _teachers(table), _laws(table)])


def _strongest(table: laws.Table) -> tuple[laws.Table, laws.Table]:
    """Supervised students, and those of the strongest teacher; rows that taught are not among them."""
    students = table.where("kind == distillation")
    return table.where("split == student and kind == supervised"), students.where(
        students["N_T"] == max(students["N_T"])
    )


def _losses(table: laws.Table) -> str:
    alone, taught = (Cells.of(each, ("N", "D", "D_unique")) for each in _strongest(table))
    header = ["N", "D", "", "all unique", *(f"1/{n}: rise" for n in (2, 4, 8, 16)), "standard error"]
    rows = []
    for N, D in sorted({key[:2] for key in taught}):
        for name, cells in (("alone", alone), ("taught", taught)):
            shares = sorted((key for key in cells if key[:2] == (N, D)), key=lambda key: -float(key[2]))
            fresh = cells[shares[0]]
            rises = [f"{difference(cells[key], fresh):+.4f}" for key in shares[1:]]
            error = spread([(cells[key], fresh) for key in shares[1:]])
            rows.append([count(N), count(D), name, f"{cells.mean(shares[0]):.4f}", *rises, f"{error:.4f}"])
    return markdown(header, rows)


def _worth(table: laws.Table) -> str:
    """Fresh tokens of supervised training that reach the loss of repeated ones, over the unique tokens of each."""
    alone, taught = _strongest(table)
    law = _supervised("supervised", alone.where("D == D_unique")).law
    header = ["N", "U", "epochs", "alone: fresh tokens for one unique", "taught"]
    rows = []
    both = [Cells.of(each, ("N", "D", "D_unique")) for each in (alone, taught)]
    for N, D, U in sorted(key for key in both[1] if key in both[0]):
        worth = [f"{_tokens(law, float(N), cells.mean((N, D, U))) / float(U):.3g}" for cells in both]
        rows.append([count(N), count(U), f"{float(D) / float(U):.0f}", *worth])
    return markdown(header, rows)


def _tokens(law: laws.Law, N: float, loss: float) -> float:
    """The fresh tokens that supervised training takes to this loss; inf below the law's reach."""
    if float(law(N, 1e12)) >= loss:
        return float("inf")
    return float(np.exp(brentq(lambda x: float(law(N, np.exp(x))) - loss, np.log(1e3), np.log(1e12))))


def _teachers(table: laws.Table) -> str:
    """Teachers that repeat their text, and what becomes of their students."""
    students = table.where("kind == distillation")
    students = students.where(students["N_T"] < max(students["N_T"]))
    teachers = Cells.of(students, ("D_T_unique",), "L_T")
    header = ["teacher's unique share", "L_T", *(f"student N = {count(N)}" for N in sorted(set(students["N"])))]
    cells = Cells.of(students, ("D_T_unique", "N"))
    rows = []
    for (U,) in sorted(teachers, key=lambda key: -float(key[0])):
        losses = [f"{cells.mean((U, N)):.4f}" for N in sorted(set(students["N"]))]
        rows.append([f"1/{students['D_T'].max() / float(U):.0f}", f"{teachers.mean((U,)):.4f}", *losses])
    return markdown(header, rows)


def _supervised(form: str, table: laws.Table) -> laws.Fit:
    return laws.fit(form, table, **_HOW)


def _laws(table: laws.Table) -> str:
    """Errors of laws fitted without the most repeated runs, on them."""
    header = ["law", "of", "runs", "in the sample", "held out", "most repeated: mean error", "status"]
    alone, taught = _strongest(table)
    rows = []
    for form in ("supervised", "data-constrained", "additive-penalty"):
        rows.append(_held(form, "alone", alone, None))
    fresh = _supervised("supervised", alone.where("D == D_unique"))
    repeated = _supervised("additive-penalty", alone.where(~_most(alone)))
    for form, below in (
        ("distillation-limit", fresh),
        ("distillation-unique", fresh),
        ("distillation-unique", repeated),
    ):
        rows.append(_held(form, f"taught, on `{below.law.name}`", taught, below.law))
    return markdown(header, rows)


def _most(table: laws.Table) -> np.ndarray:
    """The most repeated runs, which the laws are judged on."""
    return table["D"] > 15 * table["D_unique"]


def _held(form: str, name: str, table: laws.Table, supervised: laws.Law | None) -> list[str]:
    held = _most(table)
    fit = laws.fit(form, table.where(~held), supervised=supervised, **_HOW)
    rest = table.where(held)
    predicted = np.asarray(fit.law(*(rest.column(name).astype(float) for name in fit.law.inputs)))
    error = float(np.abs(predicted / rest["loss"] - 1).mean())
    counts = str(len(fit.rows)), str(int(held.sum()))
    return [f"`{form}`", name, counts[0], f"{fit.error[0]:.2%}", counts[1], f"{error:.2%}", fit.status.kind]


def charts() -> list[Chart]:
    """Loss over epochs, alone and taught, a panel a size."""
    alone, taught = (Cells.of(each, ("N", "D", "D_unique")) for each in _strongest(laws.load_table(TABLE)))
    budgets = sorted({key[1] for key in taught})
    panels = []
    for N in sorted({key[0] for key in taught}):
        series = []
        for D, marker in zip(budgets, "os"):
            for name, cells, colour in (("alone", alone, "orange"), ("taught", taught, "blue")):
                keys = sorted((key for key in cells if key[:2] == (N, D)), key=lambda key: -float(key[2]))
                epochs = floats([float(D) / float(key[2]) for key in keys])
                y, label = floats([cells.mean(key) for key in keys]), f"{name}, {count(D)} tokens"
                series.append(Series(label=label, x=epochs, y=y, colour=colour, line="-", marker=marker))
        x = Axis(
            label="epochs of the unique text", log=True, ticks=((1, "1"), (2, "2"), (4, "4"), (8, "8"), (16, "16"))
        )
        panels.append(Panel(title=f"N = {count(N)}", x=x, y=Axis(label="loss (nats per byte)"), series=tuple(series)))
    alt = (
        "Loss over epochs of repeated text: training alone rises steeply at 16 epochs, students of a teacher hardly do."
    )
    caption = "Repeated text, alone and with a teacher's distributions: mean of two seeds."
    return [Chart(name="finding-repeats", alt=alt, caption=caption, panels=tuple(panels))]
