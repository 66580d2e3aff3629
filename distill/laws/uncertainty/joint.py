"""Fits both laws together: supervised runs and students both constrain Lsup.

The paper fits in two stages: the supervised law first, then Eq. 8 with Lsup taken from it. A joint fit minimises the
sum over the rows of both kinds, so that students also constrain the supervised law. If it agrees with the two stages,
the simpler method loses little; if it does not, the students contradict the first stage.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import ModuleType

import numpy as np

from distill.laws.fitting import solver
from distill.laws.fitting.fit import Fit, make_fit
from distill.laws.fitting.objective import rho, side
from distill.laws.forms.arrays import Values
from distill.laws.forms.law import Law, LawError
from distill.laws.forms.parameters import FitSetting, Parameter


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Both laws at one point of the search; `student` (0 or 1) selects the law of each row."""

    supervised: Law
    student: Law

    def loss(self, xp: ModuleType, N: Values, D: Values, L_T: Values, student: Values) -> Values:
        return xp.where(student > 0, self.student.loss(xp, N, D, L_T), self.supervised.loss(xp, N, D))


@dataclasses.dataclass(frozen=True)
class _PairForm:
    """The form that the solver fits: the parameters of both laws, concatenated."""

    supervised: type[Law]
    student: type[Law]

    def parameters(self) -> dict[str, Parameter]:
        first = {f"supervised {name}": p for name, p in self.supervised.parameters().items()}
        return first | self.student.parameters()

    def unpack(
        self, xp: ModuleType, theta: Sequence[Values] | np.ndarray, setting: FitSetting, given: Mapping[str, Law]
    ) -> _Pair:
        count = len(self.supervised.parameters())
        below = self.supervised.unpack(xp, theta[:count], setting)
        inside = dict.fromkeys(self.student.given(), below)
        return _Pair(below, self.student.unpack(xp, theta[count:], setting, inside))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class JointFit:
    """The two laws of a joint fit, as fits of their own rows; `objective` is the sum over both, `two_stage` before."""

    supervised: Fit
    student: Fit
    objective: float
    two_stage: float
    converged: bool


def fit_jointly(supervised: Fit, student: Fit, *, start_count: int = 32, seed: int = 0) -> JointFit:
    """Fits both laws together, from the two-stage fits and from points around them. Raises LawError."""
    if not student.law.given() or supervised.law.inputs != ("N", "D"):
        raise LawError(f"a joint fit takes (supervised, student) fits; got {supervised.law.name}, {student.law.name}.")
    if supervised.minimised != student.minimised or student.minimised.raw:
        raise LawError("a joint fit needs both stages fitted with one objective on log losses.")
    form = _PairForm(type(supervised.law), type(student.law))
    n, m = len(supervised.rows), len(student.rows)
    N, D = (np.concatenate(pair) for pair in zip(supervised.rows.inputs, student.rows.inputs[:2]))
    # A supervised row has no teacher; its own loss is a placeholder that is never read.
    L_T = np.concatenate([supervised.rows.target, student.rows.inputs[2]])
    kind = np.repeat([0.0, 1.0], [n, m])
    target = np.concatenate([supervised.rows.target, student.rows.target])
    first, second = supervised.rows.setting, student.rows.setting
    setting = FitSetting(dict(first.centre) | dict(second.centre), first.typical, first.smallest)
    below = supervised.law.pack(setting)
    above = student.law.pack(setting)
    start = np.concatenate([below, above])
    generator = np.random.default_rng(seed)
    starts = start + 0.3 * generator.standard_normal((start_count, len(start))) * (np.arange(start_count) > 0)[:, None]
    weights = np.concatenate([supervised.weights, student.weights])
    rows = solver.Rows(inputs=(N, D, L_T, kind), target=np.log(target), setting=setting)
    solutions = solver.solve(form, rows, starts, weights, supervised.minimised, widen=1.0)
    best = int(np.argmin(np.where(np.isfinite(solutions.objective), solutions.objective, np.inf)))
    pair = form.unpack(np, solutions.theta[best], setting, {})
    return JointFit(
        supervised=_as_fit(supervised, pair.supervised, solutions, best),
        student=_as_fit(student, pair.student, solutions, best),
        objective=float(solutions.objective[best]) / supervised.minimised.unit,
        two_stage=supervised.objective + student.objective,
        converged=bool(solutions.converged[best]),
    )


def _as_fit(stage: Fit, law: Law, solutions: solver.Solutions, best: int) -> Fit:
    """One law of the pair as a Fit of its own rows."""
    given = {name: getattr(law, name) for name in law.given()}
    rows = dataclasses.replace(stage.rows, given=given)
    alone = solver.Solutions(
        theta=law.pack(rows.setting)[None],
        objective=np.array([_sum(stage, law)]),
        decrement=solutions.decrement[best : best + 1],
        iterations=solutions.iterations[best : best + 1],
        converged=solutions.converged[best : best + 1],
    )
    return make_fit(type(law), stage.table, rows, stage.weights, stage.minimised, alone, stage.seed)


def _sum(stage: Fit, law: Law) -> float:
    residuals = np.log(law(*stage.rows.inputs)) - np.log(stage.rows.target)
    weights = stage.weights * side(np, residuals, stage.minimised.quantile)
    return float((weights * rho(np, residuals, stage.minimised.width)).sum())
