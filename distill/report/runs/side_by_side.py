"""Several runs in one picture and one table: curves over tokens, and what each came to."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.records import metrics
from distill.records.runs import RunRecord, load_record
from distill.report.study.results import ReportError
from distill.report.theme import LIGHT, new_figure, png
from distill.system.files import atomic_write
from distill.system.numbers import si

_SMOOTH = 60  # points a curve


def write(workdirs: Sequence[str], out: str | Path) -> list[Path]:
    """Writes OUT.png (loss, and KL to the teacher where there is one) and OUT.csv (a row a run); returns their paths.

    Curves are of training text and of whatever each run trained on; the dots at their ends are validation losses.
    Raises ReportError for a folder without metrics.
    """
    folders = [Path(workdir) for workdir in workdirs]
    curves = [metrics.read(folder / "metrics.jsonl", ("ntp", "kd"), points=_SMOOTH) for folder in folders]
    for folder, curve in zip(folders, curves):
        if not len(curve):
            raise ReportError(f"{folder}: there is no metrics.jsonl with a line; wanted the workdir of a run")
    records = [load_record(folder / "result.json") for folder in folders]
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    with LIGHT.applied():
        figure = new_figure(3.4)
        taught = any(np.isfinite(curve.mean["kd"]).any() for curve in curves)
        panels = {"ntp": "next-token loss (nats per token)"} | (
            {"kd": "divergence to the teacher (nats)"} if taught else {}
        )
        for axes, (metric, title) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items()):
            for folder, curve, record, color in zip(folders, curves, records, LIGHT.shades(len(folders))):
                tokens, values = curve.at["tokens"], curve.mean[metric]
                if np.isfinite(values).any():
                    axes.plot(tokens, values, color=color, label=folder.name)
                    if metric == "ntp" and record:
                        axes.plot(record.D, record.loss, "o", color=color)
            axes.set_title(title)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: si(value) if value else "0")
            axes.xaxis.set_minor_formatter(lambda *_: "")
            axes.set_xlabel("tokens")
            axes.legend()
        atomic_write(path.with_suffix(".png"), png(figure))
    atomic_write(path.with_suffix(".csv"), _rows(folders, records))
    return [path.with_suffix(".png"), path.with_suffix(".csv")]


def _rows(folders: Sequence[Path], records: Sequence[RunRecord | None]) -> str:
    """The result of every run, as CSV; one that is not finished has its name alone."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in dataclasses.fields(RunRecord)]
    writer.writerow(["name", *names])
    for folder, record in zip(folders, records):
        cells: list[Any] = [getattr(record, name) if record else None for name in names]
        writer.writerow([folder.name, *("" if cell is None else cell for cell in cells)])
    return text.getvalue()
