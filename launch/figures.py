"""The paper's figures and tables from a law alone."""

import time
from collections.abc import Sequence
from pathlib import Path

from distill.config.flags import Parser
from distill.system import process
from launch.support import cli

EXAMPLES = (
    "distill figures --law=paper --out=figures",
    "distill figures --law=law.json --out=figures --only=8,17",
    "distill figures --out=figures --only=11,12",
)


def parser() -> Parser:
    parser = Parser("figures", __doc__, examples=EXAMPLES)
    add = parser.group("the figures")
    add("--out", "--output", required=True, metavar="DIR", help="folder of the PNG files, tables and gallery.md")
    add("--law", default="paper", metavar="LAW", help="'paper', or a law file of `distill fit`")
    add("--only", default="", metavar="N,...", help="numbers of figures; 11 and 12 train MLPs for minutes")
    add("--mapping", action="store_true", help="all figures, 11 and 12 as well")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    from distill.laws.planning.lawfile import read
    from distill.report.paper.gallery import draw
    from distill.report.paper.scene import scene

    process.cache_compilations()
    began = time.monotonic()
    only = [number.strip() for number in flags.only.split(",") if number.strip()]
    drawn = draw(scene(read(flags.law)), Path(flags.out), only, flags.mapping)
    print(f"{len(drawn)} figures in {flags.out} ({time.monotonic() - began:.0f} s)")
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.guard(main))
