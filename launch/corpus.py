"""Public-domain prose from downloaded packages; `launch/corpus.sh` downloads them and calls this."""

import sys
from collections.abc import Sequence
from pathlib import Path

from distill.config import ConfigError
from distill.config.flags import Parser
from launch.support import cli

EXAMPLES = (
    "bash launch/corpus.sh",
    "distill corpus out/corpus/packages --out=out/corpus",
    "distill corpus out/corpus/packages out/corpus",
)


def parser() -> Parser:
    parser = Parser("corpus", __doc__, examples=EXAMPLES)
    add = parser.group("folders")
    add("packages", metavar="PACKAGES", type=Path, nargs="?", help="folder of .deb, .tar.gz and .tgz files")
    add("folder", metavar="OUT", type=Path, nargs="?", help="folder of the jsonl.xz files")
    add("--out", "--output", type=Path, metavar="DIR", help="the same as a flag")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    out = flags.folder or flags.out
    if flags.packages is None or out is None:
        raise ConfigError("a folder is missing; wanted distill corpus PACKAGES OUT (see --help)")
    from distill.data.sources.public_domain import extract

    extract(flags.packages, out)
    return 0


if __name__ == "__main__":
    sys.exit(cli.guard(main))
