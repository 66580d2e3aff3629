"""Computes one step of a run again and shows what is out of the ordinary in it; the run itself is not touched.

Prints the step's losses, each sequence of its batch with its loss and gradient norm (the worst first, with its text),
and each parameter with its norm and its gradient's. Steps count from 0; the ones between the last checkpoint and N are
computed again first.
"""

import math
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from distill.config.flags import Parser, at_least
from distill.system import process, progress
from launch.support import cli

EXAMPLES = (
    "distill replay --workdir=runs/student --step=0",
    "distill replay --workdir=runs/student --step=480",
    "python -m launch.replay --workdir runs/student --step 480",
)


def parser() -> Parser:
    parser = Parser("replay", __doc__, examples=EXAMPLES)
    add = parser.group("the step")
    add("--workdir", required=True, metavar="DIR", help="folder of the run")
    add("--step", required=True, type=at_least(0), metavar="N", help="the step, from 0")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    from distill.diagnostics.replay import replay

    process.cache_compilations()
    console = Console()
    with progress.bar("the steps before it", transient=True) as show:
        step = replay(flags.workdir, flags.step, show)
    means = ", ".join(f"{name} {value:.6g}" for name, value in step.means.items())
    console.print(f"step {step.step} (from the checkpoint of step {step.start}): {means}", highlight=False)
    worst = sorted(step.sequences, key=lambda s: _badness(s.grad_norm), reverse=True)
    rows = [(str(s.window), f"{s.loss:.6g}", f"{s.grad_norm:.6g}", repr(s.text[:60])) for s in worst]
    console.print(_table("its sequences", ("window", "loss", "gradient", "text"), rows))
    ordered = sorted(step.parameters.items(), key=lambda item: _badness(item[1][1]), reverse=True)
    sizes = [(name, f"{norm:.6g}", f"{gradient:.6g}") for name, (norm, gradient) in ordered]
    console.print(_table("its parameters", ("parameter", "norm", "gradient"), sizes))
    return 0


def _badness(norm: float) -> float:
    return norm if math.isfinite(norm) else math.inf


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="right" if name in ("loss", "gradient", "norm", "window") else "left")
    for row in rows:
        table.add_row(*row)
    return table


if __name__ == "__main__":
    sys.exit(cli.guard(main))
