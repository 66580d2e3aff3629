"""From a plan to configs that train: sizes snapped to a ladder, budgets to whole steps, the loss paid for it told.

The only bridge from the laws back to training, and it imports nothing but config and counts.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from distill import counts
from distill.config import ExperimentConfig, ModelConfig, OptimConfig, TeacherConfig, fingerprint, nearest
from distill.laws.planner import Plan
from distill.laws.problem import Problem
from distill.laws.scenarios import Bill, Flops, PlanError, bill, engineering

_SAME = 1e-4  # of L_S: teachers that differ by less count as equally good, and the one cheapest to train is taken
_TOKENS = np.geomspace(1e4, 1e15, 661)  # teacher tokens tried with every size of the ladder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ladder:
    """Model shapes in increasing size, and the recipe that they share."""

    name: str
    experiment: ExperimentConfig
    models: tuple[ModelConfig, ...]

    @functools.cached_property
    def N(self) -> np.ndarray:
        """Exact non-embedding parameters of every rung."""
        return np.array([counts.non_embedding(model) for model in self.models], np.float64)

    @functools.cached_property
    def flops(self) -> Flops:
        """F(N) through the exact forward FLOPs of the rungs."""
        context = self.experiment.seq_len
        return Flops.through(self.N, [counts.forward_flops(model, context) for model in self.models])

    @property
    def step(self) -> int:
        """Tokens of one optimiser step."""
        return self.experiment.batch_size * self.experiment.seq_len

    def nearest(self, N: float) -> int:
        """The rung closest to N in ratio; PlanError where the closest is off by more than two."""
        rung = int(np.argmin(np.abs(np.log(self.N / N))))
        if abs(np.log(self.N[rung] / N)) > np.log(2):
            raise PlanError(
                f"ladder {self.name!r}: {engineering(N)} parameters lie outside it "
                f"({engineering(self.N[0])} to {engineering(self.N[-1])}); choose another ladder or size"
            )
        return rung


def _paper() -> Ladder:
    """103M to 12.6B: d_model = 128 n_layers, heads of 128, context 4096 (Appendix I; batch and head size are ours)."""
    models = tuple(
        ModelConfig(vocab_size=32768, d_model=128 * n, n_layers=n, n_heads=n, tied=True, dtype="bfloat16", remat="full")
        for n in range(8, 41)
    )
    optim = OptimConfig(schedule="cosine", warmup_steps=2000, base_width=256)
    experiment = ExperimentConfig(optim=optim, tokens=2**31, batch_size=512, seq_len=4096)
    return Ladder(name="paper", experiment=experiment, models=models)


def _micro() -> Ladder:
    """6K to 0.6M: two layers of width 16 to 160, bytes, context 128; trains on a laptop's CPU."""
    models = tuple(ModelConfig(d_model=d, n_layers=2, n_heads=max(1, d // 16)) for d in (16, 24, 32, 48, 64, 96, 160))
    return Ladder(name="micro", experiment=ExperimentConfig(), models=models)


LADDERS = {"paper": _paper, "micro": _micro}


def ladder(name: str) -> Ladder:
    """A ladder by name; PlanError names the nearest valid one."""
    if name not in LADDERS:
        raise PlanError(f"ladder={name!r}: wanted one of {', '.join(LADDERS)}.{nearest(name, LADDERS)}")
    return LADDERS[name]()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Configs that carry a plan out, their exact bill, and L_S of the snapped plan minus that of the plan."""

    student: ExperimentConfig
    teacher: ExperimentConfig | None
    L_T: float
    L_S: float
    paid: float
    bill: Bill


def recipe(plan: Plan, problem: Problem, rungs: Ladder) -> Recipe:
    """The plan on a ladder: the nearest student, then the best teacher and budgets anew, in whole steps.

    A plan that says pretrain gives one supervised config; a teacher from a zoo is taken as it is.
    Raises PlanError where the ladder does not reach or a budget is less than one step.
    """
    student = rungs.models[rungs.nearest(plan.N_S if plan.distil else plan.supervised.N)]
    N_S = float(counts.non_embedding(student))
    exact = dataclasses.replace(problem, flops=rungs.flops)
    if not plan.distil:
        D = plan.supervised.D
        if plan.constraint == "compute":
            D = float(exact.supervised_tokens(N_S, plan.supervised.compute))
        tokens = _whole_steps(D, rungs, "the model")
        L = float(exact.alone(N_S, float(tokens)))
        cost = 3 * counts.forward_flops(student, rungs.experiment.seq_len) * tokens
        own = dataclasses.replace(rungs.experiment, model=student, tokens=tokens)
        return Recipe(
            student=own,
            teacher=None,
            L_T=float("nan"),
            L_S=L,
            paid=L - plan.supervised.L,
            bill=Bill(student=cost, logits=0.0, teacher=0.0),
        )
    if plan.teacher:
        N_T, D_T, D_S, L_T = plan.N_T, float("nan"), plan.D_S, plan.L_T
        teacher_config = None
    else:
        rung, D_T, D_S = _teacher(exact, plan, N_S, rungs)
        D_T = float(_whole_steps(D_T, rungs, "the teacher"))
        N_T = float(rungs.N[rung])
        L_T = float(exact.teacher_loss(N_T, D_T))
        teacher_data = dataclasses.replace(rungs.experiment.data, split="teacher")
        teacher_config = dataclasses.replace(
            rungs.experiment, model=rungs.models[rung], tokens=int(D_T), data=teacher_data
        )
    tokens = _whole_steps(D_S, rungs, "the student")
    L_S = float(exact.taught(N_S, float(tokens), L_T))
    run = fingerprint(teacher_config) if teacher_config else ""
    taught = dataclasses.replace(
        rungs.experiment, model=student, tokens=tokens, teacher=TeacherConfig(run=run, source="runs/teacher")
    )
    cost = bill(exact.scenario, exact.F, N_S, float(tokens), N_T, D_T, exact.served)
    return Recipe(student=taught, teacher=teacher_config, L_T=L_T, L_S=L_S, paid=L_S - plan.L_S, bill=cost)


def _teacher(problem: Problem, plan: Plan, N_S: float, rungs: Ladder) -> tuple[int, float, float]:
    """(rung, D_T, D_S) of the cheapest teacher on the ladder that is as good as the best, over a grid of tokens."""
    N_T, D_T = rungs.N[:, None], _TOKENS[None, :]
    if plan.constraint == "tokens":
        D_S: Any = np.full(np.broadcast_shapes(N_T.shape, D_T.shape), plan.D_S)
    else:
        F_T = problem.F(N_T)
        left = plan.bill.total - float(problem.F(N_S)) * problem.served
        left = left - problem.scenario.pretraining * 3 * F_T * D_T
        D_S = left / (3 * problem.F(N_S) + problem.scenario.logits * F_T)
    possible = np.broadcast_to(D_S, (len(rungs.N), len(_TOKENS))) >= rungs.step
    D_S = np.where(possible, D_S, 1.0)
    losses = np.where(possible, problem.taught(N_S, D_S, problem.teacher_loss(N_T, D_T)), np.inf)
    cost = np.where(losses <= losses.min() * (1 + _SAME), problem.F(N_T) * D_T, np.inf)
    rung, at = np.unravel_index(int(np.argmin(cost)), cost.shape)
    return int(rung), float(_TOKENS[at]), float(D_S[rung, at])


def _whole_steps(D: float, rungs: Ladder, what: str) -> int:
    tokens = int(D // rungs.step) * rungs.step
    if tokens < rungs.step:
        raise PlanError(
            f"ladder {rungs.name!r}: {what} would see {engineering(D)} tokens, less than one step of {rungs.step}; "
            "give a larger budget"
        )
    return tokens
