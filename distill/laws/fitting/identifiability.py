"""Identifiability: which directions in parameter space the rows fix, from finite differences of the law.

Near the fit the residuals are linear in the parameters, r + J dp, and the eigenvectors of the Gauss-Newton matrix
J'J / noise**2 are directions in parameter space, each with its standard error. Parameters enter as logarithms
(those of any sign unchanged), so a standard error of 1 means a factor of e. A direction with a larger one is open:
parameters move along it together at no cost, and only combinations that stay constant along it are identified.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from distill.laws.fitting.solver import Rows
from distill.laws.forms.law import Law
from distill.laws.forms.parameters import FitSetting

OPEN = 1.0  # standard error, in natural logarithms, from which a direction counts as open
_STEP = 1e-5
_MAIN = 0.1  # weight from which a parameter is named in a direction
_ENDLESS = 1e3  # standard error beyond which a direction is free, so that its rounding reaches no other parameter
_FEW = 4  # rows a parameter below which the median residual is no scale


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
    """Finite differences of a vector function, [values, len(at)]: central, or one-sided at the end of a box.

    0 where a neighbour has no finite value: rows there fix nothing.
    """
    columns = []
    for i in range(len(at)):
        step = np.zeros(len(at))
        step[i] = _STEP * max(1.0, abs(at[i]))
        up, down = np.clip(at + step, low, high), np.clip(at - step, low, high)
        with np.errstate(all="ignore"):
            columns.append((function(up) - function(down)) / (up[i] - down[i]))
    return np.nan_to_num(np.stack(columns, axis=-1), nan=0.0, posinf=0.0, neginf=0.0)


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
    """A robust standard deviation of residuals: 1.4826 times the median absolute one, corrected for p parameters.

    With fewer than four rows a parameter most residuals may be nearly zero, since a Huber fit passes through as many
    rows as it has parameters; the root mean square, each residual at most four deviations, is then the larger one.
    """
    n = len(residuals)
    free = np.sqrt(n / max(n - parameters, 1))
    robust = float(1.4826 * np.median(np.abs(residuals)) * free)
    if n < _FEW * parameters:
        cut = 4 * max(robust, float(np.abs(residuals).mean()))
        robust = max(robust, float(np.sqrt(np.mean(np.clip(residuals, -cut, cut) ** 2)) * free))
    return robust or 1e-12


def student(freedom: int) -> float:
    """Student's 95% quantile, within 1% from 3 degrees of freedom on (Abramowitz & Stegun 26.7.5)."""
    z, v = 1.6449, float(max(freedom, 1))
    one, two = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + one / v + two / v**2 + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384 / v**3


def few(rows: int, parameters: int) -> bool:
    """Whether so few rows are left beyond the parameters that the residuals cannot tell the noise."""
    return rows < parameters + max(3, parameters // 2)


def open_parameters(
    law: Law, rows: Rows, residuals: np.ndarray, weights: np.ndarray, bounds: Sequence[str] = ()
) -> dict[str, str]:
    """The parameters and combinations that the rows do not fix, each with why, in words.

    A parameter is fixed where its own 90% interval, all others free, spans less than the factor exp(OPEN) times 1.645
    to either side, and where that of a floor E stays above zero. What follows a parameter in `bounds`, which ended on
    its bound, is open too: its intervals would be those at the bound alone.
    """
    names = list(law.parameters())
    sigma, t = noise(residuals, len(names)), student(len(rows) - len(names))
    if few(len(rows), len(names)):
        return dict.fromkeys([*names, *law.combinations], f"{len(rows)} runs for {len(names)} parameters")
    reasons = {name: "at the end of its range" for name in bounds}
    fixed = _directions(law, names, slopes(law, rows), sigma, weights)
    spread = np.array([[d.weights[name] for name in names] for d in fixed])
    spread = (
        spread / np.linalg.norm(spread, axis=1, keepdims=True) * np.array([[min(d.error, _ENDLESS)] for d in fixed])
    )
    errors = dict(zip(names, np.sqrt((spread**2).sum(0)).tolist()))
    for name, error in errors.items():
        widest = fixed[int(np.argmax(np.abs(spread[:, names.index(name)])))]
        if error * t > OPEN * 1.645:
            reasons.setdefault(name, _together(name, widest))
        elif name == "E" and error * t > 1:
            reasons.setdefault(name, "its interval reaches 0")
    for name in _tied(law, rows, sigma, weights, bounds):
        reasons.setdefault(name, f"tied to {', '.join(bounds)}, at the end of the range")
    return {name: reasons[name] for name in (*names, *law.combinations) if name in reasons}


def _together(name: str, direction: Direction) -> str:
    """'only through kappa', 'only together with E, alpha' or 'alone'."""
    others = [other for other in direction.main if other != name]
    if direction.keeps and name in direction.main:
        return f"only through {', '.join(direction.keeps)}"
    return f"only together with {', '.join(others)}" if others else "the runs hardly depend on it"


def _tied(law: Law, rows: Rows, sigma: float, weights: np.ndarray, bounds: Sequence[str]) -> list[str]:
    """The parameters whose error more than doubles if those at bounds may move: their intervals are of the bound.

    In the coordinates of the fit, in which a bound is a number. A combination counts if one of its parts does.
    """
    names = list(law.parameters())
    if not bounds:
        return []
    J = coordinate_slopes(law, rows, rows.setting) * np.sqrt(weights)[:, None]
    information = J.T @ J / sigma**2 + 1e-12 * np.eye(len(names))
    kept = [i for i, name in enumerate(names) if name not in bounds]
    free = np.sqrt(np.diagonal(np.linalg.inv(information)))[kept]
    held = np.sqrt(np.diagonal(np.linalg.inv(information[np.ix_(kept, kept)])))
    tied = [names[i] for i, a, b in zip(kept, free, held) if a > 2 * b]
    moved = set(tied)
    return tied + [name for name in law.combinations if _depends(law, name) & moved]


def _depends(law: Law, combination: str) -> set[str]:
    """The parameters that a combination depends on."""
    value = getattr(law, combination)
    changed = {name: dataclasses.replace(law, **{name: getattr(law, name) * 1.01}) for name in law.parameters()}
    return {name for name, moved in changed.items() if abs(getattr(moved, combination) / value - 1) > 1e-6}


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
