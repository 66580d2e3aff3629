"""Any model to a Hugging Face directory or a GGUF file: a finished run of ours, a GGUF file, or another directory.

--verify reads the result back, every weight bit for bit, and compares the logits of the source and of the result with
those of an independent reader of the same files: transformers where it is installed, else a forward pass in NumPy.
"""

import sys
from collections.abc import Sequence

from distill.config import MeshConfig
from distill.config.flags import Parser
from distill.system import process, progress
from launch.support import cli

EXAMPLES = (
    "distill convert --in=runs/student --out=exported/student --law=runs/law.json --verify",
    "distill convert --in=SmolLM2-135M-Instruct.Q4_1.gguf --out=models/smollm2 --verify",
    "distill convert --in=models/smollm2 --out=models/smollm2-bf16 --dtype=bfloat16",
    "distill convert --in=runs/student --out=student.gguf --dtype=q8_0",
    "distill convert --in=runs/lora --out=exported/lora --adapter",
)


def parser() -> Parser:
    parser = Parser("convert", __doc__, examples=EXAMPLES)
    add = parser.group("from and to")
    add(
        "--in", required=True, dest="source", metavar="MODEL", help="a finished run, a model's directory or a GGUF file"
    )
    add(
        "--out",
        "--output",
        required=True,
        metavar="DIR",
        help="a directory or NAME.gguf; nothing may be there",
    )
    add = parser.group("what is written")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16", "q8_0"),
        help="of the weights; by default the source's, float32 for runs and GGUF files; to a GGUF file float16 "
        "(default), q8_0 or float32",
    )
    add("--law", default="", metavar="LAW", help="'paper', or a law file: its prediction enters the model card")
    add("--tokenizer", default="", metavar="FILE", help="a tokenizer.json to take along")
    add("--adapter", action="store_true", help="only the adapters of a LoRA student, as PEFT loads them")
    add("--verify", action="store_true", help="read the result back and compare")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    # Not at the top: --help and a mistyped flag need no JAX.
    import jax

    from distill.model import sharding
    from distill.teacher.conversion import Conversion, convert

    process.cache_compilations()
    wanted = Conversion(
        source=flags.source, out=flags.out, dtype=flags.dtype or "", law=flags.law, tokenizer=flags.tokenizer,
        verify=flags.verify, adapter=flags.adapter,
    )  # fmt: skip
    with jax.set_mesh(sharding.make(MeshConfig())), progress.bar("reading the model") as show:
        lines = convert(wanted, show)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(cli.guard(main))
