"""The curves of one run or several as a chart: a panel for each kind of metric, validation losses as dots."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distill.errors import ReportError
from distill.records import metrics
from distill.records.runs import RunRecord, load_record
from distill.report.charts.chart import Axis, Chart, Panel, Series, floats
from distill.report.theme import LOSS, places
from distill.system.numbers import si


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """A panel: the metric in metrics.jsonl, its title and unit, whether the axis is logarithmic."""

    name: str
    title: str
    unit: str
    log: bool = False


_LOSS = "nats per token"
LOSSES = (
    Metric(name="ntp", title=f"next-token {LOSS}", unit=_LOSS),
    Metric(name="kd", title=f"distillation {LOSS}", unit=_LOSS),
)
METRICS = (
    *LOSSES,
    Metric(name="grad_norm", title="gradient norm", unit="norm", log=True),
    Metric(name="param_norm", title="parameter norm", unit="norm"),
    Metric(name="learning_rate", title="learning rate", unit="rate"),
    Metric(name="tokens_per_second", title="tokens per second", unit="tokens / s"),
    Metric(name="mfu", title="MFU", unit="share of the peak"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curves:
    """A run's metrics and its row, which an unfinished run does not have."""

    name: str
    curves: metrics.MetricCurves
    record: RunRecord | None

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
    return Curves(name=folder.resolve().name, curves=curves, record=load_record(folder / "result.json"))


def chart(runs: Sequence[Curves], name: str, shown: Sequence[Metric] = METRICS, *, log: bool = False) -> Chart:
    """A panel for each metric that a run has. One run has a colour for all; several have one each, in order.

    The dot at a run's end is its loss on held-out text. `kd` depends on config.objective: with the forward divergence
    it is a cross-entropy, which includes the teacher's entropy besides the KL divergence; the KL of a finished run
    stands beside its name.
    """
    colours: list[str | float] = ["blue"] if len(runs) == 1 else list(places(len(runs)))
    frames = []
    for metric in shown:
        series = [part for run, colour in zip(runs, colours) for part in _series(run, metric, colour, len(runs) > 1)]
        if series:
            x, y = Axis(label="tokens", log=log, counts=True), Axis(label=metric.unit, log=metric.log)
            frames.append(Panel(title=metric.title, x=x, y=y, series=tuple(series)))
    return Chart(
        name=name,
        alt="Curves over training tokens: " + ", ".join(panel.title for panel in frames) + ".",
        caption="A point is the mean of several lines of metrics.jsonl, the band their lowest and highest. Dots are "
        "losses on held-out text at the end.",
        panels=tuple(frames),
        columns=2,
        height=2.4,
    )


def _series(run: Curves, metric: Metric, colour: str | float, several: bool) -> list[Series]:
    """The curve of a metric, with its band where it is alone; after the next-token loss, that on held-out text."""
    mean = run.curves.mean[metric.name]
    if not np.isfinite(mean).any():
        return []
    band = floats([]), floats([])
    curve = Series(
        label=run.label if several else metric.title,
        x=run.curves.at["tokens"],
        y=mean,
        colour=colour,
        line="-",
        marker="o" if len(mean) < 3 else "",
        starts=(0,),
        low=band[0] if several else run.curves.low[metric.name],
        high=band[1] if several else run.curves.high[metric.name],
        facts=run.facts if several else {},
        named=several or metric.name == "ntp",
    )
    if metric.name != "ntp" or run.record is None or not run.record.D:
        return [curve]
    held = Series(
        label=run.label if several else "on held-out text, at the end",
        x=floats(run.record.D),
        y=floats(run.record.loss),
        colour=colour if several else "orange",
        marker="o",
        size=7,
        facts=run.facts,
        named=not several,
    )
    return [curve, held]
