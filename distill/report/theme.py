"""The style of all figures: a light and a dark theme, colour-blind-safe colours, panels, PNG bytes.

Ordered series (tokens, teachers) use shades of viridis and different markers; kinds use colours near those of Okabe and
Ito, with enough contrast to the background. Figures are made without pyplot, so no global state changes.
"""

import dataclasses
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import matplotlib
import matplotlib.colors
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import ArrayLike

from distill.system.numbers import si

Colour = tuple[float, float, float, float]  # RGBA

MARKERS = "osD^vP*Xph"
LOSS = "loss (nats per token)"
_WIDTH = 7.6  # inches
_DPI = 144


@dataclasses.dataclass(frozen=True, kw_only=True)
class Theme:
    """Colours of one theme. `ramp` is the part of viridis with enough contrast to the background."""

    name: str
    ground: str
    ink: str
    soft: str
    grid: str
    ramp: tuple[float, float]
    blue: str
    orange: str
    green: str
    purple: str

    @property
    def kinds(self) -> tuple[str, ...]:
        """The colours of unordered kinds, in the order in which figures use them."""
        return self.blue, self.orange, self.green, self.purple

    def shades(self, n: int) -> list[Colour]:
        """n colours of the ramp, in order."""
        return [self.colour(place) for place in places(n)]

    def colour(self, which: str | float) -> Colour:
        """A colour by its name in this theme, or by its place from 0 to 1 on the ramp."""
        if isinstance(which, str):
            return matplotlib.colors.to_rgba(getattr(self, which))
        low, high = self.ramp
        return matplotlib.colormaps["viridis"](low + (high - low) * which)

    @contextmanager
    def applied(self, changes: Mapping[str, object] = MappingProxyType({})) -> Iterator[None]:
        """Applies the theme, with optional changes, to matplotlib's settings within the with statement."""
        settings: Any = {
            "figure.facecolor": self.ground, "axes.facecolor": self.ground, "savefig.facecolor": self.ground,
            "axes.edgecolor": self.soft, "axes.labelcolor": self.ink, "text.color": self.ink,
            "xtick.color": self.soft, "ytick.color": self.soft, "xtick.labelcolor": self.ink,
            "ytick.labelcolor": self.ink, "grid.color": self.grid, "axes.grid": True, "axes.axisbelow": True,
            "axes.spines.top": False, "axes.spines.right": False, "font.size": 9.5, "axes.titlesize": 10,
            "axes.titlelocation": "left", "legend.frameon": False, "legend.fontsize": 8.5, "lines.linewidth": 1.5,
            "lines.markersize": 5, "font.family": "DejaVu Sans",
        }  # fmt: skip
        with matplotlib.rc_context(settings | dict(changes)):
            yield


def places(n: int) -> list[float]:
    """n places on the ramp, evenly from its dark to its light end."""
    return [i / max(n - 1, 1) for i in range(n)]


LIGHT = Theme(
    name="light", ground="#ffffff", ink="#1b1f24", soft="#656d76", grid="#e3e7eb", ramp=(0.0, 0.82),
    blue="#0072b2", orange="#c04f00", green="#007a5a", purple="#a3528a",
)  # fmt: skip
DARK = Theme(
    name="dark", ground="#14181c", ink="#e8ebee", soft="#9aa4ae", grid="#2b3238", ramp=(0.3, 1.0),
    blue="#56b4e9", orange="#f0a04b", green="#3fc79a", purple="#d992bf",
)  # fmt: skip
THEMES = (LIGHT, DARK)


def panels(n: int, *, columns: int = 3, height: float = 2.6, legend_rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of n panels that share their axes, in rows of at most `columns`, with room for a legend below."""
    columns = across(n, columns)
    rows = math.ceil(n / columns)
    figure = new_figure(rows * (3.6 if columns == 1 else height) + 0.35 + 0.22 * legend_rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    flat = list(grid.flat)
    for axes in flat[n:]:
        axes.set_visible(False)
    # The last panel of a column that is not full carries the ticks of its column.
    for axes in flat[max(n - columns, 0) : n]:
        axes.xaxis.set_tick_params(labelbottom=True)
    return figure, flat[:n]


def across(n: int, columns: int) -> int:
    """How many of n panels stand beside each other: at most `columns`, and four in two rows."""
    return 2 if n == 4 and columns > 2 else max(min(columns, n), 1)


class ShownFigure(Figure):
    """A figure that a notebook shows, without pyplot and its inline backend."""

    def _repr_png_(self) -> bytes:
        return png(self)


def new_figure(height: float) -> Figure:
    """An empty figure of the page's width; height in inches."""
    figure = ShownFigure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def label(axes: Sequence[Axes], x: str, y: str) -> None:
    """Axis labels at the left and below the lowest panel of every column."""
    place = axes[0].get_subplotspec()
    columns = place.get_gridspec().ncols if place else 1
    for i, ax in enumerate(axes):
        if i % columns == 0:
            ax.set_ylabel(y)
        if i >= len(axes) - columns:
            ax.set_xlabel(x)


def legend(figure: Figure, handles: Sequence[Artist], columns: int = 4, title: str | None = None) -> None:
    """A legend below the panels."""
    figure.legend(handles=list(handles), loc="outside lower center", ncols=columns, title=title, title_fontsize=8.5)


def count_axis(axis: Axis) -> None:
    """Sets tick labels such as 125K and 1M on an axis of sizes or tokens."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: si(value) if value else "0"))
    axis.set_minor_formatter(NullFormatter())


def count_ticks(axis: Axis, values: Sequence[float], most: int = 6) -> None:
    """Sets ticks at the study's budgets if they are few and well separated, else at powers of ten."""
    values = sorted(set(values))
    span = math.log10(values[-1] / values[0]) if len(values) > 1 else 0.0
    if len(values) <= most and all(b / a > 10 ** (span / 8) for a, b in zip(values, values[1:])):
        axis.set_ticks(values)
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0) if span < 1.7 else (1.0,)))
        # Nine minor ticks per decade took a third of the time of a figure of twenty panels.
        axis.set_minor_locator(NullLocator() if span < 1.7 else LogLocator(10, subs=(2.0, 5.0)))
    count_axis(axis)


def log_ticks(axis: Axis) -> None:
    """Sets plain numbers on a short logarithmic axis, where matplotlib's `3 x 10^-1`, `4 x 10^-1` lie on each other."""
    low, high = sorted(axis.get_view_interval())
    if high > 30 * low or low < 1e-3 or high > 1e4:
        return
    axis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)) if high > 4 * low else MaxNLocator(5))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def padded(values: ArrayLike, share: float = 0.06) -> tuple[float, float]:
    """Limits around values."""
    low, high = float(np.min(values)), float(np.max(values))
    room = (high - low) * share or abs(high) * share
    return low - room, high + room


def png(figure: Figure) -> bytes:
    """The figure as PNG, the same bytes for the same figure."""
    with io.BytesIO() as file:
        # Not savefig, which draws twice: once to lay the panels out, once more to draw them.
        FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})
        return file.getvalue()
