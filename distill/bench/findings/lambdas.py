"""Lambda by the teacher's strength: do weak teachers help once lambda is tuned, and can a law say so?"""

import dataclasses

import numpy as np

from distill import laws
from distill.bench.findings.cells import Cells, Key, count, difference, markdown, spread
from distill.report.charts.chart import Axis, Chart, Panel, Series, floats

TABLE = "lambda"
_HOW = {"delta": 1e-2, "units": False}
_BY = ("N", "D", "N_T", "D_T")
_HELD = {"the strongest teacher": "N_T > 2e5 and D_T > 3e6", "the largest students": "N_S > 1e5"}
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_RATIOS = (0.8, 0.9, 0.95, 1.0, 1.06)  # of L_T to the loss of the student alone: ends of the rows of the rule
_OTHERS = ((0.9, 1.0), (0.7, 0.8, 0.9, 1.0, 1.1), (0.85, 0.95, 1.0, 1.1))
_FORMS = ("distillation-limit", "overtaking", "lambda-mixture")


def section() -> str:
    """The best lambda of every cell, and held-out errors of the law with lambda as an input."""
    table = laws.load_table(TABLE)
    return "\n\n".join([_tuned(table), rule(table), _laws(table)])


def _tuned(table: laws.Table) -> str:
    """Per student and teacher: the best lambda with what it gains on no teacher, and on the teacher alone."""
    students = table.where("kind == distillation")
    alone = Cells.of(table.where("kind == supervised and split == student"), ("N", "D"))
    taught = {share: Cells.of(students.where(students["lambda"] == share), _BY) for share in (0.25, 0.5, 0.75, 1.0)}
    L_T = Cells.of(students, ("N_T", "D_T"), "L_T")
    cells = sorted(taught[1.0], key=lambda key: (key[0], key[1], -L_T.mean(key[2:])))
    header = [
        "N",
        "D",
        "alone",
        "L_T",
        "L_T / alone",
        "best lambda",
        "gain on none",
        "gain on lambda 1",
        "below L_T by",
    ]
    best = {key: min(taught, key=lambda share: taught[share].mean(key)) for key in cells}
    pairs = [(alone[key[:2]], taught[best[key]][key]) for key in cells]
    error = spread(pairs)
    rows = []
    for key, (none, tuned) in zip(cells, pairs):
        gain, teacher = difference(none, tuned), L_T.mean(key[2:])
        share = best[key] if gain > 0 else 0.0
        loss = sum(tuned.values()) / len(tuned) if gain > 0 else alone.mean(key[:2])
        rows.append([
            count(key[0]), count(key[1]), f"{alone.mean(key[:2]):.3f}", f"{teacher:.3f}",
            f"{teacher / alone.mean(key[:2]):.2f}", f"{share:g}", f"{gain:+.3f}",
            f"{difference(taught[1.0][key], tuned):+.3f}", f"{max(teacher - loss, 0):.3f}",
        ])  # fmt: skip
    weak = [(key, pair) for key, pair in zip(cells, pairs) if L_T.mean(key[2:]) > alone.mean(key[:2])]
    helped = sum(difference(*pair) > 2 * error for _, pair in weak)
    return (
        f"Of {len(weak)} cells whose teacher is worse than the student alone, the teacher helps in {helped} by more "
        f"than two standard errors of a gain ({error:.4f} nats), once lambda is tuned:\n\n" + markdown(header, rows)
    )


@dataclasses.dataclass(frozen=True)
class _Costs:
    """What each of _SHARES costs a cell above its best, [cells, shares], no teacher (0) included."""

    keys: list[Key]  # (N, D, N_T, D_T)
    ratios: np.ndarray  # L_T over the loss of the student alone, [cells]
    cost: np.ndarray

    @classmethod
    def of(cls, table: laws.Table) -> "_Costs":
        students = table.where("kind == distillation")
        alone = Cells.of(table.where("kind == supervised and split == student"), ("N", "D"))
        cells, L_T = Cells.of(students, (*_BY, "lambda")), Cells.of(students, ("N_T", "D_T"), "L_T")
        keys = sorted({key[:4] for key in cells})
        losses = np.array([
            [alone.mean(key[:2]), *(cells.mean((*key, share)) for share in _SHARES[1:])] for key in keys
        ])  # fmt: skip
        ratios = np.array([L_T.mean(key[2:]) / alone.mean(key[:2]) for key in keys])
        return cls(keys, ratios, losses - losses.min(1, keepdims=True))

    def left_out(self, ends: tuple[float, ...]) -> dict[str, tuple[float, np.ndarray]]:
        """By group of cells: the mean cost of the rule that the other cells teach, and the costs of each share."""
        which = np.digitize(self.ratios, ends)
        N, D_T = (np.array([float(key[at]) for key in self.keys]) for at in (0, 3))
        found = {}
        for name, held in (("the largest students", N > 1e5), ("the strongest teacher", D_T > 3e6)):
            if not held.any():
                continue
            rows = [np.flatnonzero(~held & (which == at)) for at in which[held]]
            chosen = [self.cost[row].mean(0).argmin() if len(row) else len(_SHARES) - 1 for row in rows]
            left = self.cost[held]
            found[name] = float(left[np.arange(len(left)), chosen].mean()), left.mean(0)
        return found


def rule(table: laws.Table) -> str:
    """The lambda that costs least by L_T over the student's own loss, and what it costs on cells left out."""
    costs = _Costs.of(table)
    which = np.digitize(costs.ratios, _RATIOS)
    header = ["L_T / alone", "cells", *(f"cost of {share:g}" for share in _SHARES), "least"]
    rows = []
    for at in range(len(_RATIOS) + 1):
        mean = costs.cost[which == at].mean(0)
        low, high = (f"{_RATIOS[i]:g}" if 0 <= i < len(_RATIOS) else "" for i in (at - 1, at))
        name = f"{low} to {high}" if low and high else f"below {high}" if high else f"above {low}"
        rows.append([name, str((which == at).sum()), *(f"{each:.3f}" for each in mean), f"{_SHARES[mean.argmin()]:g}"])
    said = [
        f"{name} {paid:.4f} nats (always 1: {each[-1]:.4f}, always 0: {each[0]:.4f})"
        for name, (paid, each) in costs.left_out(_RATIOS).items()
    ]
    others = [
        f"{', '.join(f'{end:g}' for end in ends)}: "
        + " and ".join(f"{paid:.4f}" for paid, _ in costs.left_out(ends).values())
        for ends in _OTHERS
    ]
    return (
        f"{markdown(header, rows)}\n\nThe rule of the other cells costs, on average over {' and '.join(said)}. The "
        "ends of the rows were chosen with all cells in sight; with others it costs, in turn, at "
        f"{'; at '.join(others)}."
    )


def _laws(table: laws.Table) -> str:
    """Errors of forms on students that they were not fitted to, at all lambdas and at the best of each cell."""
    supervised = table.where("kind == supervised")
    students = table.where("kind == distillation")
    header = [
        "held out",
        "students",
        "form",
        "in the sample",
        "held out: all",
        "lambda = 1",
        "the best lambda",
        "status",
    ]
    rows = []
    for name, rule in _HELD.items():
        held = students.matching(rule)
        own = supervised.where(supervised["N"] < 1e5) if "N_S" in rule else supervised
        law = laws.fit("supervised", own, **_HOW).law
        rest, best = students.where(held), _best(students.where(held))
        one = rest["lambda"] == 1
        guess = _identity(rest, law)
        rows.append([name, str(len(rest)), "(1 - lambda) Lsup + lambda L_T", "", *_errors(guess, rest, one, best), ""])
        for form in _FORMS:
            fit = laws.fit(form, students.where(~held), supervised=law, **_HOW)
            predicted = np.asarray(fit.law(*(rest.column(each).astype(float) for each in fit.law.inputs)))
            errors = _errors(predicted, rest, one, best)
            rows.append(["", "", f"`{form}`", f"{fit.error[0]:.2%}", *errors, fit.status.kind])
    return markdown(header, rows)


def _identity(table: laws.Table, supervised: laws.Law) -> np.ndarray:
    alone = np.asarray(supervised(table["N"].astype(float), table["D"].astype(float)))
    return alone + table["lambda"] * (table["L_T"] - alone)


def _errors(predicted: np.ndarray, table: laws.Table, *masks: np.ndarray) -> list[str]:
    errors = np.abs(predicted / table["loss"] - 1)
    return [f"{errors[mask].mean():.2%}" for mask in (np.ones(len(table), bool), *masks)]


def _best(table: laws.Table) -> np.ndarray:
    """The mask of the lowest mean loss over lambda, by cell."""
    cells = Cells.of(table, (*_BY, "lambda"))
    lowest: dict[Key, Key] = {}
    for key in cells:
        if key[:-1] not in lowest or cells.mean(key) < cells.mean(lowest[key[:-1]]):
            lowest[key[:-1]] = key
    rows = zip(*(table[name] for name in (*_BY, "lambda")))
    return np.array([lowest[tuple(map(float, row))[:-1]][-1] == float(row[-1]) for row in rows])


def charts() -> list[Chart]:
    """Loss over lambda for each teacher, a panel a student and budget."""
    table = laws.load_table(TABLE)
    students = table.where("kind == distillation")
    alone = Cells.of(table.where("kind == supervised and split == student"), ("N", "D"))
    cells, L_T = Cells.of(students, (*_BY, "lambda")), Cells.of(students, ("N_T", "D_T"), "L_T")
    teachers = sorted(L_T, key=lambda key: -L_T.mean(key))
    panels = []
    for N, D in sorted({key[:2] for key in cells}):
        series = []
        for place, teacher in enumerate(teachers):
            shares = sorted(key[-1] for key in cells if key[:4] == (N, D, *teacher))
            y = floats([alone.mean((N, D)), *(cells.mean((N, D, *teacher, share)) for share in shares)])
            x, label = floats([0.0, *map(float, shares)]), f"L_T {L_T.mean(teacher):.2f}"
            shade = place / (len(teachers) - 1)
            series.append(Series(label=label, x=x, y=y, colour=shade, line="-", marker="o", size=4.0))
        title = f"N = {count(N)}, D = {count(D)}"
        panels.append(
            Panel(title=title, x=Axis(label="lambda"), y=Axis(label="loss (nats per byte)"), series=tuple(series))
        )
    alt = "Loss over lambda, from 0 (text alone) to 1 (the teacher alone), a line a teacher."
    caption = "Lambda by the teacher's loss: mean of two seeds."
    return [Chart(name="finding-lambda", alt=alt, caption=caption, panels=tuple(panels))]
