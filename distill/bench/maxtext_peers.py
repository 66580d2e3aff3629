"""MaxText's steps at the shapes of our programs, read by the same instrument: the peer of `launch.bench compile`.

MaxText wants a newer Python than this project, so it lives in an environment of its own, whose interpreter
MAXTEXT_PYTHON names (docs/guide/scale.md). That interpreter only compiles (maxtext_step_peers.py); here its program is
read, by the functions that read ours: cycles of libtpu, bundles of Splash, collectives, bytes.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from distill.config import ConfigError, MeshConfig, ModelConfig, build, chips, counts
from distill.config.chips import GIB, Chip
from distill.diagnostics.dryrun import bundles, estimate, hlo
from distill.system.files import loads

Figures: TypeAlias = dict[str, Any]

VARIABLE = "MAXTEXT_PYTHON"
HOW = (
    "python3.12 -m venv DIR, DIR/bin/pip install maxtext==0.2.5 and the packages that docs/guide/scale.md "
    f"lists, and {VARIABLE}=DIR/bin/python"
)
DRIVER = Path(__file__).with_name("maxtext_step_peers.py")
DEAREST = 10  # lines of source that a peer's figures name
# Fields of a model, a step's shape and a mesh that have a setting in `settings`; any other has to be the default.
_MODEL = {"vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_head", "d_ff", "d_ff_multiple", "tied"}
_MODEL |= {"qk_norm", "rope_base", "norm_eps", "dtype", "remat"}
_FLAGS = ("model.", "mesh.", "teacher.dtype", "batch_size", "seq_len", "microbatches")  # what a shape describes
_WEIGHTS = ("float32", "bfloat16")
# Source files of MaxText: the loss is what follows the last norm, as it is ours (distill/losses).
PLACES = estimate.Places(
    loss=r"maxtext/.*(:.*(cross_entropy|apply_output_head|attend_on_embedding)|distillation_utils\.py)|"
    r"optax/losses/|optax/_src/loss\.py",
    attention=r"maxtext/layers/attention_op\.py|/splash_attention/",
    optimizer=r"/optax/|maxtext/optimizers/|flax/nnx/training/optimizer\.py",
)


def missing() -> str:
    """Why there is no MaxText to compile, and how to get one, in one sentence; '' where there is."""
    python = os.environ.get(VARIABLE, "")
    if not python:
        return f"{VARIABLE} is not set; {HOW}"
    return "" if os.access(python, os.X_OK) and Path(python).is_file() else f"{VARIABLE}={python}: no program; {HOW}"


def unlike(ours: Figures) -> str:
    """Why MaxText has no step like that of our figures, in one sentence; '' where it has."""
    shape, chip = ours["shape"], chips.find(ours["chip"])
    if not chip.dims:
        return f"its step is compiled by libtpu, and a {chip.name} is no TPU"
    for name in ("model", "teacher"):
        if other := sorted(set(shape[name] or ()) - _MODEL):
            return f"{name}.{other[0]}={shape[name][other[0]]!r} has no setting of MaxText here"
    for flag in ours["flags"]:
        if flag.startswith("--config.") and not flag.removeprefix("--config.").startswith(_FLAGS):
            return f"{flag} has no setting of MaxText here"
    student = build(ModelConfig, shape["model"])
    if not student.qk_norm or student.dtype != "bfloat16" or student.remat != "full":
        return "it is compared in bfloat16, with normalised queries and keys, and every layer recomputed"
    if shape["microbatches"] != 1:
        return f"it is compared with one microbatch, not {shape['microbatches']}"
    if shape["teacher"] and shape["teacher_dtype"] not in _WEIGHTS:
        return f"teacher.dtype={shape['teacher_dtype']} has no setting of MaxText here"
    return ""


def settings(model: ModelConfig, shape: Mapping[str, Any], chip: Chip, weights: str = "float32") -> list[str]:
    """MaxText's settings for a model of our ladder's block, and for the batch and the mesh of a step on this chip.

    `weights` is the type of its weights. All else, such as Splash's blocks of 512, is that of MaxText's base.yml.
    """
    mesh = build(MeshConfig, shape["mesh"])
    count = mesh.data * mesh.fsdp * mesh.tensor
    chosen = {
        "base_emb_dim": model.d_model,
        "base_num_decoder_layers": model.n_layers,
        "base_num_query_heads": model.n_heads,
        "base_num_kv_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "base_mlp_dim": model.ff_dim,
        "vocab_size": model.vocab_size,
        "logits_via_embedding": model.tied,
        "normalization_layer_epsilon": model.norm_eps,
        "rope_max_timescale": int(model.rope_base),
        "decoder_block": "qwen3",  # the block of our ladder: RMSNorm before each part, SwiGLU, queries and keys normed
        "use_qk_norm": True,
        "dtype": model.dtype,
        "weight_dtype": weights,
        "remat_policy": "full",
        "max_target_length": shape["seq_len"],
        "per_device_batch_size": shape["batch_size"] / count,
        "ici_data_parallelism": mesh.data,
        "ici_fsdp_parallelism": mesh.fsdp,
        "ici_tensor_parallelism": mesh.tensor,
        # Our slice itself, not MaxText's name for one.
        "internal_compile": True,
        "compile_topology": chips.topology(chip, count),
        "internal_compile_num_devices": count,
        "compile_topology_num_slices": 1,
        "allow_split_physical_axes": True,  # 8 x 32 of a torus of 16 x 16, as jax.make_mesh lays ours
        "dataset_type": "synthetic",
        "enable_checkpointing": False,
        "run_name": "compiled",
    }
    return [f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in chosen.items()]


def compiled(ours: Figures) -> tuple[str, Figures]:
    """'MaxText 0.2.5' and the figures of its step at the shape of ours. Minutes.

    Raises ConfigError with the last line that MaxText said where it does not compile, and where its model is another.
    """
    from distill.diagnostics.dryrun import compiler  # loads JAX, which reads its settings once

    shape, chip = ours["shape"], chips.find(ours["chip"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = {one: folder / one for one in ("dump", "kernels", "cache", "out")}
        for place in places.values():
            place.mkdir()
        answered = folder / "answer.json"
        own = [f"base_output_directory={places['out']}", f"jax_cache_dir={places['cache']}"]
        teacher = shape["teacher"] and build(ModelConfig, shape["teacher"])
        job = {
            "student": settings(build(ModelConfig, shape["model"]), shape, chip) + own,
            "teacher": teacher and settings(teacher, shape, chip, shape["teacher_dtype"]) + own,
            "dump": str(places["dump"]),
            "answer": str(answered),
        }
        fixed = compiler.environment(chip, ours["chips"], str(places["kernels"]))
        done = subprocess.run(
            [os.environ[VARIABLE], str(DRIVER)],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            env=_without_ours(os.environ) | fixed | {"XLA_FLAGS": ""},
            cwd=folder,
        )
        if done.returncode or not answered.exists():
            said = (done.stdout + done.stderr).strip().splitlines() or [f"ended with {done.returncode}"]
            raise ConfigError(f"MaxText's step at the shape of {' '.join(ours['flags'])}: {said[-1]}")
        answer = loads(answered.read_text("utf-8"))
        if answer["parameters"] != (wanted := counts.total(build(ModelConfig, shape["model"]))):
            what = f"its model has {answer['parameters']:,d} parameters, ours {wanted:,d}"
            raise ConfigError(f"MaxText's step is not of the shape of {' '.join(ours['flags'])}: {what}")
        text = _program(places["dump"], answer["function"])
        return f"MaxText {answer['versions']['maxtext']}", read(ours, answer, text, bundles.kernels(places["kernels"]))


def read(ours: Figures, answer: Figures, text: str, kernels: Mapping[str, bundles.Kernel]) -> Figures:
    """The figures of a peer's compiled program, under the names of ours (report.figures); MFU by our count of FLOPs."""
    chip = chips.find(ours["chip"])
    found = estimate.of_tpu(text, chip, kernels, PLACES)
    size = answer["arguments"] + answer["temporaries"] + answer["code"]
    least = ours["model_flops"] / ours["chips"] / chip.flops
    return {
        "flags": ours["flags"],
        "chip": chip.name,
        "chips": ours["chips"],
        "attention": "Splash",
        "compiler": f"libtpu {answer['versions']['libtpu']}",
        "jax": answer["versions"]["jax"],
        "parameters": answer["parameters"],
        "gib": round(size / GIB, 3),
        "sent_gb": {kind: round(sent / 1e9, 3) for kind, sent in hlo.bytes_by_kind(hlo.collectives(text)).items()},
        "model_flops": ours["model_flops"],
        "estimated_seconds": round(found.seconds, 5),
        "estimated_mfu": round(least / found.seconds, 4),
        "estimated_parts": {part: round(seconds, 5) for part, seconds in found.by_part().items()},
        "dearest": [
            {"part": one.part, "source": one.source, "seconds": one.seconds, "times": one.times}
            for one in found.dearest(DEAREST)
        ],
        "without_estimate": dict(found.unknown),
    }


def beside(found: Mapping[str, Figures]) -> str:
    """Markdown: seconds with and without exposed network, and memory, of each program that has a peer."""
    titles = ["program", "peer", "s: ours", "peer", "ratio", "without exposed network: ours", "peer", "ratio"]
    titles += ["GiB: ours", "peer", "ratio"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, ours, peer, theirs in [
        (n, one, *pair) for n, one in found.items() for pair in one.get("peers", {}).items()
    ]:
        values = [name, peer]
        for what, digits in ((_seconds, 3), (_alone, 3), (_gib, 2)):
            mine, other = what(ours), what(theirs)
            values += [f"{mine:.{digits}f}", f"{other:.{digits}f}", f"{mine / other:.2f}"]
        lines.append(f"| {' | '.join(values)} |")
    return "\n".join(lines)


def _seconds(one: Figures) -> float:
    return float(one["estimated_seconds"])


def _gib(one: Figures) -> float:
    return float(one["gib"])


def _alone(one: Figures) -> float:
    """Seconds if no collective kept the chip waiting."""
    return float(one["estimated_seconds"] - one["estimated_parts"]["network"])


def _program(dump: Path, function: str) -> str:
    """The text of the program in libtpu's dump, with its cycles. Raises ConfigError without one."""
    paths = sorted(dump.glob(f"*{function}*.after_codegen.txt"))
    if not paths:
        raise ConfigError(f"MaxText's step: its libtpu wrote no program of {function} with cycles")
    return paths[-1].read_text("utf-8")


def _without_ours(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables without those that lead another interpreter to our packages and our libtpu."""
    return {name: value for name, value in environment.items() if name not in ("PYTHONPATH", "TPU_LIBRARY_PATH")}
