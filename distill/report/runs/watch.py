"""Live curves of a run, a sweep or a study, read only from the files of its folder.

Curves come from metrics.jsonl, names from study.json, and a run's state from result.json, error.txt and lock.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from distill.errors import ReportError
from distill.records import metrics
from distill.report.runs import heading
from distill.system import process
from distill.system.files import loads
from distill.system.numbers import duration

_NAMES = ("ntp", "kd", "grad_norm", "param_norm", "learning_rate", "tokens_per_second", "seconds_left", "mfu")
_BARS = " ▁▂▃▄▅▆▇█"
_Numbers = Sequence[float] | NDArray[np.float64]
_WIDEST = 28  # characters of a run's name
MOST = 12  # runs that are shown: the latest ones


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunLog:
    """A run's curves and last line from metrics.jsonl, its name in its study, and its state."""

    name: str
    curves: metrics.MetricCurves
    last: dict[str, float]
    finished: bool
    changed: float  # when its log was last written
    failed: bool = False
    gone: int | None = None  # the process that trained it, if it ended on this machine


def find(workdir: str | Path) -> list[Path]:
    """The logs under a workdir: its own, and those of the runs of a sweep or a study, latest first."""
    folder = Path(workdir)
    paths = [folder / "metrics.jsonl", *folder.glob("*/metrics.jsonl"), *folder.glob("runs/*/metrics.jsonl")]
    written = {path: path.stat().st_mtime for path in paths if path.exists() and path.stat().st_size}
    if not written:
        raise ReportError(
            f"{workdir}: there is no metrics.jsonl in it or in its runs; wanted the folder of a run, a sweep or a "
            "study that has begun"
        )
    return sorted(written, key=lambda path: (-written[path], path))


def read(path: Path, points: int = 120) -> RunLog:
    """One run's log."""
    folder, changed = path.parent, path.stat().st_mtime
    error = folder / "error.txt"  # of the last attempt; a new attempt writes newer lines
    return RunLog(
        name=_planned_name(folder),
        curves=metrics.read(path, _NAMES, points=points, workers=1),
        last=metrics.last(path) or {},
        finished=(folder / "result.json").exists(),
        changed=changed,
        failed=error.exists() and error.stat().st_mtime >= changed,
        gone=process.gone_holder(folder),
    )


def _planned_name(folder: Path) -> str:
    """The name of a run in its study or sweep, from study.json; else the folder's name."""
    folder = folder.absolute()
    for above in folder.parents[:2]:  # DIR/RUN and DIR/runs/RUN
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return str(loads((above / "study.json").read_text("utf-8"))["planned"][folder.name])
    return folder.name


def screen(workdir: str | Path, width: int = 100, height: int = 12, now: float | None = None) -> RenderableType:
    """How far a study is, the curve of the most recently written run, and a table with one line per run."""
    now = time.time() if now is None else now
    parts: list[RenderableType] = [Text(line, style="bold") for line in heading.lines(workdir, now)]
    try:
        paths = find(workdir)
    except ReportError:
        if not parts:
            raise
        return Group(*parts)  # a study whose runs all wait
    runs = [read(path) for path in paths[:MOST]]
    first = runs[0]
    what = state(first, now)
    if what == "dead":
        what += f": process {first.gone} has ended; the same command continues the run"
    parts.append(Text(f"{first.name}: {what}", style="bold"))
    parts.append(_curve("loss (nats per token)", first.curves.mean["ntp"], first.curves.at["step"], width, height))
    parts.append(Text(_numbers(first.last), style="dim"))
    if len(paths) > 1:
        table = Table(box=SIMPLE_HEAD)
        widest = max(len(run.name[:_WIDEST]) for run in runs)
        for name in ("run", "step", "loss", "tokens/s", "state", "loss so far"):
            table.add_column(name, justify="right" if name in ("step", "loss", "tokens/s") else "left", no_wrap=True)
        for run in runs:
            rate, line = run.last.get("tokens_per_second"), spark(run.curves.mean["ntp"], max(width - 42 - widest, 8))
            table.add_row(
                run.name[:_WIDEST], f"{run.last.get('step', 0):,}", f"{run.last.get('ntp', math.nan):.4f}",
                f"{rate:,.0f}" if rate else "-", state(run, now), line,
            )  # fmt: skip
        if len(paths) > MOST:
            table.caption = f"{len(paths) - MOST} older runs not shown"
        parts.append(table)
    return Group(*parts)


def state(run: RunLog, now: float) -> str:
    """What a run does at a time: finished, failed, dead, silent, or how long is left."""
    if run.finished:
        return "finished"
    if run.failed:
        return "failed"
    if run.gone is not None:
        return "dead"
    if now - run.changed > 120:
        return f"silent for {duration(now - run.changed)}"
    return f"{duration(run.last.get('seconds_left', math.nan))} left"


def _numbers(line: dict[str, float]) -> str:
    shown = {name: line[name] for name in ("step", *_NAMES) if name in line}
    return "  ".join(f"{name} {value:.6g}" for name, value in shown.items())


def spark(values: _Numbers, width: int) -> str:
    """A curve in one line of text, with gaps for missing values."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return ""
    low, high = min(known), max(known)
    picked = [values[i * len(values) // width] for i in range(width)] if len(values) > width else list(values)
    level = lambda value: 1 + round((value - low) / ((high - low) or 1) * (len(_BARS) - 2))
    return "".join(_BARS[level(value)] if math.isfinite(value) else " " for value in picked)


def _curve(title: str, values: _Numbers, steps: _Numbers, width: int, height: int) -> RenderableType:
    """A curve of `height` lines, with its extremes at the left and its first and last step below."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return Text(f"{title}: nothing finite yet")
    # The steep first points of a run would flatten the rest.
    low, high = min(known), sorted(known)[max(math.ceil(0.98 * len(known)) - 1, 0)]
    columns = min(width - 10, len(values))
    picked = [values[i * len(values) // columns] for i in range(columns)]
    rows = []
    for row in range(height):
        cells = ""
        for value in picked:
            part = (min(value, high) - low) / ((high - low) or 1) * height - (height - 1 - row)
            cells += _BARS[max(0, min(8, round(part * 8)))] if math.isfinite(value) else " "
        label = f"{high:8.4f}" if row == 0 else f"{low:8.4f}" if row == height - 1 else " " * 8
        rows.append(f"{label} {cells}")
    rows.append(" " * 9 + f"{steps[0]:,.0f}" + f"{steps[-1]:,.0f}".rjust(max(columns - len(f"{steps[0]:,.0f}"), 1)))
    return Group(Text(title, style="dim"), Text("\n".join(rows)))
