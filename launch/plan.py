"""Distil or pretrain, from which teacher, for how long, at what cost, and how sure are we?"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from distill.config.chips import CHIPS
from distill.config.flags import Parser, money, number
from distill.laws.forms import registry
from distill.laws.planning import recipe as emit
from distill.laws.planning.budget import budget, prices_of
from distill.laws.planning.lawfile import LawFile, read
from distill.laws.planning.planner import Plan, plan
from distill.laws.planning.pretraining import Pretraining, pretraining
from distill.laws.planning.recipe import LADDERS, ladder, recipe
from distill.laws.planning.scenarios import SCENARIOS, UNLIMITED, PlanError, Prices, Teacher
from distill.laws.planning.text import describe, to_dict
from distill.report.law import planner_page as page
from distill.system import process
from launch.support import cli

EXAMPLES = (
    "distill plan --N_S=1e9 --compute=1e22 --scenario=teacher_inference",
    "distill plan --law=law.json --N_S=1e8:1e10 --loss=2.2 --served=1e12",
    "distill plan --N_S=546M --compute=1e21 --teachers=7B:7B:2.0,1B:1e9:2.3",
    "distill plan --N_S=1B --dollars=20000 --chip=v5p --mfu=0.5",
    "distill plan --N_S=1B --days=14 --accelerators=64 --chip=h100 --hourly=2.50",
    "distill plan --law=supervised.json --gpu-hours=5000 --chip=h100",
    "distill plan --N_S=1e9 --compute=3e20 --emit-config=out --ladder=paper",
)


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    process.cache_compilations()
    if flags.forms:
        registry.import_forms(flags.forms)
    law = read(flags.law, borrow=True)
    if flags.page:
        page.write(law, Path(flags.page))
        print(f"wrote {flags.page}; open it in any browser")
        return 0
    prices = prices_of(
        flags.chip,
        peak_flops=flags.peak_flops,
        mfu=flags.mfu,
        hourly=flags.hourly,
        currency=flags.currency,
        accelerators=flags.accelerators,
    )
    bought = budget(prices, gpu_hours=flags.gpu_hours, money=flags.dollars, days=flags.days)
    if bought and any(value is not None for value in (flags.compute, flags.tokens, flags.loss)):
        raise PlanError(
            "constraint: got a budget and another one; wanted exactly one of --compute, --tokens, --loss, --gpu-hours, "
            "--dollars, --days"
        )
    compute = bought.compute if bought else flags.compute
    if flags.N_S is None and not law.borrowed:
        raise PlanError("--N_S: missing; wanted a student size such as 1e9, or LEAST:MOST")
    alone = None
    if law.borrowed and flags.N_S is None:
        alone = _alone(flags, law, compute)
        chosen = _plan(flags, law, alone.N, alone.compute, None)
    else:
        chosen = _plan(flags, law, _sizes(flags.N_S), compute, flags.loss)
    if flags.json:
        tree = to_dict(chosen, prices) | ({"budget": bought.words} if bought else {})
        tree |= {"pretraining": alone.to_dict()} if alone else {}
        tree |= {"law": {**law.statuses()}} if law.boot else {}
        print(json.dumps(tree | (_emit(flags, chosen) if flags.emit_config else {}), indent=1))
        return 0
    if bought:
        print(f"{bought.words}\n")
    if law.boot:
        print(f"coefficients of the law: {law.coefficients}\n")  # the plan says how good its predictions are
    if alone:
        print(f"{alone.describe()}\n\nDistil instead, a student of the same size for the same compute?\n")
    print(describe(chosen, prices))
    if flags.emit_config:
        _emit(flags, chosen, show=True)
    return 0


def _alone(flags: argparse.Namespace, law: LawFile, compute: float | None) -> Pretraining:
    """The best model of a supervised law. Raises PlanError for what only a plan of a given size can answer."""
    if flags.tokens is not None or flags.served or flags.teachers:
        raise PlanError("--tokens, --served and --teachers: a supervised law alone needs a size for them, --N_S=SIZE")
    return pretraining(
        law.supervised,
        compute=compute,
        loss=flags.loss,
        boot=law.boot,
        flops=law.flops,
        unique=flags.unique,
        region=law.region,
    )


def _plan(
    flags: argparse.Namespace, law: LawFile, N_S: float | tuple[float, float], compute: float | None, loss: float | None
) -> Plan:
    """The plan that the flags ask for, with what the law file's own laws are to be warned of."""
    chosen = plan(
        law.supervised,
        law.distillation,
        N_S=N_S,
        compute=compute,
        tokens=flags.tokens,
        loss=loss,
        scenario=flags.scenario,
        boot=law.boot,
        flops=law.flops,
        teachers=_teachers(flags.teachers),
        students=flags.students,
        store=flags.store,
        unique=flags.unique,
        served=flags.served,
        region=law.region,
    )
    return dataclasses.replace(chosen, warnings=(*law.caveats(), *chosen.warnings))


def _emit(flags: argparse.Namespace, chosen: Plan, show: bool = False) -> dict[str, str]:
    """Writes the configs; `show` prints what was snapped before, and the commands after."""
    rungs = ladder(flags.ladder)
    runs = recipe(chosen, rungs, emit.free_workdir(emit.TEACHER_WORKDIR))
    table = emit.snapped(runs, chosen, rungs)
    if show:
        print(f"\n{table}", flush=True)
    commands = emit.write(runs, chosen, Path(flags.emit_config))
    if show:
        print(f"\nwrote {flags.emit_config}; next:\n{commands}")
    return {"snapped": table, "commands": commands}


def parser() -> Parser:
    parser = Parser("plan", __doc__, examples=EXAMPLES)
    add = parser.group("the law and the question")
    add("--law", default="paper", help="`paper`, or a law file made by launch.fit (default paper)")
    add("--forms", default="", help="a Python file with the law's form, where it is one of your own")
    add("--N_S", help="student size, or LEAST:MOST to choose it from")
    add("--compute", type=float, help="total FLOPs")
    add("--tokens", type=float, help="student tokens")
    add("--loss", type=float, help="target cross-entropy, nats per token")
    add("--scenario", default="best_case", help=", ".join(SCENARIOS))
    add("--teachers", default="", help="existing teachers to choose from, NAME:N:L_T,... such as 7B:7B:2.0")
    add("--students", type=int, default=1, help="how many students share the teacher")
    add("--store", action="store_true", help="the teacher's signals are stored once and read by all students")
    add("--unique", type=float, default=UNLIMITED, help="distinct tokens of each of teacher and student")
    add("--served", type=float, default=0.0, help="tokens that the student generates in its life")
    prices = Prices()
    add = parser.group("hours and money", "a budget in place of --compute; compute = hours x peak x MFU")
    add("--gpu-hours", type=float, help="accelerator-hours in all")
    add("--dollars", "--money", type=money, help="money in all, in --currency: 20000, 20K or 20,000")
    add("--days", type=float, help="days on all --accelerators")
    add("--chip", default="", help=f"peak and list price of {', '.join(CHIPS)} (default: an H100's peak)")
    add("--peak_flops", type=float, help=f"of one accelerator (default that of the chip, else {prices.peak_flops:g})")
    add("--mfu", type=float, help=f"share of the peak that training reaches (default {prices.mfu}, an assumption)")
    add("--hourly", type=float, help="price of an accelerator-hour (default the chip's list price, else "
        f"{prices.hourly:g}, an assumption)")  # fmt: skip
    add("--currency", default="", help=f"of the price (default {prices.currency})")
    add("--accelerators", type=int, help=f"that train at once (default {prices.accelerators})")
    add = parser.group("what is written")
    add("--emit-config", default="", metavar="DIR", help="write the configs that carry the plan out")
    add("--ladder", default="paper", help=f"model sizes to snap to: {', '.join(LADDERS)}")
    add("--page", default="", metavar="FILE", help="write the interactive page of the law instead of a plan")
    add("--json", action="store_true", help="print JSON")
    return parser


def _sizes(text: str) -> float | tuple[float, float]:
    try:
        sizes = [number(part) for part in text.split(":")]
    except ValueError:
        sizes = []
    if len(sizes) == 1:
        return sizes[0]
    if len(sizes) == 2:
        return sizes[0], sizes[1]
    raise PlanError(f"--N_S={text}: wanted a number such as 1e9 or 1B, or LEAST:MOST such as 100M:10B")


def _teachers(text: str) -> tuple[Teacher, ...]:
    teachers = []
    for item in text.split(",") if text else []:
        try:
            name, N, L = item.split(":")
            teacher = Teacher(name=name, N=number(N), L=number(L))
        except ValueError:
            raise PlanError(f"--teachers: got {item!r}, wanted NAME:N:L_T such as 7B:7B:2.0") from None
        if not (teacher.N > 0 and teacher.L > 0):
            raise PlanError(f"--teachers: {item!r} has a size or a loss that is not positive")
        teachers.append(teacher)
    return tuple(teachers)


if __name__ == "__main__":
    raise SystemExit(cli.guard(main))
