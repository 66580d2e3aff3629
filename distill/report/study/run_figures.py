"""The figures of a study's runs: students against teachers, loss against tokens, learning curves."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from distill.records.runs import RunRecord
from distill.report.study.findings import baselines
from distill.report.study.results import Results
from distill.report.theme import LOSS, MARKERS, Theme, count_ticks, label, legend, padded, panels
from distill.system.numbers import si

T = TypeVar("T")
_NAMED, _PANELS = 18, 12  # most teachers in a legend, most sizes in a figure: more would be unreadable


def students(results: Results, theme: Theme) -> Figure | None:
    """L_S against L_T: a panel per student size, a line per budget, supervised training dashed, the teacher dotted."""
    runs = results.distilled
    if not runs:
        return None
    sizes, title = _panels({run.N for run in runs})
    budgets = sorted({run.D for run in runs})
    shades = dict(zip(budgets, theme.shades(len(budgets))))
    alone = baselines(results.runs)
    figure, axes = panels(len(sizes), legend_rows=2)
    teachers = [run.L_T for run in runs if run.L_T is not None]
    shown = [loss for N in sizes for D in budgets for loss in _losses(alone.get((N, D), []))]
    bottom, top = padded([run.loss for run in runs if run.N in sizes] + shown)
    left, right = padded(teachers)
    for ax, N in zip(axes, sizes):
        for place, D in enumerate(budgets):
            group = [run for run in runs if (run.N, run.D) == (N, D)]
            if not group:
                continue
            x, y = _means(group, lambda run: run.L_T)
            color, marker = shades[D], MARKERS[place % len(MARKERS)]
            ax.plot(
                [run.L_T or np.nan for run in group],
                _losses(group),
                ls="",
                marker=marker,
                color=color,
                alpha=0.35,
                ms=4,
            )
            ax.plot(x, y, marker=marker, color=color)
            if (N, D) in alone:
                ax.axhline(float(np.mean(_losses(alone[N, D]))), color=color, ls=(0, (4, 3)), lw=1.1)
        ends = [min(left, bottom), max(right, top)]
        ax.plot(ends, ends, color=theme.soft, ls=":", lw=1.2)
        ax.set(title=f"student N = {si(N)}", xlim=(left, right), ylim=(bottom, top))
    label(axes, "teacher's $L_T$ (better to the left)", "student's $L_S$ (nats per token)")
    handles: list[Any] = [
        Line2D([], [], color=shades[D], marker=MARKERS[i % len(MARKERS)], label=f"D = {si(D)}")
        for i, D in enumerate(budgets)
    ]
    handles += [
        Line2D([], [], color=theme.ink, ls=(0, (4, 3)), lw=1.1, label="supervised, same N and D"),
        Line2D([], [], color=theme.soft, ls=":", lw=1.2, label="student = teacher"),
    ]
    legend(figure, handles, title=title)
    return figure


def tokens(results: Results, theme: Theme) -> Figure:
    """Loss against D: a panel per size, supervised training in black, a line per teacher."""
    teaching = {run.teacher for run in results.runs}
    # A size that only teaches has nothing to compare with.
    sizes, title = _panels(
        {run.N for run in results.runs if run.run not in teaching} or {run.N for run in results.runs}
    )
    kinds = _teachers(results.distilled)
    shades, named = dict(zip(kinds, theme.shades(len(kinds)))), _some(kinds)
    figure, axes = panels(len(sizes), legend_rows=1 + (len(named) + 2) // 3)
    for ax, N in zip(axes, sizes):
        own = [run for run in results.supervised if run.N == N]
        taught = [run for run in results.distilled if run.N == N]
        plain, teach = [r for r in own if r.run not in teaching], [r for r in own if r.run in teaching]
        for place, kind in enumerate(kinds):
            group = [run for run in taught if kind == (run.N_T, run.D_T)]
            if group:
                ax.plot(*_means(group, lambda run: run.D), color=shades[kind], marker=MARKERS[place % len(MARKERS)])
        if plain:
            ax.plot(*_means(plain, lambda run: run.D), color=theme.ink, ls=(0, (4, 3)), marker="o", mfc=theme.ground)
        if teach:
            ax.plot([r.D for r in teach], _losses(teach), ls="", marker="*", ms=9, color=theme.ink)
        ax.set(title=f"N = {si(N)}", xscale="log")
    count_ticks(axes[0].xaxis, sorted({run.D for run in results.runs if run.run not in teaching}))
    label(axes, "training tokens D", LOSS)
    handles: list[Any] = [
        Line2D([], [], color=theme.ink, ls=(0, (4, 3)), marker="o", mfc=theme.ground, label="supervised"),
        Line2D([], [], color=theme.ink, ls="", marker="*", ms=9, label="supervised, teaches"),
    ]
    handles += [
        Line2D([], [], color=shades[kind], marker=MARKERS[i % len(MARKERS)], label=_teacher_name(kind, kinds[kind]))
        for i, kind in enumerate(kinds)
        if kind in named
    ]
    legend(figure, handles, columns=3, title=title)
    return figure


def learning(results: Results, theme: Theme) -> Figure | None:
    """Training loss against tokens: a panel per size, supervised runs in black, students in their teacher's shade."""
    curved = [run for run in results.runs if len(results.curves.get(run.run, ())) > 1]
    if not curved:
        return None
    sizes, title = _panels({run.N for run in curved})
    kinds = _teachers(curved)
    shades, named = dict(zip(kinds, theme.shades(len(kinds)))), _some(kinds)
    figure, axes = panels(len(sizes), legend_rows=1 + (len(named) + 1) // 3)
    for ax, N in zip(axes, sizes):
        here = [run for run in curved if run.N == N]
        taught = [run for run in here if run.kind == "distillation"]
        _curves(ax, results, taught, colors=[shades[run.N_T, run.D_T] for run in taught], linewidths=0.9, alpha=0.8)
        # Supervised curves last and thin, on top of the many students.
        alone = [run for run in here if run.kind != "distillation"]
        _curves(ax, results, alone, colors=theme.ink, linewidths=1.0, linestyles=(0, (4, 2)))
        ax.set(title=f"N = {si(N)}", xscale="log")
    ends = [loss for run in curved for loss in _settled([p.loss for p in results.curves[run.run]])]
    axes[0].set_ylim(*padded(ends))
    count_ticks(axes[0].xaxis, [p.tokens for run in curved for p in results.curves[run.run]])
    label(axes, "tokens seen", "training " + LOSS)
    handles: list[Any] = [Line2D([], [], color=theme.ink, ls=(0, (4, 2)), lw=1.0, label="supervised")]
    handles += [Line2D([], [], color=shades[kind], label=_teacher_name(kind, kinds[kind])) for kind in named]
    legend(figure, handles, columns=3, title=title)
    return figure


def _curves(ax: Axes, results: Results, runs: Sequence[RunRecord], **style: Any) -> None:
    """Training losses as one artist: with two thousand, the figure took 6.1 s in both themes, as lines 7.6."""
    lines = [[(p.tokens, p.loss) for p in results.curves[run.run]] for run in runs]
    ax.add_collection(LineCollection(lines, **style))


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


def _teachers(runs: Sequence[RunRecord]) -> dict[tuple[int | None, int | None], float]:
    """Mean L_T of every teacher's recipe (N_T, D_T), the weakest first."""
    groups = defaultdict(list)
    for run in runs:
        if run.L_T is not None:
            groups[run.N_T, run.D_T].append(run.L_T)
    means = {kind: float(np.mean(losses)) for kind, losses in groups.items()}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def _some(kinds: dict[tuple[int | None, int | None], float]) -> list[tuple[int | None, int | None]]:
    """Teachers for a legend: all, or evenly from the weakest to the strongest as many as fit."""
    return _spread(list(kinds), _NAMED)


def _panels(sizes: set[int]) -> tuple[list[int], str | None]:
    """The sizes that get a panel: all, or evenly from the smallest to the largest as many as fit; and a note on it."""
    shown = _spread(sorted(sizes), _PANELS)
    return shown, f"{len(shown)} of {len(sizes)} sizes" if len(shown) < len(sizes) else None


def _spread(values: list[T], most: int) -> list[T]:
    """At most so many of the values, evenly spaced, including the first and the last."""
    return [values[i] for i in np.linspace(0, len(values) - 1, min(len(values), most)).round().astype(int)]


def _teacher_name(kind: tuple[int | None, int | None], loss: float) -> str:
    N, D = kind
    return f"teacher {si(N or 0)} on {si(D or 0)}, $L_T$ {loss:.3f}"
