"""Plans a budget: distil or pretrain, from which teacher, for how long, at what cost, with what uncertainty.

    >>> from distill import laws
    >>> supervised, distillation = laws.paper()
    >>> laws.plan(supervised, distillation, N_S=1e9, compute=1e22, scenario="teacher_inference").sentence()

Accepts any two laws with the signatures (N, D) and (N_S, D_S, L_T), and any F(N).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from distill.laws.forms import notebook, plots
from distill.laws.forms.resampled import ResampledLaws
from distill.laws.planning.allocation import Bounds
from distill.laws.planning.intervals import bootstrap_caveats, crossover_points, predictions, uncertainty
from distill.laws.planning.problem import Alternative, Problem, least, require_room
from distill.laws.planning.question import Question
from distill.laws.planning.region import Region
from distill.laws.planning.repeats import enough, useless
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
from distill.laws.planning.signatures import ForwardFlops, StudentLaw, SupervisedLaw
from distill.system.numbers import si

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The numbers of a plan: label, field, format.
_NUMBERS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("student N_S", "N_S", si),
    ("student tokens D_S", "D_S", si),
    ("teacher N_T", "N_T", si),
    ("teacher tokens D_T", "D_T", si),
    ("teacher loss L_T", "L_T", "{:.4f}".format),
    ("student loss L_S", "L_S", "{:.4f}".format),
)
_STANDS_OUT = 0.005  # report a second optimum when its L_S is within this share of the best


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The best use of a budget, the supervised alternative, and the uncertainty of both.

    Losses in nats per token, compute in FLOPs. `interval` holds 90% intervals by name: L_S and supervised_L of this
    exact plan; N_T, D_T, D_S, L_T of the optimum recomputed under each resampled law, and N_S if a budget is given and
    N_S was chosen; the crossovers. Those of losses are calibrated where the law was rolled forward (`predictions` says
    what that showed), with the plain ones in `bootstrap`; the others are of the bootstrap. `forms` are the laws that
    `probability` is under, by weight.
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
    bootstrap: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    forms: Mapping[str, float] = dataclasses.field(default_factory=dict)
    predictions: str = ""
    warnings: tuple[str, ...]
    problem: Problem = dataclasses.field(repr=False, compare=False)

    def _repr_html_(self) -> str:
        return notebook.table(self.sentence(), ("", "plan", "90% interval"), self.numbers())

    def plot(self) -> "Figure":
        """A matplotlib figure: loss against compute around the plan, and where its compute goes."""
        return plots.figures().plan(self)

    @property
    def distil(self) -> bool:
        """Whether distillation is the better use: a lower loss, or less compute if the loss is given."""
        if self.constraint == "loss":
            return self.bill.total < self.supervised.compute
        return self.L_S < self.supervised.L

    def sentence(self) -> str:
        """The advice as one sentence: what to do, the expected loss, the probability of winning, and the warnings."""
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
            text += f"; distillation wins with probability {self.probability:.2f}{self._under()}"
        return ". ".join([f"{text} ({self.scenario})", *(f"Warning: {w}" for w in self.warnings)]) + "."

    def numbers(self) -> list[tuple[str, str, str]]:
        """Label, value and 90% interval ('' without one) of sizes, tokens and losses, as text."""
        known = [entry for entry in _NUMBERS if not np.isnan(getattr(self, entry[1]))]  # of given teachers no D_T
        rows = [(label, show(getattr(self, name)), self._within(name, show)) for label, name, show in known]
        loss = _NUMBERS[-1][2]
        rows.append(("supervised loss", loss(self.supervised.L), self._within("supervised_L", loss)))
        return [(label, value, within.strip()) for label, value, within in rows]

    def _within(self, name: str, show: Callable[[float], str] = "{:.3f}".format) -> str:
        if name not in self.interval:
            return ""
        low, high = self.interval[name]
        return f" [{show(low)}, {show(high)}]"

    def _under(self) -> str:
        """' (under distillation-limit 70%, overtaking 30%)' where several forms are averaged."""
        if len(self.forms) < 2:
            return ""
        return f" (under {', '.join(f'{name} {weight:.0%}' for name, weight in self.forms.items())})"


def plan(
    supervised: SupervisedLaw,
    distillation: StudentLaw,
    *,
    N_S: float | tuple[float, float],
    compute: float | None = None,
    tokens: float | None = None,
    loss: float | None = None,
    scenario: str | Scenario = "best_case",
    boot: ResampledLaws | None = None,
    flops: ForwardFlops | None = None,
    teachers: Sequence[Teacher] = (),
    students: int = 1,
    store: bool = False,
    unique: float = UNLIMITED,
    served: float = 0.0,
    region: Region | None = None,
    bounds: Bounds | None = None,
) -> Plan:
    """The best plan under one constraint: total `compute` (FLOPs), student `tokens`, or a target `loss`.

    N_S: the student's size, or its range (least, most). boot: resampled laws for the intervals, such as a Bootstrap or
    the `boot` of a law file. flops: F(N), forward FLOPs per token; Appendix H's closed form by default. teachers:
    existing ones, whose training is already paid. students: how many share the teacher, and with `store` also its
    signals. unique: distinct tokens of teacher and of student. served: tokens that each student will generate in its
    life, paid from the same compute. region: the range of the fitted runs, for warnings.
    Raises PlanError for an impossible or contradictory question.
    """
    question = Question(
        scenario=find(scenario),
        N_S=N_S,
        compute=compute,
        tokens=tokens,
        loss=loss,
        teachers=tuple(teachers),
        students=students,
        store=store,
        unique=unique,
        served=served,
    )
    if boot is not None and not hasattr(boot, "kept"):
        raise PlanError(
            f"boot is a {type(boot).__name__}; wanted resampled laws: laws.bootstrap(...), or the boot of a law file"
        )
    problem = Problem(
        supervised=supervised,
        distillation=distillation,
        scenario=question.scenario.shared(students, store),
        flops=flops or Flops.closed(),
        teachers=question.teachers,
        unique=unique,
        served=served,
        bounds=bounds or Bounds(low=min(1e6, question.smallest / 1e3)),
    )
    return answer(question, problem, boot, region)


def answer(question: Question, problem: Problem, boot: ResampledLaws | None, region: Region | None) -> Plan:
    """The plan for a question under one problem's laws and costs; the core of `plan`."""
    if question.compute is not None:
        require_room(problem, question.smallest, question.compute)
    size = _size(question, problem)
    if question.tokens is not None:
        split = problem.by_tokens([size], question.tokens)
    elif question.loss is not None:
        split = problem.by_compute([size], _budget(problem, size, question.loss))
    else:
        split = problem.by_compute([size], np.asarray(question.compute))
    best = {name: float(values[0]) for name, values in split.items()}
    cost = bill(problem.scenario, problem.F, size, best["D_S"], best["N_T"], best["D_T"], problem.served)
    other = _alternative(question, problem, size)
    known = uncertainty(question, problem, boot, best, cost, other)
    by_compute, by_tokens, catching_up = crossover_points(problem, best, boot)
    warnings = [*_warnings(question, problem, best), *_outside(problem, best, other, region), *bootstrap_caveats(boot)]
    return Plan(
        scenario=question.scenario.name,
        constraint=question.constraint,
        **{name: best[name] for name in ("N_S", "D_S", "N_T", "D_T", "L_T", "L_S")},
        teacher=problem.teachers[int(best["teacher"])].name if problem.teachers else "",
        students=question.students,
        supervised=other,
        bill=cost,
        stored_bytes=signal_bytes(best["D_S"]),
        crossover_compute=by_compute,
        crossover_tokens=by_tokens,
        probability=known.probability,
        interval={**known.interval, **catching_up},
        bootstrap=known.bootstrap,
        forms=known.forms,
        predictions=predictions(boot),
        warnings=tuple(warnings),
        problem=problem,
    )


def _size(question: Question, problem: Problem) -> float:
    """The student's size: given, or the best in the range (lowest loss, or least compute for a given loss)."""
    if not isinstance(question.N_S, tuple):
        return float(question.N_S)
    if question.loss is not None:
        loss = question.loss
        return least(lambda sizes: problem.compute_for(sizes, loss), *question.N_S)
    compute = np.asarray(question.compute)
    return least(lambda sizes: problem.by_compute(sizes, compute)["L_S"], *question.N_S)


def _budget(problem: Problem, size: float, loss: float) -> float:
    budget = float(problem.compute_for([size], loss)[0])
    if not np.isfinite(budget):
        best = float(problem.by_tokens([size], problem.bounds.high)["L_S"][0])
        raise PlanError(
            f"loss={loss}: a student of {si(size)} parameters reaches {best:.4f} at best under this law; "
            "ask for more than that, or for a larger student"
        )
    return budget


def _alternative(question: Question, problem: Problem, size: float) -> Alternative:
    """Supervised training under the same constraint, of the same student or of the best size in the range."""
    compute, loss = question.compute, question.loss
    if question.sizes is not None:
        if compute is not None:
            cost = lambda n: problem.alone(n, np.maximum(problem.supervised_tokens(n, compute), 1.0))
        else:
            cost = lambda n: problem.total_alone(n, float(loss or 0.0))
        size = least(cost, *question.sizes)
    if compute is not None:
        D = min(float(problem.supervised_tokens(size, compute)), problem.bounds.high)
    elif loss is not None:
        D = float(problem.tokens_alone(size, loss))
    else:
        D = float(question.tokens or 0.0)
    total = float(problem.F(size)) * (3 * D + problem.served)
    return Alternative(N=size, D=D, L=float(problem.alone(size, D)), compute=total)


def _free_tokens(problem: Problem) -> bool:
    """Whether only the teacher's forward passes are paid, so that its training tokens cost nothing."""
    return bool(not problem.teachers and problem.scenario.logits and not problem.scenario.pretraining)


def _warnings(question: Question, problem: Problem, best: Mapping[str, float]) -> list[str]:
    """Warnings about the optimum itself: a weak teacher, ends of ranges, a second optimum."""
    warnings = []
    own = float(problem.alone(best["N_S"], best["D_S"]))
    if best["L_T"] > own:
        warnings.append(
            f"the teacher (L_T {best['L_T']:.3f}) is worse than the student alone on the same tokens ({own:.3f})"
        )
    most = enough(problem.distillation, best["N_S"], problem.unique, best["L_T"])
    warnings += useless(best["D_S"], most, problem.unique)
    if question.sizes and not question.sizes[0] * 1.001 < best["N_S"] < question.sizes[1] / 1.001:
        warnings.append(f"N_S is at the end of its range ({si(best['N_S'])})")
    low, high = problem.bounds.low, problem.bounds.high
    for name in ("N_T", "D_T", "D_S"):
        if name == "D_T" and _free_tokens(problem):
            continue
        if best[name] > 0.999 * high:
            warnings.append(f"{name} is at the upper bound of the search ({high:.3g})")
        elif best[name] < 1.001 * low and name != "D_S":
            warnings.append(f"{name} is at the lower bound of the search ({low:.3g})")
    if _free_tokens(problem):
        warnings.append("D_T is at the search bound because the teacher is free here; only L_T is meaningful")
    if best["second_L_S"] < best["L_S"] * (1 + _STANDS_OUT) and abs(np.log(best["second_N_T"] / best["N_T"])) > 0.5:
        warnings.append(
            f"a second optimum has N_T = {si(best['second_N_T'])} and nearly the same loss ({best['second_L_S']:.4f})"
        )
    return warnings


def _outside(problem: Problem, best: Mapping[str, float], other: Alternative, region: Region | None) -> list[str]:
    """Warnings about values of the plan outside the region of the fitted runs."""
    if region is None:
        return []
    measured = () if problem.teachers else ("N_T",) if _free_tokens(problem) else ("N_T", "D_T")
    warnings = region.beyond({name: best[name] for name in ("N_S", "D_S", "L_T", *measured)})
    if not np.isfinite(other.D):
        warnings.append("supervised training of this size never reaches that loss")
    return warnings
