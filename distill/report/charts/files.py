"""The files of a chart beside a page: NAME.png and NAME-dark.png, NAME.svg, NAME.csv."""

import contextlib
from pathlib import Path

from distill.report.charts import chart as charts
from distill.report.charts import picture
from distill.report.charts.chart import Chart
from distill.report.theme import DARK, LIGHT, THEMES
from distill.system.files import atomic_write


def write(folder: Path, chart: Chart) -> tuple[bytes, bytes]:
    """Writes the files of a chart and returns its PNG in the light and the dark theme."""
    light, dark = (picture.image(chart, theme) for theme in THEMES)
    atomic_write(folder / f"{chart.name}.png", light)
    atomic_write(folder / f"{chart.name}-{DARK.name}.png", dark)
    atomic_write(folder / f"{chart.name}.svg", picture.svg(chart, LIGHT))
    atomic_write(folder / f"{chart.name}.csv", charts.table(chart))
    return light, dark


def names(chart: Chart, folder: str = "") -> list[str]:
    """The pictures of a chart that its figure links; its CSV the figure saves itself."""
    return [f"{folder}{chart.name}.{kind}" for kind in ("png", "svg")]


def remove(folder: Path, name: str) -> None:
    """Removes the files of a chart that a page no longer has."""
    for file in (f"{name}.png", f"{name}-{DARK.name}.png", f"{name}.svg", f"{name}.csv"):
        with contextlib.suppress(FileNotFoundError):
            (folder / file).unlink()
