"""Fits one law to one table: many starts, the best solution, and a status that says whether it can be trusted."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from distill.laws.fitting import identifiability, misfit, outliers, search, solver, starts, text
from distill.laws.fitting.objective import Objective
from distill.laws.fitting.rows import rows_of, select
from distill.laws.fitting.table import Runs, Table
from distill.laws.forms import plots, registry
from distill.laws.forms.law import Law, LawError, write_json
from distill.system.progress import counter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_POLISHED = 8  # best solutions refined with exact Hessians if the best has not converged

OK = "ok"
NOT_CONVERGED = "not converged"
NOT_IDENTIFIED = "not identified"
SUSPECT = "suspect rows"
NOT_ASSESSED = "not assessed"  # of predictions: nothing was tested beyond the runs
LACK_OF_FIT = "lack of fit"  # of predictions: the form does not describe the runs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Status:
    """Whether a fit can be trusted: `kind` is "ok", "not converged", "not identified" or "suspect rows" (some residuals
    lie far outside the others'), `message` says why. That of predictions is "ok", "not assessed" or "lack of fit"."""

    kind: str
    message: str = ""

    def __bool__(self) -> bool:
        return self.kind == OK

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}" if self.message else self.kind


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Fit:
    """A fitted law with its table, options, residuals and diagnostics.

    `coefficients` says whether the runs fix the parameters; `open` names those that they do not, with why.
    `predictions` is "lack of fit" where the residuals show that the form does not describe the runs, else "not
    assessed": how good predictions are beyond the runs, `laws.extrapolate` tests. `status` is the worse of the two.
    `objective` is the minimum of the sum over rows; `residuals` are log Lhat - log L, [n]; `weights` are the rows'.
    `agreement` is the share of starts that reached the minimum, `decrement` the certificate of solver.Solutions, and
    `curvature` the smallest eigenvalue of the scaled Gauss-Newton matrix (0 = flat in some direction, 1 = round).
    """

    law: Law
    coefficients: Status
    predictions: Status
    open: Mapping[str, str]
    objective: float
    residuals: np.ndarray
    minimised: Objective
    table: Table
    rows: solver.Rows
    weights: np.ndarray
    theta: np.ndarray
    agreement: float
    decrement: float
    curvature: float
    seed: int

    def __repr__(self) -> str:
        return text.brief(*self._summary())

    def _repr_html_(self) -> str:
        return text.as_html(*self._summary())

    def _summary(self) -> tuple[str, dict[str, float], dict[str, str]]:
        """The title, the values of parameters and combinations, and notes by heading."""
        title = f"{self.law.name}: {len(self.rows)} runs of {self.table.source}, {self.minimised}"
        values = {name: float(getattr(self.law, name)) for name in (*self.law.parameters(), *self.law.combinations)}
        mean, largest = self.error
        notes = {
            "status": str(self.status),
            "open": ", ".join(self.open) or "none: the runs fix all parameters",
            "objective": f"{self.objective:.9g}; {self.agreement:.0%} of the starts agree",
            "error": f"{mean:.3%} mean, {largest:.3%} max in the sample",
        }
        return title, values, notes

    def plot(self) -> "Figure":
        """A matplotlib figure: predicted against observed losses, and residuals."""
        return plots.figures().fit(self)

    @property
    def status(self) -> Status:
        """The worse of `coefficients` and `predictions`, as one of the kinds of `coefficients`.

        A law whose form does not describe the runs is "not identified": other runs of the same models would give other
        parameters.
        """
        return worse(self.coefficients, self.predictions)

    @property
    def error(self) -> tuple[float, float]:
        """(mean, maximal) in-sample relative error of the predicted loss."""
        error = np.abs(np.expm1(self.residuals))
        return float(error.mean()), float(error.max())

    def directions(self) -> tuple[identifiability.Direction, ...]:
        """Which directions in log parameters the rows fix, the least fixed first."""
        return identifiability.directions(self.law, self.rows, self.residuals, self.weights)

    def to_dict(self) -> dict[str, object]:
        """The entries of a law file that describe the fit, beside the law itself."""
        mean, largest = self.error
        return {
            "status": dataclasses.asdict(self.status),
            "coefficients": dataclasses.asdict(self.coefficients) | {"open": dict(self.open)},
            "predictions": dataclasses.asdict(self.predictions),
            "objective": {**dataclasses.asdict(self.minimised), "value": self.objective},
            # A search whose normal equations could not be solved ends without a decrement: JSON has no nan.
            "certificate": {
                "decrement": self.decrement if math.isfinite(self.decrement) else None,
                "agreement": self.agreement,
                "curvature": self.curvature,
            },
            "rows": len(self.rows),
            "error": {"mean": mean, "max": largest},
            "table": {"source": os.path.basename(self.table.source), "sha256": self.table.digest},
            "seed": self.seed,
        }

    def save(self, path: str | os.PathLike, **extra: object) -> None:
        """Writes the law and its status, certificate and table as JSON; `laws.load` reads the law back."""
        write_json(path, {"format": 1} | self.law.to_dict() | self.to_dict() | extra)


class FitOptions(TypedDict, total=False):
    """The options of `fit` that `compare` and `holdout` forward."""

    objective: Objective | str | None
    delta: float
    weights: np.ndarray | str | None
    start_count: int
    grid: bool
    units: bool


def fit(
    form: str | type[Law],
    runs: Runs,
    *,
    supervised: Law | None = None,
    objective: Objective | str | None = None,
    delta: float = 1e-3,
    weights: np.ndarray | str | None = None,
    start_count: int = 128,
    grid: bool = False,
    seed: int = 0,
    units: bool = True,
) -> Fit:
    """Fits a form to a table of runs: Huber on log losses with `delta`, or another Objective.

    `runs` is a Table, a path, a dict of columns or a data frame (table.as_table).
    `supervised` is the law of Lsup for Eq. 8 and its variants (two stages, as in the paper); `weights` holds one per
    row, or names a column of standard errors; `grid` adds the published starts to the random ones. Raises LawError for
    bad input and for fewer rows than parameters; the fit's status reports every other problem.
    """
    cls = registry.get(form)
    measure = objective if isinstance(objective, Objective) else Objective(kind=objective or "huber", delta=delta)
    selected = select(cls, runs)
    rows = rows_of(cls, selected, _given(cls, supervised), units)
    count = len(cls.parameters())
    if len(rows) < count:
        raise LawError(
            f"{selected.source}: {len(rows)} rows for the {count} parameters of {cls.name}; wanted at least {count}, "
            "better three times as many. Add runs or choose a smaller form."
        )
    w = row_weights(selected, weights, rows, measure)
    points = starts.random(cls, rows.setting, start_count, seed)
    if grid:
        points = np.concatenate([points, starts.published(cls, rows.setting)])
    problem = solved_rows(rows, measure)
    with counter(f"fit {cls.name}", len(points)) as tick:
        solutions = search.search(cls, problem, points, w, measure, seed, tick)
    lowest = np.argsort(solutions.objective)[:_POLISHED]
    if not solutions.converged[lowest[0]]:
        solutions = solutions.improved(
            lowest, solver.solve(cls, problem, solutions.theta[lowest], w, measure, exact=True)
        )
    return make_fit(cls, selected, rows, w, measure, solutions, seed)


def make_fit(
    form: type[Law],
    runs: Table,
    rows: solver.Rows,
    weights: np.ndarray,
    measure: Objective,
    solutions: solver.Solutions,
    seed: int,
) -> Fit:
    """The Fit of the best of several solutions of one problem."""
    values = np.where(np.isfinite(solutions.objective), solutions.objective, np.inf)
    near = values <= values.min() * (1 + 1e-9) + 1e-300
    best = (
        int(np.flatnonzero(near & solutions.converged)[0])
        if (near & solutions.converged).any()
        else int(values.argmin())
    )
    agreement = float((values <= values[best] * (1 + search.AGREE) + 1e-300).mean())
    law = plain(form.unpack(np, solutions.theta[best], rows.setting, rows.given))
    residuals = np.log(law(*rows.inputs)) - np.log(rows.target)
    converged = bool(solutions.converged[best])
    bounds = _at_bounds(law, solutions.theta[best])
    status = _judge(law, bounds, converged, rows, residuals, weights)
    status = _with_outliers(status, outliers.outliers(law, rows, residuals, runs.columns, runs.labels()))
    clusters = runs.columns["trunk"].astype(str) if "trunk" in runs.columns else None
    lack = misfit.misfits(law, rows, residuals, weights, clusters) if converged else ()
    finite = np.isfinite(residuals).all()
    return Fit(
        law=law,
        coefficients=status,
        predictions=described(lack),
        open=identifiability.open_parameters(law, rows, residuals, weights, bounds) if finite else {},
        objective=float(values[best]) / measure.unit,
        residuals=residuals,
        minimised=measure,
        table=runs,
        rows=rows,
        weights=weights,
        theta=solutions.theta[best],
        agreement=agreement,
        decrement=float(solutions.decrement[best]),
        curvature=identifiability.min_eigenvalue(law, rows, weights),
        seed=seed,
    )


def described(lack: Sequence[misfit.Misfit]) -> Status:
    """The status of predictions from the tests that reject the form."""
    if not lack:
        return Status(kind=NOT_ASSESSED)
    why = "; ".join(one.words() for one in lack)
    return Status(kind=LACK_OF_FIT, message=f"the form does not describe these runs: {why}")


def worse(coefficients: Status, predictions: Status) -> Status:
    """One status of the two, of the kinds of coefficients."""
    if predictions.kind != LACK_OF_FIT:
        return coefficients
    kind = NOT_IDENTIFIED if coefficients else coefficients.kind
    rest = f"{coefficients.message}; " if coefficients.message else ""
    return Status(kind=kind, message=rest + predictions.message)


def plain(law: Law) -> Law:
    """The law with its parameters as Python floats."""
    values = {name: float(value) for name, value in law.values().items()}
    return dataclasses.replace(law, **values)


def solved_rows(rows: solver.Rows, measure: Objective) -> solver.Rows:
    """The rows for the solver: the target is a logarithm unless residuals are raw."""
    return rows if measure.raw else dataclasses.replace(rows, target=np.log(rows.target))


def row_weights(runs: Table, weights: np.ndarray | str | None, rows: solver.Rows, measure: Objective) -> np.ndarray:
    """Row weights of mean 1: as given, or 1/se**2 of the residual from a column of standard errors of the loss."""
    n = len(rows)
    if weights is None:
        return np.ones(n)
    if isinstance(weights, str):
        error = runs.numbers(weights)
        runs.refuse(error <= 0, weights, "a positive standard error")
        weights = (error if measure.raw else error / rows.target) ** -2.0
    weights = np.asarray(weights, np.float64)
    if weights.shape != (n,) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise LawError(f"weights of shape {weights.shape}; wanted {n} finite numbers, none negative, not all zero.")
    return weights / weights.mean()


def _given(form: type[Law], supervised: Law | None) -> Mapping[str, Law]:
    if not form.given():
        return {}
    if supervised is None:
        raise LawError(
            f"{form.name} needs the supervised law of its student: pass supervised=laws.paper()[0], a law file's law, "
            "or that of a fit of 'supervised'."
        )
    unique = "U_S" in form.inputs and isinstance(supervised, Law) and supervised.inputs == ("N", "D", "U")
    if not isinstance(supervised, Law) or not (len(supervised.inputs) == 2 or unique):
        raise LawError(f"supervised is {supervised!r}; wanted a law of (N, D), such as laws.paper()[0].")
    return dict.fromkeys(form.given(), supervised)


def _at_bounds(law: Law, theta: np.ndarray) -> list[str]:
    """The parameters whose coordinates ended on their bound."""
    declared = law.parameters().items()
    return [name for u, (name, p) in zip(theta, declared) if u <= p.box[0] + 1e-9 or u >= p.box[1] - 1e-9]


def _judge(
    law: Law, bounds: list[str], converged: bool, rows: solver.Rows, residuals: np.ndarray, weights: np.ndarray
) -> Status:
    """The status of a solution's coefficients."""
    free = identifiability.free_directions(law, rows, residuals, weights)
    if (not converged and not free) or not np.isfinite(residuals).all():
        return Status(kind=NOT_CONVERGED, message="no start met the certificate; try another form or more starts")
    count = len(law.parameters())
    if len(rows) == count:
        return Status(kind=NOT_IDENTIFIED, message=f"{count} rows for {count} parameters leave no residual")
    if identifiability.few(len(rows), count):
        message = f"{len(rows)} rows for {count} parameters leave {len(rows) - count}: too few to tell the noise"
        return Status(kind=NOT_IDENTIFIED, message=message)
    reasons = [f"{', '.join(bounds)} at the end of the range (a simpler form fits as well)"] if bounds else []
    reasons += [f"the runs fix {direction.words()}" for direction in free if not set(bounds) & set(_main(direction))]
    floor = identifiability.open_parameters(law, rows, residuals, weights).get("E")
    if floor and "E" not in bounds and not reasons:
        reasons.append(f"E is open ({floor})")
    return Status(kind=NOT_IDENTIFIED, message="; ".join(reasons)) if reasons else Status(kind=OK)


def _with_outliers(status: Status, far: tuple[outliers.Outlier, ...]) -> Status:
    """The status with the rows that look like mistakes put first in its message."""
    if not far:
        return status
    rest = "" if status else f"; {status}"
    return Status(kind=SUSPECT, message=outliers.words(far) + rest)


def _main(direction: identifiability.Direction) -> list[str]:
    return [name for name, weight in direction.weights.items() if abs(weight) > 0.5]
