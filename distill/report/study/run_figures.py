"""The figures of a study's runs: students against teachers, loss against tokens, learning curves."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from distill.records.runs import RunRecord
from distill.report.charts.chart import Axis, Chart, Panel, Series, floats, joined
from distill.report.study.findings import baselines
from distill.report.study.results import Results
from distill.report.theme import LOSS, MARKERS, padded, places
from distill.system.numbers import si

T = TypeVar("T")
_NAMED, _PANELS = 18, 12  # most teachers in a legend, most sizes in a figure: more would be unreadable
_Kind = tuple[int | None, int | None]  # a teacher's N and D


def students(results: Results) -> Chart | None:
    """L_S against L_T: a panel per student size, a line per budget, supervised training dashed, the teacher dotted."""
    runs = results.distilled
    if not runs:
        return None
    sizes, note = _panels({run.N for run in runs})
    budgets = sorted({run.D for run in runs})
    alone = baselines(results.runs)
    shown = [loss for N in sizes for D in budgets for loss in _losses(alone.get((N, D), []))]
    down = padded([run.loss for run in runs if run.N in sizes] + shown)
    across = padded([run.L_T for run in runs if run.L_T is not None])
    ends = floats([min(across[0], down[0]), max(across[1], down[1])])
    x = Axis(label="teacher's L_T (better to the left)", limits=across)
    y = Axis(label="student's L_S (nats per token)", limits=down)
    equal = Series(label="student = teacher", x=ends, y=ends, colour="soft", line=":", width=1.2)
    frames = []
    for N in sizes:
        series = [
            part
            for place, (D, shade) in enumerate(zip(budgets, places(len(budgets))))
            for part in _budget(results, N, D, alone.get((N, D), []), shade, MARKERS[place % len(MARKERS)], across)
        ]
        frames.append(Panel(title=f"student N = {si(N)}", x=x, y=y, series=(*series, equal)))
    return Chart(
        name="students",
        alt="Line charts, one panel a student size, of student loss L_S against teacher loss L_T.",
        caption="Student loss against the teacher's loss, a line for every number of tokens D. Dashed: supervised "
        "training of the same N and D. Dotted: the student equals its teacher. Faint markers are single runs, lines "
        "their means.",
        panels=tuple(frames),
        shared=True,
        note=note,
    )


def _budget(
    results: Results, N: int, D: int, alone: Sequence[RunRecord], shade: float, marker: str, across: tuple[float, float]
) -> list[Series]:
    """The students of one size and budget, their means, and supervised training of the same."""
    group = [run for run in results.distilled if (run.N, run.D) == (N, D)]
    if not group:
        return []
    label = f"D = {si(D)}"
    single = Series(
        label=label,
        x=floats([run.L_T or np.nan for run in group]),
        y=floats(_losses(group)),
        colour=shade,
        marker=marker,
        size=4,
        alpha=0.35,
        named=False,
        facts=facts(results, group),
    )
    x, y = _means(group, lambda run: run.L_T)
    mean = Series(label=label, x=x, y=y, colour=shade, line="-", marker=marker)
    if not alone:
        return [single, mean]
    level = float(np.mean(_losses(alone)))
    known = {"supervised": [f"N {si(N)}, D {si(D)}"] * 2}
    rule = Series(
        label="supervised, same N and D",
        x=floats(across),
        y=floats([level, level]),
        colour=shade,
        line="--",
        width=1.1,
        facts=known,
    )
    return [single, mean, rule]


def tokens(results: Results) -> Chart:
    """Loss against D: a panel per size, supervised training in black, a line per teacher."""
    teaching = {teacher for run in results.runs for teacher in run.teachers}
    # A size that only teaches has nothing to compare with.
    compared = {run.N for run in results.runs if run.run not in teaching} or {run.N for run in results.runs}
    sizes, note = _panels(compared)
    x, y = Axis(label="training tokens D", log=True, counts=True), Axis(label=LOSS)
    frames = [Panel(title=f"N = {si(N)}", x=x, y=y, series=tuple(_by_tokens(results, N))) for N in sizes]
    return Chart(
        name="tokens",
        alt="Line charts, one panel a model size, of loss against training tokens.",
        caption="Validation loss against training tokens, supervised (dashed) and taught by each teacher. Stars are "
        "the supervised runs that teach; they saw the teachers' half of the text.",
        panels=tuple(frames),
        shared=True,
        note=note,
    )


def _by_tokens(results: Results, N: int) -> list[Series]:
    """The runs of one size: a line per teacher, then supervised runs."""
    teaching = {teacher for run in results.runs for teacher in run.teachers}
    kinds = _teachers(results.distilled)
    named = _some(kinds)
    series = []
    for place, (kind, shade) in enumerate(zip(kinds, places(len(kinds)))):
        group = [run for run in results.distilled if run.N == N and kind == (run.N_T, run.D_T)]
        if not group:
            continue
        label, marker = _teacher_name(kind, kinds[kind]), MARKERS[place % len(MARKERS)]
        series += _line_of_means(results, group, label, shade, "-", marker, named=kind in named)
    own = [run for run in results.supervised if run.N == N]
    plain, teach = [r for r in own if r.run not in teaching], [r for r in own if r.run in teaching]
    if plain:
        series += _line_of_means(results, plain, "supervised", "ink", "--", "o", named=True)
    if teach:
        series.append(
            Series(
                label="supervised, teaches",
                x=floats([r.D for r in teach]),
                y=floats(_losses(teach)),
                colour="ink",
                marker="*",
                size=9,
                facts=facts(results, teach),
            )
        )
    return series


def _line_of_means(
    results: Results, runs: Sequence[RunRecord], label: str, colour: str | float, line: str, marker: str, *, named: bool
) -> list[Series]:
    """Means over seeds as a line; where settings have several runs, these as faint markers."""
    x, y = _means(runs, lambda run: run.D)
    alone = len(x) == len(runs)
    ordered = sorted(runs, key=lambda run: run.D)
    known = facts(results, ordered) if alone else {}
    mean = Series(
        label=label, x=x, y=y, colour=colour, line=line, marker=marker, hollow=line == "--", facts=known, named=named
    )
    if alone:
        return [mean]
    single = Series(
        label=label,
        x=floats([run.D for run in runs]),
        y=floats(_losses(runs)),
        colour=colour,
        marker=marker,
        size=3,
        alpha=0.35,
        facts=facts(results, runs),
        named=False,
    )
    return [single, mean]


def learning(results: Results) -> Chart | None:
    """Training loss against tokens: a panel per size, supervised runs in black, students in their teacher's shade."""
    curved = [run for run in results.runs if len(results.curves.get(run.run, ())) > 1]
    if not curved:
        return None
    sizes, note = _panels({run.N for run in curved})
    kinds = _teachers(curved)
    named, shades = _some(kinds), dict(zip(kinds, places(len(kinds))))
    ends = [loss for run in curved for loss in _settled([p.loss for p in results.curves[run.run]])]
    x = Axis(label="tokens seen", log=True, counts=True)
    y = Axis(label=f"training {LOSS}", limits=padded(ends))
    frames = []
    for N in sizes:
        here = [run for run in curved if run.N == N]
        series = []
        for kind in kinds:
            taught = [run for run in here if run.kind == "distillation" and kind == (run.N_T, run.D_T)]
            if taught:
                label = _teacher_name(kind, kinds[kind])
                series.append(_curves(results, taught, label, shades[kind], "-", 0.9, named=kind in named))
        # Supervised curves last and thin, on top of the many students.
        alone = [run for run in here if run.kind != "distillation"]
        if alone:
            series.append(_curves(results, alone, "supervised", "ink", "--", 1.0, named=True))
        frames.append(Panel(title=f"N = {si(N)}", x=x, y=y, series=tuple(series)))
    return Chart(
        name="learning",
        alt="Line charts, one panel a model size, of training loss against tokens seen.",
        caption="Training loss on the way (cross-entropy against the data). Runs of one trunk share their curve "
        "until the learning rate decays.",
        panels=tuple(frames),
        shared=True,
        note=note,
    )


def _curves(
    results: Results,
    runs: Sequence[RunRecord],
    label: str,
    colour: str | float,
    line: str,
    width: float,
    *,
    named: bool,
) -> Series:
    """The training losses of several runs as one series."""
    curves = [results.curves[run.run] for run in runs]
    x, y, starts = joined([([p.tokens for p in curve], [p.loss for p in curve]) for curve in curves])
    return Series(
        label=label,
        x=x,
        y=y,
        starts=starts,
        colour=colour,
        line=line,
        width=width,
        alpha=0.8,
        named=named,
        facts=facts(results, runs),
    )


def facts(results: Results, runs: Sequence[RunRecord]) -> dict[str, list[object]]:
    """What identifies runs for a reader: name, N, D, L_T, seed."""
    return {
        "run": [results.name(run) for run in runs],
        "N": [si(run.N) for run in runs],
        "D": [si(run.D) for run in runs],
        "L_T": ["" if run.L_T is None else f"{run.L_T:.4f}" for run in runs],
        "seed": [run.seed for run in runs],
    }


def _losses(runs: Sequence[RunRecord]) -> list[float]:
    return [run.loss for run in runs]


def _settled(losses: Sequence[float]) -> Sequence[float]:
    """A curve without its first fifth, whose steep fall would flatten the rest."""
    return losses[len(losses) // 5 :]


def _means(runs: Sequence[RunRecord], x: Callable[[RunRecord], float | None]) -> tuple[np.ndarray, np.ndarray]:
    """Mean x and loss over the seeds of every setting, by rising x."""
    groups: dict[tuple[int | None, int | None, int], list[tuple[float, float]]] = defaultdict(list)
    for run in runs:
        groups[run.N_T, run.D_T, run.D].append((x(run) or np.nan, run.loss))
    means = np.array([np.mean(group, axis=0) for group in groups.values()])
    x_mean, loss = means[np.argsort(means[:, 0])].T
    return x_mean, loss


def _teachers(runs: Sequence[RunRecord]) -> dict[_Kind, float]:
    """Mean L_T of every teacher's recipe (N_T, D_T), the weakest first."""
    groups = defaultdict(list)
    for run in runs:
        if run.L_T is not None:
            groups[run.N_T, run.D_T].append(run.L_T)
    means = {kind: float(np.mean(losses)) for kind, losses in groups.items()}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def _some(kinds: dict[_Kind, float]) -> list[_Kind]:
    """Teachers for a legend: all, or evenly from the weakest to the strongest as many as fit."""
    return _spread(list(kinds), _NAMED)


def _panels(sizes: set[int]) -> tuple[list[int], str]:
    """The sizes that get a panel: all, or evenly from the smallest to the largest as many as fit; and a note on it."""
    shown = _spread(sorted(sizes), _PANELS)
    return shown, f"{len(shown)} of {len(sizes)} sizes" if len(shown) < len(sizes) else ""


def _spread(values: list[T], most: int) -> list[T]:
    """At most so many of the values, evenly spaced, including the first and the last."""
    return [values[i] for i in np.linspace(0, len(values) - 1, min(len(values), most)).round().astype(int)]


def _teacher_name(kind: _Kind, loss: float) -> str:
    N, D = kind
    return f"teacher {si(N or 0)} on {si(D or 0)}, L_T {loss:.3f}"
