"""A figure of sweeps: the loss over one field, a line for every value of another, the best of each line marked."""

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distill.config import ConfigError, ExperimentConfig, nearest, parse
from distill.errors import ReportError
from distill.report import page
from distill.report.charts import picture, web
from distill.report.charts.chart import Axis, Chart, Panel, Series
from distill.report.theme import LIGHT, LOSS, MARKERS, places
from distill.system.files import atomic_write

_TICKS = 5  # per panel

Lines = dict[str, dict[float, float]]  # value of `by` -> value of `x` -> loss, the mean of equal settings


def write(workdirs: Sequence[str], x: str, by: str, out: str | Path) -> list[Path]:
    """Writes OUT.png, OUT.svg and OUT.html (one panel per sweep) and OUT.csv (the best x of every line).

    Returns their paths. Raises ReportError for a folder without sweep.csv, or a field that the sweep did not vary.
    """
    sweeps = [(Path(workdir).name, _lines(Path(workdir), x, by)) for workdir in workdirs]
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = figure(sweeps, x, by, path.name)
    atomic_write(path.with_suffix(".png"), picture.image(drawn))
    atomic_write(path.with_suffix(".svg"), picture.svg(drawn, LIGHT))
    atomic_write(path.with_suffix(".csv"), _best(sweeps, x, by))
    title = f"Sweep of {x} by {by}"
    parts = [f"<header><h1>{page.escape(title)}</h1></header>", web.figure(drawn), web.colophon()]
    atomic_write(path.with_suffix(".html"), page.page(title, parts, web.scripts(), web.style()))
    return [path.with_suffix(kind) for kind in (".png", ".svg", ".csv", ".html")]


def figure(sweeps: Sequence[tuple[str, Lines]], x: str, by: str, name: str) -> Chart:
    """A panel per sweep, a line per value of `by`; the best of each line has a ring."""
    values = sorted({value for _, lines in sweeps for value in lines}, key=_order)
    shades, field = dict(zip(values, places(len(values)))), by.rpartition(".")[2]
    frames = []
    for sweep, lines in sweeps:
        series = []
        for place, value in enumerate(value for value in values if value in lines):
            at, losses = np.array(sorted(lines[value].items())).T
            best, label = int(losses.argmin()), f"{field} = {value}"
            marker = MARKERS[place % len(MARKERS)]
            series += [
                Series(label=label, x=at, y=losses, colour=shades[value], line="-", marker=marker, size=4),
                Series(
                    label=label,
                    x=at[best:][:1],
                    y=losses[best:][:1],
                    colour=shades[value],
                    marker="o",
                    size=11,
                    hollow=True,
                    named=False,
                ),
            ]
        every = sorted({at for line in lines.values() for at in line})
        log = every[0] > 0 and every[-1] / every[0] > 4
        ticks = tuple((tick, f"{tick:g}") for tick in every[:: -(-len(every) // _TICKS)])
        axis = Axis(label=x, log=log, ticks=ticks)
        # The ring of the best is below its line, so that the marker stays visible.
        frames.append(Panel(title=sweep, x=axis, y=Axis(label=LOSS), series=tuple(series[1::2] + series[::2])))
    caption = f"Loss over {x}, a line for each {by}; a ring marks the lowest of each line."
    return Chart(
        name=name,
        alt=f"Line charts of the loss over {x}, one panel a sweep.",
        caption=caption,
        panels=tuple(frames),
        columns=2,
        shared=True,
        height=3.2,
    )


def _best(sweeps: Sequence[tuple[str, Lines]], x: str, by: str) -> str:
    """CSV: the best x of every line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["sweep", by, f"best {x}", "loss", "runs"])
    for name, lines in sweeps:
        for value in sorted(lines, key=_order):
            best_x = min(lines[value], key=lines[value].__getitem__)
            writer.writerow([name, value, best_x, lines[value][best_x], len(lines[value])])
    return text.getvalue()


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
