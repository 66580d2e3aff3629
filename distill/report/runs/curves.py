"""The curves of one run or several as a chart: a panel for each kind of metric, scores on held-out text as dots."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distill.errors import ReportError
from distill.records import heldout, metrics
from distill.records.heldout import HeldOut
from distill.records.runs import RunRecord, load_record
from distill.report.charts.chart import Axis, Chart, Panel, Series, floats
from distill.report.theme import LOSS, places
from distill.system.numbers import si


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """A panel: the metric in metrics.jsonl, its title and unit, its axis."""

    name: str
    title: str
    unit: str
    log: bool = False
    counts: bool = False  # whether ticks are written as 125K and 1M


_LOSS = "nats per token"
LOSSES = (
    Metric(name="ntp", title=f"next-token {LOSS}", unit=_LOSS),
    Metric(name="kd", title=f"distillation {LOSS}", unit=_LOSS),
)
# Of heldout.jsonl and of the end: the field of HeldOut and of RunRecord.
SCORES = (
    Metric(name="kl", title="KL divergence from the teacher, held-out text", unit=_LOSS),
    Metric(name="agreement", title="agreement with the teacher, held-out text", unit="share of tokens"),
    Metric(name="ece", title="calibration error, held-out text", unit="ECE"),
)
METRICS = (
    *LOSSES,
    Metric(name="grad_norm", title="gradient norm", unit="norm", log=True),
    Metric(name="param_norm", title="parameter norm", unit="norm"),
    Metric(name="learning_rate", title="learning rate", unit="rate"),
    Metric(name="tokens_per_second", title="tokens per second", unit="tokens / s", counts=True),
    Metric(name="mfu", title="MFU", unit="share of the peak"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curves:
    """A run's metrics, its scores on held-out text along the way, and its row, which an unfinished run lacks."""

    name: str
    curves: metrics.MetricCurves
    record: RunRecord | None
    held: tuple[HeldOut, ...] = ()

    @property
    def label(self) -> str:
        """The name; beside it, of a finished student, the KL divergence from its teacher on held-out text."""
        known = self.record.kl if self.record else None
        return self.name if known is None else f"{self.name}, KL {known:.3f}"

    @property
    def facts(self) -> dict[str, list[object]]:
        """What a reader sees of a finished run besides its numbers."""
        run = self.record
        if run is None:
            return {}
        known: dict[str, list[object]] = {"N": [si(run.N or 0)], "D": [si(run.D or 0)], "seed": [run.seed or 0]}
        return known | ({"L_T": [f"{run.L_T:.4f}"]} if run.L_T is not None else {})


def load(folder: Path, points: int) -> Curves:
    """The curves of a run's workdir. Raises ReportError if there is no line yet."""
    curves = metrics.read(folder / "metrics.jsonl", [metric.name for metric in METRICS], points=points)
    if not len(curves):
        raise ReportError(
            f"{folder}: there is no metrics.jsonl with a line; wanted the workdir of a run that has begun"
        )
    return Curves(
        name=folder.resolve().name,
        curves=curves,
        record=load_record(folder / "result.json"),
        held=tuple(heldout.load(folder / heldout.FILE)),
    )


def chart(runs: Sequence[Curves], name: str, shown: Sequence[Metric] = METRICS, *, log: bool = False) -> Chart:
    """A panel for each metric that a run has. One run has a colour for all; several have one each, in order.

    Dots are losses on held-out text: one at the end, and those along the run where it was asked for (`eval.along`),
    with the other scores then in panels of their own. `kd` depends on config.objective: with the forward divergence
    it is a cross-entropy, which includes the teacher's entropy besides the KL divergence; the KL of a finished run
    stands beside its name.
    """
    colours: list[str | float] = ["blue"] if len(runs) == 1 else list(places(len(runs)))
    frames = []
    for metric in shown:
        series = [
            part for run, colour in zip(runs, colours) for part in _series(run, metric, colour, len(runs) > 1, log)
        ]
        if series:
            x, y = (
                Axis(label="tokens", log=log, counts=True),
                Axis(label=metric.unit, log=metric.log, counts=metric.counts),
            )
            frames.append(Panel(title=metric.title, x=x, y=y, series=tuple(series)))
        if metric == LOSSES[-1] and shown == METRICS:
            frames += _scored(runs, colours, log)
    points = "A point is a line of metrics.jsonl."
    if any((run.curves.lines > 1).any() for run in runs):
        points = "A point is the mean of several lines of metrics.jsonl"
        points += "." if len(runs) > 1 else ", the band their lowest and highest."
    return Chart(
        name=name,
        alt="Curves over training tokens: " + ", ".join(panel.title for panel in frames) + ".",
        caption=f"{points} Dots are on held-out text.",
        panels=tuple(frames),
        columns=2,
        height=2.4,
    )


def _series(run: Curves, metric: Metric, colour: str | float, several: bool, log: bool) -> list[Series]:
    """The curve of a metric, with its band where it is alone; after the next-token loss, that on held-out text."""
    mean = run.curves.mean[metric.name]
    if not np.isfinite(mean).any():
        return []
    banded = not several and bool((run.curves.lines > 1).any())  # of a point that is one line the ends are one number
    curve = Series(
        label=run.label if several else metric.title,
        x=run.curves.at["tokens"],
        y=mean,
        colour=colour,
        line="-",
        marker="o" if len(mean) < 3 else "",
        starts=(0,),
        low=run.curves.low[metric.name] if banded else floats([]),
        high=run.curves.high[metric.name] if banded else floats([]),
        facts=run.facts if several else {},
        named=several or metric.name == "ntp",
    )
    if metric.name != "ntp" or not (run.held or (run.record and run.record.D)):
        return [curve]
    return [curve, _held_out(run, "loss", colour if several else "orange", several, log)]


def _held_out(run: Curves, name: str, colour: str | float, several: bool, log: bool) -> Series:
    """A score on held-out text along the run, and at its end; without its begin on a logarithmic axis of tokens."""
    found = {one.tokens: _score(one, name) for one in run.held if one.tokens or not log}
    if run.record and run.record.D:
        found[run.record.D] = _score(run.record, name)
    points = {tokens: value for tokens, value in found.items() if value is not None}
    return Series(
        label=run.label if several else "on held-out text",
        x=floats(list(points)),
        y=floats(list(points.values())),
        colour=colour,
        line="--" if len(points) > 1 else "",
        marker="o",
        size=7 if len(points) == 1 else 4.5,
        facts={fact: value * len(points) for fact, value in run.facts.items()},
        named=not several and name == "loss",
    )


def _score(of: HeldOut | RunRecord, name: str) -> float | None:
    """A field of scores on held-out text, or the score of a task by task:metric."""
    value = (of.scores or {}).get(name) if ":" in name else getattr(of, name)
    return None if value is None else float(value)


def _scored(runs: Sequence[Curves], colours: Sequence[str | float], log: bool) -> list[Panel]:
    """A panel for every other score that some run has along its way, those on tasks last."""
    tasks = dict.fromkeys(name for run in runs for one in run.held for name in one.scores or ())
    frames = []
    for metric in (*SCORES, *(Metric(name=name, title=name, unit="score") for name in tasks)):
        several = len(runs) > 1
        every = zip(runs, colours) if several else [(runs[0], "orange")]
        found = [_held_out(run, metric.name, colour, several, log) for run, colour in every if run.held]
        series = tuple(one for one in found if len(one.x) > 1)
        if series:
            x = Axis(label="tokens", log=log, counts=True)
            frames.append(Panel(title=metric.title, x=x, y=Axis(label=metric.unit), series=series))
    return frames
