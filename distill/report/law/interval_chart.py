"""The intervals of the parameters of laws as a chart: each relative to its estimate, on a logarithmic axis."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from distill.laws.forms.law import Law
from distill.report.charts.chart import Axis, Chart, Panel, Series, floats
from distill.system.numbers import number

# The extent of the axis on either side, as a factor, and its ticks above 1.
_REACHES = {2.0: (1.5, 2.0), 5.0: (2.0, 5.0), 10.0: (2.0, 5.0, 10.0), 100.0: (2.0, 10.0, 100.0)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimates:
    """A law with the intervals of its parameters and combinations, at a level such as 0.9."""

    title: str
    law: Law
    intervals: Mapping[str, tuple[float, float]]
    level: float


def chart(laws: Sequence[Estimates]) -> Chart:
    """A panel per law."""
    reach = _reach(laws)
    factors = [*(1 / f for f in reversed(_REACHES[reach])), 1.0, *_REACHES[reach]]
    ticks = tuple((tick, number(float(f"{tick:.2g}"))) for tick in factors)
    x = Axis(label="interval / estimate", log=True, limits=(1 / reach, reach), ticks=ticks)
    return Chart(
        name="intervals",
        alt="Interval chart of the laws' parameters; the tables above hold its numbers.",
        caption="Bootstrap intervals of the parameters, relative to their estimates; an arrow marks an interval that "
        "leaves the axis or changes sign. Parameters may be open where the predictions are not.",
        panels=tuple(_panel(law, x, reach) for law in laws),
        columns=1,
        height=0.23,
    )


def _panel(law: Estimates, x: Axis, reach: float) -> Panel:
    """The intervals of one law's parameters, the first on top."""
    names = list(law.intervals)[::-1]
    rows = floats(range(len(names)))
    spans = [law.intervals[name] for name in names]
    estimates = [float(getattr(law.law, name)) for name in names]
    ends = floats([sorted(end / e for end in span) if e else (0.0, np.inf) for span, e in zip(spans, estimates)])
    low, high = ends.reshape(-1, 2).T
    notes = [f"{number(e)}  [{number(a)}, {number(b)}]" for e, (a, b) in zip(estimates, spans)]
    known = {"parameter": [symbol(name) for name in names], "estimate [interval]": notes}
    bars = Series(
        label=f"{law.level:.0%} interval",
        x=np.ones(len(rows)),
        y=rows,
        left=np.clip(low, 1 / reach, reach),
        right=np.clip(high, 1 / reach, reach),
        colour="blue",
        marker="o",
        size=4.5,
        facts=known,
    )
    arrows = [
        Series(
            label="interval leaves the axis",
            x=np.full(out.sum(), at),
            y=rows[out],
            colour="orange",
            marker=marker,
            size=7,
            named=False,
        )
        for out, at, marker in ((low < 1 / reach, 1 / reach, "<"), (high > reach, reach, ">"))
        if out.any()
    ]
    one = Series(
        label="the estimate",
        x=np.ones(2),
        y=floats([-0.6, len(names) - 0.4]),
        colour="soft",
        line=":",
        width=1.2,
        named=False,
    )
    ticks = tuple((float(row), symbol(name)) for row, name in enumerate(names))
    return Panel(
        title=law.title,
        x=x,
        y=Axis(label="", limits=(-0.6, len(names) - 0.4), ticks=ticks),
        series=(bars, *arrows, one),
        notes=tuple(zip(rows.tolist(), notes)),
        weight=len(names) + 3,
    )


def _reach(laws: Sequence[Estimates]) -> float:
    """The smallest axis extent that contains five of six interval ends."""
    ends = [
        abs(np.log(end / estimate)) if end / estimate > 0 else np.inf
        for law in laws
        for name, interval in law.intervals.items()
        for end in interval
        if (estimate := float(getattr(law.law, name)))
    ]
    need = np.exp(np.quantile(ends, 5 / 6, method="lower")) if ends else 1.0
    return next((reach for reach in _REACHES if reach >= need), max(_REACHES))


def symbol(name: str) -> str:
    """A parameter's name as people write it."""
    greek = {
        "alpha": "\N{GREEK SMALL LETTER ALPHA}",
        "beta": "\N{GREEK SMALL LETTER BETA}",
        "gamma": "\N{GREEK SMALL LETTER GAMMA}",
        "kappa": "\N{GREEK SMALL LETTER KAPPA}",
        "delta": "\N{GREEK SMALL LETTER DELTA}",
    }
    if name in greek:
        return greek[name]
    return f"{name[0]}_{name[1:].lstrip('_')}" if len(name) > 1 else name
