"""A teacher's completions of prompts: hard labels for a student; run it again after an interruption and it continues.

--filter names a function of yours that is given a line of the jsonl as a dict and says whether it enters the token
store; it is your code, run as you. Leaves completions.jsonl, store/ and manifest.json in --out. Train on them with
--config=configs/generation.py:hard_labels --config.data.tokens=OUT/store.
"""

import argparse
import importlib
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distill import config
from distill.config import ConfigError, nearest
from distill.config.flags import Parser, tree_of
from distill.config.generation import GenerationConfig
from distill.system import process, progress
from launch.support import cli

if TYPE_CHECKING:
    from distill.teacher.generation.generate import GenerationManifest
    from distill.teacher.generation.store import Filter

EXAMPLES = (
    "distill generate --teacher=runs/teacher --out=runs/hard --every=64 --decode.new_tokens=96",
    "distill generate --teacher=runs/teacher --out=runs/hard --source=files --files.paths=ask.jsonl "
    "--columns.text=question --prompt_tokens=512 --per_prompt=4",
    "distill generate --teacher=runs/teacher --out=runs/hard --min_log_prob=-1.5 --filter=mine.py:is_good",
)


def parser() -> Parser:
    parser = Parser(
        "generate", __doc__, examples=EXAMPLES, fields=GenerationConfig, prefixes=("", "config."), within="data"
    )
    add = parser.group("the completions")
    add("--out", "--output", required=True, metavar="DIR", help="folder of the completions and their token store")
    add("--filter", default="", metavar="FILE.py:FUNCTION", help="keeps what the function says, or MODULE:FUNCTION")
    parser.group(
        "the generation",
        "every field of GenerationConfig and of its data is a flag (docs/guide/config.md):\n"
        "--teacher=MODEL, --every=64, --decode.new_tokens=96, --columns.text=question, ...",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    wanted, flags = read(argv)
    keep = load_filter(flags.filter) if flags.filter else None
    process.cache_compilations()
    manifest = follow(wanted, flags.out, keep)
    print(json.dumps(manifest, indent=1))
    return 0


def read(argv: Sequence[str] | None) -> tuple[GenerationConfig, argparse.Namespace]:
    """The GenerationConfig of a command line, and its other flags. Raises ConfigError."""
    flags = parser().parse_args(argv)
    tree = tree_of(flags.overrides, GenerationConfig)
    if not tree.get("teacher"):
        raise ConfigError(
            "--teacher=... is missing; wanted --teacher=MODEL, a workdir or a published model (see --help)"
        )
    return config.build(GenerationConfig, tree, "flags"), flags


def load_filter(source: str) -> "Filter":
    """The function that FILE.py:NAME or MODULE:NAME names, imported as the user's own. Raises ConfigError."""
    place, _, name = source.rpartition(":")
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            if spec is None or spec.loader is None:
                raise ImportError(f"{place} is not a Python file")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except Exception as error:  # the user's own file
        wanted = "wanted FILE.py:FUNCTION or MODULE:FUNCTION"
        raise ConfigError(f"--filter={source}: {type(error).__name__}: {error}; {wanted}") from None
    function = getattr(module, name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if callable(value)]
        raise ConfigError(f"--filter={source}: {place} has no function {name!r}.{nearest(name, functions)}")
    return function


def follow(wanted: GenerationConfig, out: str, keep: "Filter | None") -> "GenerationManifest":
    """Generates, and says how far it is."""
    from distill.teacher.generation import generate

    with progress.bar("loading the teacher") as show:
        return generate.generate(wanted, out, keep=keep, on_progress=show)


if __name__ == "__main__":
    sys.exit(cli.guard(main))
