"""A teacher's completions of prompts: hard labels for a student; run it again after an interruption and it continues.

    python -m launch.generate --teacher=runs/teacher --output=runs/hard --every=64 --decode.new_tokens=96
    python -m launch.generate --teacher=runs/teacher --output=runs/hard --data.source=files \\
        --data.files.paths=ask.jsonl --data.columns.text=question --prompt_tokens=512 --per_prompt=4
    python -m launch.generate ... --min_log_prob=-1.5 --filter=mine.py:is_good

Any field of GenerationConfig (distill/config/generation.py) is a flag. --filter=FILE.py:FUNCTION or MODULE:FUNCTION
names a function of yours that is given a line of the jsonl as a dict and says whether it enters the token store; it is
your code, run as you. Leaves completions.jsonl, store/ and manifest.json in --output. Train on them with
--config=configs/generation.py:hard_labels --config.data.tokens=OUTPUT/store.
"""

import importlib
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill import config
from distill.config import ConfigError, nearest
from distill.config.generation import GenerationConfig
from distill.system import process
from launch.support import cli, progress


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    if "--help" in argv or "-h" in argv:
        print((__doc__ or "").strip())
        return 0
    wanted, flags = read(argv)
    keep = load_filter(flags["filter"]) if "filter" in flags else None
    process.cache_compilations()
    manifest = follow(wanted, flags["output"], keep)
    print(json.dumps(manifest, indent=1))
    return 0


def read(argv: Sequence[str]) -> tuple[GenerationConfig, dict[str, str]]:
    """The GenerationConfig of a command line, and its other flags. Raises ConfigError."""
    tree: dict[str, Any] = {}
    flags: dict[str, str] = {}
    for argument in argv:
        path, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not equals:
            raise ConfigError(f"got {argument!r}, wanted --name=value (see --help)")
        if path in ("output", "filter"):
            flags[path] = text
            continue
        value = config.parse(GenerationConfig, path, text)
        node = tree
        *parents, last = path.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    for name in ("output", "teacher"):
        if not (flags | tree).get(name):
            raise ConfigError(f"--{name}=... is missing (see --help)")
    return config.build(GenerationConfig, tree, "flags"), flags


def load_filter(source: str) -> Any:
    """The function that FILE.py:NAME or MODULE:NAME names, imported as the user's own. Raises ConfigError."""
    place, _, name = source.rpartition(":")
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            if spec is None or spec.loader is None:
                raise ImportError(f"{place} is no Python file")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except Exception as error:  # the user's own file
        wish = "wanted FILE.py:FUNCTION or MODULE:FUNCTION"
        raise ConfigError(f"--filter={source}: {type(error).__name__}: {error}; {wish}") from None
    found = getattr(module, name, None)
    if not callable(found):
        functions = [key for key, value in vars(module).items() if callable(value)]
        raise ConfigError(f"--filter={source}: {place} has no function {name!r}.{nearest(name, functions)}")
    return found


def follow(wanted: GenerationConfig, output: str, keep: Any) -> dict[str, Any]:
    """Generates, and says how far it is."""
    from distill.teacher.generation import generate

    with progress.bar("completion") as show:

        def tell(now: generate.Progress) -> None:
            show(now.done, now.total, f"{now.tokens_per_second:,.0f} tokens/s")

        return generate.generate(wanted, output, keep=keep, on_progress=tell)


if __name__ == "__main__":
    sys.exit(cli.guard(main))
