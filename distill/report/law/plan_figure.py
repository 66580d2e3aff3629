"""A plan among its alternatives: loss against total compute for its student, and the compute of each purpose."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distill.laws.planning.planner import Plan
from distill.report.theme import LIGHT, new_figure
from distill.system.numbers import flops, si

_BUDGETS = 25
_REACH = 30.0  # budgets from the plan's divided by this to the plan's times this
_PURPOSES = {"student": "student", "logits": "teacher's logits", "teacher": "teacher's training", "serving": "serving"}


def figure(plan: Plan) -> Figure:
    """Two panels: loss against compute, and the bill."""
    drawn = new_figure(3.2)
    axes = drawn.subplots(1, 2, squeeze=False)
    _losses(axes[0, 0], plan)
    _bill(axes[0, 1], plan)
    drawn.suptitle(f"{'distil' if plan.distil else 'pretrain'}: {si(plan.N_S)} student, {plan.scenario}")
    return drawn


def _losses(axis: Axes, plan: Plan) -> None:
    """The student's best distillation and its supervised training at budgets around the plan's."""
    problem, total = plan.problem, float(plan.bill.total)
    compute = total * np.geomspace(1 / _REACH, _REACH, _BUDGETS)
    taught = problem.by_compute(np.full(_BUDGETS, plan.N_S), compute)["L_S"]
    tokens = problem.supervised_tokens(plan.N_S, compute)
    possible = (tokens >= 1.0) & np.isfinite(taught)
    axis.plot(compute[possible], taught[possible], color=LIGHT.blue, label="distilled, best split")
    alone = problem.alone(plan.N_S, np.maximum(tokens, 1.0))
    axis.plot(compute[possible], alone[possible], color=LIGHT.orange, linestyle="--", label="supervised")
    axis.plot(total, plan.L_S, "o", color=LIGHT.blue, label="this plan")
    if "L_S" in plan.interval:
        axis.vlines(total, *plan.interval["L_S"], color=LIGHT.blue, linewidth=1)
    axis.set(xscale="log", xlabel="total compute, FLOPs", ylabel="loss (nats per token)")
    axis.set_title(f"{si(plan.N_S)} parameters")
    axis.legend()


def _bill(axis: Axes, plan: Plan) -> None:
    parts = {label: float(getattr(plan.bill, name)) for name, label in _PURPOSES.items()}
    parts = {label: value for label, value in parts.items() if value}
    rows = list(reversed(parts))
    shares = [100 * parts[label] / float(plan.bill.total) for label in rows]
    axis.barh(rows, shares, color=LIGHT.blue)
    axis.set(xlabel="share of the compute, %", xlim=(0, 100))
    axis.set_title(f"{flops(float(plan.bill.total))} FLOPs in all")
