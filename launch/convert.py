"""Any model to a Hugging Face directory: a finished run of ours, a GGUF file, or another directory.

    python -m launch.convert --in=runs/student --out=exported/student --law=runs/law.json --verify
    python -m launch.convert --in=SmolLM2-135M-Instruct.Q4_1.gguf --out=models/smollm2 --verify
    python -m launch.convert --in=models/smollm2 --out=models/smollm2-bf16 --dtype=bfloat16

--dtype defaults to what the source holds (float32 for runs and quantised files). --law=LAW ('paper', or a file of
launch.fit) puts the law's prediction into the model card, beside the measured loss. --tokenizer=FILE takes another
tokenizer.json along. --verify reads the result back: every weight bit for bit, and the logits of both.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from distill import interop, laws
from distill.config import MeshConfig, counts
from distill.errors import InteropError
from distill.interop import card, export
from distill.interop.layout import expected
from distill.interop.source import open_source
from distill.model import sharding
from distill.model.transformer import Transformer
from distill.records.runs import RunRecord
from distill.system import process
from distill.teacher import any_model
from launch.support import cli


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m launch.convert",
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--in", required=True, dest="source", help="a finished run, a model's directory or a GGUF file")
    parser.add_argument("--out", required=True, help="the directory to write; nothing may be there")
    parser.add_argument("--dtype", choices=export.DTYPES, help="of the weights")
    parser.add_argument("--law", default="", help="'paper', or a law file: its prediction enters the model card")
    parser.add_argument("--tokenizer", default="", help="a tokenizer.json to take along")
    parser.add_argument("--verify", action="store_true", help="read the result back and compare")
    flags = parser.parse_args(argv)
    process.cache_compilations()
    with jax.set_mesh(sharding.make(MeshConfig())):
        model = any_model.load(flags.source)
        dtype = flags.dtype or stored_dtype(model)
        prediction = predict(flags.law, model.record) if flags.law else None
        text = card.card(Path(flags.out).name, facts(model), prediction)
        shapes = {name: shape for name, _, _, shape in expected(export.published(model.config.model))}
        width = 2 if dtype == "bfloat16" else 4
        with _bar(sum(math.prod(shape) for shape in shapes.values()) * width) as advance:
            export.write(
                flags.out,
                model.params,
                model.tokenizer_files(flags.tokenizer),
                context=model.context,
                dtype=dtype,
                card=text,
                on_tensor=advance,
            )
        family = open_source(flags.out)[0].tree["architectures"][0]
        print(f"{flags.out}: {family}, {counts.total(export.published(model.config.model)):,} parameters, {dtype}")
        if prediction:
            print(f"measured loss {model.record.loss:.4f}, predicted {prediction}")
        if flags.verify:
            print(verify(flags.out, model.params, dtype))
    return 0


def stored_dtype(model: any_model.Model) -> str:
    """bfloat16 for a published model that is stored so throughout; else float32, which holds all others exactly."""
    held = set(open_source(model.source)[0].dtypes.values()) if model.published else set()
    return "bfloat16" if held == {"BF16"} else "float32"


def facts(model: any_model.Model) -> dict[str, str]:
    """What is known of a model, for its card; measured figures are those of its own run."""
    shape, record = model.config.model, model.record
    found = {
        "parameters": f"{counts.total(shape):,}, {record.N:,} of them not in embedding and head (N)",
        "shape": f"{shape.n_layers} layers of width {shape.d_model}, {shape.n_heads} heads, {shape.kv_heads} of them "
        f"with keys and values",
        "tokenizer": record.tokenizer,
    }
    if model.published:
        return found | {"converted from": Path(model.source).name}
    found |= {
        "run": record.run,
        "trained on (D)": f"{record.D:,} tokens, {record.D_unique:,} of them distinct",
        "validation loss (nats per token)": f"{record.loss:.4f} ± {record.loss_se:.4f}",
        "bits per byte": f"{record.bits_per_byte:.4f}",
    }
    if record.teacher:
        # Who wrote the text of a student of completions was not measured on it.
        measured = "" if record.L_T is None else f", loss L_T = {record.L_T:.4f} on the same text"
        size = "" if record.N_T is None else f", N = {record.N_T:,}"
        found["teacher"] = f"{record.teacher}{size}{measured}"
        found["KL(teacher, student)"] = f"{record.kl:.4f} nats per token" if record.kl is not None else "not measured"
    return found


def predict(source: str, record: RunRecord) -> card.Prediction:
    """What a law says of a run. InteropError for a published model, of which no law knows the tokens."""
    if not record.D:
        raise InteropError(f"--law={source}: a published model does not say on how many tokens it was trained")
    file = laws.read(source)

    def loss(law: Any) -> Any:
        if record.kind == "distillation":
            return law(N_S=record.N, D_S=record.D, L_T=record.L_T)
        return getattr(law, "supervised", law)(N=record.N, D=record.D)

    mean = float(loss(file.distillation if record.kind == "distillation" else file.supervised))
    if file.boot is None:
        return card.Prediction(law=file.name, loss=mean)
    low, high = np.quantile(np.asarray(loss(file.boot.laws)), (0.05, 0.95))
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


class _bar:
    """A progress bar in bytes; nothing where there is no terminal."""

    def __init__(self, total: int):
        console = Console(stderr=True)
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> Any:
        self._progress.start()
        return lambda size: self._progress.update(self._task, advance=size)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


if __name__ == "__main__":
    sys.exit(cli.guard(main))
