"""Writes the report of a study again, from what its workdir holds, and prints its short form; or the page of a run.

The page is WORKDIR/report/index.html; its figures lie beside it as PNG, SVG and CSV. A run need not be finished.
"""

import sys
from collections.abc import Sequence

from distill.config import ConfigError
from distill.config.flags import Parser
from distill.system import progress
from launch.support import cli

EXAMPLES = (
    "distill report --workdir=runs/smoke",
    "distill report --runs=runs/a,runs/b --out=figures/both",
    "distill report --sweeps=runs/rates --x=optim.learning_rate --by=model.d_model --out=figures/rates",
)


def parser() -> Parser:
    parser = Parser("report", __doc__, examples=EXAMPLES)
    add = parser.group("the page of a study or a run")
    add("--workdir", default="", metavar="DIR", help="folder of the study or the run")
    add = parser.group("pictures and a page of several")
    add("--out", "--output", default="", metavar="FILE", help="pictures, table and page: FILE.png, .svg, .csv, .html")
    add("--runs", default="", metavar="DIR,DIR,...", help="draws the curves of several runs; a row each in the table")
    add(
        "--sweeps", default="", metavar="DIR,...", help="draws the losses of sweeps, the best of each line in the table"
    )
    add("--x", default="", metavar="FIELD", help="of --sweeps: the field along the axis")
    add("--by", default="", metavar="FIELD", help="of --sweeps: a line for each of its values")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    if flags.runs:
        from distill.report.runs import side_by_side

        if not flags.out:
            raise ConfigError("--out=FILE is needed beside --runs: where the picture and the table go")
        print("\n".join(str(path) for path in side_by_side.write(flags.runs.split(","), flags.out)))
        return 0
    if flags.sweeps:
        from distill.report.runs import sweep

        if missing := [f"--{name}" for name in ("x", "by", "out") if not getattr(flags, name)]:
            raise ConfigError(f"--sweeps needs {', '.join(missing)} as well (see --help)")
        paths = sweep.write(flags.sweeps.split(","), flags.x, flags.by, flags.out)
        print("\n".join(map(str, paths)))
        return 0
    if not flags.workdir:
        raise ConfigError("--workdir=DIR is needed: the folder of a study or a run")
    from rich.console import Console

    from distill.report.runs import run
    from distill.report.study import terminal, write

    console, alone = Console(), run.is_run(flags.workdir)
    with progress.bar("report", transient=True) as show:
        path = (run if alone else write).write(flags.workdir, on_progress=show)
    if not alone:
        console.print(terminal.summary(flags.workdir))
    console.print(f"\n{path}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(cli.guard(main))
