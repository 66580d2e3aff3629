"""How good a model is on any text: loss, bits per byte, calibration, and how close it is to a teacher.

A model is a finished run's workdir, a Hugging Face directory or a GGUF file. Without --text it is the model's own
validation text (a run's), or that of the embedded corpus. Text is cut into windows of --seq_len, so that the first
tokens of a window are predicted from little; bits per byte compare across tokenizers, nats per token do not.
"""

import argparse
import dataclasses
import json
import os
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from distill import config
from distill.config import ConfigError, MeshConfig, counts
from distill.config.data import DataConfig, FilesConfig, TokenizerConfig
from distill.config.flags import Parser, at_least, tree_of
from distill.config.teacher import TeacherConfig
from distill.system import process
from launch.support import cli

if TYPE_CHECKING:
    from distill.data import TokenStore
    from distill.teacher.any_model import Model

CACHE = "~/.cache/distill/stores"
DTYPES = typing.get_args(typing.get_type_hints(TeacherConfig)["dtype"])

EXAMPLES = (
    "distill evaluate --model=runs/student --teacher=runs/teacher",
    "distill evaluate --model=models/qwen --teacher=models/qwen-large --text='texts/*.txt' --seq_len=512",
    "distill evaluate --model=SmolLM2-135M-Instruct.Q4_1.gguf --tokens=16K --json",
    "distill evaluate --model=runs/student --tasks=arc_easy,piqa",
    "distill evaluate --model=models/qwen --teacher=models/qwen --dtype=int8_products",
)


def parser() -> Parser:
    parser = Parser(
        "evaluate",
        __doc__,
        examples=EXAMPLES,
        fields=TokenizerConfig,
        prefixes=("tokenizer.", "data.tokenizer.", "config.data.tokenizer."),
    )
    add = parser.group("the models")
    add("--model", required=True, metavar="MODEL", help="a finished run, a model's directory or a GGUF file")
    add("--teacher", default="", metavar="MODEL", help="likewise: KL(teacher, model) and agreement")
    add(
        "--dtype", default="float32", choices=DTYPES, help="of the model's weights, as teacher.dtype rounds a teacher's"
    )
    add = parser.group("the text")
    add("--text", nargs="+", default=(), metavar="GLOB", help="globs of .txt, .jsonl or .parquet files")
    add("--tokens", type=at_least(1), default=65_536, metavar="N", help="tokens to predict, in evenly spaced windows")
    add("--seq_len", type=at_least(0), default=0, metavar="N", help="tokens of a window; 0: that of the run, or 512")
    add("--batch_size", type=at_least(1), default=8, metavar="N", help="windows computed at once")
    add("--cache", default=CACHE, metavar="DIR", help="where tokenized text is kept")
    parser.group(
        "its tokens",
        "every field of data.tokenizer is a flag (docs/guide/config.md), in place of the model's own tokenizer:\n"
        "--tokenizer.path=FILE, --tokenizer.end_of_text=TOKEN, --tokenizer.special='<s> $A', ...",
    )
    add = parser.group("tasks of the lm-evaluation-harness (pip install 'distill[lm_eval]')")
    add("--tasks", default="", metavar="NAMES", help="names, separated by commas; their scores are printed too")
    add("--task_files", default="", metavar="DIR", help="a folder of task files (.yaml) of your own")
    add = parser.group("what is printed")
    add("--json", action="store_true", help="print JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    # Not at the top: --help and a mistyped flag need no JAX.
    import jax

    from distill.model import sharding

    process.cache_compilations()
    with jax.set_mesh(sharding.make(MeshConfig())):
        scores = measure(flags)
    if flags.json:
        print(json.dumps(scores))
        return 0
    table = Table.grid(padding=(0, 2))
    for name, value in scores.items():
        table.add_row(
            name, f"{value:.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
        )
    Console().print(table, highlight=False)
    return 0


def measure(flags: argparse.Namespace) -> dict[str, str | int | float]:
    """The scores by name, and what was measured on what."""
    import jax

    from distill.model import quantize
    from distill.teacher import any_model, vocabulary
    from distill.training.evaluate import evaluate
    from distill.training.tasks import Tasks

    names = [name.strip() for name in flags.tasks.split(",") if name.strip()]
    tasks = Tasks(names, flags.task_files) if names else None
    model = any_model.load(flags.model)
    store = open_text(model, flags.text, flags.cache, tree_of(flags.overrides, TokenizerConfig))
    teacher = any_model.load(flags.teacher) if flags.teacher else None
    if vocabulary.known(model) or not flags.overrides:
        vocabulary.check(model, store, "model")
    else:  # a model without a tokenizer, and one that was given for it
        vocabulary.check_rows(model, store, "model")
    if teacher:
        vocabulary.check(teacher, store, "teacher")
    seq_len = flags.seq_len or (512 if model.published else model.config.seq_len)
    evaluation = store.evaluation("validation", seq_len, flags.tokens)
    devices = jax.sharding.get_mesh().size
    rows = -(-flags.batch_size // devices) * devices
    params = quantize.cast(model.params, flags.dtype)
    scores = evaluate(params, evaluation, rows, teacher=teacher.params if teacher else None)
    shape = model.config.model
    subject: dict[str, str | int | float] = {
        "model": model.source,
        "parameters": counts.total(shape),
        "N": counts.non_embedding(shape),
        "text": str(store.path),
        "tokens": evaluation.tokens,
        "seq_len": seq_len,
    }
    if flags.dtype != "float32":
        subject["dtype"] = flags.dtype
    found = {name: value for name, value in dataclasses.asdict(scores).items() if value is not None}
    if tasks:
        found |= tasks.scores(params, model.tokenizer(), context=model.context, batch_size=rows)
    return subject | found


def open_text(model: "Model", text: Sequence[str], cache: str, tokenizer: Mapping[str, object]) -> "TokenStore":
    """The text in the model's tokens: files, or a run's own store, or the embedded corpus.

    tokenizer: fields of data.tokenizer that count for more than the model's own.
    """
    from distill import data

    if not text and not model.published:
        if tokenizer:
            raise ConfigError(
                f"--tokenizer.{next(iter(tokenizer))}: the text of the run in {model.source} is tokenized already; "
                "leave it out, or give --text"
            )
        return model.store()
    source = DataConfig(source="files", files=FilesConfig(validation=tuple(text))) if text else DataConfig()
    found = dataclasses.replace(source, tokenizer=tokenizer_config(model, tokenizer))
    store = data.open_store(found, Path(os.path.expanduser(cache)))
    assert isinstance(store, data.TokenStore)
    return store


def tokenizer_config(model: "Model", given: Mapping[str, object]) -> TokenizerConfig:
    """The model's own tokenizer, or the fields of data.tokenizer that were given; special tokens by their names."""
    from distill.data.corpus import spec_of
    from distill.data.tokenizers.spec import spec_of as spec_of_model
    from distill.data.tokenizers.tokenizer import load

    path = str(given.get("path", model.source))
    spec = spec_of_model(path) if model.published or "path" in given else model.tokenizer().spec
    if spec.kind == "symbols":
        raise ConfigError(f"--text: the run in {model.source} reads symbols of a generated language; leave --text out")
    own = {"kind": spec.kind, "path": spec.path, "special": spec.special}
    own |= {"end_of_text": spec.option} if spec.kind == "json" else {}
    wanted = config.build(TokenizerConfig, {**own, **given}, "flags")
    return dataclasses.replace(wanted, special=load(spec_of(wanted)).spec.special)


if __name__ == "__main__":
    sys.exit(cli.guard(main))
