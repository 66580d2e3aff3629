"""Distil or pretrain, from which teacher, for how long, at what cost, and how sure are we?"""

import json
from collections.abc import Sequence
from pathlib import Path

from distill.config.flags import Parser
from distill.laws.forms import registry
from distill.laws.planning import recipe as emit
from distill.laws.planning.lawfile import read
from distill.laws.planning.planner import plan
from distill.laws.planning.recipe import LADDERS, ladder, recipe
from distill.laws.planning.scenarios import SCENARIOS, UNLIMITED, PlanError, Prices, Teacher
from distill.laws.planning.text import describe, to_dict
from distill.report.law import planner_page as page
from distill.system import process
from launch.support import cli

EXAMPLES = (
    "distill plan --N_S=1e9 --compute=1e22 --scenario=teacher_inference",
    "distill plan --law=law.json --N_S=1e8:1e10 --loss=2.2 --served=1e12",
    "distill plan --N_S=546e6 --compute=1e21 --teachers=7B:7e9:2.0,1B:1e9:2.3",
    "distill plan --N_S=1e9 --compute=3e20 --emit-config=out --ladder=paper",
)


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    process.cache_compilations()
    if flags.forms:
        registry.import_forms(flags.forms)
    law = read(flags.law)
    if flags.page:
        page.write(law, Path(flags.page))
        print(f"wrote {flags.page}; open it in any browser")
        return 0
    if flags.N_S is None:
        raise PlanError("--N_S: missing; wanted a student size such as 1e9, or LEAST:MOST")
    chosen = plan(
        law.supervised,
        law.distillation,
        N_S=_sizes(flags.N_S),
        compute=flags.compute,
        tokens=flags.tokens,
        loss=flags.loss,
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
    prices = Prices(peak_flops=flags.peak_flops, mfu=flags.mfu, hourly=flags.hourly, accelerators=flags.accelerators)
    emitted = (
        emit.write(recipe(chosen, ladder(flags.ladder)), chosen, Path(flags.emit_config)) if flags.emit_config else ""
    )
    print(json.dumps(to_dict(chosen, prices), indent=1) if flags.json else describe(chosen, prices))
    if emitted:
        print(f"\n{emitted}")
    return 0


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
    add("--teachers", default="", help="existing teachers to choose from, NAME:N:L_T,...")
    add("--students", type=int, default=1, help="how many students share the teacher")
    add("--store", action="store_true", help="the teacher's signals are stored once and read by all students")
    add("--unique", type=float, default=UNLIMITED, help="distinct tokens of each of teacher and student")
    add("--served", type=float, default=0.0, help="tokens that the student generates in its life")
    prices = Prices()
    add = parser.group("hours and money")
    add("--peak_flops", type=float, default=prices.peak_flops, help="of one accelerator (default an H100's bf16)")
    add("--mfu", type=float, default=prices.mfu, help="share of the peak that training reaches")
    add("--hourly", type=float, default=prices.hourly, help="price of an accelerator-hour")
    add("--accelerators", type=int, default=prices.accelerators, help="that train at once")
    add = parser.group("what is written")
    add("--emit-config", default="", metavar="DIR", help="write the configs that carry the plan out")
    add("--ladder", default="paper", help=f"model sizes to snap to: {', '.join(LADDERS)}")
    add("--page", default="", metavar="FILE", help="write the interactive page of the law instead of a plan")
    add("--json", action="store_true", help="print JSON")
    return parser


def _sizes(text: str) -> float | tuple[float, float]:
    try:
        numbers = [float(part) for part in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        return numbers[0]
    if len(numbers) == 2:
        return numbers[0], numbers[1]
    raise PlanError(f"--N_S={text}: wanted a number such as 1e9, or LEAST:MOST such as 1e8:1e10")


def _teachers(text: str) -> tuple[Teacher, ...]:
    teachers = []
    for item in text.split(",") if text else []:
        parts = item.split(":")
        try:
            name, N, L = parts[0], float(parts[1]), float(parts[2])
        except (ValueError, IndexError):
            raise PlanError(f"--teachers: got {item!r}, wanted NAME:N:L_T such as 7B:7e9:2.0") from None
        if not (N > 0 and L > 0):
            raise PlanError(f"--teachers: {item!r} has a size or a loss that is not positive")
        teachers.append(Teacher(name=name, N=N, L=L))
    return tuple(teachers)


if __name__ == "__main__":
    raise SystemExit(cli.guard(main))
