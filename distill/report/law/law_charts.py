"""The charts of a fitted law: along each input, its residuals, against the data, and beyond the data."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from distill.laws.fitting.fit import Fit, Status
from distill.laws.uncertainty import text
from distill.laws.uncertainty.bootstrap import Bootstrap, PredictionInterval
from distill.laws.uncertainty.extrapolation import Extrapolation, extrapolate
from distill.laws.uncertainty.holdout import Holdout
from distill.report.charts.chart import Axis, Chart, Floats, Panel, Series, floats
from distill.report.law.interval_chart import symbol
from distill.report.theme import LOSS, padded
from distill.system.numbers import si

_POINTS = 60  # of a curve
_WIDE = 2.0  # a slice reaches from the least input over this to the largest times this
FAR = 10.0  # how far the largest run is scaled in the chart beyond the data
_RUN = "a single run, 90%"
_CALIBRATED = "a new run, 90% (calibrated)"
_LAW = "the law, 90% (bootstrap)"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """A fit with its resampled laws and, if some rows were held out, their predictions."""

    fit: Fit
    boot: Bootstrap
    held: Holdout | None = None
    level: float = 0.9

    @property
    def names(self) -> tuple[str, ...]:
        """The law's inputs."""
        return self.fit.law.inputs

    def inside(self, name: str) -> tuple[float, float]:
        """The least and the largest value of an input in the rows."""
        values = self.fit.rows.inputs[self.names.index(name)]
        return float(values.min()), float(values.max())

    def scaled(self, factors: ArrayLike) -> list[Floats]:
        """The inputs [points] of the largest run's sizes and tokens times factors; other inputs at their least."""
        scale = floats(factors)
        return [
            self.inside(name)[1] * scale if counted(name) else 0 * scale + self.inside(name)[0] for name in self.names
        ]

    @functools.cached_property
    def extrapolation(self) -> Extrapolation:
        """The fit, with the forms that its bootstrap was averaged with, rolled forward: as `laws.calibrated` has it."""
        return extrapolate((self.fit, *(other.fit for other in self.boot.others)), cluster=self.boot.cluster)

    @property
    def predictions(self) -> Status:
        """How good predictions are, and how far: as `distill fit` says it of a calibrated bootstrap."""
        known = dataclasses.replace(self.boot, calibration=self.extrapolation.calibration)
        return text.predictions(self.fit, known)

    def bands(self, inputs: Sequence[Floats]) -> tuple[PredictionInterval, PredictionInterval]:
        """The intervals of the law and of a single run at inputs [points]."""
        known = dict(zip(self.names, inputs))
        return self.boot.predict(self.level, noise=False, **known), self.boot.predict(self.level, noise=True, **known)


def slices(fitted: Fitted) -> Chart:
    """The law along each input with the others at their medians, and the rows moved there by the law."""
    fit = fitted.fit
    middle = [float(np.median(values)) for values in fit.rows.inputs]
    panels = []
    for i, name in enumerate(fitted.names):
        low, high = fitted.inside(name)
        reach = _WIDE if counted(name) else 1.05
        x = np.geomspace(max(low, 1e-12) / reach, high * reach, _POINTS)
        at = [x if k == i else np.full(_POINTS, value) for k, value in enumerate(middle)]
        # A row's residual stays as it is; only its other inputs move to the medians.
        own = [values if k == i else np.full(len(values), middle[k]) for k, values in enumerate(fit.rows.inputs)]
        moved = fit.law(*own) * np.exp(-fit.residuals)
        dots = _dots(fitted, fit.rows.inputs[i], moved, "the runs, moved to the slice")
        others = ", ".join(
            f"{symbol(n)} = {value_text(n, m)}" for k, (n, m) in enumerate(zip(fitted.names, middle)) if k != i
        )
        axis = Axis(label=symbol(name), log=counted(name), counts=counted(name), limits=(float(x[0]), float(x[-1])))
        series = (*_bands(fitted, x, at), dots)
        title = f"along {symbol(name)}" + (f"; {others}" if others else "")
        panels.append(Panel(title=title, x=axis, y=Axis(label=LOSS), series=series))
    return Chart(
        name="slices",
        alt="The law along each of its inputs with its intervals, and the runs.",
        caption="Each panel varies one input; the others stay at the medians of the runs. A point is a run whose "
        "other inputs were moved there by the law: its distance from the curve is its residual. The dark band holds "
        "the law, the light one a single run.",
        panels=tuple(panels),
        columns=2,
        height=2.9,
    )


def residuals(fitted: Fitted) -> Chart:
    """Observed over predicted, in percent, over the prediction and over each input."""
    fit, held = fitted.fit, fitted.held
    error = 100 * np.expm1(-fit.residuals)
    predicted = fit.law(*fit.rows.inputs)
    panels = [_residual_panel(fitted, "predicted loss", predicted, error, held)]
    for name, values in zip(fitted.names, fit.rows.inputs):
        panels.append(_residual_panel(fitted, name, values, error, None))
    return Chart(
        name="residuals",
        alt="Residuals of the law over the predicted loss and over each input.",
        caption="Observed over predicted loss, in percent. A trend or a bend along an input is what the form cannot "
        "say.",
        panels=tuple(panels),
        columns=2,
        height=2.3,
    )


def _residual_panel(fitted: Fitted, name: str, x: Floats, error: Floats, held: Holdout | None) -> Panel:
    log = counted(name)
    label = name if name == "predicted loss" else symbol(name)
    series = [_dots(fitted, x, error, "fitted runs")]
    if held:
        off = 100 * (held.observed / held.predicted - 1)
        series.append(Series(label="held-out runs", x=held.predicted, y=off, colour="orange", marker="x", size=5))
    ends = floats([x.min(), x.max()])
    series.append(Series(label="", x=ends, y=0 * ends, colour="soft", line=":", width=1.2, named=False))
    axis = Axis(label=label, log=log, counts=log)
    return Panel(title=f"by {label}", x=axis, y=Axis(label="residual (%)"), series=tuple(series))


def against(fitted: Fitted) -> Chart:
    """Predicted against observed losses, and those of held-out runs with their intervals."""
    fit, held = fitted.fit, fitted.held
    predicted, observed = fit.law(*fit.rows.inputs), fit.rows.target
    every = [predicted, observed]
    series = [_dots(fitted, observed, predicted, "fitted runs")]
    if held:
        every += [held.predicted, held.observed]
        series.append(
            Series(label="held-out runs", x=held.observed, y=held.predicted, low=held.low, high=held.high,
                   colour="orange", marker="D", size=4.5, hollow=True)
        )  # fmt: skip
    limits = padded(np.concatenate(every))
    ends = floats(limits)
    series.append(Series(label="predicted = observed", x=ends, y=ends, colour="soft", line=":", width=1.2, named=False))
    panel = Panel(
        title="predicted against observed",
        x=Axis(label="observed loss (nats per token)", limits=limits),
        y=Axis(label="predicted loss", limits=limits),
        series=tuple(series),
    )
    return Chart(
        name="against",
        alt="Predicted against observed losses.",
        caption="A law that fits lies on the dotted line.",
        panels=(panel,),
        columns=1,
        height=3.4,
    )


def beyond(fitted: Fitted) -> Chart:
    """The law beyond its runs: sizes and tokens grow together from the largest run, other inputs stay at their best."""
    scale = np.geomspace(0.1, FAR, _POINTS)
    at = fitted.scaled(scale)
    shade = (1.0, FAR, "beyond all runs")
    x = Axis(label="times the largest run's sizes and tokens", log=True, limits=(0.1, FAR))
    law = fitted.boot.predict(fitted.level, noise=False, **dict(zip(fitted.names, at)))
    run = fitted.extrapolation.predict(fitted.level, **dict(zip(fitted.names, at)))
    series = (
        Series(
            label=_CALIBRATED, x=scale, y=law.estimate, low=run.low, high=run.high, colour="orange", line="-", width=0.6
        ),
        Series(label=_LAW, x=scale, y=law.estimate, low=law.low, high=law.high, colour="blue", line="-", width=1.8),
    )
    panel = Panel(title="", x=x, y=Axis(label=LOSS), series=series, shade=shade)
    return Chart(
        name="beyond",
        alt="The law beyond its runs, with its bootstrap interval and the calibrated interval of a new run apart.",
        caption="Sizes and tokens grow together from those of the largest run; other inputs stay at their least. The "
        "bootstrap band says how the law would vary if the runs were repeated, if its form is right. The calibrated "
        "band is as wide as the law's errors were when it was fitted to smaller runs and predicted larger ones.",
        panels=(panel,),
        columns=1,
        height=3.2,
    )


def _bands(fitted: Fitted, x: Floats, inputs: Sequence[Floats]) -> list[Series]:
    """The law along x with the interval of a single run, and that of the law."""
    law, run = fitted.bands(inputs)
    wide = Series(label=_RUN, x=x, y=run.estimate, low=run.low, high=run.high, colour="orange", line="-", width=0.6)
    narrow = Series(label=_LAW, x=x, y=law.estimate, low=law.low, high=law.high, colour="blue", line="-", width=1.8)
    return [wide, narrow]


def _dots(fitted: Fitted, x: Floats, y: Floats, label: str) -> Series:
    rows = fitted.fit.rows
    facts: dict[str, Sequence[object]] = {"row": fitted.fit.table.labels()}
    facts |= {symbol(name): [value_text(name, v) for v in values] for name, values in zip(fitted.names, rows.inputs)}
    facts["observed"] = [f"{value:.4f}" for value in rows.target]
    return Series(label=label, x=floats(x), y=floats(y), colour="ink", marker="o", size=3.5, alpha=0.55, facts=facts)


def counted(name: str) -> bool:
    """Whether an input is a size or a number of tokens, which people read on a logarithmic axis."""
    return name[0] in "NDCU"


def value_text(name: str, value: float) -> str:
    """A value of an input as people write it."""
    return si(value) if counted(name) else f"{value:.4g}"
