"""A figure of sweeps: the loss over one field, a line for every value of another, the best of each line marked."""

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.lines import Line2D

from distill.config import ConfigError, ExperimentConfig, nearest, parse
from distill.errors import ReportError
from distill.report.theme import LIGHT, LOSS, MARKERS, label, legend, panels, png
from distill.system.files import atomic_write

_TICKS = 5  # per panel

Lines = dict[str, dict[float, float]]  # value of `by` -> value of `x` -> loss, the mean of equal settings


def write(workdirs: Sequence[str], x: str, by: str, out: str | Path) -> list[Path]:
    """Writes OUT.png (one panel per sweep) and OUT.csv (the best x of every line); returns their paths.

    Raises ReportError for a folder without sweep.csv, or a field that the sweep did not vary.
    """
    sweeps = [(Path(workdir).name, _lines(Path(workdir), x, by)) for workdir in workdirs]
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = sorted({value for _, lines in sweeps for value in lines}, key=_order)
    shades = dict(zip(values, LIGHT.shades(len(values))))
    with LIGHT.applied():
        figure, axes = panels(len(sweeps), columns=2, height=3.2)
        for ax, (name, lines) in zip(axes, sweeps):
            for place, value in enumerate(value for value in values if value in lines):
                at, losses = np.array(sorted(lines[value].items())).T
                ax.plot(at, losses, color=shades[value], marker=MARKERS[place % len(MARKERS)], ms=4)
                best = losses.argmin()
                ax.plot(at[best], losses[best], "o", color=shades[value], ms=11, fillstyle="none")
            every = sorted({at for line in lines.values() for at in line})
            if every[0] > 0 and every[-1] / every[0] > 4:
                ax.set_xscale("log")
            ticks = every[:: -(-len(every) // _TICKS)]
            ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            ax.minorticks_off()
            ax.set_title(name)
        label(axes, x, LOSS)
        name = by.rpartition(".")[2]
        legend(figure, [Line2D([], [], color=shades[value], label=f"{name} = {value}") for value in values])
        atomic_write(path.with_suffix(".png"), png(figure))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["sweep", by, f"best {x}", "loss", "runs"])
    for name, lines in sweeps:
        for value in sorted(lines, key=_order):
            best_x = min(lines[value], key=lines[value].__getitem__)
            writer.writerow([name, value, best_x, lines[value][best_x], len(lines[value])])
    atomic_write(path.with_suffix(".csv"), text.getvalue())
    return [path.with_suffix(".png"), path.with_suffix(".csv")]


def _lines(workdir: Path, x: str, by: str) -> Lines:
    path = workdir / "sweep.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ReportError(f"{path}: cannot be read ({error}); wanted the workdir of a launch.sweep") from None
    if not rows:
        raise ReportError(f"{path}: has no finished run")
    for field in (x, by):
        if field not in rows[0]:
            raise ReportError(f"{path}: the sweep did not vary {field!r}.{nearest(field, rows[0])}")
    losses: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number, row in enumerate(rows, 2):
        try:
            losses[row[by]][float(row[x])].append(float(row["loss"]))
        except (TypeError, ValueError):
            raise ReportError(
                f"{path}: row {number} has {x}={row[x]!r}, loss={row['loss']!r}; wanted numbers"
            ) from None
    return {value: {at: float(np.mean(many)) for at, many in line.items()} for value, line in losses.items()}


def _order(value: str) -> tuple[float, str]:
    try:
        return float(value), value
    except ValueError:
        pass
    try:
        return float(parse(ExperimentConfig, "tokens", value)), value  # 250K before 2M
    except ConfigError:
        return float("inf"), value
