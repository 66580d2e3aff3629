"""One student's planning problem under one law or a stack of them: the best split by compute, by tokens or by loss."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from distill.laws.forms.arrays import Floats, Values
from distill.laws.planning import repeats
from distill.laws.planning.allocation import Bounds, allocate, cheapest_teacher
from distill.laws.planning.crossover import column
from distill.laws.planning.scenarios import PlanError, Scenario, Teacher
from distill.laws.planning.signatures import ForwardFlops, StudentLaw, SupervisedLaw
from distill.system.numbers import si

# A size, a budget or an array of them; a method's result by the field of Allocation, axes [n] or [R, n].
_Numbers: TypeAlias = Values | Sequence[float]
Split: TypeAlias = dict[str, Floats]

_SIZES = 49  # student sizes tried at once when a range is given
_FIELDS = ("N_S", "D_S", "N_T", "D_T", "L_T", "L_S", "second_N_T", "second_L_S")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alternative:
    """Supervised training of a model of N parameters on D tokens under the same constraint."""

    N: float
    D: float
    L: float
    compute: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """Laws, prices and limits; methods broadcast over arrays, and over stacks of laws in a leading axis."""

    supervised: SupervisedLaw
    distillation: StudentLaw
    scenario: Scenario
    flops: ForwardFlops
    teachers: tuple[Teacher, ...]
    unique: float
    served: float
    bounds: Bounds

    def F(self, N: Values) -> Floats:
        """Forward FLOPs per token in float64."""
        return np.asarray(self.flops(np.asarray(N, np.float64)), np.float64)

    def training(self, N_S: Values, compute: Values) -> Floats:
        """The compute that serving leaves for training."""
        return np.asarray(compute - self.F(N_S) * self.served, np.float64)

    def alone(self, N: Values, D: Values) -> Floats:
        """Supervised loss on D tokens, with repetition and the upper bound of the search."""
        D = np.minimum(D, self.bounds.high)
        return np.asarray(repeats.alone(column(self.supervised), N, D, self.unique), np.float64)

    def taught(self, N_S: Values, D_S: Values, L_T: Values) -> Floats:
        """Student loss on D_S tokens, with repetition."""
        D_S = np.minimum(D_S, self.bounds.high)
        return np.asarray(repeats.taught(column(self.distillation), N_S, D_S, L_T, self.unique), np.float64)

    def teacher_loss(self, N_T: Values, D_T: Values) -> Floats:
        """Loss of a teacher of N_T parameters on D_T tokens, with repetition."""
        return np.asarray(repeats.alone(column(self.supervised), N_T, D_T, self.unique), np.float64)

    def supervised_tokens(self, N: Values, compute: Values) -> Floats:
        """Tokens that supervised training of N parameters sees for this total compute."""
        return self.training(N, compute) / (3 * self.F(N))

    def by_compute(self, N_S: _Numbers, compute: _Numbers) -> Split:
        """The best split of total compute, cases [n] -> [n] (or [R, n]); L_S is inf where serving uses all of it."""
        N_S, compute = np.broadcast_arrays(np.asarray(N_S, np.float64), np.asarray(compute, np.float64))
        left = self.training(N_S, compute)
        room = left > 3 * self.F(N_S)
        left = np.where(room, left, 3 * self.F(N_S))
        if self.teachers:
            N_T = np.array([t.N for t in self.teachers])[:, None]
            out = self._from_teachers(N_S, left / (3 * self.F(N_S) + self.scenario.logits * self.F(N_T)))
        else:
            split = allocate(
                self.supervised,
                self.distillation,
                N_S,
                left,
                self.scenario,
                flops=self.flops,
                unique=self.unique,
                bounds=self.bounds,
            )
            out = {name: getattr(split, name) for name in _FIELDS}
        return out | {"L_S": np.where(room, out["L_S"], np.inf)}

    def by_tokens(self, N_S: _Numbers, D_S: _Numbers) -> Split:
        """The best teacher for fixed student tokens: the best L_T, and the cheapest teacher of that loss."""
        N_S, D_S = np.broadcast_arrays(np.asarray(N_S, np.float64), np.asarray(D_S, np.float64))
        if self.teachers:
            return self._from_teachers(N_S, np.broadcast_to(D_S, (len(self.teachers), *D_S.shape)))
        free = dataclasses.replace(self, scenario=Scenario(name="best_case", logits=0.0, pretraining=0.0), served=0.0)
        out = free.by_compute(N_S, 3 * self.F(N_S) * D_S)
        out["N_T"], out["D_T"] = cheapest_teacher(
            self.supervised,
            out["L_T"],
            out["D_S"],
            self.scenario,
            flops=self.flops,
            unique=self.unique,
            bounds=self.bounds,
        )
        return out

    def _from_teachers(self, N_S: Floats, D_S: Floats) -> Split:
        """The best of the existing teachers; D_S [teachers, n]."""
        N_T = np.array([t.N for t in self.teachers])
        L_T = np.array([t.L for t in self.teachers])
        losses = np.stack([self.taught(N_S, d, L) for d, L in zip(D_S, L_T)])
        best = np.argmin(losses, axis=0)
        none = np.full(best.shape, np.nan)
        return {
            "N_S": np.broadcast_to(N_S, best.shape),
            "D_S": D_S[best, np.arange(best.shape[-1])],
            "N_T": N_T[best],
            "D_T": none,
            "L_T": L_T[best],
            "L_S": losses.min(axis=0),
            "second_N_T": none,
            "second_L_S": none + np.inf,
            "teacher": best,
        }

    def compute_for(self, N_S: _Numbers, loss: float) -> Floats:
        """Total compute with which the best split of each N_S [n] reaches `loss`; inf where none does."""
        N_S = np.asarray(N_S, np.float64)
        serving = self.F(N_S) * self.served
        scale = 3 * self.F(N_S)
        low, high = np.log(scale * 10), np.log(scale * self.bounds.high * 1e3)

        def excess(z: Floats) -> Floats:
            return np.log(self.by_compute(N_S, serving + np.exp(z))["L_S"] / loss)

        at_low, at_high = excess(low), excess(high)
        reachable = at_high <= 0
        for _ in range(60):
            z = np.where(at_low > 0, (low * at_high - high * at_low) / (at_high - at_low), low)
            value = excess(z)
            above = value > 0
            # Illinois method: the value at the retained end is halved, so that neither end is retained for long.
            at_low = np.where(above, value, at_low / 2)
            at_high = np.where(above, at_high / 2, value)
            low, high = np.where(above, z, low), np.where(above, high, z)
            if np.all((np.abs(value) < 1e-12) | ~reachable):
                break
        return np.where(reachable, serving + np.exp(z), np.inf)

    def tokens_alone(self, N: Values, loss: float) -> Floats:
        """Tokens with which supervised training of each N reaches `loss`; inf where none do."""
        low, high = np.zeros(np.shape(N)), np.full(np.shape(N), np.log(self.bounds.high))
        reachable = self.alone(N, np.exp(high)) <= loss
        for _ in range(60):
            middle = (low + high) / 2
            enough = self.alone(N, np.exp(middle)) <= loss
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        return np.where(reachable, np.exp(high), np.inf)

    def total_alone(self, N: Values, loss: float) -> Floats:
        """Total compute (training and serving) with which supervised training of each N reaches `loss`."""
        return self.F(N) * (3 * self.tokens_alone(N, loss) + self.served)


def least(cost: Callable[[Floats], Floats], low: float, high: float) -> float:
    """The minimiser of a vectorised cost between low and high on a logarithmic scale: a grid, refined three times."""
    best = low
    for _ in range(4):
        grid = np.geomspace(low, high, _SIZES)
        values = np.asarray(cost(grid))
        at = int(np.argmin(values))
        best, low, high = grid[at], grid[max(at - 1, 0)], grid[min(at + 1, _SIZES - 1)]
    return float(best)


def require_room(problem: Problem, N_S: float, compute: float) -> None:
    """Raises PlanError for a budget that serving uses up, or that buys less than one token."""
    need = float(problem.F(N_S))
    left = float(problem.training(N_S, compute))
    if left <= 0:
        raise PlanError(
            f"compute={compute:.3g}: serving {si(problem.served)} tokens with {si(N_S)} parameters "
            f"alone takes {need * problem.served:.3g} FLOPs; give more compute or a smaller student"
        )
    if left < 3 * need:
        raise PlanError(
            f"compute={compute:.3g}: buys {left / (3 * need):.2g} tokens for {si(N_S)} parameters; wanted at "
            f"least one, {3 * need:.3g} FLOPs"
        )
