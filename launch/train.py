"""Trains one run and prints its result.

With --config.teacher.source=WORKDIR_OF_A_FINISHED_RUN the run is distilled. The same command continues a run that was
interrupted; a finished run is not run again. Ctrl-C, a closed terminal and a preemption notice save the run first.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from distill import config as configs
from distill.config import ExperimentConfig, counts
from distill.config.flags import Parser
from distill.system import distributed, process, progress
from launch.support import cli

if TYPE_CHECKING:
    from distill.records.runs import RunRecord
    from distill.training.inputs import ResolvedRun

EXAMPLES = (
    "distill train --workdir=runs/teacher --config.data.split=teacher",
    "distill train --workdir=runs/student --config.teacher.source=runs/teacher --config.tokens=1M",
    "distill train --config=configs/train.py:546M --config.mesh.fsdp=8 --workdir=runs/large --dry-run",
)


def parser() -> Parser:
    parser = cli.experiment_parser("train", __doc__, EXAMPLES)
    add = parser.group("the run")
    add("--workdir", required=True, metavar="DIR", help="folder of the run, or gs://BUCKET/FOLDER")
    add("--fork", default="", metavar="DIR", help="begin with the whole state of that run's last checkpoint")
    add("--dry-run", action="store_true", help="print what would run (N, D, FLOPs, fingerprint) and stop")
    cli.add_processes(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    config = cli.config_of(ExperimentConfig, flags)
    # Not at the top: --help and a mistyped flag need no JAX.
    from distill.training import inputs

    if not flags.dry_run:
        cli.join(flags)
    with distributed.raise_everywhere():
        run = inputs.resolve(config)
    _print(_description(run.config))
    if flags.dry_run:
        return 0
    process.cache_compilations()
    record = _follow(run, flags.workdir, flags.fork)
    columns = {field.name.rstrip("_"): getattr(record, field.name) for field in dataclasses.fields(record)}
    _print({k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in columns.items() if v is not None})
    return 0


def _description(config: ExperimentConfig) -> dict[str, str]:
    N, D = counts.non_embedding(config.model), counts.training_tokens(config)
    forward = counts.forward_flops(config.model, config.seq_len)
    return {
        "run": configs.fingerprint(config),
        "teacher": config.teacher.run or "none (supervised)",
        "N": f"{N:,d} non-embedding parameters, {counts.total(config.model):,d} in all",
        "D": f"{D:,d} tokens in {config.steps:,d} steps of {config.batch_size} x {config.seq_len}",
        "F": f"{forward:.4g} forward FLOPs per token ({forward / (2 * N):.2f} times 2N)",
        "C": f"{counts.run_flops(config).student:.4g} FLOPs of training",
    }


def _print(rows: dict[str, str]) -> None:
    if not distributed.first():
        return
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table, highlight=False)


def _follow(run: "ResolvedRun", workdir: str, fork: str) -> "RunRecord":
    """Trains, and says how far it is."""
    from distill.training import loop

    with progress.bar(shown=distributed.first()) as show:
        return loop.train(run, workdir, fork=fork or None, on_progress=show)


if __name__ == "__main__":
    sys.exit(cli.guard(main))
