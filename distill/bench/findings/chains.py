"""Chains of equals: does a student of its teacher's size, that teaches the next, come out below its teacher?"""

import numpy as np

from distill import laws
from distill.bench.findings.cells import Cells, Key, Label, count, difference, markdown
from distill.report.charts.chart import Axis, Chart, Panel, Series, floats

TABLES = ("chains", "chains-half")
_LONGEST = 4
_BY = ("N", "D", "D_unique", "split")


def section() -> str:
    """The losses along each chain of one size and budget, and how many students end below their teachers."""
    return "\n\n".join(_one(name) for name in TABLES)


def _one(name: str) -> str:
    table = laws.load_table(name)
    table = table.with_column("generation", np.array(_generations(table)))
    cells = Cells.of(table, (*_BY, "generation"))
    weight = float(table["lambda"][table["kind"] == "distillation"][0])
    header = ["N", "D", "unique", "alone", *(f"after {n}" for n in range(1, _LONGEST + 1)), "last less alone"]
    rows = []
    for N, D, U in sorted({key[:3] for key in cells}):
        alone = cells[N, D, U, "student", 0.0]
        along = [cells[N, D, U, "student", float(n)] for n in range(1, _LONGEST + 1)]
        shown = [f"{sum(cell.values()) / len(cell):.4f}" for cell in (alone, *along)]
        rows.append([count(N), count(D), count(U), *shown, f"{difference(along[-1], alone):+.4f}"])
    noise, below = cells.noise, _below(cells)
    clearly = sum(gap > 2 * noise for gap in below)
    return (
        f"lambda = {weight:g}; seeds differ by {noise:.4f} nats (one standard deviation); "
        f"{len(below)} of {_LONGEST * len(rows)} cells end below their teacher, "
        f"{clearly} by more than two of it, the most by {max(below, default=0.0):.4f}:\n\n" + markdown(header, rows)
    )


def _below(cells: Cells) -> list[float]:
    """How far students end below their teachers, nats, where they do: mean over seeds."""
    gaps = []
    for key in cells:
        *cell, generation = key
        if generation != 0:
            before: Key = (*cell[:3], "teacher" if generation == 1 else "student", float(generation) - 1)
            gap = difference(cells[before], cells[key])
            gaps += [gap] if gap > 0 else []
    return gaps


def _generations(table: laws.Table) -> list[int]:
    """How many teachers stand before each run, [rows]."""
    teachers = dict(zip(table["run"], table["teacher"]))

    def before(run: str) -> int:
        return 0 if teachers.get(run) in ("", None) else 1 + before(teachers[run])

    return [before(run) for run in table["run"]]


def charts() -> list[Chart]:
    """Loss along the chain, a panel a size and budget; fresh and repeated text, both lambdas."""
    panels: dict[tuple[Label, Label], list[Series]] = {}
    for name, line in zip(TABLES, ("-", "--")):
        table = laws.load_table(name)
        weight = float(table["lambda"][table["kind"] == "distillation"][0])
        cells = Cells.of(table.with_column("generation", np.array(_generations(table))), (*_BY, "generation"))
        for N, D, U in sorted({key[:3] for key in cells}):
            losses = floats([cells.mean((N, D, U, "student", float(n))) for n in range(_LONGEST + 1)])
            text, colour = ("each token once", "blue") if D == U else ("8 epochs", "orange")
            label = f"{text}, lambda {weight:g}"
            one = Series(label=label, x=floats(np.arange(_LONGEST + 1)), y=losses, colour=colour, line=line, marker="o")
            panels.setdefault((N, D), []).append(one)
    x = Axis(label="teachers before it", ticks=tuple((float(n), str(n)) for n in range(_LONGEST + 1)))
    y = Axis(label="loss (nats per byte)")
    shown = tuple(
        Panel(title=f"N = {count(N)}, D = {count(D)}", x=x, y=y, series=tuple(series))
        for (N, D), series in panels.items()
    )
    alt = "Losses along chains of students that teach the next."
    return [
        Chart(name="finding-chains", alt=alt, caption="Chains of equals: mean of two seeds.", panels=shown, columns=2)
    ]
