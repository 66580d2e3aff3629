"""Ensembles of equals: students of one, two and four teachers of their own size and budget, at lambda .5 and 1."""

from distill import laws
from distill.bench.findings.cells import Cells, count, difference, markdown, spread

TABLE = "ensembles"
_TEACHERS = (1.0, 2.0, 4.0)


def section() -> str:
    """Losses of teachers and students, by how many teachers taught together."""
    table = laws.load_table(TABLE)
    students = table.where("kind == distillation")
    students = students.with_column("teachers", students["N_T"] / students["N"])
    alone = Cells.of(table.where("kind == supervised and split == student"), ("N", "D"))
    cells = Cells.of(students, ("N", "D", "lambda", "teachers"))
    L_T = Cells.of(students.where("lambda == 1"), ("N", "D", "teachers"), "L_T")
    header = [
        "N",
        "D",
        "alone",
        "lambda",
        *(f"{n:.0f}: L_T, L_S" for n in _TEACHERS),
        "four less one",
        "four less alone",
    ]
    pairs = [(cells[N, D, share, 4.0], cells[N, D, share, 1.0]) for N, D, share, n in cells if n == 1.0]
    rows = []
    for N, D, share in sorted({key[:3] for key in cells}):
        each = [f"{L_T.mean((N, D, n)):.4f}, {cells.mean((N, D, share, n)):.4f}" for n in _TEACHERS]
        more = difference(cells[N, D, share, 4.0], cells[N, D, share, 1.0])
        gain = difference(cells[N, D, share, 4.0], alone[N, D])
        own = f"{alone.mean((N, D)):.4f}"
        rows.append([count(N), count(D), own, f"{float(share):g}", *each, f"{more:+.4f}", f"{gain:+.4f}"])
    return f"{markdown(header, rows)}\n\nStandard error of a difference: {spread(pairs):.4f}."
