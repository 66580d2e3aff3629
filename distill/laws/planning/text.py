"""A plan as text and as JSON: the sentence, the numbers with their intervals, the bill, the price."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from distill.laws.planning import weights
from distill.laws.planning.budget import rate
from distill.laws.planning.planner import Plan
from distill.laws.planning.scenarios import Prices, petaflops_days
from distill.system.numbers import si

Json: TypeAlias = "dict[str, Json] | list[Json] | str | bool | float | None"


def describe(plan: Plan, prices: Prices | None = None) -> str:
    """Several lines: the sentence of advice, one line per number with its 90% interval, the split, money and days."""
    prices = prices or Prices()
    rows = [
        *plan.numbers(),
        (
            "supervised catches up, compute",
            _or_never(plan.crossover_compute),
            _within(plan, "crossover_compute", _flops),
        ),
        (
            "supervised catches up, tokens",
            _or_never(plan.crossover_tokens),
            _within(plan, "crossover_tokens", si),
        ),
        ("stored signals of D_S", f"{plan.stored_bytes / 1e9:.3g} GB", ""),
        *_weight(plan),
    ]
    parts = {
        "student": plan.bill.student,
        "teacher's logits": plan.bill.logits,
        "teacher's training": plan.bill.teacher,
    }
    parts["serving"] = plan.bill.serving
    total = plan.bill.total
    lines = [plan.sentence(), "", *_trusted(plan)]
    lines += [f"  {label:<32}{value:>10}  {within}".rstrip() for label, value, within in rows]
    lines += ["", f"  compute {_flops(total)} FLOPs = {petaflops_days(total):.3g} petaFLOP/s-days"]
    lines += [f"  {name:<32}{100 * part / total:>9.1f}%" for name, part in parts.items() if part]
    lines += [
        f"  {prices.hours(total):.4g} accelerator-hours, {prices.days(total):.3g} days on {prices.accelerators}, "
        + (f"{prices.money(total):,.0f} {prices.currency}" if prices.hourly >= 0 else "at an unknown price"),
        f"  {rate(prices)}",
    ]
    return "\n".join(lines)


def _weight(plan: Plan) -> list[tuple[str, str, str]]:
    """The lambda that suits the teacher; the law, and so the losses above, are of lambda = 1."""
    alone = float(plan.problem.alone(plan.N_S, plan.D_S))
    if not np.isfinite(plan.L_T / alone):
        return []
    known = f"by our micro study: L_T is {plan.L_T / alone:.2f} of the student's loss alone on D_S"
    return [("lambda to try", f"{weights.advised(plan.L_T, alone):g}", known)]


def _trusted(plan: Plan) -> list[str]:
    """How far predictions may be trusted, and of which kind the intervals are; nothing where there are none."""
    if not plan.predictions:
        return []
    lines = [f"  predictions: {plan.predictions}"]
    if plan.bootstrap:
        ends = {"L_S": "student loss", "supervised_L": "supervised loss"}
        alone = ", ".join(f"{ends[k]} [{low:.4f}, {high:.4f}]" for k, (low, high) in plan.bootstrap.items())
        lines.append("  90% intervals of losses: calibrated by rolling forward, of a new run; all others: bootstrap")
        lines.append(f"  the bootstrap alone, without the law's own error: {alone}")
    else:
        lines.append("  90% intervals: bootstrap alone, without the law's own error")
    return [*lines, ""]


def to_dict(plan: Plan, prices: Prices | None = None) -> dict[str, Json]:
    """The plan as JSON-ready values, with its `cost` if prices are given; unknown or infinite values are None."""
    fields = (field.name for field in dataclasses.fields(plan) if field.name != "problem")
    tree: dict[str, object] = {name: getattr(plan, name) for name in fields}
    tree["supervised"] = dataclasses.asdict(plan.supervised)
    tree["bill"] = dataclasses.asdict(plan.bill) | {"total": plan.bill.total}
    if prices:
        tree["cost"] = {
            "petaflops_days": petaflops_days(plan.bill.total),
            "hours": prices.hours(plan.bill.total),
            "days": prices.days(plan.bill.total),
            "money": prices.money(plan.bill.total),
            "currency": prices.currency,
        }
    tree["distil"] = plan.distil
    tree["sentence"] = plan.sentence()
    return {key: _plain(value) for key, value in tree.items()}


def _plain(value: object) -> Json:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    number = float(np.asarray(value, np.float64))
    return number if math.isfinite(number) else None


def _flops(value: float) -> str:
    return f"{value:.3g}"


def _or_never(value: float | None) -> str:
    return "never" if value is None else _flops(value)


def _within(plan: Plan, name: str, show: Callable[[float], str]) -> str:
    if name not in plan.interval:
        return ""
    low, high = plan.interval[name]
    return f"[{show(low)}, {show(high)}]"
