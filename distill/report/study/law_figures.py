"""The figures of the laws: predicted against measured, intervals of parameters, the plan over budgets."""

import dataclasses
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from distill.laws.forms.law import Law
from distill.laws.forms.resampled import supervised_inside
from distill.laws.planning import lawfile
from distill.laws.planning.allocation import Bounds, allocate
from distill.laws.planning.scenarios import SCENARIOS, Flops
from distill.records.predictions import settled
from distill.report.study.results import FittedLaw, Results
from distill.report.theme import Theme, legend, new_figure, padded, panels
from distill.system.numbers import number, si

# The extent of the axis of intervals on either side, as a factor, and its ticks above 1.
_REACHES = {2.0: (1.5, 2.0), 5.0: (2.0, 5.0), 10.0: (2.0, 5.0, 10.0), 100.0: (2.0, 10.0, 100.0)}
_DRAWS = 256  # resampled laws behind a band
_BUDGETS = 49

Band = tuple[np.ndarray, np.ndarray, np.ndarray]  # middle, low, high


def accuracy(results: Results, theme: Theme) -> Figure | None:
    """Above, predicted against measured loss; below, the error in percent. Predictions made before a run: diamonds."""
    laws = [law for law in (results.law(False), results.law(True)) if law]
    laws = [law for law in laws if any(law.covers(run) for run in results.runs)]
    if not laws:
        return None
    figure = new_figure(5.8)
    axes = list(figure.subplots(2, len(laws), squeeze=False).flat)
    predicted = list(settled(results.predictions, results.runs))
    for i, law in enumerate(laws):
        above, below = axes[i], axes[len(laws) + i]
        runs = [run for run in results.runs if law.covers(run)]
        truth, fitted = np.array([run.loss for run in runs]), np.array([law.predict(run) for run in runs])
        own = [(p, run) for p, run in predicted if law.covers(run)]
        dots: dict[str, Any] = {"ls": "", "marker": "o", "ms": 4, "color": theme.blue, "alpha": 0.75, "mew": 0}
        above.plot(truth, fitted, **dots)
        below.plot(truth, 100 * (fitted / truth - 1), **dots)
        for prediction, run in own:
            color = theme.green if prediction.contains(run.loss) else theme.orange
            bar = np.array([[prediction.predicted - prediction.lower], [prediction.upper - prediction.predicted]])
            style: dict[str, Any] = {"fmt": "D", "ms": 4.5, "mfc": theme.ground, "color": color, "lw": 1.1}
            above.errorbar(run.loss, prediction.predicted, yerr=bar, **style)
            below.errorbar(run.loss, 100 * (prediction.predicted / run.loss - 1), yerr=100 * bar / run.loss, **style)
        ends = padded(np.concatenate([truth, fitted, [p.predicted for p, _ in own]]))
        above.plot(ends, ends, color=theme.soft, ls=":", lw=1.2)
        below.axhline(0, color=theme.soft, ls=":", lw=1.2)
        above.set(title=law.title, xlim=ends, ylim=ends, ylabel="predicted loss" if i == 0 else None)
        below.set(xlim=ends, xlabel="measured loss (nats per token)", ylabel="error (%)" if i == 0 else None)
    handles: list[Any] = [Line2D([], [], ls="", marker="o", ms=4, color=theme.blue, label="law, fitted to these runs")]
    if predicted:
        for color, word in ((theme.green, "inside"), (theme.orange, "outside")):
            label = f"predicted before the run, {word}"
            handles.append(Line2D([], [], marker="D", ms=4.5, mfc=theme.ground, color=color, label=label))
    legend(figure, handles, columns=3)
    return figure


def intervals(results: Results, theme: Theme) -> Figure | None:
    """Every parameter's bootstrap interval over its estimate, on a logarithmic axis; beside it the numbers."""
    laws = [law for law in results.laws if law.intervals]
    if not laws:
        return None
    counts = [len(law.intervals) for law in laws]
    figure = new_figure(0.3 + sum(0.6 + 0.23 * n for n in counts))
    axes = figure.subplots(len(laws), 1, squeeze=False, sharex=True, height_ratios=[n + 1 for n in counts])[:, 0]
    reach = _reach(laws)
    for ax, law in zip(axes, laws):
        names = list(law.intervals)
        for place, name in enumerate(reversed(names)):
            _bar(ax, place, float(getattr(law.law, name)), law.intervals[name], reach, theme)
        ax.set_yticks(range(len(names)), [_symbol(name) for name in reversed(names)])
        ax.set(xscale="log", ylim=(-0.6, len(names) - 0.4), xlim=(1 / reach, reach))
        ax.axvline(1, color=theme.soft, ls=":", lw=1.2)
        ax.grid(False, axis="y")
        mode = f", {law.resamples} resamples" if law.resamples else ""
        ax.set_title(f"{law.title} ({law.name}): {law.level:.0%} intervals{mode}")
        ticks = [*(1 / f for f in reversed(_REACHES[reach])), 1.0, *_REACHES[reach]]
        ax.xaxis.set_ticks(ticks, [number(float(f"{tick:.2g}")) for tick in ticks])
        ax.minorticks_off()
    axes[-1].set_xlabel("interval / estimate")
    return figure


def plan(results: Results, theme: Theme, curves: "PlanCurves | None") -> Figure | None:
    """Loss against compute for one student size, distilled and supervised, with bands and the measured runs."""
    if curves is None:
        return None
    figure, axes = panels(1, legend_rows=2)
    ax = axes[0]
    colors = dict(zip(["supervised", *curves.distilled], [theme.ink, theme.blue, theme.orange, theme.green]))
    handles: list[Any] = []
    # The third line of distillation is green, which some readers cannot tell from blue: it is dashed.
    styles: dict[str, Any] = dict(zip(colors, [(0, (4, 3)), "-", "-", "-."]))
    for name, (middle, low, high) in {"supervised": curves.supervised, **curves.distilled}.items():
        style = styles[name]
        ax.plot(curves.compute, middle, color=colors[name], ls=style)
        ax.fill_between(curves.compute, low, high, color=colors[name], alpha=0.18, lw=0)
        handles.append(Line2D([], [], color=colors[name], ls=style, label=name))
    if curves.banded:
        handles.append(Patch(color=theme.soft, alpha=0.3, lw=0, label="90% interval of the law"))
    for kind, marker, color in (("supervised", "o", theme.ink), ("distillation", "s", theme.blue)):
        runs = [run for run in results.runs if run.kind == kind and curves.N == run.N]
        if runs:
            x = [run.flops_student + run.flops_teacher for run in runs]
            ax.plot(x, [run.loss for run in runs], ls="", marker=marker, ms=4, mfc="none", color=color)
            label = "measured, supervised" if kind == "supervised" else "measured, distilled (logits paid)"
            handles.append(Line2D([], [], ls="", marker=marker, ms=4, mfc="none", color=color, label=label))
    if results.plan:
        advice = results.plan
        color, word = (theme.blue, "distil") if advice.distil else (theme.ink, "pretrain")
        own, other = (advice.compute, advice.L_S), (advice.supervised_compute, advice.supervised_L)
        ax.plot(*(own if advice.distil else other), ls="", marker="*", ms=13, color=color, mec=theme.ground)
        handles.append(Line2D([], [], ls="", marker="*", ms=11, color=color, label=f"the plan: {word}"))
    beyond = max(run.flops_student + run.flops_teacher for run in results.runs)
    if beyond < curves.compute[-1]:
        ax.axvspan(beyond, curves.compute[-1], color=theme.soft, alpha=0.1, lw=0)
        ax.text(beyond, 0.985, " beyond all runs", color=theme.soft, fontsize=8.5, va="top",
                transform=ax.get_xaxis_transform())  # fmt: skip
    # A band may be wide away from the runs; it must not flatten the rest.
    middles = np.concatenate([curves.supervised[0], *(band[0] for band in curves.distilled.values())])
    measured = [run.loss for run in results.runs if curves.N == run.N]
    ax.set(xscale="log", xlim=(curves.compute[0], curves.compute[-1]), xlabel="compute (FLOPs)")
    ax.set_ylim(*padded([*middles, *measured]))
    ax.set_ylabel("expected loss (nats per token)")
    ax.set_title(f"student of N = {si(curves.N)}")
    legend(figure, handles, columns=3)
    return figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanCurves:
    """Expected losses over budgets for one student size: (middle, low, high) of each way to train it."""

    N: float
    compute: np.ndarray
    supervised: Band
    distilled: dict[str, Band]
    banded: bool


def plan_curves(results: Results) -> PlanCurves | None:
    """The laws' predictions for the plan's student (or the largest one) over budgets; None without both laws.

    Distilled from the study's teachers, the best for each budget, with their logits free and paid; and, if the plan
    trains a teacher, with the best split of the budget under its scenario. A band keeps the choices of the fitted law
    and evaluates them under each resampled law.
    """
    fitted = results.law(True)
    if fitted is None or not results.distilled or "supervised" not in fitted.law.given():
        return None
    known = lawfile.read(fitted.path)
    N = results.plan.N_S if results.plan else float(max(run.N for run in results.distilled))
    teachers = np.array([[teacher.N, teacher.loss] for teacher in results.teachers])
    sizes, forward = _forward(results)
    F_S, F_T = (np.exp(np.interp(np.log(n), np.log(sizes), np.log(forward))) for n in (N, teachers[:, 0]))
    spent = [run.flops_student + run.flops_teacher for run in results.distilled]
    top = max(10 * max(spent), 3 * results.plan.compute if results.plan else 0.0)
    own = [run.flops_student for run in results.runs if N == run.N]
    compute = np.geomspace(0.7 * min(own or spent), top, _BUDGETS)
    boot = _thinned(known.boot.kept) if known.boot else None
    alone_boot = supervised_inside(boot) if boot is not None else None

    def taught(D: np.ndarray, L_T: np.ndarray, resampled_L_T: np.ndarray | None = None) -> Band:
        middle = known.distillation(N, D, L_T)
        if boot is None:
            return middle, middle, middle
        low, high = np.percentile(boot(N, D, L_T if resampled_L_T is None else resampled_L_T), [5, 95], axis=0)
        return middle, low, high

    D_alone = compute / (3 * F_S)
    alone = known.supervised(N, D_alone)
    supervised = alone, alone, alone
    if alone_boot is not None:
        low, high = np.percentile(alone_boot(N, D_alone), [5, 95], axis=0)
        supervised = alone, low, high
    distilled = {}
    L_T = teachers[:, 1:]
    for name, paid in (("distilled, study's teachers free", 0.0), ("distilled, their logits paid", 1.0)):
        # Teachers down, budgets across.
        D = compute / (3 * F_S + paid * F_T[:, None])
        best = np.argmin(known.distillation(N, D, L_T), axis=0)
        distilled[name] = taught(D[best, np.arange(len(compute))], L_T[best, 0])
    if results.plan and not results.plan.teacher and results.plan.scenario in SCENARIOS:
        pair, bounds = (known.supervised, known.distillation), Bounds(low=min(1e6, N / 1e3))
        F = Flops.through(sizes, forward)
        split = allocate(*pair, N, compute, SCENARIOS[results.plan.scenario], flops=F, bounds=bounds)
        trained = None if alone_boot is None or np.isnan(split.N_T).any() else alone_boot(split.N_T, split.D_T)
        distilled[f"distilled, {_scenario(results.plan.scenario)}"] = taught(split.D_S, split.L_T, trained)
    return PlanCurves(N=N, compute=compute, supervised=supervised, distilled=distilled, banded=boot is not None)


def _forward(results: Results) -> tuple[np.ndarray, np.ndarray]:
    """(N, F): forward FLOPs per token of every size that was trained, by rising N."""
    known = {run.N: run.flops_student / (3 * run.D) for run in results.runs}
    return np.array(sorted(known), float), np.array([known[N] for N in sorted(known)])


def _thinned(laws: Law) -> Law:
    """At most _DRAWS of a stack of laws, each parameter [draws, 1] so that it broadcasts over budgets."""
    return jax.tree_util.tree_map(
        lambda leaf: np.asarray(leaf)[:_DRAWS, None] if np.ndim(leaf) else np.asarray(leaf), laws
    )


def _reach(laws: list[FittedLaw]) -> float:
    """The smallest axis extent that contains five of six interval ends."""
    ends = [
        abs(np.log(end / estimate)) if end / estimate > 0 else np.inf
        for law in laws
        for name, interval in law.intervals.items()
        for end in interval
        if (estimate := float(getattr(law.law, name)))
    ]
    need = np.exp(np.quantile(ends, 5 / 6, method="lower")) if ends else 1.0
    return next((reach for reach in _REACHES if reach >= need), max(_REACHES))


def _bar(ax: Axes, place: int, estimate: float, interval: tuple[float, float], reach: float, theme: Theme) -> None:
    """One interval relative to its estimate; an end that is off the axis, or of the other sign, becomes an arrow."""
    low, high = sorted(end / estimate for end in interval) if estimate else (0.0, np.inf)
    ends = [min(max(end, 1 / reach), reach) for end in (low, high)]
    ax.plot(ends, [place, place], color=theme.blue, lw=3, alpha=0.55, solid_capstyle="butt")
    ax.plot(1, place, marker="o", ms=4.5, color=theme.blue)
    if low < 1 / reach:
        ax.plot(1 / reach, place, marker="<", ms=7, color=theme.orange, clip_on=False)
    if high > reach:
        ax.plot(reach, place, marker=">", ms=7, color=theme.orange, clip_on=False)
    text = f"{number(estimate)}  [{number(interval[0])}, {number(interval[1])}]"
    ax.text(1.025, place, text, transform=ax.get_yaxis_transform(), va="center", fontsize=8)


def _symbol(name: str) -> str:
    greek = {"alpha", "beta", "gamma", "kappa", "delta"}
    if name in greek:
        return rf"$\{name}$"
    return f"${name[0]}_{{{name[1:].lstrip('_')}}}$" if len(name) > 1 else f"${name}$"


def _scenario(name: str) -> str:
    return {
        "best_case": "any teacher, free",
        "teacher_inference": "any teacher, logits paid",
        "teacher_pretraining": "own teacher, training paid",
        "pretraining_and_inference": "own teacher, training and logits paid",
    }[name]
