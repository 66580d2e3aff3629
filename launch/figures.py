"""The paper's figures and tables from a law alone.

python -m launch.figures --law=paper --out=figures
python -m launch.figures --law=law.json --out=figures --only=8,17
python -m launch.figures --out=figures --only=11,12   (trains the MLPs of the mapping problem: minutes)
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from distill.laws.planning.lawfile import read
from distill.report.paper.gallery import draw
from distill.report.paper.scene import scene
from distill.system import process
from launch.support import cli


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m launch.figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--law", default="paper", help="`paper`, or a law file made by launch.fit")
    parser.add_argument("--out", required=True, help="folder of the PNG files, tables and gallery.md")
    parser.add_argument("--only", default="", help="numbers of figures, separated by commas")
    parser.add_argument("--mapping", action="store_true", help="with Figures 11 and 12, which train MLPs for minutes")
    flags = parser.parse_args(argv)
    process.cache_compilations()
    began = time.monotonic()
    only = [number.strip() for number in flags.only.split(",") if number.strip()]
    drawn = draw(scene(read(flags.law)), Path(flags.out), only, flags.mapping)
    print(f"{len(drawn)} figures in {flags.out} ({time.monotonic() - began:.0f} s)")
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.guard(main))
