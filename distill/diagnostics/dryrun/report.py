"""The result of a dry run, and its text."""

import dataclasses
from pathlib import Path

from distill.config import ExperimentConfig, ModelConfig, chips, counts, emit
from distill.config.chips import GIB, Chip
from distill.diagnostics.dryrun import arithmetic, compiler, hlo, installed, program
from distill.diagnostics.dryrun.estimate import Estimate
from distill.model import attention_kernels, sharding

DEAREST = 10  # lines of source that an estimate names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """One step on one chip of many: bytes, FLOPs, seconds.

    `source` is the origin of memory and collectives: a compiler, or arithmetic (`note`: why no compiler was asked).
    `wire` is the bytes a chip sends per step inside its slice, by kind; `bound` the least that fully sharded weights
    need; `between` and `between_bound` the same of what it sends to other slices, at `gbit` Gbit/s. `seconds` are
    those of each part alone, at the chip's peaks: the step takes at least the longest and at most their sum.
    `estimate` is the compiler's, where it was asked for. `shape` is that of the step, for whoever compiles another.
    """

    chip: str
    chips: int
    source: str
    N: int
    D: int
    steps: int
    parameters: float
    optimizer: float
    teacher: float
    activations: float
    temporaries: float
    total: float
    limit: float
    model_flops: float  # of a step, all chips, as counts.py counts them: student and teacher
    program_flops: float  # of the products that run: recomputed layers, and scores that a mask hides
    wire: dict[str, float]
    bound: dict[str, float]
    seconds: dict[str, float]
    slices: int = 1
    gbit: float = 0.0
    between: float = 0.0
    between_bound: float = 0.0
    note: str = ""
    attention: str = ""  # what 'auto' is, and why
    estimate: Estimate | None = None
    shape: dict[str, object] = dataclasses.field(default_factory=dict)

    @property
    def fits(self) -> bool:
        return self.total <= self.limit

    @property
    def mfu(self) -> float:
        """The MFU that the roofline allows if nothing overlaps: the model's FLOPs over the chip's peak."""
        return self.seconds["model"] / max(self.seconds[part] for part in ("products", "network", "slices", "memory"))


def dry_run(
    config: ExperimentConfig, teacher: ModelConfig | None, chip: Chip, *, estimated: bool = False, kernels: str = ""
) -> Report:
    """The report of a step. The mesh must have no open axis; takes minutes with a compiler.

    `estimated`: with the compiler's estimate of the step's seconds, which needs one. `kernels`: the folder that
    compiler.environment named.
    """
    s = arithmetic.shape(config)
    # A kernel's products are not in the trace: those of our own attention are counted instead.
    own = dataclasses.replace(config, model=dataclasses.replace(config.model, attention="xla"))
    plain = teacher and dataclasses.replace(teacher, attention="xla")
    traced = program.trace(own, plain, sharding.abstract(config.mesh))
    reckoned = arithmetic.memory(config, teacher)
    state, taught = traced.state, program.held(traced.teacher)
    parameters, optimizer = program.held(state.params), program.held(state.opt_state)
    slices, between = s.chips // (chip.slice or s.chips), 0.0
    note, guess = compiler.missing(chip), None
    if not note or estimated or chip.dims:
        compiled = compiler.compile_step(config, teacher, chip)
        guess = compiler.estimated(compiled, chip, kernels) if estimated else None
        far = [one for one in compiled.collectives if chip.leaves_slice(one.span)]
        near = [one for one in compiled.collectives if not chip.leaves_slice(one.span)]
        wire, between, source = hlo.bytes_by_kind(near), sum(one.wire for one in far), compiler.name(chip)
        network = sum(chip.seconds(one.wire, one.span) for one in near)
        total, temporaries = compiled.total, compiled.temporaries - reckoned.activations
    else:
        wire, source = dict(arithmetic.fsdp_bytes(config, teacher, slices)), "a model (arithmetic, no compiler)"
        between = arithmetic.slice_bytes(config, slices)
        spans = {"all-gather": s.mesh.fsdp, "reduce-scatter": s.mesh.fsdp, "all-reduce": s.chips // slices}
        network = sum(chip.seconds(sent, spans[kind] * s.mesh.tensor) for kind, sent in wire.items())
        across = arithmetic.tensor_bytes(config, teacher)
        network += chip.seconds(across, s.mesh.tensor)
        wire["collective-permute"] = arithmetic.ring_bytes(config, teacher)
        network += chip.seconds(wire["collective-permute"], s.mesh.context)
        wire["all-reduce"] = wire.get("all-reduce", 0.0) + across
        temporaries = reckoned.temporaries
        total = parameters + optimizer + taught + reckoned.activations + temporaries + program.held(traced.batches)
    tokens = config.batch_size * config.seq_len
    model_flops = 3 * counts.forward_flops(config.model, config.seq_len) * tokens
    if teacher is not None:
        model_flops += counts.forward_flops(teacher, config.seq_len) * tokens
    ran = program.flops(traced)
    program_flops = ran.linear + ran.attention
    # Memory reads: state and gradient of the update, and every gathered weight as often as it is gathered.
    moved = 2 * (parameters + optimizer) + parameters + wire.get("all-gather", 0.0)
    return Report(
        chip=chip.name,
        chips=s.chips,
        source=source,
        N=counts.non_embedding(config.model),
        D=counts.training_tokens(config),
        steps=config.steps,
        parameters=parameters,
        optimizer=optimizer,
        teacher=taught,
        activations=reckoned.activations,
        temporaries=temporaries,
        total=total,
        limit=chip.memory,
        model_flops=model_flops,
        program_flops=program_flops,
        wire={kind: sent for kind, sent in wire.items() if sent},
        bound=arithmetic.fsdp_bytes(config, teacher, slices),
        seconds={
            "model": model_flops / s.chips / chip.flops,
            "products": program_flops / s.chips / chip.flops,
            "memory": moved / chip.bandwidth,
            "network": network,
            "slices": between / chip.between if between else 0.0,
        },
        slices=slices,
        gbit=chip.between * 8e-9,
        between=between,
        between_bound=arithmetic.slice_bytes(config, slices),
        note=note,
        attention=_attention(config, chip) if not note else "",
        estimate=guess,
        shape=_shape(config, teacher),
    )


def _shape(config: ExperimentConfig, teacher: ModelConfig | None) -> dict[str, object]:
    """The models (fields that are not the default), the batch and the mesh of a step."""
    plain = dataclasses.asdict(ModelConfig())
    given = lambda model: {name: value for name, value in dataclasses.asdict(model).items() if value != plain[name]}
    return {
        "model": given(config.model),
        "teacher": given(teacher) if teacher else None,
        "teacher_dtype": config.teacher.dtype,
        "batch_size": config.batch_size,
        "seq_len": config.seq_len,
        "microbatches": config.microbatches,
        "mesh": dataclasses.asdict(config.mesh),
    }


def _attention(config: ExperimentConfig, chip: Chip) -> str:
    platform = "tpu" if chip.dims else "gpu"
    return attention_kernels.described(config.model, config.seq_len, platform, chip.kinds[0], config.mesh.context)


def rows(r: Report) -> list[tuple[str, str]]:
    """(quantity, value) in reading order."""
    gib = lambda n: f"{n / GIB:,.2f} GiB"
    verdict = "fits" if r.fits else "DOES NOT FIT"
    lines = [
        ("chips", f"{r.chips:,d} {r.chip}; memory and collectives by {r.source}"),
        *([("slices", _slices(r))] if r.slices > 1 else []),
        ("run", f"N = {r.N:,d}, D = {r.D:,d} in {r.steps:,d} steps"),
        ("parameters", gib(r.parameters)),
        ("optimiser", gib(r.optimizer)),
        ("teacher", gib(r.teacher)),
        ("activations", f"{gib(r.activations)} (kept for the backward pass)"),
        ("temporaries", gib(r.temporaries)),
        ("total a chip", f"{gib(r.total)} of {gib(r.limit)}: {verdict}"),
        ("FLOPs a step", f"{r.model_flops:.4g} of the models, {r.program_flops:.4g} of the products that run"),
    ]
    if r.attention:
        lines.append(("attention", r.attention))
    for kind, sent in r.wire.items():
        least = f", FSDP needs {r.bound[kind] / 1e9:.2f}" if kind in r.bound else ""
        lines.append((kind, f"{sent / 1e9:.2f} GB sent a chip and step{least}"))
    s = r.seconds
    parts = f"products {s['products']:.3f}, network {s['network']:.3f}, memory {s['memory']:.3f}"
    if r.slices > 1:
        least = f"at least {r.between_bound / 1e9:.2f}"
        lines.append(("between slices", f"{r.between / 1e9:.2f} GB sent a chip and step, {least}"))
        parts += f", between slices {s['slices']:.3f}"
    lines.append(("seconds", parts))
    lines.append(("roofline", f"MFU at most {100 * r.mfu:.0f}% if all of these overlap"))
    if r.note:
        lines.append(("arithmetic", f"memory and collectives are reckoned: {r.note}"))
    return lines + (_estimate_rows(r, r.estimate) if r.estimate else [])


def _slices(r: Report) -> str:
    size, chip = r.chips // r.slices, chips.find(r.chip)
    # A TPU's compiler sums over slices in this way by itself.
    flag = "" if chip.dims or r.note else f"; in a run XLA_FLAGS=--{compiler.SLICE_OPTION}={size}"
    return f"{r.slices:,d} of {size:,d} chips; assumed between them: {r.gbit:g} Gbit/s a chip{flag}"


def _estimate_rows(r: Report, found: Estimate) -> list[tuple[str, str]]:
    """The compiler's estimate: seconds and MFU of a step, where the seconds go, the dearest lines, what is missing."""
    mfu = r.seconds["model"] / found.seconds
    parts = ", ".join(f"{part} {seconds:.3f}" for part, seconds in found.by_part().items() if seconds)
    lines = [
        ("compiler's estimate", f"{found.seconds:.3f} s a step, MFU {100 * mfu:.1f}% (never measured; compare ratios)"),
        ("of it, seconds", parts),
    ]
    if r.slices > 1:
        inside, between = (found.by_part()[part] for part in ("network", "slices"))
        share = lambda seconds: f"{seconds:.3f} s ({100 * seconds / found.seconds:.1f}% of the step)"
        lines.append(("exposed network", f"inside slices {share(inside)}, between them {share(between)}"))
    for one in found.dearest(DEAREST):
        lines.append((f"  {1e3 * one.seconds:,.1f} ms", f"{one.part}: {one.source}, {one.times:,d} times"))
    if found.unknown:
        runs = ", ".join(f"{name} ({times:,d} times)" for name, times in found.unknown.items())
        lines.append(("without estimate", runs))
    return lines


def figures(r: Report) -> dict[str, object]:
    """A report as JSON takes it: sizes in GiB, traffic in GB, seconds by part, the dearest lines, who says so."""
    found: dict[str, object] = {
        "chip": r.chip,
        "chips": r.chips,
        "source": r.source,
        "attention": r.attention,
        "compiler": installed.compiler_version(chips.find(r.chip)) if not r.note else "",
        "jax": installed.version("jax"),
        "gib": round(r.total / GIB, 3),
        "limit_gib": round(r.limit / GIB, 3),
        "sent_gb": {kind: round(sent / 1e9, 3) for kind, sent in r.wire.items()},
        "model_flops": r.model_flops,
        "roofline_seconds": {part: round(seconds, 5) for part, seconds in r.seconds.items()},
        "shape": r.shape,
    }
    if r.slices > 1:
        found |= {
            "slices": r.slices,
            "slice_gbit": r.gbit,
            "sent_between_slices_gb": round(r.between / 1e9, 4),
            "least_between_slices_gb": round(r.between_bound / 1e9, 4),
        }
    if r.estimate is not None:
        found |= {
            "estimated_seconds": round(r.estimate.seconds, 5),
            "estimated_mfu": round(r.seconds["model"] / r.estimate.seconds, 4),
            "estimated_parts": {part: round(seconds, 5) for part, seconds in r.estimate.by_part().items()},
            "dearest": [dataclasses.asdict(one) for one in r.estimate.dearest(DEAREST)],
            "without_estimate": dict(r.estimate.unknown),
        }
    return found


def write_config(config: ExperimentConfig, path: Path, taught: bool) -> None:
    """Writes a config file with every field that differs from its default, D in whole steps, atomically."""
    config = dataclasses.replace(config, tokens=counts.training_tokens(config))
    m = config.mesh
    sizes = f"N = {counts.non_embedding(config.model):,d}, D = {config.tokens:,d}"
    source = " --config.teacher.source=TEACHER" if taught and not config.teacher.source else ""
    emit.write(
        path,
        config,
        what=f"{sizes} on a mesh of data={m.data}, fsdp={m.fsdp}, tensor={m.tensor}.",
        command=f"python -m launch.train --config={path} --workdir=DIR{source}",
    )
