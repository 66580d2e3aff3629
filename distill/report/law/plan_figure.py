"""The chart of a plan among its alternatives: loss against compute for its student, and the compute of each purpose."""

import numpy as np

from distill.laws.planning.planner import Plan
from distill.report.charts.chart import Axis, Chart, Panel, Series, floats
from distill.report.theme import LOSS
from distill.system.numbers import flops, si

_BUDGETS = 25
_REACH = 30.0  # budgets from the plan's divided by this to the plan's times this
_PURPOSES = {"student": "student", "logits": "teacher's logits", "teacher": "teacher's training", "serving": "serving"}


def chart(plan: Plan) -> Chart:
    """Two panels: loss against compute, and the bill."""
    return Chart(
        name="plan",
        alt="Loss against compute of distillation and of supervised training, and where the plan's compute goes.",
        caption="",
        panels=(_losses(plan), _bill(plan)),
        columns=2,
        height=2.7,
        note=f"{'distil' if plan.distil else 'pretrain'}: {si(plan.N_S)} student, {plan.scenario}",
    )


def _losses(plan: Plan) -> Panel:
    """The student's best distillation and its supervised training at budgets around the plan's."""
    problem, total = plan.problem, float(plan.bill.total)
    compute = total * np.geomspace(1 / _REACH, _REACH, _BUDGETS)
    taught = problem.by_compute(np.full(_BUDGETS, plan.N_S), compute)["L_S"]
    tokens = problem.supervised_tokens(plan.N_S, compute)
    possible = (tokens >= 1.0) & np.isfinite(taught)
    alone = problem.alone(plan.N_S, np.maximum(tokens, 1.0))
    low, high = plan.interval.get("L_S", (plan.L_S, plan.L_S))
    series = (
        Series(label="distilled, best split", x=compute[possible], y=taught[possible], colour="blue", line="-"),
        Series(label="supervised", x=compute[possible], y=alone[possible], colour="orange", line="--"),
        Series(label="this plan", x=floats(total), y=floats(plan.L_S), low=floats(low), high=floats(high),
            colour="blue", marker="o"),
    )  # fmt: skip
    x = Axis(label="total compute (FLOPs)", log=True)
    return Panel(title=f"{si(plan.N_S)} parameters", x=x, y=Axis(label=LOSS), series=series)


def _bill(plan: Plan) -> Panel:
    """The share of the compute that each purpose takes, as bars."""
    parts = {label: float(getattr(plan.bill, name)) for name, label in _PURPOSES.items()}
    names = [label for label, value in parts.items() if value][::-1]
    shares = floats([100 * parts[label] / float(plan.bill.total) for label in names])
    rows = floats(range(len(names)))
    bars = Series(label="", x=shares, y=rows, left=0 * shares, right=shares, colour="blue", marker="|", size=10,
        facts={"purpose": names}, named=False)  # fmt: skip
    ticks = tuple((float(row), label) for row, label in zip(rows, names))
    y = Axis(label="", limits=(-0.6, len(names) - 0.4), ticks=ticks)
    x = Axis(label="share of the compute (%)", limits=(0.0, 104.0))
    return Panel(title=f"{flops(float(plan.bill.total))} FLOPs in all", x=x, y=y, series=(bars,))
