"""Trains one run and prints its result.

    python -m launch.train --config=configs/train.py:micro --workdir=DIR [--config.FIELD=VALUE ...]

With --config.teacher.source=WORKDIR_OF_A_FINISHED_RUN the run is distilled. The same command continues a run that was
interrupted; a finished run is not run again. --fork=OTHER_WORKDIR begins a new run with the whole state of another's
last checkpoint, under whatever else the flags say. --dry-run prints what would run: N, D, FLOPs, fingerprint.

Several processes train together with --cluster=slurm|jobset|tpu, or --coordinator=HOST:PORT --processes=N --process=I;
launch/local.sh, launch/slurm.sh, launch/tpu_pod.sh and launch.gke start them so.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from distill import config as configs
from distill.config import ExperimentConfig, counts
from distill.system import distributed, process
from launch.support import cli, progress


def main(argv: Sequence[str] | None = None) -> int:
    flags = {"workdir": None, "dry-run": "false", "fork": "", **cli.PROCESSES}
    config, values = cli.configured(ExperimentConfig, argv, __doc__ or "", "configs/train.py", flags)
    # Not at the top: --help and a mistyped flag need no JAX.
    from distill.training import inputs

    if values["dry-run"] != "true":
        cli.join(values)
    with distributed.agreed():
        run = inputs.resolve(config)
    _print(_description(run.config))
    if values["dry-run"] == "true":
        return 0
    process.cache_compilations()
    record = _follow(run, values["workdir"], values["fork"])
    found = {field.name.rstrip("_"): getattr(record, field.name) for field in dataclasses.fields(record)}
    _print({k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in found.items() if v is not None})
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


def _follow(run: Any, workdir: str, fork: str) -> Any:
    """Trains, and says how far it is."""
    from distill.training import loop

    with progress.bar("step", shown=distributed.first()) as show:

        def tell(now: loop.Progress) -> None:
            show(now.step, now.steps, f"loss {now.loss:.4f}  {now.tokens_per_second / 1e3:,.1f}k tokens/s")

        return loop.train(run, workdir, fork=fork or None, on_progress=tell)


if __name__ == "__main__":
    sys.exit(cli.guard(main))
