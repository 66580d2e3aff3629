"""The figures of the laws: predicted against measured, intervals of parameters, the plan over budgets."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from numpy.typing import ArrayLike

from distill.laws.forms.law import Law
from distill.laws.forms.resampled import supervised_inside
from distill.laws.planning import lawfile, repeats
from distill.laws.planning.allocation import Bounds, allocate
from distill.laws.planning.scenarios import SCENARIOS, UNLIMITED, Flops
from distill.laws.planning.signatures import StudentLaw, SupervisedLaw
from distill.records.predictions import PredictionRecord, settled
from distill.records.runs import RunRecord
from distill.report.charts.chart import Axis, Chart, Panel, Series, floats
from distill.report.law import interval_chart
from distill.report.law.interval_chart import Estimates
from distill.report.study.results import Results
from distill.report.study.run_figures import facts
from distill.report.theme import padded
from distill.system.numbers import si

_DRAWS = 256  # resampled laws behind a band
_BUDGETS = 49

Band = tuple[np.ndarray, np.ndarray, np.ndarray]  # middle, low, high
_Made = tuple[PredictionRecord, RunRecord]  # a prediction and the run that it was of


def accuracy(results: Results) -> Chart | None:
    """Above, predicted against measured loss; below, the error in percent. Predictions made before a run: diamonds."""
    laws = [law for law in (results.law(False), results.law(True)) if law]
    laws = [law for law in laws if any(law.covers(run) for run in results.runs)]
    if not laws:
        return None
    predicted = list(settled(results.predictions, results.runs, results.carried))
    above, below = [], []
    for law in laws:
        runs = [run for run in results.runs if law.covers(run)]
        truth, fitted = floats([run.loss for run in runs]), floats([law.predict(run) for run in runs])
        own = [(p, run) for p, run in predicted if law.covers(run)]
        ends = floats(padded(np.concatenate([truth, fitted, [p.predicted for p, _ in own]])))
        limits, known = (float(ends[0]), float(ends[1])), facts(results, runs)
        dots = Series(
            label="law, fitted to these runs",
            x=truth,
            y=fitted,
            colour="blue",
            marker="o",
            size=4,
            alpha=0.75,
            facts=known,
        )
        errors = dataclasses.replace(dots, y=100 * (fitted / truth - 1))
        measured = Axis(label="measured loss (nats per token)", limits=limits)
        rule = Series(label="predicted = measured", x=ends, y=ends, colour="soft", line=":", width=1.2, named=False)
        above.append(
            Panel(
                title=law.title,
                x=measured,
                y=Axis(label="predicted loss", limits=limits),
                series=(dots, *_made(results, own), rule),
            )
        )
        below.append(
            Panel(
                title="",
                x=measured,
                y=Axis(label="error (%)"),
                series=(errors, *_made(results, own, percent=True), dataclasses.replace(rule, y=0 * ends)),
            )
        )
    return Chart(
        name="accuracy",
        alt="Scatter plots of predicted against measured loss and of the error in percent, for each law.",
        caption="The laws against the runs. Diamonds are predictions that were recorded before their run began, with "
        "their interval; they may come from an earlier fit than the law shown.",
        panels=(*above, *below),
        columns=len(laws),
        height=2.75,
    )


def _made(results: Results, predicted: Sequence[_Made], *, percent: bool = False) -> list[Series]:
    """Predictions that were made before their run, with intervals: those that held, and those that did not."""
    series = []
    for colour, word in (("green", "inside"), ("orange", "outside")):
        own = [(p, run) for p, run in predicted if p.contains(run.loss) == (word == "inside")]
        if not own:
            continue
        truth = floats([run.loss for _, run in own])
        middle, low, high = (floats([getattr(p, name) for p, _ in own]) for name in ("predicted", "lower", "upper"))
        if percent:
            middle, low, high = (100 * (values / truth - 1) for values in (middle, low, high))
        series.append(
            Series(
                label=f"predicted before the run, {word}",
                x=truth,
                y=middle,
                low=low,
                high=high,
                colour=colour,
                marker="D",
                size=4.5,
                hollow=True,
                facts=facts(results, [run for _, run in own]),
            )
        )
    return series


def intervals(results: Results) -> Chart | None:
    """Every parameter's bootstrap interval over its estimate, on a logarithmic axis; beside it the numbers."""
    laws = [law for law in results.laws if law.intervals]
    known = []
    for law in laws:
        mode = f", {law.resamples} resamples" if law.resamples else ""
        title = f"{law.title} ({law.name}): {law.level:.0%} intervals{mode}"
        known.append(Estimates(title=title, law=law.law, intervals=law.intervals, level=law.level))
    return interval_chart.chart(known) if known else None


# The third line of distillation is green, which some readers cannot tell from blue: it is dashed.
_STYLES = (("ink", "--"), ("blue", "-"), ("orange", "-"), ("green", "-."))


def plan(results: Results, curves: "PlanCurves | None") -> Chart | None:
    """Loss against compute for one student size, distilled and supervised, with bands and the measured runs."""
    if curves is None:
        return None
    ways = {"supervised": curves.supervised, **curves.distilled}
    series = [
        Series(label=name, x=curves.compute, y=middle, low=low, high=high, colour=colour, line=line)
        if curves.banded
        else Series(label=name, x=curves.compute, y=middle, colour=colour, line=line)
        for (name, (middle, low, high)), (colour, line) in zip(ways.items(), _STYLES)
    ]
    series += _measured(results, curves.N)
    if results.plan:
        advice = results.plan
        colour, word = ("blue", "distil") if advice.distil else ("ink", "pretrain")
        own, other = (advice.compute, advice.L_S), (advice.supervised_compute, advice.supervised_L)
        at = own if advice.distil else other
        series.append(
            Series(label=f"the plan: {word}", x=floats(at[0]), y=floats(at[1]), colour=colour, marker="*", size=13)
        )
    beyond = max(run.flops_student + run.flops_teacher for run in results.runs)
    # A band may be wide away from the runs; it must not flatten the rest.
    middles = np.concatenate([band[0] for band in ways.values()])
    measured = [run.loss for run in results.runs if curves.N == run.N]
    panel = Panel(
        title=f"student of N = {si(curves.N)}",
        series=tuple(series),
        x=Axis(label="compute (FLOPs)", log=True, limits=(float(curves.compute[0]), float(curves.compute[-1]))),
        y=Axis(label="expected loss (nats per token)", limits=padded([*middles, *measured])),
        shade=(beyond, float(curves.compute[-1]), "beyond all runs") if beyond < curves.compute[-1] else None,
    )
    band = " Bands are 90% intervals of the law." if curves.banded else ""
    return Chart(
        name="plan",
        alt="Line chart of expected loss against compute, distilled and supervised.",
        caption="What the laws expect of one student size over budgets: supervised, and taught by whichever of the "
        f"study's teachers is best for that budget. Measured students had every teacher, good or bad.{band}",
        panels=(panel,),
        columns=1,
        height=3.6,
    )


def _measured(results: Results, N: float) -> list[Series]:
    """The runs of the student's size over the compute that they took."""
    series = []
    for kind, marker, colour in (("supervised", "o", "ink"), ("distillation", "s", "blue")):
        runs = [run for run in results.runs if run.kind == kind and N == run.N]
        if runs:
            label = "measured, supervised" if kind == "supervised" else "measured, distilled (logits paid)"
            x = floats([run.flops_student + run.flops_teacher for run in runs])
            series.append(
                Series(
                    label=label,
                    x=x,
                    y=floats([run.loss for run in runs]),
                    colour=colour,
                    marker=marker,
                    size=4,
                    hollow=True,
                    facts=facts(results, runs),
                )
            )
    return series


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
        middle = _taught(known.distillation, N, D, L_T)
        if boot is None:
            return middle, middle, middle
        resampled = _taught(boot, N, D, L_T if resampled_L_T is None else resampled_L_T)
        low, high = np.percentile(resampled, [5, 95], axis=0)
        return middle, low, high

    D_alone = compute / (3 * F_S)
    alone = _alone(known.supervised, N, D_alone)
    supervised = alone, alone, alone
    if alone_boot is not None:
        low, high = np.percentile(_alone(alone_boot, N, D_alone), [5, 95], axis=0)
        supervised = alone, low, high
    distilled = {}
    L_T = teachers[:, 1:]
    for name, paid in (("distilled, study's teachers free", 0.0), ("distilled, their logits paid", 1.0)):
        # Teachers down, budgets across.
        D = compute / (3 * F_S + paid * F_T[:, None])
        best = np.argmin(_taught(known.distillation, N, D, L_T), axis=0)
        distilled[name] = taught(D[best, np.arange(len(compute))], L_T[best, 0])
    if results.plan and not results.plan.teacher and results.plan.scenario in SCENARIOS:
        pair, bounds = (known.supervised, known.distillation), Bounds(low=min(1e6, N / 1e3))
        F = Flops.through(sizes, forward)
        split = allocate(*pair, N, compute, SCENARIOS[results.plan.scenario], flops=F, bounds=bounds)
        trained = None
        if alone_boot is not None and not np.isnan(split.N_T).any():
            trained = _alone(alone_boot, split.N_T, split.D_T)
        distilled[f"distilled, {_scenario(results.plan.scenario)}"] = taught(split.D_S, split.L_T, trained)
    return PlanCurves(N=N, compute=compute, supervised=supervised, distilled=distilled, banded=boot is not None)


def _alone(law: SupervisedLaw, N: ArrayLike, D: ArrayLike) -> np.ndarray:
    """The loss of supervised training on text that does not repeat, whether the law reads its unique tokens or not."""
    return np.asarray(repeats.alone(law, np.asarray(N), np.asarray(D), UNLIMITED))


def _taught(law: StudentLaw, N: float, D: np.ndarray, L_T: np.ndarray) -> np.ndarray:
    """The loss of students on text that does not repeat."""
    return np.asarray(repeats.taught(law, N, D, L_T, UNLIMITED))


def _forward(results: Results) -> tuple[np.ndarray, np.ndarray]:
    """(N, F): forward FLOPs per token of every size that was trained, by rising N."""
    known = {run.N: run.flops_student / (3 * run.D) for run in results.runs}
    return np.array(sorted(known), float), np.array([known[N] for N in sorted(known)])


def _thinned(laws: Law) -> Law:
    """At most _DRAWS of a stack of laws, each parameter [draws, 1] so that it broadcasts over budgets."""
    return jax.tree_util.tree_map(
        lambda leaf: np.asarray(leaf)[:_DRAWS, None] if np.ndim(leaf) else np.asarray(leaf), laws
    )


def _scenario(name: str) -> str:
    return {
        "best_case": "any teacher, free",
        "teacher_inference": "any teacher, logits paid",
        "teacher_pretraining": "own teacher, training paid",
        "pretraining_and_inference": "own teacher, training and logits paid",
    }[name]
