"""A figure of a fit: predicted against observed losses, residuals, parameter intervals, and the widest ridge."""

import os
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distill.laws.fitting.fit import Fit
from distill.laws.forms.law import LawError
from distill.laws.uncertainty.bootstrap import Bootstrap
from distill.laws.uncertainty.holdout import Holdout
from distill.report.theme import LIGHT, new_figure, png
from distill.system.files import atomic_write


def draw(path: str | os.PathLike, fit: Fit, boot: Bootstrap | None = None, held: Holdout | None = None) -> None:
    """Writes a PNG of four panels (fit, residuals, intervals, ridge), atomically. Raises LawError."""
    with LIGHT.applied():
        image = png(figure(fit, boot, held))
    try:
        atomic_write(Path(path), image)
    except OSError as error:
        raise LawError(f"{path}: cannot be written ({error.strerror}).") from error


def figure(fit: Fit, boot: Bootstrap | None = None, held: Holdout | None = None) -> Figure:
    """The four panels; without a bootstrap only the upper two."""
    drawn = new_figure(5.9 if boot else 3.2)
    axes = drawn.subplots(2 if boot else 1, 2, squeeze=False)
    _fit(axes[0, 0], fit, held)
    _residuals(axes[0, 1], fit, held)
    if boot:
        _intervals(axes[1, 0], fit, boot)
        _ridge(axes[1, 1], fit, boot)
    drawn.suptitle(f"{fit.law.name}: {len(fit.rows)} runs, {fit.status.kind}")
    return drawn


def _fit(axis: Axes, fit: Fit, held: Holdout | None) -> None:
    predicted = fit.law(*fit.rows.inputs)
    axis.plot(predicted, fit.rows.target, ".", color=LIGHT.blue, markersize=4, label=f"fitted ({len(predicted)})")
    ends = [min(predicted.min(), fit.rows.target.min()), max(predicted.max(), fit.rows.target.max())]
    if held:
        axis.plot(
            held.predicted,
            held.observed,
            "x",
            color=LIGHT.orange,
            markersize=5,
            label=f"held out ({len(held.observed)})",
        )
        ends = [min(ends[0], held.observed.min()), max(ends[1], held.observed.max())]
    axis.plot(ends, ends, color=LIGHT.soft, linewidth=0.8, zorder=0)
    axis.set(xlabel="predicted loss", ylabel="observed loss (nats per token)", title="fit")
    axis.legend(frameon=False)


def _residuals(axis: Axes, fit: Fit, held: Holdout | None) -> None:
    axis.axhline(0.0, color=LIGHT.soft, linewidth=0.8)
    axis.plot(fit.law(*fit.rows.inputs), -100 * fit.residuals, ".", color=LIGHT.blue, markersize=4)
    if held:
        error = 100 * np.log(held.observed / held.predicted)
        low, high = 100 * np.log(held.observed / held.high), 100 * np.log(held.observed / held.low)
        # Percentile intervals need not contain the estimate; a bar cannot be negative.
        bars = np.maximum([error - low, high - error], 0.0)
        axis.errorbar(held.predicted, error, bars, fmt="x", color=LIGHT.orange, linewidth=0.6, markersize=4)
    axis.set(xlabel="predicted loss", ylabel="observed over predicted, %", title="residuals")


def _intervals(axis: Axes, fit: Fit, boot: Bootstrap, level: float = 0.9) -> None:
    intervals = boot.interval(level)
    signs = {name: p.sign for name, p in fit.law.parameters().items()}
    names = [name for name in intervals if signs.get(name, "positive") == "positive" and name not in boot.open]
    for row, name in enumerate(reversed(names)):
        best = getattr(fit.law, name)
        low, high = (max(end / best, 1e-300) for end in intervals[name])
        axis.plot([low, high], [row, row], color=LIGHT.blue, linewidth=2)
        axis.plot(1.0, row, "|", color=LIGHT.ink, markersize=10)
    axis.set_yticks(range(len(names)), list(reversed(names)))
    axis.set(xscale="log", xlabel="interval over estimate", title=f"{level:.0%} intervals")
    axis.set_xlim(*np.clip(axis.get_xlim(), 1e-3, 1e3))


def _ridge(axis: Axes, fit: Fit, boot: Bootstrap) -> None:
    """Scatter over the resamples of the two parameters that the least fixed direction moves most."""
    widest = fit.directions()[0]
    names = sorted(widest.weights, key=lambda name: -abs(widest.weights[name]))[:2]
    if len(names) < 2:
        axis.set_axis_off()
        return
    x, y = (np.broadcast_to(getattr(boot.kept, name), int((~boot.failed).sum()) or len(boot)) for name in names)
    axis.plot(x, y, ".", color=LIGHT.blue, alpha=0.3, markersize=2)
    axis.plot(getattr(fit.law, names[0]), getattr(fit.law, names[1]), "+", color=LIGHT.orange, markersize=10)
    scales = ["log" if fit.law.parameters()[name].sign == "positive" else "linear" for name in names]
    axis.set(xscale=scales[0], yscale=scales[1], xlabel=names[0], ylabel=names[1])
    axis.set_title(textwrap.fill(f"ridge: {widest.words()}", 52), fontsize=8)
