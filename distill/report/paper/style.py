"""How every figure looks: readable in print, by the colour-blind and in grey. Matplotlib loads on first use."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.laws.planning.scenarios import PlanError
from distill.system.files import atomic_file, atomic_write
from distill.system.numbers import si

# Okabe and Ito's palette, each with a line style of its own, so that grey print still tells them apart.
SCENARIO_STYLE: dict[str, dict[str, Any]] = {
    "best_case": {"color": "#0072B2", "linestyle": "-"},
    "teacher_inference": {"color": "#E69F00", "linestyle": "--"},
    "teacher_pretraining": {"color": "#009E73", "linestyle": "-."},
    "pretraining_and_inference": {"color": "#CC79A7", "linestyle": (0, (5, 1, 1, 1, 1, 1))},
    "supervised": {"color": "black", "linestyle": ":"},
}
SCENARIO_LABEL = {
    "best_case": "best case",
    "teacher_inference": "teacher inference",
    "teacher_pretraining": "teacher pretraining",
    "pretraining_and_inference": "pretraining + inference",
    "supervised": "supervised",
}
RULES: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "lines.linewidth": 1.6,
}
_MARKERS = "osD^vP*X<>"


def panels(rows: int, columns: int, width: float = 3.1, height: float = 2.7, **options: Any) -> tuple[Any, Any]:
    """(figure, axes [rows, columns]) without any global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def legend(figure: Any, ax: Any, **options: Any) -> None:
    """One legend for the whole figure, beside the panels, where it hides nothing."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", **options)


def power(value: float) -> str:
    """3e19 as mathematical text."""
    mantissa, exponent = f"{value:.0e}".split("e")
    times = "" if mantissa == "1" else f"{mantissa}\\times"
    return f"${times}10^{{{int(exponent)}}}$"


def shades(count: int) -> list[Any]:
    """Colours of an ordered series, dark to light, safe for the colour-blind and in grey."""
    import matplotlib

    return [matplotlib.colormaps["viridis"](x) for x in np.linspace(0.0, 0.88, count)]


def marker(index: int) -> str:
    return _MARKERS[index % len(_MARKERS)]


def lines(ax: Any, x: Any, series: Any, labels: Sequence[str], bands: Any = None, **style: Any) -> None:
    """An ordered family of curves, told apart by shade and marker; bands [2, series, x] are drawn behind them."""
    for i, (y, label, color) in enumerate(zip(series, labels, shades(len(series)))):
        spaced = max(len(np.ravel(y)) // 6, 1)
        ax.plot(
            x, y, color=color, label=label, marker=marker(i), markersize=3.5, markevery=(i % spaced, spaced), **style
        )
        if bands is not None:
            ax.fill_between(x, bands[0][i], bands[1][i], color=color, alpha=0.15, linewidth=0)


def contours(ax: Any, x: Any, y: Any, z: Any, levels: int = 12, label: str = "", format: str = "%.2f") -> Any:
    """Filled contours with thin labelled lines; z [y, x]."""
    filled = ax.contourf(x, y, z, levels=levels, cmap="viridis")
    thin = ax.contour(x, y, z, levels=filled.levels[::2], colors="white", linewidths=0.5)
    ax.clabel(thin, fmt=format, fontsize=6)
    ax.grid(False)
    bar = ax.figure.colorbar(filled, ax=ax, shrink=0.9)
    bar.set_label(label)
    return filled


def difference(ax: Any, x: Any, y: Any, z: Any, limit: float, label: str) -> None:
    """Diverging contours around zero (blue: distillation wins), the zero line heavy; z [y, x], clipped at the limit."""
    levels = np.linspace(-limit, limit, 17)
    filled = ax.contourf(x, y, np.clip(z, -limit, limit), levels=levels, cmap="RdBu_r", extend="both")
    ax.contour(x, y, z, levels=[0.0], colors="black", linewidths=1.6)
    ax.grid(False)
    if label:
        ax.figure.colorbar(filled, ax=ax, shrink=0.9, label=label)


def sizes_label(sizes: Any, symbol: str = "N_S") -> list[str]:
    return [f"${symbol}$ = {si(float(n))}" for n in sizes]


def save(figure: Any, path: Path, dots: int = 90) -> None:
    """PNG, whole or not at all."""
    with _writing(path), atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dots, metadata={"Software": None})


def write_text(path: Path, text: str) -> None:
    """UTF-8 text, whole or not at all."""
    with _writing(path):
        atomic_write(path, text)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns an OSError of the block into a PlanError that names the file."""
    try:
        yield
    except OSError as error:
        raise PlanError(f"{path}: cannot be written ({error.strerror})") from error
