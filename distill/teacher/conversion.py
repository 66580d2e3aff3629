"""Any model as a Hugging Face directory: its weights, its tokenizer, its card, and the check of what was written."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from distill import interop, laws
from distill.config import ModelConfig, counts
from distill.errors import InteropError
from distill.interop import card, export
from distill.interop.layout import expected
from distill.interop.source import open_source
from distill.laws.forms.arrays import Floats
from distill.laws.forms.law import Law
from distill.model.transformer import Transformer
from distill.records.runs import RunRecord
from distill.system.progress import Progress
from distill.teacher import any_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """What to write: `out` must not exist; without a `dtype` the source's; `law` predicts the loss on the card."""

    source: str
    out: str
    dtype: str = ""
    law: str = ""
    tokenizer: str = ""
    verify: bool = False


def convert(wanted: Conversion, on_progress: Callable[[Progress], None] = lambda _: None) -> list[str]:
    """Writes the directory and returns what there is to say of it, a line each. Call it under a mesh.

    `on_progress` is called after each tensor. Raises InteropError.
    """
    model = any_model.load(wanted.source)
    dtype = wanted.dtype or stored_dtype(model)
    prediction = predict(wanted.law, model.record) if wanted.law else None
    text = card.card(Path(wanted.out).name, facts(model), prediction)
    config = export.published(model.config.model)
    total = sum(math.prod(shape) for _, shape, *_ in _shapes(config)) * (2 if dtype == "bfloat16" else 4)
    written = 0

    def on_tensor(size: int) -> None:
        nonlocal written
        written += size
        on_progress(Progress(done=written / 1e6, total=total / 1e6, unit="MB"))

    export.write(
        wanted.out,
        model.params,
        model.tokenizer_files(wanted.tokenizer),
        context=model.context,
        dtype=dtype,
        card=text,
        on_tensor=on_tensor,
    )
    family = open_source(wanted.out)[0].tree["architectures"][0]
    lines = [f"{wanted.out}: {family}, {counts.total(config):,} parameters, {dtype}"]
    if prediction:
        lines.append(f"measured loss {model.record.loss:.4f}, predicted {prediction}")
    if wanted.verify:
        lines.append(verify(wanted.out, model.params, dtype))
    return lines


def _shapes(config: ModelConfig) -> list[tuple[str, tuple[int, ...]]]:
    return list({name: (name, shape) for name, _, _, shape in expected(config)}.values())


def stored_dtype(model: any_model.Model) -> str:
    """bfloat16 for a published model that is stored so throughout; else float32, which holds all others exactly."""
    held = set(open_source(model.source)[0].dtypes.values()) if model.published else set()
    return "bfloat16" if held == {"BF16"} else "float32"


def facts(model: any_model.Model) -> dict[str, str]:
    """What is known of a model, for its card; measured figures are those of its own run."""
    shape, record = model.config.model, model.record
    rows = {
        "parameters": f"{counts.total(shape):,}, {record.N:,} of them not in embedding and head (N)",
        "shape": f"{shape.n_layers} layers of width {shape.d_model}, {shape.n_heads} heads, {shape.kv_heads} of them "
        f"with keys and values",
        "tokenizer": record.tokenizer,
    }
    if model.published:
        return rows | {"converted from": Path(model.source).name}
    rows |= {
        "run": record.run,
        "trained on (D)": f"{record.D:,} tokens, {record.D_unique:,} of them distinct",
        "validation loss (nats per token)": f"{record.loss:.4f} ± {record.loss_se:.4f}",
        "bits per byte": f"{record.bits_per_byte:.4f}",
    }
    if record.teacher:
        # Who wrote the text of a student of completions was not measured on it.
        measured = "" if record.L_T is None else f", loss L_T = {record.L_T:.4f} on the same text"
        size = "" if record.N_T is None else f", N = {record.N_T:,}"
        rows["teacher"] = f"{record.teacher}{size}{measured}"
        rows["KL(teacher, student)"] = f"{record.kl:.4f} nats per token" if record.kl is not None else "not measured"
    return rows


def predict(source: str, record: RunRecord) -> card.Prediction:
    """What a law says of a run. InteropError for a published model, of which no law knows the tokens."""
    if not record.D:
        raise InteropError(f"--law={source}: a published model does not say on how many tokens it was trained")
    file = laws.read(source)

    def loss(law: Law) -> Floats:
        if record.kind == "distillation":
            assert record.L_T is not None  # measured with every student
            return law(N_S=record.N, D_S=record.D, L_T=record.L_T)
        return getattr(law, "supervised", law)(N=record.N, D=record.D)

    mean = float(loss(file.distillation if record.kind == "distillation" else file.supervised))
    if file.boot is None:
        return card.Prediction(law=file.name, loss=mean)
    low, high = np.quantile(np.asarray(loss(file.boot.kept)), (0.05, 0.95))
    return card.Prediction(law=file.name, loss=mean, low=float(low), high=float(high))


def verify(out: str, params: Transformer, dtype: str) -> str:
    """Reads the directory back; InteropError for a weight that is not the source's, rounded to `dtype`."""
    back = interop.load(out)
    want = export.tensors(params, back.config)
    got = export.tensors(back.params, back.config)
    for name in want:
        rounded = np.asarray(want[name](), jnp.dtype(dtype)).astype(np.float32)
        if not np.array_equal(rounded, got[name]()):
            raise InteropError(f"{out}: tensor {name!r} is not what was written; the disk or the copy is damaged")
    rows = jax.sharding.get_mesh().size
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, back.config.tokens, (rows, 64)), jnp.int32)
    logits = [jax.jit(lambda m, t: m(t))(m, tokens)[..., : back.config.tokens] for m in (params, back.params)]
    off = float(jnp.max(jnp.abs(logits[0] - logits[1])))
    same = float(jnp.mean(jnp.argmax(logits[0], -1) == jnp.argmax(logits[1], -1)))
    return (
        f"verified: {len(want)} tensors are bit-equal in {dtype}; on random tokens logits differ by at most "
        f"{off:.2g}, and {same:.0%} have the same likeliest token"
    )
