"""Outlying rows of a fit: far outside the robust scale of the residuals, each with its likely cause.

A Huber fit silently ignores such rows. This module names them, with the change that would make each fit: a size or a
token count in thousands, millions or billions, a loss in bits (a loss in nats / ln 2) or a perplexity, a row of totals;
otherwise a run that diverged or did not finish.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from distill.laws.fitting.solver import Rows
from distill.laws.forms.law import Law

_FAR = 10.0  # robust standard deviations ...
_LEAST = 0.05  # ... and at least this residual of log loss
_NEAR = (4.0, 0.03)  # a change explains a row if it brings it within so many deviations, or within this residual
_GAP = 300.0  # the gap, as a factor, between a few rows' sizes and all others' that suggests another unit
_NAMED = 5  # rows that a status names
_TOTALS = ("total", "totals", "sum", "grand total", "average", "mean", "summe", "gesamt")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outlier:
    """One row (its index), its label in the file, log Lhat - log L, and the likely cause."""

    row: int
    label: str
    residual: float
    cause: str

    def words(self) -> str:
        """'row 7 of runs/b (log residual +0.37): loss in bits, / ln 2'."""
        return f"row {self.label} (log residual {self.residual:+.2g}): {self.cause}"


def outliers(
    law: Law, rows: Rows, residuals: np.ndarray, columns: Mapping[str, np.ndarray], labels: Sequence[str]
) -> tuple[Outlier, ...]:
    """The outlying rows, the largest residual first; residuals [n] are log Lhat - log L, `labels` name the rows."""
    if not np.isfinite(residuals).all():
        return ()
    scale = _scale(residuals, len(law.parameters()))
    totals, units = _totals(rows, columns), _other_units(law, rows)
    far = np.abs(residuals) > max(_FAR * scale, _LEAST)
    outlying = np.flatnonzero(far | totals | np.array([i in units for i in range(len(rows))]))
    near = max(_NEAR[0] * scale, _NEAR[1])
    return tuple(
        Outlier(
            row=int(i),
            label=labels[i],
            residual=float(residuals[i]),
            cause="a row of totals?" if totals[i] else units.get(int(i)) or _cause(law, rows, int(i), near),
        )
        for i in outlying[np.argsort(-np.abs(residuals[outlying]), kind="stable")]
    )


def words(outlying: Sequence[Outlier]) -> str:
    """'2 rows far outside the residuals of the others: row 3 ...; row 9 ...'."""
    count = f"{len(outlying)} row{'s' if len(outlying) > 1 else ''} far outside the residuals of the others"
    named = "; ".join(one.words() for one in outlying[:_NAMED])
    more = f"; and {len(outlying) - _NAMED} more" if len(outlying) > _NAMED else ""
    return f"{count}: {named}{more}; mend them or leave them out (--rows)"


def _scale(residuals: np.ndarray, parameters: int) -> float:
    """The robust standard deviation: 1.48 times the median |r|, without the p smallest for a law of p parameters.

    An absolute-value fit passes through p rows, so their residuals carry no information.
    """
    sizes = np.sort(np.abs(residuals))
    return 1.4826 * float(np.median(sizes[min(parameters, len(sizes) - 1) :]))


def _totals(rows: Rows, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """The mask [n] of totals: a text cell says so, or every size and count is the sum of all others'."""
    sums_up = np.zeros(len(rows), bool)
    for column in columns.values():
        if column.dtype.kind == "U":
            sums_up |= np.isin(np.char.lower(np.char.strip(column)), _TOTALS)
    if len(rows) < 4 or not rows.inputs:
        return sums_up
    sums = [np.isclose(values, values.sum() - values, rtol=1e-6) for values in rows.inputs]
    return sums_up | np.any(sums, axis=0)


def _other_units(law: Law, rows: Rows) -> dict[int, str]:
    """Rows whose size or tokens lie far from all others and would not in another unit: {row: text}.

    Such a row can pull the law towards itself, so that its residual is small.
    """
    causes: dict[int, str] = {}
    for name, values in zip(law.inputs, rows.inputs):
        if name in law.may_be_zero:
            continue
        order = np.argsort(values)
        logs = np.log10(values[order])
        if name.startswith("L") or len(logs) < 4 or np.diff(logs).max() < np.log10(_GAP):
            continue
        cut = int(np.diff(logs).argmax()) + 1
        few, many, sign = (order[:cut], logs[cut:], 1) if cut <= len(logs) / 2 else (order[cut:], logs[:cut], -1)
        if len(few) > len(logs) / 3:
            continue
        for power, unit in ((6, "millions"), (9, "billions"), (3, "thousands")):
            moved = np.log10(values[few]) + sign * power
            if many[0] - 0.5 <= moved.min() and moved.max() <= many[-1] + 0.5:
                text = f"{name} in {unit}, x1e{power}?" if sign > 0 else f"{name} too large, x1e-{power}?"
                causes |= dict.fromkeys((int(i) for i in few), text)
                break
    return causes


def _cause(law: Law, rows: Rows, row: int, near: float) -> str:
    """The change of one row that brings it closest to the law, if any brings it close enough."""
    inputs = {name: float(values[row]) for name, values in zip(law.inputs, rows.inputs)}
    loss = float(rows.target[row])
    tried = [(abs(_residual(law, changed, value)), text) for text, changed, value in _changes(inputs, loss)]
    best = min(tried, default=(np.inf, ""))
    if best[0] <= near:
        return best[1]
    if float(np.log(law(**inputs)) - np.log(loss)) < 0:
        return "diverged, or not finished?"
    return "no single change of a unit explains it"


def _changes(inputs: Mapping[str, float], loss: float) -> Iterator[tuple[str, dict[str, float], float]]:
    """(text, inputs, loss) of the changes to try."""
    yield "loss in bits, / ln 2?", dict(inputs), loss * float(np.log(2))
    if loss > 1:
        yield "loss a perplexity, exp?", dict(inputs), float(np.log(loss))
    for name, value in inputs.items():
        if name.startswith("L"):
            yield f"{name} in bits, / ln 2?", {**inputs, name: value * float(np.log(2))}, loss
            continue
        for power, unit in ((3, "thousands"), (6, "millions"), (9, "billions")):
            yield f"{name} in {unit}, x1e{power}?", {**inputs, name: value * 10.0**power}, loss
            yield f"{name} too large, x1e-{power}?", {**inputs, name: value / 10.0**power}, loss


def _residual(law: Law, inputs: Mapping[str, float], loss: float) -> float:
    """log Lhat - log L; infinite if either is not a positive number."""
    with np.errstate(all="ignore"):
        predicted = float(law(**inputs))
        both = np.isfinite(predicted) and predicted > 0 and loss > 0
        return float(np.log(predicted) - np.log(loss)) if both else np.inf
