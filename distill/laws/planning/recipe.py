"""Turns a plan into configs that train: sizes snapped to a ladder, budgets to whole steps, and the loss this costs.

The only link from the laws back to training; it imports only config and counts.
"""

import dataclasses
import functools
import itertools
import os
from pathlib import Path

import numpy as np

from distill.config import ExperimentConfig, ModelConfig, OptimConfig, TeacherConfig, counts, fingerprint, nearest
from distill.config import emit as config_file
from distill.config.ladder import PAPER_LADDER, SEQ_LEN, paper_model
from distill.laws.forms.arrays import Floats, Values
from distill.laws.planning.planner import Plan
from distill.laws.planning.problem import Problem
from distill.laws.planning.scenarios import Bill, PlanError, bill
from distill.system.numbers import si

TEACHER_WORKDIR = "runs/teacher"  # where an emitted student looks for its teacher
_SAME = 1e-4  # of L_S: teachers that differ by less count as equally good, and the cheapest to train is taken
_TOKENS = np.geomspace(1e4, 1e15, 661)  # teacher tokens tried with every size of the ladder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ladder:
    """Model shapes in increasing size, and their common training settings."""

    name: str
    experiment: ExperimentConfig
    models: tuple[ModelConfig, ...]

    @functools.cached_property
    def N(self) -> Floats:
        """Exact non-embedding parameters of every rung."""
        return np.array([counts.non_embedding(model) for model in self.models], np.float64)

    @functools.cached_property
    def F(self) -> Floats:
        """Exact forward FLOPs per token of every rung."""
        return np.array([counts.forward_flops(model, self.experiment.seq_len) for model in self.models])

    def flops(self, N: Values) -> Floats:
        """F(N): exact on the rungs, linear in logarithms between them."""
        return np.exp(np.interp(np.log(N), np.log(self.N), np.log(self.F)))

    @property
    def step(self) -> int:
        """Tokens of one optimiser step."""
        return self.experiment.batch_size * self.experiment.seq_len

    def nearest(self, N: float) -> int:
        """The rung closest to N in ratio. Raises PlanError if it is off by a factor of more than two."""
        rung = int(np.argmin(np.abs(np.log(self.N / N))))
        if abs(np.log(self.N[rung] / N)) > np.log(2):
            raise PlanError(
                f"ladder {self.name!r}: {si(N)} parameters lie outside it "
                f"({si(self.N[0])} to {si(self.N[-1])}); choose another ladder or size"
            )
        return rung


def _paper() -> Ladder:
    """103M to 12.6B at a context of 4096 (Appendix I); the batch of a million tokens is our choice, not the paper's."""
    optim = OptimConfig(schedule="cosine", warmup_steps=2000, base_width=256)
    experiment = ExperimentConfig(optim=optim, tokens=2**31, batch_size=256, seq_len=SEQ_LEN)
    return Ladder(name="paper", experiment=experiment, models=tuple(paper_model(name) for name in PAPER_LADDER))


def _micro() -> Ladder:
    """7K to 0.6M: two layers of width 16 to 160 on bytes, as in configs/study.py; trains on a laptop's CPU."""
    models = tuple(
        ModelConfig(d_model=d, n_layers=2, n_heads=d // 16, d_ff_multiple=16, tied=False, unroll=2)
        for d in (16, 32, 48, 64, 96, 160)
    )
    return Ladder(name="micro", experiment=ExperimentConfig(), models=models)


LADDERS = {"paper": _paper, "micro": _micro}


def ladder(name: str) -> Ladder:
    """A ladder by name. Raises PlanError that names the nearest valid one."""
    if name not in LADDERS:
        raise PlanError(f"ladder={name!r}: wanted one of {', '.join(LADDERS)}.{nearest(name, LADDERS)}")
    return LADDERS[name]()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Configs that execute a plan, their exact bill, and L_S of the snapped plan minus that of the plan."""

    student: ExperimentConfig
    teacher: ExperimentConfig | None
    L_T: float
    L_S: float
    paid: float
    bill: Bill


def recipe(plan: Plan, rungs: Ladder, teacher_workdir: str = TEACHER_WORKDIR) -> Recipe:
    """The plan on a ladder: the nearest student, then the best teacher and budgets recomputed, in whole steps.

    A plan that says pretrain gives one supervised config; an existing teacher is used unchanged. `teacher_workdir` is
    the teacher's folder in the student's config.
    Raises PlanError if the ladder does not reach or a budget is less than one step.
    """
    student = rungs.models[rungs.nearest(plan.N_S if plan.distil else plan.supervised.N)]
    N_S = float(counts.non_embedding(student))
    exact = dataclasses.replace(plan.problem, flops=rungs.flops)
    if not plan.distil:
        return _pretrain(plan, exact, student, rungs)
    if plan.teacher:
        N_T, D_T, L_T = plan.N_T, float("nan"), plan.L_T
        D_S = plan.D_S
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
        rungs.experiment, model=student, tokens=tokens, teacher=TeacherConfig(run=run, source=teacher_workdir)
    )
    cost = bill(exact.scenario, exact.F, N_S, float(tokens), N_T, D_T, exact.served)
    return Recipe(student=taught, teacher=teacher_config, L_T=L_T, L_S=L_S, paid=L_S - plan.L_S, bill=cost)


def _pretrain(plan: Plan, problem: Problem, model: ModelConfig, rungs: Ladder) -> Recipe:
    """Supervised training with the same compute, or on the same tokens if the tokens are given."""
    N, D = float(counts.non_embedding(model)), plan.supervised.D
    if plan.constraint == "compute":
        D = float(problem.supervised_tokens(N, plan.supervised.compute))
    tokens = _whole_steps(D, rungs, "the model")
    L = float(problem.alone(N, float(tokens)))
    return Recipe(
        student=dataclasses.replace(rungs.experiment, model=model, tokens=tokens),
        teacher=None,
        L_T=float("nan"),
        L_S=L,
        paid=L - plan.supervised.L,
        bill=Bill(student=3 * float(problem.F(N)) * tokens, logits=0.0, teacher=0.0),
    )


def _teacher(problem: Problem, plan: Plan, N_S: float, rungs: Ladder) -> tuple[int, float, float]:
    """(rung, D_T, D_S) of the cheapest teacher on the ladder that is as good as the best, over a grid of tokens."""
    N_T, D_T = rungs.N[:, None], _TOKENS[None, :]
    F_T, F_S = problem.F(N_T), float(problem.F(N_S))
    left = plan.bill.total - F_S * problem.served - problem.scenario.pretraining * 3 * F_T * D_T
    D_S = left / (3 * F_S + problem.scenario.logits * F_T)
    if plan.constraint == "tokens":
        D_S = np.full_like(D_S, plan.D_S)
    possible = rungs.step <= D_S
    D_S = np.where(possible, D_S, 1.0)
    losses = np.where(possible, problem.taught(N_S, D_S, problem.teacher_loss(N_T, D_T)), np.inf)
    cost = np.where(losses <= losses.min() * (1 + _SAME), problem.F(N_T) * D_T, np.inf)
    rung, at = np.unravel_index(int(np.argmin(cost)), cost.shape)
    return int(rung), float(_TOKENS[at]), float(D_S[rung, at])


def _whole_steps(D: float, rungs: Ladder, what: str) -> int:
    tokens = int(D // rungs.step) * rungs.step
    if tokens < rungs.step:
        raise PlanError(
            f"ladder {rungs.name!r}: {what} would see {si(D)} tokens, less than one step of {rungs.step}; "
            "give a larger budget"
        )
    return tokens


def free_workdir(path: str) -> str:
    """`path`, or the first of path-2, path-3, ... that does not exist or is an empty folder."""
    free = lambda name: not os.path.exists(name) or (os.path.isdir(name) and not os.listdir(name))
    return next(filter(free, itertools.chain([path], (f"{path}-{i}" for i in itertools.count(2)))))


def snapped(recipe: Recipe, plan: Plan, rungs: Ladder) -> str:
    """A table of the changes that the ladder and whole steps make to a plan, and of their cost."""
    F = lambda flops, N, D: 3 * float(flops(N)) * D
    notes = [f"  what that costs: {recipe.paid:+.4f} nats per token of predicted loss"]
    if plan.distil:
        rows = [("student", plan.N_S, _size(recipe.student)), ("student tokens", plan.D_S, recipe.student.tokens)]
        if recipe.teacher is not None:
            N_T, D_T = _size(recipe.teacher), recipe.teacher.tokens
            rows += [("teacher", plan.N_T, N_T), ("teacher tokens", plan.D_T, D_T)]
            rows += [("teacher's training, FLOPs", F(plan.problem.F, plan.N_T, plan.D_T), F(rungs.flops, N_T, D_T))]
            if not plan.problem.scenario.pretraining:
                notes.append("  the teacher's training is in no bill of this scenario")
        rows += [("teacher loss L_T", plan.L_T, recipe.L_T)]
        rows += [("student loss L_S", plan.L_S, recipe.L_S), ("FLOPs of the bill", plan.bill.total, recipe.bill.total)]
    else:
        alone = plan.supervised
        rows = [("model", alone.N, _size(recipe.student)), ("tokens", alone.D, recipe.student.tokens)]
        rows += [("loss", alone.L, recipe.L_S), ("FLOPs of the bill", alone.compute, recipe.bill.total)]
    lines = [f"snapped to the ladder {rungs.name!r} ({si(rungs.N[0])} to {si(rungs.N[-1])}) and to whole steps:"]
    lines.append(f"  {'':<28}{'plan':>12}{'emitted':>12}{'change':>12}")
    for label, wanted, got in rows:
        show = "{:.4f}".format if "loss" in label else si
        change = f"{got - wanted:+.4f}" if "loss" in label else f"x {got / wanted:.3g}"
        lines.append(f"  {label:<28}{show(wanted):>12}{show(got):>12}{change:>12}")
    return "\n".join([*lines, *notes])


def _size(config: ExperimentConfig) -> float:
    return float(counts.non_embedding(config.model))


def write(recipe: Recipe, plan: Plan, folder: Path) -> str:
    """Writes student.py and, if a teacher is trained, teacher.py (or only pretrain.py); returns the commands to run."""
    advice = plan.sentence()
    if recipe.teacher is None and recipe.student.teacher.run == "" and not plan.teacher:
        files = {"pretrain.py": (recipe.student, "Supervised training")}
    else:
        files = {"student.py": (recipe.student, "The student")}
        if recipe.teacher is not None:
            files = {"teacher.py": (recipe.teacher, "The teacher"), **files}
    lines = []
    for name, (config, what) in files.items():
        teacher = recipe.student.teacher.source
        workdir = teacher if name == "teacher.py" else free_workdir(f"runs/{Path(name).stem}")
        command = f"python -m launch.train --config={folder / name} --workdir={workdir}"
        config_file.write(folder / name, config, what=f"{what} of a plan.", command=command, advice=advice)
        model = config.model
        lines.append(f"{command}  # d_model {model.d_model}, {model.n_layers} layers, {config.tokens:,} tokens")
    return "\n".join(lines)
