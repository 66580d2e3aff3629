"""Writes the report of a study again, from what its workdir holds, and prints its short form; or the page of a run.

    python -m launch.report --workdir=DIR
    python -m launch.report --runs=runs/a,runs/b --out=figures/both
    python -m launch.report --sweeps=runs/rates --x=optim.learning_rate --by=model.d_model --out=figures/rates

The page is DIR/report/index.html; a study's figures lie beside it as PNG files. A run need not be finished.
--runs draws several runs side by side: OUT.png with their curves, OUT.csv with a row each. --sweeps draws the losses of
sweeps over the field --x, a line for every value of the field --by, and OUT.csv has the best of each line.
"""

import sys
from collections.abc import Sequence

from distill.config import ConfigError, nearest
from launch.support import cli

_FLAGS = ("workdir", "runs", "sweeps", "x", "by", "out")


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    if "--help" in argv or "-h" in argv:
        print((__doc__ or "").strip())
        return 0
    if words := [argument for argument in argv if not argument.startswith("--")]:
        raise ConfigError(f"{words[0]} is no flag; wanted --workdir=DIR (see --help)")
    flags = dict(argument.removeprefix("--").partition("=")[::2] for argument in argv)
    for name in flags:
        if name not in _FLAGS:
            raise ConfigError(f"there is no flag --{name}.{nearest(name, _FLAGS)}")
    if flags.get("runs"):
        from distill.report.runs import side_by_side

        if not flags.get("out"):
            raise ConfigError("--out=FILE is needed beside --runs: where the picture and the table go")
        print("\n".join(str(path) for path in side_by_side.write(flags["runs"].split(","), flags["out"])))
        return 0
    if flags.get("sweeps"):
        from distill.report.runs import sweep

        if missing := [f"--{name}" for name in ("x", "by", "out") if not flags.get(name)]:
            raise ConfigError(f"--sweeps needs {', '.join(missing)} as well (see --help)")
        paths = sweep.write(flags["sweeps"].split(","), flags["x"], flags["by"], flags["out"])
        print("\n".join(map(str, paths)))
        return 0
    if not flags.get("workdir"):
        raise ConfigError("--workdir=DIR is needed: the folder of a study or a run")
    from rich.console import Console
    from rich.progress import Progress

    from distill.report.runs import run
    from distill.report.study import terminal, write

    console, alone = Console(), run.is_run(flags["workdir"])
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("report")
        path = (run if alone else write).write(
            flags["workdir"],
            on_progress=lambda done, total, name: bar.update(task, completed=done, total=total, description=name),
        )
    if not alone:
        console.print(terminal.summary(flags["workdir"]))
    console.print(f"\n{path}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(cli.guard(main))
