"""Any model as a Hugging Face directory: its weights, its tokenizer, its card, and the check of what was written."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from distill import interop, laws
from distill.config import ModelConfig, counts
from distill.data.tokenizers.same import difference
from distill.data.tokenizers.spec import Spec
from distill.data.tokenizers.tokenizer import load as load_tokenizer
from distill.errors import DataError, InteropError
from distill.interop import adapters, card, export, gguf_export, reference
from distill.interop.layout import expected
from distill.interop.source import open_source
from distill.laws.forms.arrays import Floats
from distill.laws.forms.law import Law
from distill.model import adapted, quantize
from distill.records.runs import RunRecord
from distill.system.progress import Progress
from distill.teacher import any_model, load, vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """What to write: `out` must not exist; without a `dtype` the source's; `law` predicts the loss on the card.

    adapter: only the adapters of a LoRA student, for PEFT.
    """

    source: str
    out: str
    dtype: str = ""
    law: str = ""
    tokenizer: str = ""
    verify: bool = False
    adapter: bool = False


def convert(wanted: Conversion, on_progress: Callable[[Progress], None] = lambda _: None) -> list[str]:
    """Writes the directory and returns what there is to say of it, a line each. Call it under a mesh.

    `on_progress` is called after each tensor. Raises InteropError.
    """
    model = any_model.load(wanted.source)
    if wanted.adapter:
        return _adapter(wanted, model)
    warning = [*check_tokenizer(model, wanted.tokenizer), *check_products(model)]
    gguf = wanted.out.endswith(".gguf")
    known = gguf_export.KINDS if gguf else export.DTYPES
    if wanted.dtype and wanted.dtype not in known or gguf and wanted.verify:
        raise InteropError(
            f"--dtype={wanted.dtype} --out={wanted.out}: wanted {', '.join(known)}"
            + (", without --verify: it compares directories" if gguf else "; GGUF files (--out=NAME.gguf) have others")
        )
    dtype = wanted.dtype or stored_dtype(model)
    prediction = predict(wanted.law, model.record) if wanted.law else None
    text = card.card(Path(wanted.out).name, facts(model), prediction, model.licence)
    config = export.published(model.config.model)
    total = sum(math.prod(shape) for _, shape, *_ in _shapes(config)) * (2 if dtype == "bfloat16" else 4)
    written = 0

    def on_tensor(size: int) -> None:
        nonlocal written
        written += size
        on_progress(Progress(done=written / 1e6, total=total / 1e6, unit="MB"))

    files = model.tokenizer_files(wanted.tokenizer)
    if gguf:
        kind = gguf_export.KINDS[wanted.dtype or "float16"]
        said = gguf_export.write(
            wanted.out,
            model.params,
            files,
            context=model.context,
            kind=kind,
            licence=model.licence,
            on_tensor=on_tensor,
        )
        return [f"{wanted.out}: {counts.total(config):,} parameters, {kind}", *warning, said]
    export.write(wanted.out, model.params, files, context=model.context, dtype=dtype, card=text, on_tensor=on_tensor)
    family = open_source(wanted.out)[0].tree["architectures"][0]
    lines = [f"{wanted.out}: {family}, {counts.total(config):,} parameters, {dtype}", *warning]
    if prediction:
        lines.append(f"measured loss {model.record.loss:.4f}, predicted {prediction}")
    if wanted.verify:
        lines += verify(wanted, model, dtype)
    return lines


def _adapter(wanted: Conversion, model: any_model.Model) -> list[str]:
    """Writes the adapters of a run alone (interop/adapters.py). Raises InteropError where there is no base for them."""
    if wanted.dtype or wanted.tokenizer or wanted.law or wanted.verify:
        raise InteropError("--adapter writes float32 adapters alone, without --dtype, --law, --tokenizer and --verify")
    config = model.config
    if not config.model.lora.rank:
        raise InteropError(f"{wanted.source}: it has no adapters (config.model.lora.rank=0); leave --adapter out")
    begun = config.init
    if not begun.source or not any_model.is_model(begun.source):
        raise InteropError(
            f"{wanted.source}: its adapters belong to {begun.source or 'a model'}, which is no published model here; "
            "leave --adapter out, and they are merged into an export of the whole"
        )
    base, shape = open_source(begun.source)
    same = adapted.plain(config.model)
    sizes = [(c.n_layers, c.d_model, c.ff_dim, c.n_heads, c.kv_heads) for c in (same, shape)]
    if begun.tokens == "text" or sizes[0] != sizes[1] or load.read_info(begun.source).record.run != begun.run:
        raise InteropError(
            f"{wanted.source}: it did not begin with all of the model in {begun.source} as it is now, so its "
            "adapters do not fit the whole; leave --adapter out, and they are merged into an export of the student"
        )
    text = card.adapter_card(Path(wanted.out).name, begun.source, facts(model), model.licence)
    values = adapters.write(wanted.out, model.params, base, text)
    return [
        f"{wanted.out}: {values:,} values of rank {config.model.lora.rank}, on {begun.source}",
        *check_products(model),
    ]


def check_tokenizer(model: any_model.Model, path: str) -> list[str]:
    """A warning of a model's own tokenizer, if it has more tokens than the model has rows.

    path: a tokenizer.json to be taken along. Raises InteropError where it has more tokens than rows, or other tokens
    than the model's own.
    """
    rows = model.config.model.tokens
    try:
        own = vocabulary.tokenizer_of(model)
    except DataError:
        own = None
    given = load_tokenizer(Spec("json", path)) if path else own
    if given is None or given.vocab_size <= rows and not path:
        return []
    beyond = f"{given.vocab_size} tokens and the model {rows}: the ids from {rows} on have no row in embedding and head"
    if not path:
        return [f"warning: its tokenizer has {beyond}; a text with such a token has no meaning to it"]
    if given.vocab_size > rows:
        raise InteropError(f"--tokenizer={path}: it has {beyond}; give the tokenizer that the model was trained with")
    if own and (differs := difference(own, given, more=True)):
        raise InteropError(
            f"--tokenizer={path}: not the tokenizer of {model.source} ({differs}); leave it out to take that"
        )
    return []


def check_products(model: any_model.Model) -> list[str]:
    """A warning of a model whose maps multiplied what was rounded, which other software does not do."""
    kind = model.config.model.products
    if kind == "full":
        return []
    return [
        f"warning: its loss is that of products in {kind} (config.model.products), with which it was trained; other "
        "software multiplies its weights as they are, to another loss"
    ]


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
    if shape.products != "full":
        rows["measured with"] = f"linear maps that multiply in {shape.products}; this model multiplies in full"
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


_VERIFIED = 64  # positions of the input that is compared
_TOLERANCE = (
    1e-3  # of the largest logit: float32 is ten times better, and a rotation that is misread a thousand times worse
)


def verify(wanted: Conversion, model: any_model.Model, dtype: str) -> list[str]:
    """Compares what was written with what was imported, and both with the numbers of an independent reader.

    Raises InteropError, saying which of the two is wrong: the import, or the directory.
    """
    back = interop.load(wanted.out)
    want = export.tensors(model.params, back.config)
    got = export.tensors(back.params, back.config)
    exact = True
    for name in want:
        value = want[name]()
        rounded = np.asarray(value, jnp.dtype(dtype)).astype(np.float32)
        exact &= np.array_equal(rounded, value)
        if not np.array_equal(rounded, got[name]()):
            raise InteropError(
                f"{wanted.out}: tensor {name!r} is not what was written; the disk or the copy is damaged"
            )
    rows = jax.sharding.get_mesh().size
    tokens = np.random.default_rng(0).integers(0, back.config.tokens, (rows, _VERIFIED), np.int32)
    with jax.default_matmul_precision("highest"):
        before, after = (
            np.asarray(jax.jit(lambda m, t: m(t))(m, jnp.asarray(tokens)))[..., : back.config.tokens]
            for m in (quantize.unrounded(model.params), back.params)
        )
    if not np.isfinite(before).all():
        raise InteropError(f"{wanted.source}: its logits on random tokens are not finite (NaN or inf)")
    off = float(np.max(np.abs(before - after)))
    if exact and off > _TOLERANCE * max(1.0, float(np.max(np.abs(before)))):
        raise InteropError(
            f"{wanted.out}: its logits differ by {off:.2g} from the source's: config.json says another model"
        )
    same = float(np.mean(np.argmax(before, -1) == np.argmax(after, -1)))
    lines = [
        f"verified: {len(want)} tensors are bit-equal in {dtype}; on random tokens logits differ by at most "
        f"{off:.2g}, and {same:.0%} have the same likeliest token"
    ]
    if model.published:
        lines.append(_agree(wanted.source, before, tokens, "it is not read here as it is there"))
    lines.append(_agree(wanted.out, after, tokens, "the directory that was written is another model there"))
    return lines


def _agree(path: str, ours: Floats, tokens: NDArray[np.int32], otherwise: str) -> str:
    """What to say of a comparison with an independent reader. Raises InteropError where its logits are others."""
    try:
        found = reference.logits(path, tokens)
    except InteropError as error:
        return f"not verified: {path} was not compared with another reader's numbers: {error}"
    theirs = found.logits[..., : ours.shape[-1]]
    off = float(np.max(np.abs(ours - theirs))) if theirs.shape == ours.shape else math.inf
    if not off <= _TOLERANCE * max(1.0, float(np.max(np.abs(theirs)))):
        raise InteropError(f"{path}: its logits differ by {off:.2g} from those of {found.reader}: {otherwise}")
    return f"verified: the logits of {path} by {found.reader} differ by at most {off:.2g}"
