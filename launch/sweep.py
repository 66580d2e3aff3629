"""Runs a config with some of its fields varied: every combination is a run. Run again, it does what is left.

VALUES is a list of values, range(start,stop), linspace(from,to,n) and logspace(from,to,n), by equal factors.
--backend=local runs on --workers processes, each on its own cores, up to --pack runs of one shape together (seeds,
rates, temperatures: one program with an axis more, for an accelerator that a small model leaves idle; on a CPU it gains
nothing); print prints a `distill train` command for each run that is not finished, after which --backend=local collects
what finished; slurm submits jobs (docs/guide/clusters.md), and again what is left of them.

Leaves runs/ (a folder a run), runs.csv, curves.csv and sweep.csv (settings and losses) in --workdir.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from distill.config import ExperimentConfig
from distill.config.flags import Parser, at_least, number
from launch.support import cli

EXAMPLES = (
    "distill sweep --workdir=runs/rates --sweep='optim.learning_rate=logspace(1e-3,1e-1,5)' --sweep='seed=range(0,2)'",
    "distill sweep --workdir=runs/sizes --zip='model.d_model=32,64;optim.learning_rate=1e-2,5e-3' --dry-run",
    "distill sweep --workdir=runs/deep --sweep='model.n_layers=2,4,6' --where='N < 1e5 and C < 1e12' --workers=2",
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
    add("--backend", default="local", choices=("local", "slurm", "print"), help="where the runs run")
    add("--workers", type=at_least(0), default=0, metavar="N", help="processes; 0: one a core")
    add("--pack", type=at_least(1), default=1, metavar="N", help="runs of one shape that a worker trains together")
    add("--part", default="", metavar="PART", help="what a job of slurm runs: RUN,RUN or conclude")
    add("--slurm", default="", metavar="FLAGS", help="of launch/slurm.sh: '--gpus-per-node=1 --time=4:00:00'")
    add("--rate", type=at_least(0, number), default=0.0, metavar="FLOPS", help="of a worker a second, for --dry-run")
    add("--price", type=at_least(0, number), default=0.0, metavar="PRICE", help="of an hour of a worker, for --dry-run")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    if flags.part:
        from distill.study import part, run

        return part.carry_out(run.shared_folder(flags.workdir), flags.part, Console())
    config = cli.config_of(ExperimentConfig, flags)
    # Not at the top: --help and a mistyped flag need no JAX.
    from distill.study import sweep

    options = sweep.SweepOptions(
        where=flags.where,
        backend=flags.backend,
        n_workers=flags.workers,
        pack=flags.pack,
        rate=flags.rate,
        price=flags.price,
        source=flags.config,
        overrides=tuple(f"--config.{path}={text}" for path, text in flags.overrides),
        slurm=flags.slurm,
        slurm_script=Path(__file__).with_name("slurm.sh"),
        dry_run=flags.dry_run,
    )
    return sweep.run(config, [sweep.axis(line) for line in flags.axes], flags.workdir, options)


if __name__ == "__main__":
    sys.exit(cli.guard(main))
