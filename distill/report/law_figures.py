"""The figures of the laws: predicted against measured, intervals of parameters, the plan over budgets."""

import dataclasses
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from distill.laws import lawfile
from distill.laws.allocation import Bounds, allocate
from distill.laws.scenarios import SCENARIOS, Flops
from distill.ledger import settled
from distill.report.prose import count
from distill.report.results import Results
from distill.report.theme import Theme, legend, padded, panels

_REACH = 100.0  # an interval wider than this factor ends in an arrow
_DRAWS = 256  # resampled laws behind a band
_BUDGETS = 25


def accuracy(results: Results, theme: Theme) -> Figure | None:
    """Above, predicted against measured; below, the error in percent; ledger predictions as diamonds."""
    laws = [law for law in (results.law(False), results.law(True)) if law]
    laws = [law for law in laws if any(law.covers(run) for run in results.runs)]
    if not laws:
        return None
    figure, axes = panels(2 * len(laws), columns=len(laws), height=2.6, share=False)
    said = list(settled(results.predictions, results.runs))
    for i, law in enumerate(laws):
        above, below = axes[i], axes[len(laws) + i]
        runs = [run for run in results.runs if law.covers(run)]
        truth, fitted = np.array([run.loss for run in runs]), np.array([law.predict(run) for run in runs])
        own = [(p, run) for p, run in said if law.covers(run)]
        dots: dict[str, Any] = {"ls": "", "marker": "o", "ms": 4, "color": theme.blue, "alpha": 0.75, "mew": 0}
        above.plot(truth, fitted, **dots)
        below.plot(truth, 100 * (fitted / truth - 1), **dots)
        for prediction, run in own:
            color = theme.green if prediction.contains(run.loss) else theme.orange
            bar = np.array([[prediction.predicted - prediction.lower], [prediction.upper - prediction.predicted]])
            style: dict[str, Any] = {"fmt": "D", "ms": 4.5, "mfc": theme.ground, "color": color, "lw": 1.1}
            above.errorbar(run.loss, prediction.predicted, yerr=bar, **style)
            below.errorbar(
                run.loss, 100 * (prediction.predicted / run.loss - 1), yerr=100 * bar / run.loss, **style
            )
        ends = padded(np.concatenate([truth, fitted, [p.predicted for p, _ in own]]))
        above.plot(ends, ends, color=theme.soft, ls=":", lw=1.2)
        below.axhline(0, color=theme.soft, ls=":", lw=1.2)
        above.set(title=law.title, xlim=ends, ylim=ends, ylabel="predicted loss" if i == 0 else None)
        below.set(xlim=ends, xlabel="measured loss (nats per token)", ylabel="error (%)" if i == 0 else None)
    handles: list[Any] = [Line2D([], [], ls="", marker="o", ms=4, color=theme.blue, label="law, runs it may have seen")]
    if said:
        handles += [
            Line2D([], [], marker="D", ms=4.5, mfc=theme.ground, color=theme.green, label="said before, interval held"),
            Line2D([], [], marker="D", ms=4.5, mfc=theme.ground, color=theme.orange, label="said before, missed"),
        ]
    legend(figure, handles, columns=3)
    return figure


def intervals(results: Results, theme: Theme) -> Figure | None:
    """Every parameter's bootstrap interval over its estimate, on a logarithmic axis; beside it the numbers."""
    laws = [law for law in results.laws if law.intervals]
    if not laws:
        return None
    rows = max(len(law.intervals) for law in laws)
    figure, axes = panels(len(laws), columns=1, height=0.5 + 0.24 * rows, share=False, legend_rows=0)
    height = sum(0.75 + 0.24 * len(law.intervals) for law in laws) + 0.3
    figure.set_size_inches(figure.get_figwidth(), height)
    for ax, law in zip(axes, laws):
        names = list(law.intervals)
        for place, name in enumerate(reversed(names)):
            low, high = law.intervals[name]
            _bar(ax, place, float(getattr(law.law, name)), low, high, theme)
        ax.set_yticks(range(len(names)), [_symbol(name) for name in reversed(names)])
        ax.set(xscale="log", ylim=(-0.6, len(names) - 0.4), xlim=(1 / _REACH, _REACH))
        ax.axvline(1, color=theme.soft, ls=":", lw=1.2)
        ax.grid(False, axis="y")
        mode = f"{law.resamples} resamples" if law.resamples else "bootstrap"
        ax.set_title(f"{law.title} ({law.name}): {law.level:.0%} intervals, {mode}")
        ax.xaxis.set_ticks([0.01, 0.1, 0.5, 1, 2, 10, 100], ["1/100", "1/10", "1/2", "1", "2", "10", "100"])
        ax.minorticks_off()
    axes[-1].set_xlabel("interval / estimate")
    return figure


def plan(results: Results, theme: Theme, curves: "Curves | None") -> Figure | None:
    """Loss against compute for one student size: distilled under who-pays scenarios, and supervised, with bands."""
    if curves is None:
        return None
    figure, axes = panels(1, legend_rows=2)
    ax = axes[0]
    colors = dict(zip(["supervised", *curves.distilled], [theme.ink, theme.blue, theme.orange, theme.green]))
    handles: list[Any] = []
    for name, (middle, low, high) in {"supervised": curves.supervised, **curves.distilled}.items():
        style = (0, (4, 3)) if name == "supervised" else "-"
        label = name if name == "supervised" else f"distilled, {_scenario(name)}"
        ax.plot(curves.compute, middle, color=colors[name], ls=style)
        ax.fill_between(curves.compute, low, high, color=colors[name], alpha=0.18, lw=0)
        handles.append(Line2D([], [], color=colors[name], ls=style, label=label))
    if curves.banded:
        handles.append(Patch(color=theme.soft, alpha=0.3, lw=0, label="90% interval of the law"))
    for kind, marker, color in (("supervised", "o", theme.ink), ("distillation", "s", theme.blue)):
        runs = [run for run in results.runs if run.kind == kind and run.N == curves.N]
        if runs:
            x = [run.flops_student + run.flops_teacher for run in runs]
            ax.plot(x, [run.loss for run in runs], ls="", marker=marker, ms=4, mfc="none", color=color)
            said = "measured, supervised" if kind == "supervised" else "measured, distilled (logits paid)"
            handles.append(Line2D([], [], ls="", marker=marker, ms=4, mfc="none", color=color, label=said))
    if results.plan:
        total = results.plan["bill"]["total"]
        ax.plot(total, results.plan["L_S"], marker="*", ms=13, color=theme.blue, mec=theme.ground)
        handles.append(Line2D([], [], ls="", marker="*", ms=11, color=theme.blue, label="the plan"))
    beyond = max(run.flops_student + run.flops_teacher for run in results.runs)
    if beyond < curves.compute[-1]:
        ax.axvspan(beyond, curves.compute[-1], color=theme.soft, alpha=0.1, lw=0)
        ax.text(beyond, 0.985, " beyond all runs", color=theme.soft, fontsize=8.5, va="top",
                transform=ax.get_xaxis_transform())  # fmt: skip
    ax.set(xscale="log", xlim=(curves.compute[0], curves.compute[-1]), xlabel="compute (FLOPs)")
    ax.set_ylabel("expected loss (nats per token)")
    ax.set_title(f"student of N = {count(curves.N)}")
    legend(figure, handles, columns=3)
    return figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curves:
    """Expected losses over budgets for one student size: (middle, low, high) of each way to train it."""

    N: float
    compute: np.ndarray
    supervised: tuple[np.ndarray, np.ndarray, np.ndarray]
    distilled: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
    banded: bool


def plan_curves(results: Results) -> Curves | None:
    """Optimal training of the plan's student (or the largest one) over budgets, under the plan's scenario and free.

    Distilled points split the compute as the law would; a band keeps that split and asks each resampled law.
    """
    fitted = results.law(True)
    if fitted is None or not results.distilled or "supervised" not in fitted.law.given():
        return None
    known = lawfile.read(fitted.path)
    F = Flops.through([run.N for run in results.runs], [run.flops_student / (3 * run.D) for run in results.runs])
    N = float(results.plan["N_S"]) if results.plan else float(max(run.N for run in results.distilled))
    asked = str(results.plan["scenario"]) if results.plan else "best_case"
    spent = [run.flops_student + run.flops_teacher for run in results.runs if run.kind == "distillation"]
    top = max([10 * max(spent)] + ([3 * results.plan["bill"]["total"]] if results.plan else []))
    compute = np.geomspace(min(spent), top, _BUDGETS)
    boot = _thinned(known.boot.laws) if known.boot else None
    tokens = compute / (3 * F(N))
    supervised = _banded(known.supervised, boot and boot.supervised, N, tokens)
    distilled = {}
    for name in dict.fromkeys([asked, "best_case"]):
        pair = known.supervised, known.distillation
        pair = known.supervised, known.distillation
        split = allocate(*pair, N, compute, SCENARIOS[name], flops=F, bounds=Bounds(low=min(1e6, N / 1e3)))
        low = high = split.L_S
        if boot is not None:
            L_T = split.L_T if np.isnan(split.N_T).any() else boot.supervised(split.N_T, split.D_T)
            low, high = np.percentile(boot(N, split.D_S, L_T), [5, 95], axis=0)
        distilled[name] = (split.L_S, low, high)
    return Curves(N=N, compute=compute, supervised=supervised, distilled=distilled, banded=boot is not None)


def _thinned(laws: Any) -> Any:
    """At most _DRAWS of a stack of laws, each parameter [draws, 1] so that it meets a row of budgets."""
    return jax.tree_util.tree_map(
        lambda leaf: np.asarray(leaf)[:_DRAWS, None] if np.ndim(leaf) else np.asarray(leaf), laws
    )


def _banded(law: Any, boot: Any, N: float, D: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    middle = law(N, D)
    if boot is None:
        return middle, middle, middle
    low, high = np.percentile(boot(N, D), [5, 95], axis=0)
    return middle, low, high


def _bar(ax: Any, place: int, estimate: float, low: float, high: float, theme: Theme) -> None:
    """One interval relative to its estimate; an end that is off the axis, or of the other sign, becomes an arrow."""
    ends = [low / estimate, high / estimate] if estimate else [0.0, np.inf]
    ends = sorted(ends)
    left, right = max(ends[0], 1 / _REACH), min(ends[1], _REACH)
    ax.plot([left, right], [place, place], color=theme.blue, lw=3, alpha=0.55, solid_capstyle="butt")
    ax.plot(1, place, marker="o", ms=4.5, color=theme.blue)
    if ends[0] < 1 / _REACH:
        ax.plot(1 / _REACH, place, marker="<", ms=7, color=theme.orange, clip_on=False)
    if ends[1] > _REACH:
        ax.plot(_REACH, place, marker=">", ms=7, color=theme.orange, clip_on=False)
    ax.text(1.01, place, f"{estimate:.3g}  [{low:.3g}, {high:.3g}]", transform=ax.get_yaxis_transform(), va="center",
            fontsize=8)  # fmt: skip


def _symbol(name: str) -> str:
    greek = {"alpha", "beta", "gamma", "kappa", "delta"}
    if name in greek:
        return rf"$\{name}$"
    return f"${name[0]}_{{{name[1:].lstrip('_')}}}$" if len(name) > 1 else f"${name}$"


def _scenario(name: str) -> str:
    return {
        "best_case": "teacher free",
        "teacher_inference": "its logits paid",
        "teacher_pretraining": "its training paid",
        "pretraining_and_inference": "its training and logits paid",
    }.get(name, name)
