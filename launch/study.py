"""Runs a study: a matrix of runs, then the laws, the plan and the report. Run again, it does what is left.

Ctrl-C saves the runs under way and ends. Leaves runs.csv, curves.csv, laws/ and report/index.html in --workdir.
--backend=slurm submits what is left as jobs that wait for each other, and ends; ray and gke run it on a Ray cluster and
as JobSets of Kubernetes, from this process; print writes what is left as commands, a JSON object a line. The same
command with another backend goes on where the first ended.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from distill.config import ConfigError, StudyExperimentConfig, chips
from distill.config.flags import Parser
from distill.system import progress
from launch.support import cli, engines

if TYPE_CHECKING:
    from distill.study.matrix import PlannedRun

EXAMPLES = (
    "distill study --config=configs/study.py:smoke --workdir=runs/smoke",
    "distill study --config=configs/study.py:smoke --workdir=runs/smoke --dry-run",
    "distill study --config=configs/study.py:micro --workdir=runs/micro --config.study.workers=8",
    "distill study --config=configs/study.py:micro --workdir=/nfs/micro --backend=slurm --engine='--time=4:00:00'",
)
BACKENDS = ("local", *engines.NAMES, "print")


def parser() -> Parser:
    parser = cli.experiment_parser("study", __doc__, EXAMPLES, StudyExperimentConfig, "configs/study.py")
    add = parser.group("the study")
    add("--workdir", required=True, metavar="DIR", help="folder of the study")
    add(
        "--dry-run",
        nargs="?",
        const="list",
        default="",
        choices=("list", "compile"),
        help="list the runs with N, D, FLOPs and what places say, and the units of a --backend, and stop; 'compile' "
        "asks the compilers for the largest step of each place (minutes, kept)",
    )
    add = parser.group("where it runs (docs/guide/clusters.md)")
    add("--backend", default="local", choices=BACKENDS, help="on this machine, on a cluster, or printed")
    add(
        "--engine", default="", metavar="FLAGS", help="slurm: of launch/slurm.sh; ray: --address= --slot=GPU:8 --hosts="
    )
    add("--follow", action="store_true", help="of slurm: print the runs that end, until all have")
    add("--part", default="", metavar="PART", help="what a job of a backend runs: RUN,RUN or predict or conclude")
    cli.add_processes(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    from distill.study import run

    workdir = run.shared_folder(flags.workdir)
    if flags.part:
        cli.join(flags)
        from distill.study import part

        return part.carry_out(workdir, flags.part, Console())
    if any((flags.cluster, flags.coordinator, flags.processes, flags.process)):
        raise ConfigError(
            "--cluster, --coordinator, --processes and --process are of --part, which backends start; "
            f"for a study on many machines wanted --backend={engines.WANTED}"
        )
    config = cli.config_of(StudyExperimentConfig, flags)
    command = shlex.join(["python", "-m", "launch.study", *(sys.argv[1:] if argv is None else argv)])
    engines.check(flags.backend, flags.engine, flags.follow)
    if flags.dry_run:
        return _dry_run(config, workdir, jobs=flags.backend != "local", compiled=flags.dry_run == "compile")
    if flags.backend == "local":
        return run.run(config, workdir, command=command)
    from distill.study import elsewhere

    if flags.backend == "print":
        return elsewhere.print_units(config, workdir, command)
    prepare = lambda console: elsewhere.opened(config, workdir, command, console)
    return engines.run(flags.backend, workdir, prepare, flags.engine, flags.follow)


def _dry_run(config: StudyExperimentConfig, workdir: Path, *, jobs: bool, compiled: bool) -> int:
    """Prints what would run; returns 1 where a compiler says that a step does not fit, else 0."""
    from distill.diagnostics.dryrun import arithmetic
    from distill.study import forecast, run

    tasks, console = run.planned(config, workdir), Console()
    console.print(forecast.show(tasks, arithmetic.total_bytes), highlight=False)
    if jobs:
        console.print(forecast.jobs(tasks), highlight=False)
    return _compile(tasks, console) if compiled else 0


def _compile(tasks: "Sequence[PlannedRun]", console: Console) -> int:
    """Compiles the largest step of each place and prints what the compilers say; returns 1 if one does not fit."""
    from distill.diagnostics.dryrun import apart, arithmetic
    from distill.study import forecast

    largest = forecast.largest(tasks, arithmetic.total_bytes)
    if not largest:
        raise ConfigError(
            "--dry-run=compile: no line of config.study.places names a slice; wanted such as 'to 1e9: slice=v5e:4x4'"
        )
    codes, notes = 0, list[str]()
    for task, config, teacher in largest:
        place = task.place
        what = f"{place.chip}:{place.topology}, {task.name}"
        with progress.bar(f"{what}: compiled (minutes)", transient=True):
            found, kept = apart.verdict(config, teacher, chips.find(place.chip))
        said = found.refusal or f"{found.total / chips.GIB:.1f} of {found.limit / chips.GIB:.0f} GiB a chip"
        fits = "fits" if found.fits else "DOES NOT FIT"
        console.print(
            f"{what}: {fits}, {said}, says {found.source}{' (kept)' if kept else ''}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        codes |= not found.fits
        if found.note and found.note not in notes:
            notes.append(found.note)
    for note in notes:
        console.print(f"no compiler was asked: {note}", highlight=False, markup=False, soft_wrap=True)
    return int(codes)


if __name__ == "__main__":
    sys.exit(cli.guard(main))
