"""The page of one run, finished or not: workdir/report/index.html, from config.txt, metrics.jsonl and result.json."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from distill.errors import ReportError
from distill.records import metrics
from distill.records.runs import load_record
from distill.report import page
from distill.report.page import Column
from distill.report.theme import THEMES, Theme, count_axis, new_figure, png
from distill.system.files import atomic_write
from distill.system.numbers import duration, utc
from distill.system.progress import Progress

# Panel: its metrics, and whether its axis is logarithmic.
_PANELS = {
    "loss (nats per token)": (("ntp", "kd"), False),
    "gradient norm": (("grad_norm",), True),
    "parameter norm": (("param_norm",), False),
    "learning rate": (("learning_rate",), False),
    "tokens per second": (("tokens_per_second",), False),
    "MFU": (("mfu",), False),
}
_NAMES = tuple(name for names, _ in _PANELS.values() for name in names)


def is_run(workdir: str | Path) -> bool:
    """Whether a folder belongs to one run, not to a study."""
    folder = Path(workdir)
    return (folder / "metrics.jsonl").exists() and not (folder / "runs.csv").exists()


def write(workdir: str | Path, on_progress: Callable[[Progress], None] = lambda _: None) -> Path:
    """Writes the page and returns its path. Raises ReportError if there is nothing to report yet."""
    folder = Path(workdir)
    curves = metrics.read(folder / "metrics.jsonl", _NAMES)
    if not len(curves):
        raise ReportError(f"{folder}: metrics.jsonl has no line yet; wait for the run's first ones")
    record, last = load_record(folder / "result.json"), metrics.last(folder / "metrics.jsonl") or {}
    images = []
    for i, theme in enumerate(THEMES):
        on_progress(Progress(done=i, total=len(THEMES), unit="figure", text="curves"))
        with theme.applied():
            images.append(png(figure(curves, theme)))
    name, state = folder.resolve().name, "finished" if record else f"at step {last['step']:,}, not finished"
    parts = [f"<header><h1>Run {page.escape(name)}</h1>", page.paragraph(state, "soft") + "</header>"]
    caption = "A point is the mean of several lines of metrics.jsonl, the band their lowest and highest."
    drawn = page.figure(images[0], images[1], "curves of the run's metrics over its tokens", caption)
    parts.append(page.section("curves", "Curves", drawn))
    parts.append(page.section("now", "The last line of metrics.jsonl", _table("metrics", last)))
    if record:
        parts.append(page.section("result", "The result", _table("result.json", dataclasses.asdict(record))))
    config = dict(
        line.split(" = ", 1)
        for line in (folder / "config.txt").read_text("utf-8").splitlines()
        if " = " in line and not line.startswith("#")
    )
    parts.append(page.section("config", "The config", page.details("config.txt", _table("config", config))))
    path = folder / "report" / "index.html"
    try:
        atomic_write(path, page.page(f"Run {name}", parts))
    except OSError as error:
        raise ReportError(f"{path}: the report cannot be written ({error.strerror})") from None
    return path


def figure(curves: metrics.MetricCurves, theme: Theme) -> Figure:
    """A panel for each kind of metric that the run has."""
    shown = {
        title: [name for name in names if np.isfinite(curves.mean[name]).any()] for title, (names, _) in _PANELS.items()
    }
    titles = [title for title, names in shown.items() if names]
    rows = math.ceil(len(titles) / 2)
    drawn = new_figure(2.2 * rows)
    for axes, title in zip(drawn.subplots(rows, 2, squeeze=False).flat, [*titles, *[None] * (2 * rows - len(titles))]):
        if title is None:
            axes.set_visible(False)
            continue
        for name, color in zip(shown[title], (theme.blue, theme.orange)):
            x = curves.at["tokens"]
            axes.plot(x, curves.mean[name], color=color, label=name)
            axes.fill_between(x, curves.low[name], curves.high[name], color=color, alpha=0.2, lw=0)
        if _PANELS[title][1]:
            axes.set_yscale("log")
        if len(shown[title]) > 1:
            axes.legend()
        axes.set(title=title, xlabel="tokens")
        count_axis(axes.xaxis)
    return drawn


def _table(caption: str, values: Mapping[str, object]) -> str:
    rows = [(name, _text(name, value)) for name, value in values.items() if value is not None]
    return page.table(caption, [Column(name="name", text=True), Column(name="value", text=True)], rows)


def _text(name: str, value: object) -> str:
    """A value as text: times in UTC, durations in units, numbers with six digits."""
    if name == "time" and isinstance(value, int | float):
        return f"{utc(value)} UTC"
    if name == "seconds_left" and isinstance(value, int | float):
        return duration(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
