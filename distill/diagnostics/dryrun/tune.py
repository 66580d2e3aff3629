"""Ways to run one step on a number of chips: mesh x microbatches x remat, the most promising compiled and compared.

The order in which they are compiled is arithmetic (products and network at the chip's peaks, memory by a model); the
seconds and the memory by which they are compared are the compiler's.
"""

import dataclasses
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from distill.config import ConfigError, ExperimentConfig, MeshConfig, ModelConfig, counts
from distill.config.chips import GIB, Chip
from distill.diagnostics.dryrun import arithmetic, compiler, report
from distill.diagnostics.dryrun.report import Report
from distill.model import attention_kernels, sharding

REMATS: tuple[Literal["none", "attention", "dots", "full"], ...] = ("none", "attention", "dots", "full")
MARGIN = 1.15  # by which the model of memory may be wrong before a choice is left out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A way that was compiled; `cost` is None where the compiler says that it does not fit."""

    config: ExperimentConfig
    cost: Report | None

    @property
    def seconds(self) -> float:
        return self.cost.estimate.seconds if self.cost is not None and self.cost.estimate else float("inf")


def choices(config: ExperimentConfig, teacher: ModelConfig | None, chip: Chip, limit: float) -> list[ExperimentConfig]:
    """The ways that may fit into `limit` bytes a chip, the fastest by arithmetic first.

    The number of chips is that of config.mesh, the batch stays as it is.
    """
    m = config.mesh
    slices = m.data * m.fsdp * m.tensor // chip.slice if chip.slice else 1
    made = [
        dataclasses.replace(config, mesh=mesh, microbatches=parts, model=dataclasses.replace(config.model, remat=remat))
        for mesh in _meshes(m.data * m.fsdp * m.tensor)
        if mesh.data % slices == 0
        for parts, remat in itertools.product((1, 2, 4, 8), REMATS)
        if _divides(config, teacher, mesh, parts)
    ]
    fitting = [one for one in made if _bytes(one, teacher, chip) <= MARGIN * limit]
    return sorted(fitting, key=lambda one: _seconds(one, teacher, chip))


def compare(
    config: ExperimentConfig, teacher: ModelConfig | None, chip: Chip, *, limit: float, count: int, kernels: str
) -> Iterator[Found]:
    """Compiles the first `count` of `choices`, one after another. `kernels`: see compiler.environment."""
    tried = choices(config, teacher, chip, limit)[:count]
    if not tried:
        raise ConfigError(
            f"--tune: no mesh, microbatches and remat of {chip.name} are near {limit / GIB:.0f} GiB a chip"
        )
    for one in tried:
        for old in Path(kernels).iterdir():  # names of kernels come again in the next program
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        try:
            cost = report.dry_run(one, teacher, chip, estimated=True, kernels=kernels)
        except compiler.DoesNotFit:
            yield Found(config=one, cost=None)
            continue
        yield Found(config=one, cost=cost if cost.total <= limit else None)


def rows(found: list[Found], count: int) -> list[tuple[str, ...]]:
    """(mesh, microbatches, remat, seconds, MFU, GiB) of the best, under a line of titles."""
    lines: list[tuple[str, ...]] = [("mesh", "microbatches", "remat", "estimated s", "MFU", "GiB a chip")]
    best = sorted((one for one in found if one.cost is not None), key=lambda one: one.seconds)
    for one in best[:count]:
        assert one.cost is not None
        m, mfu = one.config.mesh, one.cost.seconds["model"] / one.seconds
        mesh = f"data={m.data},fsdp={m.fsdp},tensor={m.tensor}"
        values = f"{one.seconds:.3f}", f"{100 * mfu:.1f}%", f"{one.cost.total / GIB:.1f}"
        lines.append((mesh, str(one.config.microbatches), one.config.model.remat, *values))
    return lines


def figures(found: list[Found]) -> list[dict[str, object]]:
    """The ways that fit as JSON takes them, the fastest first, each with its report's figures."""
    best = sorted((one for one in found if one.cost is not None), key=lambda one: one.seconds)
    return [
        {
            "mesh": dataclasses.asdict(one.config.mesh),
            "microbatches": one.config.microbatches,
            "remat": one.config.model.remat,
            **report.figures(one.cost),
        }
        for one in best
        if one.cost is not None
    ]


def _meshes(count: int) -> list[MeshConfig]:
    """All of `count` chips, with powers of two along fsdp and tensor; tensor inside a node of eight."""
    powers = [2**i for i in range(count.bit_length()) if 2**i <= count]
    return [
        MeshConfig(data=count // (fsdp * tensor), fsdp=fsdp, tensor=tensor)
        for fsdp, tensor in itertools.product(powers, powers[:4])
        if count % (fsdp * tensor) == 0
    ]


def _divides(config: ExperimentConfig, teacher: ModelConfig | None, mesh: MeshConfig, parts: int) -> bool:
    if config.batch_size % parts:
        return False
    try:
        for model in (config.model, teacher):
            if model is not None:
                sharding.check(model, config.batch_size // parts, sharding.abstract(mesh))
    except ConfigError:
        return False
    return True


def _with_kernels(model: ModelConfig, length: int, chip: Chip) -> ModelConfig:
    if model.attention != "auto":
        return model
    platform = "tpu" if chip.dims else "gpu"
    kind = attention_kernels.automatic(model, length, platform, chip.kinds[0])[0]
    return dataclasses.replace(model, attention=kind)


def _bytes(config: ExperimentConfig, teacher: ModelConfig | None, chip: Chip) -> float:
    model = _with_kernels(config.model, config.seq_len, chip)
    taught = teacher and _with_kernels(teacher, config.seq_len, chip)
    return arithmetic.total_bytes(dataclasses.replace(config, model=model), taught)


def _seconds(config: ExperimentConfig, teacher: ModelConfig | None, chip: Chip) -> float:
    """The longer of products and network, and a fifth of the shorter, for they overlap in part."""
    m, tokens = config.mesh, config.batch_size * config.seq_len
    forward = counts.forward_flops(config.model, config.seq_len)
    context = config.model.n_layers * config.seq_len * 2 * config.model.n_heads * config.model.head_dim
    again = {"none": 0.0, "attention": context, "dots": context, "full": forward}[config.model.remat]
    flops = 3 * forward + again + (counts.forward_flops(teacher, config.seq_len) if teacher else 0.0)
    chips = m.data * m.fsdp * m.tensor
    products = flops * tokens / chips / chip.flops
    slices = chips // (chip.slice or chips)
    sent = arithmetic.fsdp_bytes(config, teacher, slices)
    spans = {"all-reduce": chips // slices}
    network = sum(chip.seconds(wire, spans.get(kind, m.fsdp * m.tensor)) for kind, wire in sent.items())
    network += chip.seconds(arithmetic.tensor_bytes(config, teacher), m.tensor)
    network += chip.seconds(arithmetic.ring_bytes(config, teacher), m.context)
    network += arithmetic.slice_bytes(config, slices) / chip.between if slices > 1 else 0.0
    return max(products, network) + 0.2 * min(products, network)
