"""Helpers of the paper's figures: panels, lines, contours and their files, in the theme of all figures."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from distill.laws.planning.scenarios import PlanError
from distill.report.theme import LIGHT, MARKERS
from distill.system.files import atomic_file, atomic_write
from distill.system.numbers import si

# A colour and a line style for each scenario, so that they also differ in greyscale print.
SCENARIO_STYLE: dict[str, dict[str, Any]] = {
    "best_case": {"color": LIGHT.blue, "linestyle": "-"},
    "teacher_inference": {"color": LIGHT.orange, "linestyle": "--"},
    "teacher_pretraining": {"color": LIGHT.green, "linestyle": "-."},
    "pretraining_and_inference": {"color": LIGHT.purple, "linestyle": (0, (5, 1, 1, 1, 1, 1))},
    "supervised": {"color": LIGHT.ink, "linestyle": ":"},
}
SCENARIO_LABEL = {
    "best_case": "best case",
    "teacher_inference": "teacher inference",
    "teacher_pretraining": "teacher pretraining",
    "pretraining_and_inference": "pretraining + inference",
    "supervised": "supervised",
}
# Changes to the theme for the paper's figures: many small panels need smaller text.
SMALL_TEXT = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "center",
    "legend.fontsize": 7.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


def panels(
    rows: int, columns: int, width: float = 3.1, height: float = 2.7, sharex: bool = False, sharey: bool = False
) -> tuple[Figure, np.ndarray]:
    """(figure, axes [rows, columns]); width and height of a panel in inches."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)


def legend(figure: Figure, ax: Axes) -> None:
    """One legend for the whole figure, beside the panels."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")


def power(value: float) -> str:
    """3e19 as mathematical text."""
    mantissa, exponent = f"{value:.0e}".split("e")
    times = "" if mantissa == "1" else f"{mantissa}\\times"
    return f"${times}10^{{{int(exponent)}}}$"


def marker(index: int) -> str:
    return MARKERS[index % len(MARKERS)]


def lines(
    ax: Axes,
    x: NDArray[np.float64],
    series: Sequence[NDArray[np.float64]] | NDArray[np.float64],
    labels: Sequence[str],
    bands: NDArray[np.float64] | None = None,
) -> None:
    """An ordered family of curves with different shades and markers; bands [2, series, x] are drawn behind them."""
    for i, (y, label, color) in enumerate(zip(series, labels, LIGHT.shades(len(series)))):
        spaced = max(len(np.ravel(y)) // 6, 1)
        ax.plot(x, y, color=color, label=label, marker=marker(i), markersize=3.5, markevery=(i % spaced, spaced))
        if bands is not None:
            ax.fill_between(x, bands[0][i], bands[1][i], color=color, alpha=0.15, linewidth=0)


def contours(
    ax: Axes, x: ArrayLike, y: ArrayLike, z: ArrayLike, levels: int = 12, label: str = "", format: str = "%.2f"
) -> None:
    """Filled contours with thin labelled lines; z [y, x]."""
    filled = ax.contourf(x, y, z, levels=levels, cmap="viridis")
    thin = ax.contour(x, y, z, levels=np.asarray(filled.levels)[::2], colors=LIGHT.ground, linewidths=0.5)
    ax.clabel(thin, fmt=format, fontsize=6)
    ax.grid(False)
    ax.figure.colorbar(filled, ax=ax, shrink=0.9).set_label(label)


def difference(ax: Axes, x: ArrayLike, y: ArrayLike, z: ArrayLike, limit: float, label: str) -> None:
    """Diverging contours around zero (blue: distillation wins), the zero line heavy; z [y, x], clipped at the limit."""
    levels = np.linspace(-limit, limit, 17)
    filled = ax.contourf(x, y, np.clip(z, -limit, limit), levels=levels, cmap="RdBu_r", extend="both")
    ax.contour(x, y, z, levels=[0.0], colors=LIGHT.ink, linewidths=1.6)
    ax.grid(False)
    if label:
        ax.figure.colorbar(filled, ax=ax, shrink=0.9, label=label)


def sizes_label(sizes: Sequence[float] | NDArray[np.float64], symbol: str = "N_S") -> list[str]:
    return [f"${symbol}$ = {si(float(n))}" for n in sizes]


def save(figure: Figure, path: Path, dots: int = 90) -> None:
    """Writes a PNG, atomically."""
    with _writing(path), atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dots, metadata={"Software": None})


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text, atomically."""
    with _writing(path):
        atomic_write(path, text)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns an OSError of the block into a PlanError that names the file."""
    try:
        yield
    except OSError as error:
        raise PlanError(f"{path}: cannot be written ({error.strerror})") from error
