"""Dry runs in processes of their own, kept: a compiler reads its settings once, and takes minutes."""

import dataclasses
import json
import os
from multiprocessing.connection import Connection
from pathlib import Path

from distill.config import ConfigError, ExperimentConfig, ModelConfig, digest, identity
from distill.config.chips import Chip
from distill.diagnostics.dryrun import installed
from distill.system import process
from distill.system.files import atomic_write, loads


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a dry run says of a step: bytes of one chip, and who says so.

    `refusal`: the compiler's words, or ''. `note`: why no compiler was asked, and what to install; '' if one was.
    """

    source: str
    total: float = 0.0
    limit: float
    refusal: str = ""
    note: str = ""

    @property
    def fits(self) -> bool:
        return not self.refusal and self.total <= self.limit


def verdict(config: ExperimentConfig, teacher: ModelConfig | None, chip: Chip) -> tuple[Verdict, bool]:
    """The verdict on a step, and whether it was kept from before. Minutes with a compiler; the mesh has no open axis.

    What a compiler says is kept in $DISTILL_CACHE/dryrun (~/.cache/distill/dryrun), by step, chip and version. Raises
    ConfigError where the step cannot be compiled for another reason than memory.
    """
    path = _home() / f"{key(config, teacher, chip)}.json"
    if (kept := _read(path)) is not None:
        return kept, True
    context = process.worker_context()
    here, there = context.Pipe()
    child = context.Process(target=_child, args=(there, config, teacher, chip), daemon=True)
    child.start()
    there.close()
    try:
        found: Verdict | str = here.recv()
    except EOFError:
        child.join()
        found = f"the compiler ended with {child.exitcode}; possibly out of memory"
    child.join()
    if isinstance(found, str):
        raise ConfigError(found)
    if not found.note:  # arithmetic takes seconds, and gives way to a compiler that is installed later
        atomic_write(path, json.dumps(dataclasses.asdict(found)) + "\n")
    return found, False


def _child(pipe: Connection, config: ExperimentConfig, teacher: ModelConfig | None, chip: Chip) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"  # JAX reads its settings only once
    from distill.diagnostics.dryrun import compiler

    count = config.mesh.data * config.mesh.fsdp * config.mesh.tensor
    os.environ.update(compiler.environment(chip, count))
    from distill.diagnostics.dryrun import report

    try:
        made = report.dry_run(config, teacher, chip)
        pipe.send(Verdict(source=made.source, total=made.total, limit=made.limit, note=made.note))
    except compiler.DoesNotFit as error:
        pipe.send(Verdict(source=compiler.name(chip), limit=chip.memory, refusal=str(error)))
    except ConfigError as error:
        pipe.send(str(error))


def _home() -> Path:
    return Path(os.environ.get("DISTILL_CACHE") or os.path.expanduser("~/.cache/distill")) / "dryrun"


def key(config: ExperimentConfig, teacher: ModelConfig | None, chip: Chip) -> str:
    """What a step is compiled from: the run's length does not count, its places do."""
    step = [item for item in sorted(identity(config)) if item[0] not in ("tokens", "seed")]
    placed = [dataclasses.asdict(config.mesh), config.microbatches, config.model.remat]
    versions = [installed.version("jax"), installed.version("jaxlib"), installed.compiler_version(chip)]
    return digest([step, placed, dataclasses.asdict(teacher) if teacher else None, chip.name, versions])


def _read(path: Path) -> Verdict | None:
    try:
        return Verdict(**loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None  # not there, or of another version: made again
