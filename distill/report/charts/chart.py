"""The description of a chart: panels of series over two axes, without anything about how it is drawn.

`picture` draws it, `web` as a figure of a page; `table` is its data as CSV.
"""

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distill.errors import ReportError

Floats = NDArray[np.float64]
# A name of a colour of report.theme.Theme, or a place from 0 to 1 on its ramp of ordered colours.
Colour = str | float

LINES = ("", "-", "--", ":", "-.")


def _none() -> Floats:
    return np.zeros(0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis: its label, scale, limits, and ticks with a text each; `counts` writes ticks as 125K and 1M."""

    label: str
    log: bool = False
    limits: tuple[float, float] | None = None
    ticks: tuple[tuple[float, str], ...] = ()
    counts: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Series:
    """Points [P] of one colour, joined by a line or not; equal labels share one entry of the legend.

    starts: where the series is several lines, the index [L] of the first point of each.
    low, high: [P] the ends of an interval of y: a band where there is a line, else bars.
    left, right: [P] the ends of an interval of x, as bars.
    facts: what a reader sees of a point besides x and y: columns of P values, or of L values with `starts`.
    """

    label: str
    x: Floats
    y: Floats
    colour: Colour
    line: str = ""
    marker: str = ""
    size: float = 5.0
    width: float = 1.5
    alpha: float = 1.0
    hollow: bool = False
    starts: tuple[int, ...] = ()
    low: Floats = dataclasses.field(default_factory=_none)
    high: Floats = dataclasses.field(default_factory=_none)
    left: Floats = dataclasses.field(default_factory=_none)
    right: Floats = dataclasses.field(default_factory=_none)
    facts: Mapping[str, Sequence[object]] = dataclasses.field(default_factory=dict)
    named: bool = True  # whether the legend names it

    def __post_init__(self) -> None:
        points, rows = len(self.x), len(self.starts) or len(self.x)
        columns = [len(column) for column in self.facts.values()]
        ends = [len(end) for end in (self.low, self.high, self.left, self.right) if len(end)]
        if len(self.y) != points or any(n != points for n in ends) or any(n != rows for n in columns):
            raise ReportError(f"series {self.label!r}: x, y, intervals and facts differ in length")

    def lines(self) -> list[slice]:
        """The points of each line."""
        ends = [*self.starts[1:], len(self.x)]
        return [slice(start, end) for start, end in zip(self.starts or (0,), ends)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """A frame with its series; `notes` are texts at the right of a height, `shade` a stretch of x and what it is."""

    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    notes: tuple[tuple[float, str], ...] = ()
    shade: tuple[float, float, str] | None = None
    weight: float = 1.0  # the height beside other panels of one column


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """Panels in rows of `columns`. `shared` panels have the same limits on both axes.

    name: of its files. alt: what it shows, for readers who cannot see it. note: a title of the legend.
    """

    name: str
    alt: str
    caption: str
    panels: tuple[Panel, ...]
    columns: int = 3
    shared: bool = False
    height: float = 2.6  # inches of a row
    note: str = ""

    def labels(self) -> list[Series]:
        """The first series of every label of the legend."""
        found: dict[str, Series] = {}
        for panel in self.panels:
            for series in panel.series:
                if series.named:
                    found.setdefault(series.label, series)
        return list(found.values())


def floats(values: ArrayLike) -> Floats:
    """Values [P] as float64."""
    return np.atleast_1d(np.asarray(values, np.float64))


def joined(curves: Sequence[tuple[ArrayLike, ArrayLike]]) -> tuple[Floats, Floats, tuple[int, ...]]:
    """(x, y, starts) of several lines as one series."""
    x, y = [floats(curve[0]) for curve in curves], [floats(curve[1]) for curve in curves]
    starts = np.cumsum([0, *(len(part) for part in x[:-1])])
    return np.concatenate(x), np.concatenate(y), tuple(int(start) for start in starts)


def facts(chart: Chart) -> list[str]:
    """The names of all facts, in order."""
    every = (name for panel in chart.panels for series in panel.series for name in series.facts)
    return list(dict.fromkeys(every))


def table(chart: Chart) -> str:
    """CSV, one row per point: panel, series, x, y, the ends of their intervals, and the facts."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = facts(chart)
    writer.writerow(["panel", "series", "x", "y", "low", "high", "left", "right", *names])
    for panel in chart.panels:
        for series in panel.series:
            for line, points in enumerate(series.lines()):
                for i in range(points.start, points.stop):
                    row = line if series.starts else i
                    ends = [_cell(end[i]) if len(end) else "" for end in _ends(series)]
                    known = [str(series.facts[name][row]) if name in series.facts else "" for name in names]
                    place = [panel.title, series.label, _cell(series.x[i]), _cell(series.y[i])]
                    writer.writerow([*place, *ends, *known])
    return text.getvalue()


def _ends(series: Series) -> tuple[Floats, Floats, Floats, Floats]:
    return series.low, series.high, series.left, series.right


def _cell(value: float) -> str:
    return f"{value:.10g}" if math.isfinite(value) else ""
