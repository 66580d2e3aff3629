"""Runs a config with some of its fields varied: every combination is a run. Run again, it does what is left.

VALUES is a list of values, range(start,stop), linspace(from,to,n) and logspace(from,to,n), by equal factors.
--backend=local runs on --workers processes, each on its own cores, up to --pack runs of one shape together (seeds,
rates, temperatures: one program with an axis more, for an accelerator that a small model leaves idle; on a CPU it gains
nothing); print prints a `distill train` command for each run that is not finished, after which --backend=local collects
what finished; slurm, ray and gke run it on a cluster, as they do a study (docs/guide/clusters.md).

Leaves runs/ (a folder a run), runs.csv, curves.csv and sweep.csv (settings and losses) in --workdir.
"""

import sys
from collections.abc import Sequence

from rich.console import Console

from distill.config import ConfigError, ExperimentConfig
from distill.config.flags import Parser, at_least, number
from launch.support import cli, engines

EXAMPLES = (
    "distill sweep --workdir=runs/rates --sweep='optim.learning_rate=logspace(1e-3,1e-1,5)' --sweep='seed=range(0,2)'",
    "distill sweep --workdir=runs/sizes --zip='model.d_model=32,64;optim.learning_rate=1e-2,5e-3' --dry-run",
    "distill sweep --workdir=runs/deep --sweep='model.n_layers=2,4,6' --where='N < 1e5 and C < 1e12' --workers=2",
    "distill sweep --workdir=/nfs/rates --sweep='seed=range(64)' --backend=ray --engine=--slot=GPU:1",
)


def parser() -> Parser:
    parser = cli.experiment_parser("sweep", __doc__, EXAMPLES)
    add = parser.group("the runs")
    add("--workdir", required=True, metavar="DIR", help="folder of the sweep")
    add("--sweep", dest="axes", action="append", default=[], metavar="FIELD=VALUES", help="crosses with all others")
    add("--zip", dest="axes", action="append", metavar="FIELD=VALUES;FIELD=VALUES", help="changes its fields together")
    add("--where", default="", metavar="RULE", help="keeps combinations by N, D, C (FLOPs) and the swept fields")
    add("--dry-run", action="store_true", help="list the runs with N, D, FLOPs and, if a rate is known, their time")
    add = parser.group("how they are carried out")
    add("--backend", default="local", choices=("local", *engines.NAMES, "print"), help="where the runs run")
    add("--workers", type=at_least(0), default=0, metavar="N", help="processes; 0: one a core")
    add("--pack", type=at_least(1), default=1, metavar="N", help="runs of one shape that a worker trains together")
    add("--rate", type=at_least(0, number), default=0.0, metavar="FLOPS", help="of a worker a second, for --dry-run")
    add("--price", type=at_least(0, number), default=0.0, metavar="PRICE", help="of an hour of a worker, for --dry-run")
    add = parser.group("on a cluster (docs/guide/clusters.md)")
    add(
        "--engine",
        default="",
        metavar="FLAGS",
        help="slurm: of launch/slurm.sh; ray: --slot=GPU:8; gke: of distill gke",
    )
    add("--slurm", default="", metavar="FLAGS", help="the former name of --engine, for --backend=slurm")
    add(
        "--place", dest="places", action="append", default=[], metavar="LINE", help="as study.places: 'to 1e9: time=4h'"
    )
    add("--follow", action="store_true", help="of slurm: print the runs that end, until all have")
    add("--part", default="", metavar="PART", help="what a job of a backend runs: RUN,RUN or conclude")
    cli.add_processes(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    if flags.part:
        cli.join(flags)
        from distill.study import part, run

        return part.carry_out(run.shared_folder(flags.workdir), flags.part, Console())
    if any((flags.cluster, flags.coordinator, flags.processes, flags.process)):
        raise ConfigError(
            "--cluster, --coordinator, --processes and --process are of --part, which backends start; "
            f"for a sweep on many machines wanted --backend={engines.WANTED}"
        )
    if flags.slurm and (flags.engine or flags.backend != "slurm"):
        raise ConfigError("--slurm is the former name of --engine, for --backend=slurm; wanted --engine alone")
    engine = flags.engine or flags.slurm
    engines.check(flags.backend, engine, flags.follow)
    config = cli.config_of(ExperimentConfig, flags)
    # Not at the top: --help and a mistyped flag need no JAX.
    from distill.study import run, sweep, sweep_elsewhere

    axes = [sweep.axis(line) for line in flags.axes]
    options = sweep.SweepOptions(
        where=flags.where,
        backend=flags.backend,
        places=tuple(flags.places),
        n_workers=flags.workers,
        pack=flags.pack,
        rate=flags.rate,
        price=flags.price,
        source=flags.config,
        overrides=tuple(f"--config.{path}={text}" for path, text in flags.overrides),
        dry_run=flags.dry_run,
    )
    if flags.dry_run or flags.backend not in engines.NAMES:
        return sweep.run(config, axes, flags.workdir, options)
    workdir = run.shared_folder(flags.workdir)
    prepare = lambda console: sweep_elsewhere.opened(config, axes, workdir, options, console)
    return engines.run(flags.backend, workdir, prepare, engine, flags.follow)


if __name__ == "__main__":
    sys.exit(cli.guard(main))
