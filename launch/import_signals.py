"""Signals that others wrote become a store: the likeliest tokens of a teacher, with their log-probabilities.

Reads files (.jsonl, also .gz, .xz, .zst; .parquet; .arrow) and folders of them, in the forms that tools write, by the
names of their fields:

vLLM        prompt_logprobs with prompt_token_ids: outputs of LLM.generate, responses and batch files of a server
SGLang      meta_info with input_top_logprobs and input_token_logprobs
DistillKit  compressed_logprobs with bytepacked_indices, and compression_config.yaml beside the files
MaxText     .array_record files of save_top_k_teacher_logits: logits, of which only the kept ones are known
Megatron-LM .tar shards of --logits-save-dir; they hold no tokens, which --samples adds
columns     input_ids, with target_token_ids and target_logprobs (axolotl), top_ids and top_logprobs, ..., or --columns

Leaves OUT/tokens (the sequences, a share of them for validation) and OUT/signals. Train on them with
--config=configs/imported.py:OUT. The same command resumes an interrupted import.
"""

import sys
from collections.abc import Sequence

from distill.config import ConfigError
from distill.config.flags import Parser, at_least, number
from distill.system import progress
from launch.support import cli

EXAMPLES = (
    "distill import_signals --in=scored.jsonl --tokenizer=models/qwen --out=stores/qwen",
    "distill import_signals --in='logits/*.parquet' --tokenizer=models/qwen --teacher=models/qwen --out=stores/qwen",
    "distill import_signals --in=kd --columns=input_ids,ids,logits --values=logits --tokenizer=tokenizer.json "
    "--out=stores/kd",
)


def parser() -> Parser:
    parser = Parser("import_signals", __doc__, examples=EXAMPLES)
    add = parser.group("from and to")
    add(
        "--in",
        required=True,
        dest="source",
        action="append",
        metavar="FILES",
        help="a file, a glob or a folder; also twice",
    )
    add("--out", "--output", required=True, metavar="DIR", help="folder of the two stores")
    add("--tokenizer", required=True, metavar="MODEL", help="the teacher's: its folder, a tokenizer's file, or 'bytes'")
    add("--teacher", default="", metavar="MODEL", help="its folder, which tells its size; or any name for it")
    add = parser.group("what the files mean", "by default as the tool that wrote them does")
    add("--columns", default="", metavar="TOKENS,IDS,VALUES", help="the three columns, where their names are not known")
    add("--values", choices=("log_probs", "logits"), help="logits are normalised over the ids that there are")
    add("--describes", choices=("next", "token"), help="row i of a column is about token i + 1, or about token i")
    add("--samples", default="", metavar="FILE.npy", help="token ids [samples, positions] for Megatron-LM's shards")
    add = parser.group("what is stored")
    add("--top_k", type=at_least(1), default=0, metavar="N", help="entries of a token (default: as many as there are)")
    add(
        "--seq_len",
        type=at_least(1),
        default=0,
        metavar="N",
        help="tokens of a window (default: the longest row, at most 4096)",
    )
    add("--validation", type=number, default=0.05, metavar="SHARE", help="of the rows, held out")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    names = flags.columns.split(",") if flags.columns else []
    if names and (len(names) != 3 or not all(names)):
        raise ConfigError(f"--columns={flags.columns}: wanted three names, as --columns=input_ids,top_ids,top_logprobs")
    if not 0 <= flags.validation < 1:
        raise ConfigError(f"--validation={flags.validation}: wanted a share of the rows, from 0 to below 1")
    # Not at the top: --help and a mistyped flag need no JAX.
    from distill.teacher.imported.dialects import Columns
    from distill.teacher.imported.store import SIGNALS, TOKENS, Import, import_signals
    from distill.teacher.signals import summary

    wanted = Import(
        paths=tuple(flags.source), tokenizer=flags.tokenizer, teacher=flags.teacher, seq_len=flags.seq_len,
        top_k=flags.top_k, validation=flags.validation, columns=Columns(*names) if names else None,
        values=flags.values, describes=flags.describes, samples=flags.samples,
    )  # fmt: skip
    with progress.bar("reading") as show:
        manifest = import_signals(wanted, flags.out, show)
    print(f"{flags.out}: {TOKENS}/ and {SIGNALS}/, topk top_k={manifest['recipe']['signal']['top_k']}")
    print("\n".join(summary.describe(manifest)))
    return 0


if __name__ == "__main__":
    sys.exit(cli.guard(main))
