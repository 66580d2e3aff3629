"""How good a model is on any text: loss, bits per byte, calibration, and how close it is to a teacher.

    python -m launch.evaluate --model=runs/student --teacher=runs/teacher
    python -m launch.evaluate --model=models/qwen --teacher=models/qwen-large --text='texts/*.txt' --seq_len=512
    python -m launch.evaluate --model=SmolLM2-135M-Instruct.Q4_1.gguf --tokens=16384 --json

A model is a finished run's workdir, a Hugging Face directory or a GGUF file. Without --text it is the model's own
validation text (a run's), or that of the embedded corpus. Text is cut into windows of --seq_len, so that the first
tokens of a window are predicted from little; bits per byte compare across tokenizers, nats per token do not.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from distill import data
from distill.config import ConfigError, MeshConfig, counts
from distill.config.data import DataConfig, FilesConfig, TokenizerConfig
from distill.config.tree import parse_count
from distill.data.tokenizers.tokenizer import same_tokens
from distill.model import sharding
from distill.system import process
from distill.teacher import any_model
from distill.training.evaluate import evaluate
from launch.support import cli

CACHE = "~/.cache/distill/stores"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m launch.evaluate",
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="a finished run, a model's directory or a GGUF file")
    parser.add_argument("--teacher", default="", help="likewise: KL(teacher, model) and agreement")
    parser.add_argument("--text", nargs="+", default=(), help="globs of .txt, .jsonl or .parquet files")
    parser.add_argument(
        "--tokens", type=parse_count, default=65_536, help="tokens to predict, in evenly spaced windows"
    )
    parser.add_argument("--seq_len", type=int, default=0, help="0: that of the run, or 512")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--cache", default=CACHE, help="where tokenized text is kept")
    parser.add_argument("--json", action="store_true", help="print JSON")
    flags = parser.parse_args(argv)
    process.cache_compilations()
    with jax.set_mesh(sharding.make(MeshConfig())):
        found = measure(flags)
    if flags.json:
        print(json.dumps(found))
        return 0
    table = Table.grid(padding=(0, 2))
    for name, value in found.items():
        table.add_row(
            name, f"{value:.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
        )
    Console().print(table, highlight=False)
    return 0


def measure(flags: argparse.Namespace) -> dict[str, str | int | float]:
    """The scores by name, and what was measured on what."""
    model = any_model.load(flags.model)
    store = open_text(model, flags.text, flags.cache)
    teacher = any_model.load(flags.teacher) if flags.teacher else None
    for one in (model, teacher):
        if one and not same_tokens(one.record.tokenizer, store.tokenizer_name):
            raise ConfigError(
                f"{one.source} reads {one.record.tokenizer!r} tokens and the text is {store.tokenizer_name!r} tokens; "
                "a model is judged, and compared with another, on its own tokens alone"
            )
    seq_len = flags.seq_len or (512 if model.published else model.config.seq_len)
    evaluation = store.evaluation("validation", seq_len, flags.tokens)
    devices = jax.sharding.get_mesh().size
    rows = -(-flags.batch_size // devices) * devices
    scores = evaluate(model.params, evaluation, rows, teacher=teacher.params if teacher else None)
    shape = model.config.model
    found: dict[str, str | int | float] = {
        "model": model.source,
        "parameters": counts.total(shape),
        "N": counts.non_embedding(shape),
        "text": str(store.path),
        "tokens": evaluation.tokens,
        "seq_len": seq_len,
    }
    return found | {name: value for name, value in dataclasses.asdict(scores).items() if value is not None}


def open_text(model: any_model.Model, text: Sequence[str], cache: str) -> data.TokenStore:
    """The text in the model's tokens: files, or a run's own store, or the embedded corpus."""
    if not text and not model.published:
        return model.store()
    folder = Path(os.path.expanduser(cache))
    files = {"source": "files", "files": FilesConfig(validation=tuple(text))} if text else {}
    if model.published:
        tokenizer = TokenizerConfig(kind="json", path=model.source)
    else:
        spec = model.tokenizer().spec
        tokenizer = TokenizerConfig(kind=spec[0], path=spec[1], end_of_text=spec[2])  # type: ignore[arg-type]
    found = data.open_store(DataConfig(**files, tokenizer=tokenizer), folder)  # type: ignore[arg-type]
    assert isinstance(found, data.TokenStore)
    return found


if __name__ == "__main__":
    sys.exit(cli.guard(main))
