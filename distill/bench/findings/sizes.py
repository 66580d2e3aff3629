"""Does L_T subsume N_T? Three losses, each of teachers of three sizes, and students of three sizes on two budgets."""

from collections.abc import Iterable

import numpy as np

from distill import laws
from distill.bench.findings.cells import count, markdown
from distill.report.charts.chart import Axis, Chart, Panel, Series, floats

TABLE = "teachers"
_HOW = {"delta": 1e-2, "units": False}
_RESAMPLES = 2000


def section() -> str:
    """The effect of the logarithm of N_T at one L_T, by level and for every student, with intervals by teacher."""
    table = laws.load_table(TABLE)
    students = table.where("kind == distillation")
    return "\n\n".join([_levels(students), _effects(students), _form(table, students)])


def _levels(students: laws.Table) -> str:
    header = ["N_T", "D_T", "L_T, by seed"]
    rows = []
    pairs = {(float(N), float(D)) for N, D in zip(students["N_T"], students["D_T"])}
    teachers = [students.where((students["N_T"] == N) & (students["D_T"] == D)) for N, D in pairs]
    for mine in sorted(teachers, key=lambda mine: -mine["L_T"].mean()):
        losses = [f"{mine['L_T'][mine['seed'] == seed][0]:.4f}" for seed in sorted(set(mine["seed"]))]
        rows.append([count(mine["N_T"][0]), count(mine["D_T"][0]), ", ".join(losses)])
    return markdown(header, rows)


def _effects(students: laws.Table) -> str:
    """What a teacher 16 times larger, of equal loss, does to a student; all from one regression a student cell.

    log L_S = a + b log L_T + c log N_T + a term a seed, over the nine teachers; and c alone over all cells at once,
    with a, b and seeds of its own for every cell. Intervals: 90%, teachers resampled (both seeds of one together).
    """
    header = ["student N", "D", "16 x N_T at one L_T changes L_S by", "90%, by teacher"]
    generator = np.random.default_rng(0)
    teachers = students["N_T"] * 1e12 + students["D_T"]
    names = np.unique(teachers)
    draws = [generator.integers(len(names), size=len(names)) for _ in range(_RESAMPLES)]
    cells = sorted({(float(N), float(D)) for N, D in zip(students["N"], students["D"])})
    rows, total, resampled = [], [], []
    for N, D in cells:
        mine = students.where((students["N"] == N) & (students["D"] == D))
        which = np.searchsorted(names, mine["N_T"] * 1e12 + mine["D_T"])
        effect = _effect(mine, np.ones(len(mine)))
        spread = np.array(
            [_effect(mine, np.bincount(draw, minlength=len(names))[which].astype(float)) for draw in draws]
        )
        total.append(effect)
        resampled.append(spread)
        rows.append([count(N), count(D), f"{effect:+.2%}", _interval(spread)])
    rows.append(["all", "", f"{np.mean(total):+.2%}", _interval(np.mean(resampled, axis=0))])
    return markdown(header, rows)


def _effect(mine: laws.Table, weight: np.ndarray) -> float:
    """The relative change of L_S by a teacher 16 times larger of equal L_T; nan where the teachers do not tell."""
    if len(np.unique(mine["N_T"][weight > 0])) < 3:
        return float("nan")
    columns = [np.ones(len(mine)), mine["seed"] == 1, np.log(mine["L_T"]), np.log(mine["N_T"])]
    design = np.stack(columns, axis=1).astype(float) * np.sqrt(weight)[:, None]
    slopes = np.linalg.lstsq(design, np.log(mine["loss"]) * np.sqrt(weight), rcond=None)[0]
    return float(np.expm1(slopes[-1] * np.log(16.0)))


def _interval(values: np.ndarray) -> str:
    low, high = np.nanquantile(values, (0.05, 0.95))
    return f"{low:+.2%} to {high:+.2%}"


def _recipes(students: laws.Table) -> Iterable[tuple[float, float]]:
    """(N_T, D_T) of each row."""
    return zip(students["N_T"], students["D_T"])


def _form(table: laws.Table, students: laws.Table) -> str:
    """eta of the forms with the teacher's size or tokens, beside the form without, by teacher."""
    alone = laws.load_table("lambda").where("kind == supervised")
    supervised = laws.fit("supervised", alone, **_HOW)
    labelled = students.with_column("recipe", np.array([f"{N:.0f}@{D:.0f}" for N, D in _recipes(students)]))
    header = ["form", "in the sample", "eta", "90%, by teacher"]
    rows = []
    for form in ("distillation-limit", "teacher-size", "teacher-tokens"):
        fit = laws.fit(form, labelled, supervised=supervised.law, **_HOW)
        row = [f"`{form}`", f"{fit.error[0]:.3%}", "", ""]
        if form != "distillation-limit":
            boot = laws.bootstrap(fit, resamples=400, cluster="recipe")
            low, high = boot.interval(0.9)["eta"]
            row[2:] = [f"{fit.law.eta:+.3f}", f"{low:+.3f} to {high:+.3f}"]
        rows.append(row)
    return markdown(header, rows)


def charts() -> list[Chart]:
    """Students over their teacher's loss, coloured by the teacher's size; a panel a student and budget."""
    students = laws.load_table(TABLE).where("kind == distillation")
    panels = []
    for N, D in sorted({(float(N), float(D)) for N, D in zip(students["N"], students["D"])}):
        mine = students.where((students["N"] == N) & (students["D"] == D))
        series = []
        for place, N_T in enumerate(sorted(set(mine["N_T"]))):
            one = mine.where(mine["N_T"] == N_T)
            shade, label = place / max(len(set(mine["N_T"])) - 1, 1), f"N_T = {count(N_T)}"
            series.append(Series(label=label, x=floats(one["L_T"]), y=floats(one["loss"]), colour=shade, marker="o"))
        title = f"N = {count(N)}, D = {count(D)}"
        panels.append(Panel(title=title, x=Axis(label="L_T"), y=Axis(label="L_S"), series=tuple(series)))
    alt = "Losses of students over those of their teachers; teachers of equal loss and other size lie on one another."
    return [Chart(name="finding-teachers", alt=alt, caption="Teachers of equal loss: two seeds.", panels=tuple(panels))]
