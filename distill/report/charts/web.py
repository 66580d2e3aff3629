"""A chart as a figure of a page: readers hover, zoom, hide series, change scales, read points by keyboard, save CSV.

The figure holds its data; `scripts` and `style` are what a page with figures needs besides. The library that draws axes
is uPlot, whose files, licence and origin are in uplot/.
"""

import functools
import math
from collections.abc import Sequence
from importlib import resources

import matplotlib.colors

from distill.report import page
from distill.report.charts.chart import Axis, Chart, Colour, Floats, Panel, Series
from distill.report.theme import DARK, LIGHT, across

_DIGITS = 7  # of the numbers in a page
_HEIGHT = 92  # pixels of an inch of a chart's height


@functools.cache
def scripts() -> tuple[str, ...]:
    """The JavaScript of a page with figures: the library and what draws our charts with it."""
    return _file("uplot/uPlot.iife.min.js"), _file("charts.js")


@functools.cache
def style() -> str:
    """The style sheet of figures."""
    return _file("uplot/uPlot.min.css") + _file("charts.css")


def licence() -> str:
    """The licence text of the library in the page."""
    return _file("uplot/LICENSE")


def colophon() -> str:
    """The line at a page's foot with the library's licence."""
    return page.details("Charts by uPlot (MIT licence)", f"<pre>{page.escape(licence())}</pre>")


def figure(chart: Chart, files: Sequence[str] = (), pictures: tuple[bytes, bytes] | None = None) -> str:
    """The HTML of a chart. `files` are linked; `pictures` (light and dark PNG) stand in where no script runs."""
    links = " ".join(
        f'<a href="{page.escape(name)}">{page.escape(name.rpartition(".")[2].upper())}</a>' for name in files
    )
    rows = math.ceil(len(chart.panels) / across(len(chart.panels), chart.columns))
    room = round(_HEIGHT * chart.height * rows)
    still = f"<noscript>{page.picture(*pictures, alt=chart.alt)}</noscript>" if pictures else ""
    inside = (
        f'<figcaption>{page.escape(chart.caption)}</figcaption><script type="application/json">{data(chart)}</script>'
    )
    return _frame(f"figure-{chart.name}", chart.alt, room, still, links, inside)


def empty_figure(name: str, alt: str) -> str:
    """The HTML of a figure whose chart a script of the page draws, with `charts.show(figure, description)`."""
    return _frame(name, alt, round(3 * _HEIGHT), "", "", "")


def _frame(name: str, alt: str, room: int, still: str, links: str, inside: str) -> str:
    return (
        f'<figure class="chart" id="{page.escape(name)}" aria-label="{page.escape(alt)}">'
        f'<div class="frames" style="min-height:{room}px"></div>{still}'
        '<div class="legend" role="group" aria-label="series"></div>'
        f'<div class="tools" role="group" aria-label="view">{links}</div><output aria-live="polite"></output>'
        '<details class="data"><summary>The data</summary>'
        '<div class="scroll" role="region" tabindex="0" aria-label="data">'
        f"</div></details>{inside}</figure>"
    )


def data(chart: Chart) -> str:
    """The description as JSON that may stand inside of a script element."""
    tree = {
        "name": chart.name,
        "columns": across(len(chart.panels), chart.columns),
        "shared": chart.shared,
        "height": chart.height,
        "note": chart.note,
        "panels": [_panel(panel) for panel in chart.panels],
    }
    return page.encode(tree)


def colours(which: Colour) -> list[str]:
    """A colour in the light and the dark theme."""
    return [matplotlib.colors.to_hex(theme.colour(which)) for theme in (LIGHT, DARK)]


def _panel(panel: Panel) -> dict[str, object]:
    return {
        "title": panel.title,
        "x": _axis(panel.x),
        "y": _axis(panel.y),
        "weight": panel.weight,
        "notes": [list(note) for note in panel.notes],
        "shades": [panel.shade] if panel.shade else [],
        "series": [_series(series) for series in panel.series],
    }


def _axis(axis: Axis) -> dict[str, object]:
    ticks = [[_number(at), text] for at, text in axis.ticks]
    lim = [_number(end) for end in axis.limits] if axis.limits else None
    return {"label": axis.label, "log": axis.log, "lim": lim, "ticks": ticks, "count": axis.counts}


def _series(series: Series) -> dict[str, object]:
    facts = {name: [_fact(value) for value in column] for name, column in series.facts.items()}
    return {
        "label": series.label,
        "color": colours(series.colour),
        "line": series.line,
        "marker": series.marker,
        "size": series.size,
        "width": series.width,
        "alpha": series.alpha,
        "hollow": series.hollow,
        "named": series.named,
        "starts": list(series.starts),
        "x": _numbers(series.x),
        "y": _numbers(series.y),
        "low": _numbers(series.low),
        "high": _numbers(series.high),
        "left": _numbers(series.left),
        "right": _numbers(series.right),
        "facts": facts,
    }


def _numbers(values: Floats) -> list[float | int | None]:
    return [_number(value) for value in values.tolist()]


def _number(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{_DIGITS}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def _fact(value: object) -> str | float | int | None:
    if value is None or isinstance(value, str | int):
        return value
    return _number(value) if isinstance(value, float) else str(value)


def _file(name: str) -> str:
    return resources.files("distill.report.charts").joinpath(name).read_text("utf-8")
