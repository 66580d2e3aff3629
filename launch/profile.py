"""Traces the training step of a config and prints its most expensive operations.

The step is supervised and reads random tokens. The trace in --out opens in XProf, TensorBoard's profile plugin or
Perfetto. An operation's time is the median of its runs; `share` is of the sum over all of them.
"""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from distill.config import ExperimentConfig
from distill.config.flags import Parser, at_least
from distill.system import process
from launch.support import cli

EXAMPLES = (
    "distill profile --out=traces/micro",
    "distill profile --out=traces/wide --config.model.d_model=256 --config.batch_size=16 --top=20",
    "distill profile --out=traces/fused --config=configs/objectives.py:fused",
)


def parser() -> Parser:
    parser = cli.experiment_parser("profile", __doc__, EXAMPLES)
    add = parser.group("the trace")
    add("--out", "--output", required=True, metavar="DIR", help="folder of the trace")
    add("--top", type=at_least(1), default=10, metavar="N", help="operations to print")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    config = cli.config_of(ExperimentConfig, flags)
    from distill.diagnostics import profile

    process.cache_compilations()
    console = Console()
    with Console(stderr=True).status("compiling and tracing"):
        operations = profile.profile(config, flags.out)
    total = sum(one.microseconds for one in operations)
    table = Table(title=f"{len(operations)} operations, {total / 1e3:.3f} ms a step", title_justify="left")
    for name in ("us/step", "share", "runs/step"):
        table.add_column(name, justify="right")
    for name in ("operation", "result", "from"):
        table.add_column(name, overflow="fold")
    for one in operations[: flags.top]:
        share = f"{one.microseconds / total:.1%}"
        table.add_row(f"{one.microseconds:.1f}", share, f"{one.count:.1f}", one.name, one.shape, one.source)
    console.print(table)
    console.print(f"trace: {flags.out}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(cli.guard(main))
