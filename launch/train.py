"""Trains one run and prints its result.

With --config.teacher.source=WORKDIR_OF_A_FINISHED_RUN the run is distilled. The same command continues a run that was
interrupted; a finished run is not run again. Ctrl-C, a closed terminal and a preemption notice save the run first.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from distill import config as configs
from distill.config import ExperimentConfig, counts
from distill.config.flags import Parser
from distill.system import cloud, distributed, process, progress
from launch.support import cli

if TYPE_CHECKING:
    from distill.training.origin import Origin

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
    add("--dry-run", action="store_true", help="open the text and the teacher, print what would run, and stop")
    cli.add_processes(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    config = cli.config_of(ExperimentConfig, flags)
    # Not at the top: --help and a mistyped flag need no JAX.
    from distill.training import inputs, loop, start
    from distill.training.origin import describe

    if flags.dry_run:
        with (
            _reading() as show,
            inputs.preview(inputs.resolve(config), flags.workdir, on_progress=show) as (run, store),
        ):
            run = start.forked(run, cloud.Workdir(flags.workdir).path, flags.fork)
            origin = describe(run, store)
        _print_header(run.config, origin)
        return 0
    cli.join(flags)
    with distributed.raise_everywhere(), _reading() as show:
        run = inputs.resolve(config)  # before the text, which may take long
        run, store = start.opened(run, cloud.Workdir(flags.workdir), fork=flags.fork, on_progress=show)
        origin = describe(run, store)
    _print_header(run.config, origin)
    process.cache_compilations()
    with progress.bar(shown=distributed.first()) as show:
        record = loop.train(run, flags.workdir, store=store, fork=flags.fork or None, on_progress=show)
    columns = {field.name.rstrip("_"): getattr(record, field.name) for field in dataclasses.fields(record)}
    _print({k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in columns.items() if v is not None})
    return 0


def _reading() -> contextlib.AbstractContextManager[progress.Show]:
    return progress.bar("reading the text", shown=distributed.first(), transient=True)


def _print_header(config: ExperimentConfig, origin: "Origin") -> None:
    """What is trained, on what, by whom, and the warnings."""
    _print(_description(config, origin))
    for warning in origin.warnings if distributed.first() else ():
        Console(stderr=True).print(f"warning: {warning}", style="yellow", highlight=False, markup=False, soft_wrap=True)


def _description(config: ExperimentConfig, origin: "Origin") -> dict[str, str]:
    N, D = counts.non_embedding(config.model), counts.training_tokens(config)
    forward = counts.forward_flops(config.model, config.seq_len)
    # Not at the top: --help and a mistyped flag need no JAX.
    import jax

    from distill.model import attention_kernels

    device = jax.local_devices()[0]
    attention = attention_kernels.described(
        config.model, config.seq_len, device.platform, device.device_kind, config.mesh.context
    )
    used = f" that a token uses, {counts.stored(config.model):,d} with all experts" if config.model.experts else ""
    return {
        "run": configs.fingerprint(config),
        "text": origin.text,
        "teacher": origin.teacher,
        **({"tokenizer": origin.tokenizer} if origin.tokenizer else {}),
        **_weights(config),
        "N": f"{N:,d} non-embedding parameters{used}, {counts.total(config.model):,d} in all",
        "D": f"{D:,d} tokens in {config.steps:,d} steps of {config.batch_size} x {config.seq_len}",
        "F": f"{forward:.4g} forward FLOPs per token ({forward / (2 * N):.2f} times 2N)",
        "C": f"{counts.run_flops(config).student:.4g} FLOPs of training",
    } | ({"attention": attention} if attention else {})


def _weights(config: ExperimentConfig) -> dict[str, str]:
    """What a run that does not begin with random weights begins with, and what of it is trained."""
    init, rows = config.init, {}
    if init.source:
        parts = f"{init.width} width, layers by {init.layers}, tokens {init.tokens}"
        rows["init"] = f"the weights of {init.source} ({parts})"
    if config.model.lora.rank:
        count = counts.lora_parameters(config.model)
        rows["trained"] = f"{count:,d} parameters of adapters of rank {config.model.lora.rank} alone"
    return rows


def _print(rows: dict[str, str]) -> None:
    if not distributed.first():
        return
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table, highlight=False)


if __name__ == "__main__":
    sys.exit(cli.guard(main))
