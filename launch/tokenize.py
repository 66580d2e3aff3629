"""Text to a token store, in one command; run it again after an interruption and it continues.

Train on the store with --config.data.source=tokens --config.data.tokens=STORE.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distill import config
from distill.config import DataConfig
from distill.config.flags import Parser, at_least, tree_of
from distill.system import progress
from launch.support import cli

if TYPE_CHECKING:
    from distill.data import TokenStore

EXAMPLES = (
    "distill tokenize --out=stores/mine 'texts/**/*.txt' more.jsonl.gz",
    "distill tokenize --out=stores/bpe --tokenizer.kind=bpe --tokenizer.vocab_size=8192 'texts/*.txt'",
    "distill tokenize --out=stores/c4 --source=tfds --tfds.name=c4/en",
    "distill tokenize --out=stores/mine --verify",
)


def parser() -> Parser:
    parser = Parser("tokenize", __doc__, examples=EXAMPLES, fields=DataConfig, prefixes=("", "data.", "config.data."))
    add = parser.group("from and to")
    add("files", nargs="*", metavar="GLOB", help="globs of .txt, .jsonl or .parquet files (sets --source=files)")
    add("--out", "--output", required=True, metavar="DIR", help="folder of the store")
    add("--workers", type=at_least(0), default=os.cpu_count() or 1, metavar="N", help="processes that encode; 0: none")
    add("--verify", action="store_true", help="read all of an existing store and check its hashes")
    parser.group(
        "the text and the tokens",
        "every field of DataConfig is a flag (docs/guide/config.md): --columns.text=body, --tokenizer.kind=bpe, ...",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    # Not at the top: every worker process imports this module again, and needs none of it.
    from distill.data.corpus import choose_recipe, open_at

    flags = parser().parse_args(argv)
    if flags.verify:
        return verify(Path(flags.out))
    wanted = read_config(flags.files, flags.overrides)
    began = time.monotonic()
    with progress.bar(flags.out, transient=True) as show:
        recipe = choose_recipe(wanted, lambda _: Path(flags.out))
        store = open_at(Path(flags.out), recipe, workers=flags.workers, on_progress=show)
    describe(store, time.monotonic() - began)
    return 0


def read_config(files: Sequence[str], overrides: Sequence[tuple[str, str]]) -> DataConfig:
    """The DataConfig of a command line: what its flags override, and files as positional arguments."""
    tree = tree_of(overrides, DataConfig)
    if files:
        tree = {"source": "files", **tree, "files": {**tree.get("files", {}), "paths": tuple(files)}}
    return config.build(DataConfig, tree)


def verify(path: Path) -> int:
    from distill.data import TokenStore

    began = time.monotonic()
    store = TokenStore(path)
    store.verify()
    size = sum(file["size"] for entry in store.manifest["splits"].values() for file in entry["files"].values())
    print(f"{path}: all {size:,} bytes match their hashes ({time.monotonic() - began:.1f} s)")
    return 0


def describe(store: "TokenStore", seconds: float) -> None:
    """Prints a table of splits, and what was dropped or repaired."""
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
