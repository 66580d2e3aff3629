"""Text to a token store, in one command; run it again after an interruption and it continues.

    python -m launch.tokenize --output=stores/mine 'texts/**/*.txt' more.jsonl.gz
    python -m launch.tokenize --output=stores/bpe --tokenizer.kind=bpe --tokenizer.vocab_size=8192 'texts/*.txt'
    python -m launch.tokenize --output=stores/c4 --source=tfds --tfds.name=c4/en
    python -m launch.tokenize --output=stores/mine --verify

Any field of DataConfig is a flag (docs/guide/data.md lists them). Train on the store with
--config.data.source=tokens --config.data.tokens=stores/mine.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill import config, data
from launch.support import cli


def main(argv: Sequence[str] | None = None) -> int:
    # Not at the top: every worker process imports this module again, and needs none of it.
    from distill.data.corpus import make_recipe, open_at
    from distill.data.progress import shown

    parser = argparse.ArgumentParser(
        "python -m launch.tokenize", allow_abbrev=False, description=__doc__.split("\n")[0]
    )
    parser.add_argument("files", nargs="*", help="globs of .txt, .jsonl or .parquet files (sets --source=files)")
    parser.add_argument("--output", required=True, help="folder of the store")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that encode (0: none)")
    parser.add_argument("--verify", action="store_true", help="read all of an existing store and check its hashes")
    known, fields = parser.parse_known_intermixed_args(argv)
    if known.verify:
        return verify(Path(known.output))
    wanted = read_config(known.files, fields)
    began = time.monotonic()
    with shown(known.output) as report:
        store = open_at(Path(known.output), make_recipe(wanted), workers=known.workers, on_progress=report)
    describe(store, time.monotonic() - began)
    return 0


def read_config(files: Sequence[str], flags: Sequence[str]) -> data.DataConfig:
    """The DataConfig of a command line: --a.b=value flags, and files as positional arguments."""
    tree: dict[str, Any] = {"source": "files", "files": {"paths": tuple(files)}} if files else {}
    for flag in flags:
        path, equals, text = flag.removeprefix("--").partition("=")
        if not flag.startswith("--") or not equals:
            raise config.ConfigError(f"{flag}: wanted --field=value")
        value = config.parse(data.DataConfig, path, text)
        node = tree
        *parents, last = path.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return config.build(data.DataConfig, tree)


def verify(path: Path) -> int:
    began = time.monotonic()
    store = data.TokenStore(path)
    store.verify()
    size = sum(file["size"] for entry in store.manifest["splits"].values() for file in entry["files"].values())
    print(f"{path}: all {size:,} bytes match their hashes ({time.monotonic() - began:.1f} s)")
    return 0


def describe(store: data.TokenStore, seconds: float) -> None:
    """A table of splits, and what was dropped or mended."""
    print(f"{store.path}: {store.tokenizer_name}, vocabulary {store.vocab_size}, {store.fingerprint[:12]}")
    for name, split in store.splits.items():
        ratio = split.bytes / max(split.tokens, 1)
        print(f"  {name:<11}{split.tokens:>15,} tokens{split.documents:>11,} documents{ratio:>7.2f} bytes a token")
    for name, count in store.manifest["counts"].items():
        if count and name != "documents":
            print(f"  {name.replace('_', ' ')}: {count:,}")
    print(f"  done in {seconds:.1f} s")


if __name__ == "__main__":
    sys.exit(cli.guard(main))
