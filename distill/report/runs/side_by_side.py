"""Several runs in one figure and one table: losses over tokens, and the result of each."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from distill.errors import ReportError
from distill.records import metrics
from distill.records.runs import RunRecord, load_record
from distill.report.theme import LIGHT, LOSS, Theme, count_ticks, new_figure, png
from distill.system.files import atomic_write

_SMOOTH = 60  # points per curve


def write(workdirs: Sequence[str], out: str | Path) -> list[Path]:
    """Writes OUT.png (next-token and distillation loss) and OUT.csv (one row per run); returns their paths.

    Curves are training losses; the dots at their ends are validation losses.
    Raises ReportError for a folder without metrics.
    """
    folders = [Path(workdir) for workdir in workdirs]
    curves = [metrics.read(folder / "metrics.jsonl", ("ntp", "kd"), points=_SMOOTH) for folder in folders]
    for folder, curve in zip(folders, curves):
        if not len(curve):
            raise ReportError(f"{folder}: there is no metrics.jsonl with a line; wanted the workdir of a run")
    records = [load_record(folder / "result.json") for folder in folders]
    path = Path(out)
    with LIGHT.applied():
        atomic_write(path.with_suffix(".png"), png(figure([folder.name for folder in folders], curves, records)))
    atomic_write(path.with_suffix(".csv"), _rows(folders, records))
    return [path.with_suffix(".png"), path.with_suffix(".csv")]


def figure(
    names: Sequence[str],
    curves: Sequence[metrics.MetricCurves],
    records: Sequence[RunRecord | None],
    theme: Theme = LIGHT,
) -> Figure:
    """Next-token loss over tokens and, if a run has a teacher, the distillation loss `kd` that it trains on.

    `kd` depends on config.objective: with the forward divergence it is a cross-entropy, which includes the teacher's
    entropy besides the KL divergence. The legend has the KL of a finished run on validation text.
    """
    taught = any(np.isfinite(curve.mean["kd"]).any() for curve in curves)
    panels = {"ntp": "next-token " + LOSS} | ({"kd": "distillation " + LOSS} if taught else {})
    drawn = new_figure(3.4)
    for axes, (metric, title) in zip(drawn.subplots(1, len(panels), squeeze=False).flat, panels.items()):
        for name, curve, record, color in zip(names, curves, records, theme.shades(len(names))):
            if not np.isfinite(curve.mean[metric]).any():
                continue
            known = metric == "kd" and record is not None and record.kl is not None
            label = f"{name}, KL {record.kl:.3f}" if known and record else name
            axes.plot(curve.at["tokens"], curve.mean[metric], color=color, label=label)
            if metric == "ntp" and record:
                axes.plot(record.D, record.loss, "o", color=color)
        axes.set(title=title, xscale="log", xlabel="tokens")
        count_ticks(axes.xaxis, [float(at) for curve in curves for at in curve.at["tokens"]])
        axes.legend()
    return drawn


def _rows(folders: Sequence[Path], records: Sequence[RunRecord | None]) -> str:
    """The result of every run, as CSV; an unfinished run has only its name."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in dataclasses.fields(RunRecord)]
    writer.writerow(["name", *names])
    for folder, record in zip(folders, records):
        cells: list[Any] = [getattr(record, name) if record else None for name in names]
        writer.writerow([folder.name, *("" if cell is None else cell for cell in cells)])
    return text.getvalue()
