"""What a step would cost on machines that are not there: memory, FLOPs, collectives, and whether it fits.

For v5e and v5p the TPU compiler itself is asked, which needs no TPU but takes minutes (pip install -e
'.[tpu-compiler]'); any other chip is a model, and the output says so. Exit code 1: the step does not fit.
"""

import dataclasses
import os
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from distill.config import ConfigError, ExperimentConfig, MeshConfig, ModelConfig, chips, nearest
from distill.config.flags import Parser
from distill.config.ladder import PAPER_LADDER, paper_model
from distill.system import progress
from launch.support import cli

EXAMPLES = (
    "distill dryrun --config=configs/train.py:7.75B --teacher=12.6B --mesh=data=8,fsdp=32 --chip=v5e",
    "distill dryrun --config=configs/train.py:546M --mesh=data=8 --chip=h100",
    "distill dryrun --config=configs/train.py:1.82B --mesh=fsdp=16 --chip=v5p --emit-config=mine.py",
)


def parser() -> Parser:
    parser = cli.experiment_parser("dryrun", __doc__, EXAMPLES)
    add = parser.group("the machine")
    add("--chip", required=True, choices=chips.CHIPS, help="of which accelerator")
    add("--mesh", default="", metavar="AXIS=N,...", help="chips along data, fsdp, tensor, in place of config.mesh")
    add(
        "--teacher",
        default="",
        metavar="MODEL",
        help="a row of the paper's ladder, a workdir or a published model, in place of config.teacher.source",
    )
    add("--emit-config", default="", metavar="FILE", help="write the config for `distill train`")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    config = cli.config_of(ExperimentConfig, flags)
    chip = chips.find(flags.chip)
    config = dataclasses.replace(config, mesh=_mesh(flags.mesh, config.mesh))
    count = config.mesh.data * config.mesh.fsdp * config.mesh.tensor
    # Not at the top: libtpu reads its settings when JAX loads it, and a mistyped flag needs neither.
    from distill.diagnostics.dryrun import compiler

    if chip.dims:
        chips.topology(chip, count)
        compiler.check()
        os.environ.update(compiler.environment(chip, count))
    else:
        os.environ["JAX_PLATFORMS"] = "cpu"
    from pathlib import Path

    from distill.diagnostics.dryrun import report

    teacher = _teacher(flags.teacher or config.teacher.source)
    what = f"a step on {count} {chip.name}: traced" + (" and compiled (minutes)" if chip.dims else "")
    with progress.bar(what, transient=True):
        try:
            cost = report.dry_run(config, teacher, chip)
        except compiler.DoesNotFit as error:
            print(f"{count} {chip.name}: DOES NOT FIT, says the TPU compiler: {error}")
            return 1
    table = Table.grid(padding=(0, 2))
    for row in report.rows(cost):
        table.add_row(*row)
    Console().print(table, highlight=False)
    if flags.emit_config:
        report.write_config(config, Path(flags.emit_config), teacher is not None)
        print(f"wrote {flags.emit_config}")
    return 0 if cost.fits else 1


def _mesh(text: str, given: MeshConfig) -> MeshConfig:
    """'data=16,fsdp=16' as a mesh; axes that are not named are 1. Without text, the config's own."""
    axes: dict[str, int] = {}
    names = [field.name for field in dataclasses.fields(MeshConfig)]
    for part in text.split(",") if text else []:
        name, _, value = part.partition("=")
        if name not in names:
            raise ConfigError(f"--mesh={text}: there is no axis {name!r}.{nearest(name, names)}")
        if not value.isdecimal() or int(value) < 1:
            raise ConfigError(f"--mesh={text}: {name}={value!r}, wanted a number of chips of at least 1")
        axes[name] = int(value)
    made = dataclasses.replace(MeshConfig(data=1), **axes) if axes else given
    if made.data == -1:
        raise ConfigError("--mesh=... is missing: wanted every axis, such as --mesh=data=8,fsdp=32")
    return made


def _teacher(name: str) -> ModelConfig | None:
    if not name:
        return None
    if name in PAPER_LADDER:
        return paper_model(name)
    from distill.teacher import load

    try:
        return load.read_info(name).config.model
    except ConfigError as error:
        raise ConfigError(
            f"--teacher={name}: neither a row of the paper's ladder ({', '.join(PAPER_LADDER)}) nor a model: {error}"
        ) from None


if __name__ == "__main__":
    sys.exit(cli.guard(main))
