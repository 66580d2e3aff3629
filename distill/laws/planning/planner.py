"""Distil or pretrain, from which teacher, for how long, at what cost, and how sure are we?

    >>> from distill import laws
    >>> supervised, distillation = laws.paper()
    >>> laws.plan(supervised, distillation, N_S=1e9, compute=1e22, scenario="teacher_inference").sentence()

Any two laws with the signatures (N, D) and (N_S, D_S, L_T) will do, and any F(N).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distill.laws.planning.allocation import Bounds
from distill.laws.planning.intervals import conditional, crossings, doubt
from distill.laws.planning.problem import Alternative, Problem, least, require_room
from distill.laws.planning.region import Region
from distill.laws.planning.scenarios import (
    UNLIMITED,
    Bill,
    Flops,
    PlanError,
    Scenario,
    Teacher,
    bill,
    find,
    signal_bytes,
)
from distill.system.numbers import si

_STANDS_OUT = 0.005  # a second optimum is told of when its L_S is within this share of the best


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The best use of a budget, the supervised alternative, and how sure the law is of either.

    Losses in nats per token, compute in FLOPs. `interval` holds 90% bootstrap intervals by name: L_S and supervised_L
    of this very plan; N_T, D_T, D_S, L_T of the optimum found anew under each resampled law, and N_S where a budget is
    given and N_S was chosen; the crossovers.
    """

    scenario: str
    constraint: str
    N_S: float
    D_S: float
    N_T: float
    D_T: float
    L_T: float
    L_S: float
    teacher: str = ""
    students: int = 1
    supervised: Alternative
    bill: Bill
    stored_bytes: float
    crossover_compute: float | None
    crossover_tokens: float | None
    probability: float | None
    interval: Mapping[str, tuple[float, float]]
    warnings: tuple[str, ...]
    problem: Problem = dataclasses.field(repr=False, compare=False)

    @property
    def distil(self) -> bool:
        """Whether distillation is the better use: less loss, or less compute where the loss is given."""
        if self.constraint == "loss":
            return self.bill.total < self.supervised.compute
        return self.L_S < self.supervised.L

    def sentence(self) -> str:
        """The advice in a few words: what to do, what to expect, how sure, and what to mind."""
        if self.teacher:
            source = f"the teacher {self.teacher} (L_T {self.L_T:.3f})"
        else:
            trained = f"{si(self.D_T)} tokens" if self.D_T < 1e16 else "unlimited tokens"
            source = f"a {si(self.N_T)} teacher of {trained} (L_T {self.L_T:.3f})"
        taught = f"{si(self.N_S)} student on {si(self.D_S)} tokens from {source}"
        alone = f"{si(self.supervised.N)} model on {si(self.supervised.D)} tokens"
        expected, other = (
            f"{self.L_S:.3f}{self._within('L_S')}",
            f"{self.supervised.L:.3f}{self._within('supervised_L')}",
        )
        if self.constraint == "loss":
            costs = f"{self.bill.total:.3g} FLOPs against {self.supervised.compute:.3g}"
            advice = (
                f"Distil a {taught}" if self.distil else f"Pretrain: {alone} supervised, rather than distil a {taught}"
            )
            text = f"{advice}: loss {expected} for {costs} supervised"
        elif self.distil:
            text = f"Distil a {taught}: expected loss {expected} against {other} for supervised training of a {alone}"
        else:
            text = f"Pretrain: supervised training of a {alone} gives {other}, distilling a {taught} {expected}"
        if self.probability is not None:
            text += f"; distillation wins with probability {self.probability:.2f}"
        return ". ".join([f"{text} ({self.scenario})", *(f"Warning: {w}" for w in self.warnings)]) + "."

    def _within(self, name: str) -> str:
        if name not in self.interval:
            return ""
        low, high = self.interval[name]
        return f" [{low:.3f}, {high:.3f}]"


def plan(
    supervised: Any,
    distillation: Any,
    *,
    N_S: float | tuple[float, float],
    compute: float | None = None,
    tokens: float | None = None,
    loss: float | None = None,
    scenario: str | Scenario = "best_case",
    boot: Any = None,
    flops: Any = None,
    teachers: Sequence[Teacher] = (),
    students: int = 1,
    store: bool = False,
    unique: float = UNLIMITED,
    served: float = 0.0,
    region: Region | None = None,
    bounds: Bounds | None = None,
) -> Plan:
    """The best plan under one constraint: total `compute` (FLOPs), student `tokens`, or a target `loss`.

    N_S: the student's size, or (least, most) to choose it from. boot: resampled laws for the intervals: an object with
    `.kept` or `.laws`, a stack of distillation laws, each with its own supervised law inside. flops: F(N), forward
    FLOPs per token; Appendix H's closed form if not given. teachers: existing ones, their training sunk.
    students: how many share the teacher, and with `store` its signals too. unique: distinct tokens of each of teacher
    and student. served: tokens that each student will generate in its life, paid from the same compute.
    Raises PlanError for what is impossible or contradictory.
    """
    flops = Flops.closed() if flops is None else flops
    chosen = find(scenario)
    _check(N_S, compute, tokens, loss, teachers, chosen, unique, served, students)
    problem = Problem(
        supervised=supervised,
        distillation=distillation,
        scenario=chosen.shared(students, store),
        flops=flops,
        teachers=tuple(teachers),
        unique=unique,
        served=served,
        bounds=bounds or Bounds(low=min(1e6, np.min(N_S) / 1e3)),
    )
    if compute is not None:
        require_room(problem, float(np.min(N_S)), compute)
    size = _size(problem, N_S, compute, loss)
    if tokens is not None:
        split, constraint = problem.by_tokens([size], tokens), "tokens"
    elif loss is not None:
        split, constraint = problem.by_compute([size], _budget(problem, size, loss)), "loss"
    else:
        split, constraint = problem.by_compute([size], compute), "compute"
    best = {name: float(values[0]) for name, values in split.items()}
    cost = bill(problem.scenario, problem.F, size, best["D_S"], best["N_T"], best["D_T"], served)
    other = _alternative(problem, N_S, size, compute, tokens, loss)
    interval, probability = doubt(problem, boot, best, cost, other, constraint, N_S if isinstance(N_S, tuple) else None)
    by_compute, by_tokens = crossings(problem, best, boot, interval)
    return Plan(
        scenario=chosen.name,
        constraint=constraint,
        **{name: best[name] for name in ("N_S", "D_S", "N_T", "D_T", "L_T", "L_S")},
        teacher=teachers[int(best["teacher"])].name if teachers else "",
        students=students,
        supervised=other,
        bill=cost,
        stored_bytes=signal_bytes(best["D_S"]),
        crossover_compute=by_compute,
        crossover_tokens=by_tokens,
        probability=probability,
        interval=interval,
        warnings=tuple(_warnings(problem, N_S, best, other, region) + conditional(boot)),
        problem=problem,
    )


def _check(N_S, compute, tokens, loss, teachers, scenario, unique, served, students) -> None:
    given = {"compute": compute, "tokens": tokens, "loss": loss}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise PlanError(f"constraint: got {' and '.join(named) or 'none'}; wanted exactly one of {', '.join(given)}")
    sizes = N_S if isinstance(N_S, tuple) else (N_S,)
    for name, value in [*given.items(), ("unique", unique), ("students", students), *(("N_S", n) for n in sizes)]:
        if value is not None and not (np.isfinite(value) and value > 0):
            raise PlanError(f"{name}={value!r}: wanted a positive number")
    if served < 0:
        raise PlanError(f"served={served!r}: wanted a number of tokens, zero or more")
    if len(sizes) > 1 and not sizes[0] < sizes[1]:
        raise PlanError(f"N_S={N_S}: wanted (least, most) with least < most")
    if tokens is not None and tokens < 1:
        raise PlanError(f"tokens={tokens!r}: wanted at least one token")
    if len(sizes) > 1 and tokens is not None:
        raise PlanError("N_S is a range but tokens are fixed: the largest student always wins; give compute or loss")
    if teachers and scenario.pretraining:
        usable = "best_case or teacher_inference"
        raise PlanError(f"scenario={scenario.name!r} pays for training, but the given teachers exist; use {usable}")


def _size(problem: Problem, N_S: float | tuple[float, float], compute: float | None, loss: float | None) -> float:
    """The student's size: given, or the best in the range (least loss, or least compute for a given loss)."""
    if not isinstance(N_S, tuple):
        return float(N_S)
    if loss is not None:
        return least(lambda sizes: problem.compute_for(sizes, loss), *N_S)
    return least(lambda sizes: problem.by_compute(sizes, compute)["L_S"], *N_S)


def _budget(problem: Problem, size: float, loss: float) -> float:
    budget = float(problem.compute_for([size], loss)[0])
    if not np.isfinite(budget):
        best = float(problem.by_tokens([size], problem.bounds.high)["L_S"][0])
        raise PlanError(
            f"loss={loss}: a student of {si(size)} parameters reaches {best:.4f} at best under this law; "
            "ask for more than that, or for a larger student"
        )
    return budget


def _alternative(problem: Problem, N_S, size: float, compute, tokens, loss) -> Alternative:
    """Supervised training under the same constraint: of the same student, or of the best size in the range."""
    if isinstance(N_S, tuple):
        if compute is not None:
            size = least(lambda n: problem.alone(n, np.maximum(problem.supervised_tokens(n, compute), 1.0)), *N_S)
        else:
            size = least(lambda n: problem.total_alone(n, loss), *N_S)
    if compute is not None:
        D = min(float(problem.supervised_tokens(size, compute)), problem.bounds.high)
    else:
        D = float(tokens) if tokens is not None else float(problem.tokens_alone(size, loss))
    total = float(problem.F(size)) * (3 * D + problem.served)
    return Alternative(N=size, D=D, L=float(problem.alone(size, D)), compute=total)


def _warnings(problem: Problem, N_S, best, other: Alternative, region: Region | None) -> list[str]:
    out = []
    own = float(problem.alone(best["N_S"], best["D_S"]))
    if best["L_T"] > own:
        out.append(
            f"the teacher (L_T {best['L_T']:.3f}) is worse than the student alone on the same tokens ({own:.3f})"
        )
    if isinstance(N_S, tuple) and not N_S[0] * 1.001 < best["N_S"] < N_S[1] / 1.001:
        out.append(f"N_S stands at the end of its range ({si(best['N_S'])})")
    free_tokens = not problem.teachers and problem.scenario.logits and not problem.scenario.pretraining
    low, high = problem.bounds.low, problem.bounds.high
    for name in ("N_T", "D_T", "D_S"):
        if name == "D_T" and free_tokens:
            continue
        if best[name] > 0.999 * high:
            out.append(f"{name} stands at the upper bound of the search ({high:.3g})")
        elif best[name] < 1.001 * low and name != "D_S":
            out.append(f"{name} stands at the lower bound of the search ({low:.3g})")
    if free_tokens:
        out.append("the teacher's tokens are free in this scenario, so D_T stands at its bound: read L_T only")
    if best["second_L_S"] < best["L_S"] * (1 + _STANDS_OUT) and abs(np.log(best["second_N_T"] / best["N_T"])) > 0.5:
        out.append(
            f"a second optimum has N_T = {si(best['second_N_T'])} and nearly the same loss ({best['second_L_S']:.4f})"
        )
    if region is not None:
        measured = () if problem.teachers else ("N_T",) if free_tokens else ("N_T", "D_T")
        out += region.beyond({name: best[name] for name in ("N_S", "D_S", "L_T", *measured)})
        if not np.isfinite(other.D):
            out.append("supervised training of this size never reaches that loss")
    return out
