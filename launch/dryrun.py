"""What a step would cost on machines that are not there: memory, FLOPs, collectives, and whether it fits.

For v5e, v5p and v6e the TPU compiler itself is asked (pip install -e '.[tpu-compiler]'), for a100, h100, h200 and b200
XLA's GPU compiler where it is installed ('.[gpu-compiler]'). Neither needs its device; both take minutes. Any other
chip is arithmetic, and the output says so. --estimate adds the compiler's own estimate of the seconds of a step, which
nobody has measured: compare two of one compiler. --tune compiles several ways to run the step on as many chips and
prints the best. Exit code 1: the step does not fit.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from distill.config import ConfigError, ExperimentConfig, MeshConfig, ModelConfig, chips, nearest
from distill.config.flags import Parser
from distill.config.ladder import PAPER_LADDER, paper_model
from distill.system import progress
from distill.system.files import atomic_write
from launch.support import cli

if TYPE_CHECKING:
    from distill.diagnostics.dryrun.report import Report

EXAMPLES = (
    "distill dryrun --config=configs/train.py:7.75B --teacher=12.6B --mesh=data=8,fsdp=32 --chip=v5e",
    "distill dryrun --config=configs/train.py:546M --mesh=data=8 --chip=h100",
    "distill dryrun --config=configs/scale.py:v5e-4 --teacher=12.6B --chip=v5e --slices=4 --estimate",
    "distill dryrun --config=configs/train.py:1.82B --mesh=fsdp=16 --chip=v5p --emit-config=mine.py",
)

BEST = 5  # lines that --tune prints


def parser() -> Parser:
    parser = cli.experiment_parser("dryrun", __doc__, EXAMPLES)
    add = parser.group("the machine")
    add("--chip", required=True, choices=chips.CHIPS, help="of which accelerator")
    add("--mesh", default="", metavar="AXIS=N,...", help="chips along data, fsdp, tensor, in place of config.mesh")
    add(
        "--teacher",
        default="",
        metavar="MODEL",
        help="a row of the paper's ladder, a workdir, a published model or its config.json alone, in place of "
        "config.teacher.source",
    )
    add("--slices", type=int, default=1, metavar="N", help="pods, or groups of nodes, that a slow network connects")
    add("--slice-gbit", type=float, default=chips.BETWEEN, help="Gbit/s of a chip between slices, an assumption")
    add("--estimate", action="store_true", help="the compiler's estimate of seconds, MFU and the dearest lines")
    add("--tune", type=int, default=0, metavar="N", help="compile N meshes, microbatches and remats; print the best")
    add("--memory", type=float, default=0.0, metavar="GIB", help="of a chip, for --tune (default: nine tenths of it)")
    add("--json", default="", metavar="FILE", help="write what is printed as JSON too; of --tune, every way that fits")
    add("--emit-config", default="", metavar="FILE", help="write the config for `distill train`; of --tune, the best")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    config = cli.config_of(ExperimentConfig, flags)
    chip = chips.find(flags.chip)
    config = dataclasses.replace(config, mesh=_mesh(flags.mesh, config.mesh))
    count = config.mesh.data * config.mesh.fsdp * config.mesh.tensor
    with tempfile.TemporaryDirectory() as kernels:
        # Not at the top: libtpu reads its settings when JAX loads it, and a mistyped flag needs neither.
        os.environ["JAX_PLATFORMS"] = "cpu"
        from distill.diagnostics.dryrun import compiler

        chip = chips.several(chip, config.mesh, flags.slices, flags.slice_gbit)
        if chip.dims:
            chips.topology(chip, chip.slice or count)
        if chip.dims:
            compiler.check(chip)
        if flags.estimate or flags.tune:
            compiler.check_estimates(chip)
        os.environ.update(compiler.environment(chip, count, kernels if flags.estimate or flags.tune else ""))
        if flags.tune:
            return _tune(flags, config, chip, kernels)
        cost = _report(flags, config, chip, kernels)
    if cost is None:
        return 1
    from distill.diagnostics.dryrun import report

    table = Table.grid(padding=(0, 2))
    for row in report.rows(cost):  # as text: brackets are no markup; a long flag is broken, not cut
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    Console().print(table, highlight=False)
    _write(flags, config, report.figures(cost))
    return 0 if cost.fits else 1


def _write(flags: argparse.Namespace, config: ExperimentConfig, figures: object) -> None:
    """The files that --json and --emit-config name."""
    from distill.diagnostics.dryrun import report

    if flags.json:
        atomic_write(flags.json, json.dumps(figures, indent=1) + "\n")
    if flags.emit_config:
        report.write_config(config, Path(flags.emit_config), taught=bool(flags.teacher or config.teacher.source))
        print(f"wrote {flags.emit_config}")


def _report(flags: argparse.Namespace, config: ExperimentConfig, chip: chips.Chip, kernels: str) -> "Report | None":
    """The report of the step; None where the compiler says that it does not fit."""
    from distill.diagnostics.dryrun import compiler, report

    teacher = _teacher(flags.teacher or config.teacher.source)
    count = config.mesh.data * config.mesh.fsdp * config.mesh.tensor
    compiles = not compiler.missing(chip)
    what = f"a step on {count} {chip.name}: traced" + (" and compiled (minutes)" if compiles else "")
    with progress.bar(what, transient=True):
        try:
            return report.dry_run(config, teacher, chip, estimated=flags.estimate, kernels=kernels)
        except compiler.DoesNotFit as error:
            print(f"{count} {chip.name}: DOES NOT FIT, says {compiler.name(chip)}: {error}")
            return None


def _tune(flags: argparse.Namespace, config: ExperimentConfig, chip: chips.Chip, kernels: str) -> int:
    """Prints the best ways to run this step on as many chips; 1 where none of those tried fits."""
    from distill.diagnostics.dryrun import tune

    teacher = _teacher(flags.teacher or config.teacher.source)
    limit = flags.memory * chips.GIB or 0.9 * chip.memory
    found = []
    with progress.bar(f"{flags.tune} programs compiled (minutes each)", transient=True):
        for one in tune.compare(config, teacher, chip, limit=limit, count=flags.tune, kernels=kernels):
            found.append(one)
    table = Table.grid(padding=(0, 2))
    for row in tune.rows(found, BEST):
        table.add_row(*row)
    Console().print(table, highlight=False)
    fits, memory = sum(one.cost is not None for one in found), f"{limit / chips.GIB:.1f} GiB"
    print(f"{fits} of {len(found)} fit in {memory}; seconds are the compiler's estimate, never measured")
    if fits:
        best = min(found, key=lambda one: one.seconds)
        _write(flags, best.config, tune.figures(found))
    return 0 if fits else 1


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
    from distill.interop import hf_config, source
    from distill.teacher import load

    if Path(name).suffix == ".json":
        return hf_config.read_config(source.read_json(Path(name)), name)
    try:
        return load.read_info(name).config.model
    except ConfigError as error:
        raise ConfigError(
            f"--teacher={name}: neither a row of the paper's ladder ({', '.join(PAPER_LADDER)}) nor a model: {error}"
        ) from None


if __name__ == "__main__":
    sys.exit(cli.guard(main))
