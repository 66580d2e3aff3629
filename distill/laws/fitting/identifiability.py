"""Identifiability: which directions in parameter space the rows fix, from finite differences of the law.

Near the fit the residuals are linear in the parameters, r + J dp, and the eigenvectors of the Gauss-Newton matrix
J'J / noise**2 are directions in parameter space, each with its standard error. Parameters enter as logarithms
(those of any sign unchanged), so a standard error of 1 means a factor of e. A direction with a larger one is open:
parameters move along it together at no cost, and only combinations that stay constant along it are identified.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from distill.laws.fitting.solver import Rows
from distill.laws.forms.law import Law
from distill.laws.forms.parameters import FitSetting

OPEN = 1.0  # standard error, in natural logarithms, from which a direction counts as open
_STEP = 1e-5
_MAIN = 0.1  # weight from which a parameter is named in a direction


@dataclasses.dataclass(frozen=True, kw_only=True)
class Direction:
    """A direction in log parameters: its weights by name (largest absolute 1) and its standard error."""

    weights: dict[str, float]
    error: float
    keeps: tuple[str, ...] = ()  # combinations of the form that stay constant along it

    @property
    def open(self) -> bool:
        """Whether the rows leave it open by a factor of e or more."""
        return self.error > OPEN

    @property
    def main(self) -> tuple[str, ...]:
        """The parameters whose weight is at least a tenth of the largest."""
        return tuple(name for name, weight in self.weights.items() if abs(weight) > _MAIN)

    def words(self) -> str:
        """The direction as text: 'c1, d1 only through kappa' or 'A, alpha only together (A^1.00 alpha^0.09)'."""
        main = {name: self.weights[name] for name in self.main}
        names = ", ".join(main)
        if len(main) == 1:
            return f"{names} alone"
        if self.keeps:
            return f"{names} only through {', '.join(self.keeps)}"
        return f"{names} only together (free along {' '.join(f'{k}^{v:.2g}' for k, v in main.items())})"


def differences(
    function: Callable[[np.ndarray], np.ndarray],
    at: np.ndarray,
    low: float | np.ndarray = -np.inf,
    high: float | np.ndarray = np.inf,
) -> np.ndarray:
    """Finite differences of a vector function, [values, len(at)]: central, or one-sided at the end of a box."""
    columns = []
    for i in range(len(at)):
        step = np.zeros(len(at))
        step[i] = _STEP * max(1.0, abs(at[i]))
        up, down = np.clip(at + step, low, high), np.clip(at - step, low, high)
        columns.append((function(up) - function(down)) / (up[i] - down[i]))
    return np.stack(columns, axis=-1)


def slopes(law: Law, rows: Rows) -> np.ndarray:
    """d log L / d parameter [n, p]: of log parameters, or of the parameter itself where its sign is free."""
    names = list(law.parameters())
    logs = np.array([p.sign == "positive" for p in law.parameters().values()])
    values = np.array([float(law.values()[name]) for name in names])

    def prediction(at: np.ndarray) -> np.ndarray:
        moved = dataclasses.replace(law, **dict(zip(names, np.where(logs, values * np.exp(at), values + at))))
        return np.log(moved(*rows.inputs))

    return differences(prediction, np.zeros(len(names)))


def noise(residuals: np.ndarray, parameters: int) -> float:
    """A robust standard deviation of residuals: 1.4826 times the median absolute one, corrected for p parameters."""
    n = len(residuals)
    return float(1.4826 * np.median(np.abs(residuals)) * np.sqrt(n / max(n - parameters, 1))) or 1e-12


def directions(law: Law, rows: Rows, residuals: np.ndarray, weights: np.ndarray) -> tuple[Direction, ...]:
    """The eigenvectors of the Gauss-Newton matrix in log parameters, the least fixed one first."""
    names = list(law.parameters())
    return _directions(law, names, slopes(law, rows), noise(residuals, len(names)), weights)


def _directions(law: Law, names: list[str], J: np.ndarray, sigma: float, weights: np.ndarray) -> tuple[Direction, ...]:
    values, vectors = np.linalg.eigh((J * weights[:, None]).T @ J)
    fixed = []
    for value, vector in zip(values, vectors.T):
        peak = vector[np.argmax(np.abs(vector))]
        error = sigma / np.sqrt(max(value, 1e-30))
        along = dict(zip(names, (vector / peak).tolist()))
        fixed.append(Direction(weights=along, error=float(error), keeps=_kept(law, along)))
    return tuple(fixed)


def _kept(law: Law, along: dict[str, float]) -> tuple[str, ...]:
    """The form's combinations of the direction's main parameters that hardly change along it."""

    def change(name: str, weights: dict[str, float]) -> float:
        ends = []
        for size in (1e-4, -1e-4):
            moved = {}
            for key, weight in weights.items():
                value, positive = getattr(law, key), law.parameters()[key].sign == "positive"
                moved[key] = value * np.exp(size * weight) if positive else value + size * weight
            ends.append(np.log(getattr(dataclasses.replace(law, **moved), name)))
        return float(abs(ends[0] - ends[1]) / 2e-4)

    main = [name for name, weight in along.items() if abs(weight) > _MAIN]
    return tuple(
        name
        for name in law.combinations
        if len(main) > 1 and change(name, along) < 0.02 and all(change(name, {key: 1.0}) > 0.02 for key in main)
    )


def coordinate_slopes(law: Law, rows: Rows, setting: FitSetting) -> np.ndarray:
    """d log L / d coordinate [n, p], in the coordinates of a fit with this Setting."""
    form = type(law)
    given = {name: getattr(law, name) for name in law.given()}
    low, high = np.array([p.box for p in form.parameters().values()]).T
    at = np.clip(law.pack(setting), low, high)
    return differences(lambda u: np.log(form.unpack(np, u, setting, given)(*rows.inputs)), at, low, high)


def free_directions(law: Law, rows: Rows, residuals: np.ndarray, weights: np.ndarray) -> tuple[Direction, ...]:
    """Directions in the fit's coordinates (sizes and slopes at the table's centre) that the rows leave open.

    A parameter such as A, the value of a term at N = 1, may be open although the law is well determined in the range of
    the data; a direction that is open even at the centre means that this table cannot identify this form.
    """
    names = list(law.parameters())
    J = coordinate_slopes(law, rows, rows.setting)
    fixed = _directions(law, names, J, noise(residuals, len(names)), weights)
    return tuple(dataclasses.replace(d, keeps=()) for d in fixed if d.open)


def min_eigenvalue(law: Law, rows: Rows, weights: np.ndarray) -> float:
    """The smallest eigenvalue of the Gauss-Newton matrix in log parameters, scaled to a unit diagonal."""
    J = slopes(law, rows) * np.sqrt(weights)[:, None]
    size = np.sqrt((J**2).sum(0))
    if not np.isfinite(J).all() or (size == 0).any():
        return 0.0
    J = J / size
    return float(max(np.linalg.eigvalsh(J.T @ J)[0], 0.0))
