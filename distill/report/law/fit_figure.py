"""The chart of a fit: predicted against observed losses, residuals, parameter intervals, and the widest ridge."""

import os
import textwrap
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from distill.laws.fitting.fit import Fit
from distill.laws.forms.law import LawError
from distill.laws.uncertainty.bootstrap import Bootstrap
from distill.laws.uncertainty.holdout import Holdout
from distill.report.charts import picture
from distill.report.charts.chart import Axis, Chart, Panel, Series, floats
from distill.report.law.interval_chart import symbol
from distill.system.files import atomic_write


def draw(path: str | os.PathLike, fit: Fit, boot: Bootstrap | None = None, held: Holdout | None = None) -> None:
    """Writes a PNG of four panels (fit, residuals, intervals, ridge), atomically. Raises LawError."""
    image = picture.image(chart(fit, boot, held))
    try:
        atomic_write(Path(path), image)
    except OSError as error:
        raise LawError(f"{path}: cannot be written ({error.strerror}).") from error


def chart(fit: Fit, boot: Bootstrap | None = None, held: Holdout | None = None) -> Chart:
    """The four panels; without a bootstrap only the upper two."""
    panels = [_fit(fit, held), _residuals(fit, held)]
    if boot:
        panels += [_intervals(fit, boot), *_ridge(fit, boot)]
    return Chart(
        name="fit",
        alt="Predicted against observed losses, residuals, parameter intervals and the least fixed direction.",
        caption="",
        panels=tuple(panels),
        columns=2,
        height=2.7,
        note=f"{fit.law.name}: {len(fit.rows)} runs, {fit.status.kind}",
    )


def _fit(fit: Fit, held: Holdout | None) -> Panel:
    predicted, observed = floats(fit.law(*fit.rows.inputs)), fit.rows.target
    every = [predicted, observed]
    series = [_dots(f"fitted ({len(predicted)})", predicted, observed)]
    if held:
        every += [held.predicted, held.observed]
        series.append(_crosses(held, held.observed))
    ends = floats([min(map(np.min, every)), max(map(np.max, every))])
    series.append(Series(label="", x=ends, y=ends, colour="soft", line="-", width=0.8, named=False))
    y = Axis(label="observed loss (nats per token)")
    return Panel(title="fit", x=Axis(label="predicted loss"), y=y, series=tuple(series))


def _residuals(fit: Fit, held: Holdout | None) -> Panel:
    predicted = floats(fit.law(*fit.rows.inputs))
    series = [_dots("", predicted, -100 * fit.residuals, named=False)]
    if held:
        error = 100 * np.log(held.observed / held.predicted)
        # Percentile intervals need not contain the estimate; a bar reaches from the error at least.
        low = np.minimum(100 * np.log(held.observed / held.high), error)
        high = np.maximum(100 * np.log(held.observed / held.low), error)
        series.append(_crosses(held, error, low, high))
        predicted = np.concatenate([predicted, held.predicted])
    ends = floats([predicted.min(), predicted.max()])
    series.append(Series(label="", x=ends, y=0 * ends, colour="soft", line="-", width=0.8, named=False))
    y = Axis(label="observed over predicted, %")
    return Panel(title="residuals", x=Axis(label="predicted loss"), y=y, series=tuple(series))


def _dots(label: str, x: np.ndarray, y: np.ndarray, *, named: bool = True) -> Series:
    return Series(label=label, x=floats(x), y=floats(y), colour="blue", marker="o", size=2.5, named=named)


def _crosses(held: Holdout, y: np.ndarray, low: ArrayLike = (), high: ArrayLike = ()) -> Series:
    """The held-out runs, with the bars of their residuals where these are given."""
    label, x = f"held out ({len(held.observed)})", floats(held.predicted)
    ends = floats(low), floats(high)
    return Series(label=label, x=x, y=floats(y), low=ends[0], high=ends[1], colour="orange", marker="x", size=4.5)


def _intervals(fit: Fit, boot: Bootstrap, level: float = 0.9) -> Panel:
    """The intervals of the positive parameters that the runs fix, over their estimates."""
    spans = boot.interval(level)
    signs = {name: p.sign for name, p in fit.law.parameters().items()}
    names = [name for name in spans if signs.get(name, "positive") == "positive" and name not in boot.open][::-1]
    ends = np.array([[end / getattr(fit.law, name) for end in spans[name]] for name in names]).reshape(-1, 2)
    low, high = np.clip(ends, 1e-3, 1e3).T
    rows, limits = floats(range(len(names))), (-0.6, len(names) - 0.4)
    known = {"parameter": [symbol(name) for name in names]}
    bars = Series(label="", x=1 + 0 * rows, y=rows, left=low, right=high, colour="blue", marker="d", size=4,
        facts=known, named=False)  # fmt: skip
    one = Series(label="", x=floats([1, 1]), y=floats(limits), colour="soft", line=":", width=1.0, named=False)
    y = Axis(label="", limits=limits, ticks=tuple((float(row), symbol(name)) for row, name in zip(rows, names)))
    x = Axis(label="interval over estimate", log=True)
    return Panel(title=f"{level:.0%} intervals", x=x, y=y, series=(bars, one))


def _ridge(fit: Fit, boot: Bootstrap) -> list[Panel]:
    """Scatter over the resamples of the two parameters that the least fixed direction moves most."""
    widest = fit.directions()[0]
    names = sorted(widest.weights, key=lambda name: -abs(widest.weights[name]))[:2]
    if len(names) < 2:
        return []
    count = int((~boot.failed).sum()) or len(boot)
    x, y = (floats(np.broadcast_to(getattr(boot.kept, name), count)) for name in names)
    own = [floats(getattr(fit.law, name)) for name in names]
    cloud = Series(label="a resample", x=x, y=y, colour="blue", marker="o", size=2, alpha=0.3, named=False)
    best = Series(label="the fit", x=own[0], y=own[1], colour="orange", marker="D", size=6, named=False)
    axes = [Axis(label=symbol(name), log=fit.law.parameters()[name].sign == "positive") for name in names]
    title = textwrap.fill(f"ridge: {widest.words()}", 48)
    return [Panel(title=title, x=axes[0], y=axes[1], series=(cloud, best))]
