"""Kills commands of this package at random moments, again and again, and shows that nothing is lost.

The kills are shared among the scenarios; half of them wait until a file is being written. Every command that was
killed is run again to its end, which must be, bit for bit, that of a run that was left alone. A line a scenario is
added to --out: seed, commit, kills, seconds. Exits with 2 where anything was lost, and keeps what it found.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from distill.bench import chaos
from distill.config import ConfigError, nearest
from distill.config.flags import Parser, at_least
from distill.system import process, progress
from launch.support import cli

EXAMPLES = (
    "distill chaos --kills=5 --only=train",
    "distill chaos --kills=100 --seed=3 --out=docs/campaigns/chaos.jsonl",
    "distill chaos --kills=20 --only=cache,tokenize",
)


def parser() -> Parser:
    parser = Parser("chaos", __doc__, examples=EXAMPLES)
    add = parser.group("the campaign")
    add("--kills", type=at_least(0), default=100, metavar="N", help="SIGKILLs, shared among the scenarios")
    add("--seed", type=int, default=0, metavar="N", help="of the moments of the kills")
    add("--only", default="", metavar="NAME,...", help=f"scenarios, of {', '.join(chaos.SCENARIOS)}")
    add("--out", "--output", type=Path, metavar="FILE", help="a .jsonl to which a line a scenario is added")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    names = flags.only.split(",") if flags.only else list(chaos.SCENARIOS)
    for name in names:
        if name not in chaos.SCENARIOS:
            raise ConfigError(f"--only: there is no scenario {name!r}.{nearest(name, chaos.SCENARIOS)}")
    with progress.counter("kill", flags.kills) as add:
        for i, name in enumerate(names):
            share = flags.kills // len(names) + (i < flags.kills % len(names))
            began, kills, lost = time.monotonic(), [], None
            try:
                for kill in chaos.attack(chaos.SCENARIOS[name], share, flags.seed):
                    kills.append(kill)
                    add(1, name)
            except chaos.Lost as error:
                lost = error
            line = {
                "scenario": name, "seed": flags.seed, "commit": process.commit(), "kills": len(kills),
                "while writing": sum(bool(kill.seen) for kill in kills), "lost": int(lost is not None),
                "seconds": round(time.monotonic() - began, 1),
            }  # fmt: skip
            print(", ".join(f"{key} {value}" for key, value in line.items()), file=sys.stderr)
            if flags.out:
                chaos.append(flags.out, [line])
            if lost:
                raise lost
    return 0


if __name__ == "__main__":
    sys.exit(cli.guard(main))
