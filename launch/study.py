"""Runs a study: a matrix of runs, then the laws, the plan and the report. Run again, it does what is left.

Ctrl-C saves the runs under way and ends. Leaves runs.csv, curves.csv, laws/ and report/index.html in --workdir.
--backend=slurm submits what is left as jobs that wait for each other, and ends; ray and gke run it on a Ray cluster and
as JobSets of Kubernetes, from this process; print writes what is left as commands, a JSON object a line. The same
command with another backend goes on where the first ended.
"""

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from distill.config import ConfigError, StudyExperimentConfig
from distill.config.flags import Parser
from launch.support import cli

if TYPE_CHECKING:
    from distill.study.elsewhere import Study
    from distill.study.ray_engine import RayEngine

EXAMPLES = (
    "distill study --config=configs/study.py:smoke --workdir=runs/smoke",
    "distill study --config=configs/study.py:smoke --workdir=runs/smoke --dry-run",
    "distill study --config=configs/study.py:micro --workdir=runs/micro --config.study.workers=8",
    "distill study --config=configs/study.py:micro --workdir=/nfs/micro --backend=slurm --engine='--time=4:00:00'",
)
BACKENDS = ("local", "slurm", "ray", "gke", "print")


def parser() -> Parser:
    parser = cli.experiment_parser("study", __doc__, EXAMPLES, StudyExperimentConfig, "configs/study.py")
    add = parser.group("the study")
    add("--workdir", required=True, metavar="DIR", help="folder of the study")
    add("--dry-run", action="store_true", help="list the runs with N, D, FLOPs and what places say, and stop")
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
            "for a study on many machines wanted --backend=slurm, ray or gke"
        )
    config = cli.config_of(StudyExperimentConfig, flags)
    if flags.engine and flags.backend in ("local", "print"):
        raise ConfigError(f"--backend={flags.backend} takes no --engine; wanted --backend=slurm, ray or gke")
    if flags.follow and flags.backend != "slurm":
        raise ConfigError(f"--backend={flags.backend} takes no --follow: it stays until the end by itself")
    command = shlex.join(["python", "-m", "launch.study", *(sys.argv[1:] if argv is None else argv)])
    if flags.dry_run:
        from distill.diagnostics.dryrun import arithmetic
        from distill.study import forecast

        Console().print(forecast.show(run.planned(config, workdir), arithmetic.total_bytes), highlight=False)
        return 0
    if flags.backend == "local":
        return run.run(config, workdir, command=command)
    from distill.study import elsewhere

    if flags.backend == "print":
        return elsewhere.print_units(config, workdir, command)
    if flags.backend == "ray":
        return elsewhere.drive(config, workdir, command, _ray(flags.engine))
    if flags.backend == "gke":
        from launch.gke.engine import GkeEngine

        options = shlex.split(flags.engine)
        return elsewhere.drive(config, workdir, command, lambda it: GkeEngine(it.workdir, it.command, options))
    script = Path(__file__).with_name("slurm.sh")
    engine = shlex.split(flags.engine)
    prepare = lambda console: elsewhere.opened(config, workdir, command, console)
    return elsewhere.submit(workdir, prepare, script=script, flags=engine, follow=flags.follow)


def _ray(engine: str) -> "Callable[[Study], RayEngine]":
    try:
        from distill.study import ray_engine
    except ImportError as error:
        raise ConfigError(f"--backend=ray: {error}; pip install -e '.[ray]'") from None
    options = ray_engine.RayOptions.parse(engine)
    return lambda study: ray_engine.RayEngine(study.workdir, study.command, options)


if __name__ == "__main__":
    sys.exit(cli.guard(main))
