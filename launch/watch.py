"""Live curves in a terminal, of a run, a sweep or a study: the loss, speed and time left of what was written last.

It only reads files, so it may watch from another machine that sees the folder. A run whose process has ended on this
machine is dead. Ctrl-C ends it; the run goes on. Where there is no terminal it prints one picture and ends.
"""

import contextlib
import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live

from distill.config import ConfigError
from distill.config.flags import Parser, at_least, number
from distill.system import interrupts
from launch.support import cli

EXAMPLES = (
    "distill watch runs/student",
    "distill watch --workdir=runs/smoke --every=10",
    "distill watch runs/smoke --once",
)


def parser() -> Parser:
    parser = Parser("watch", __doc__, examples=EXAMPLES)
    add = parser.group("what to watch")
    add("folder", nargs="?", metavar="WORKDIR", help="folder of a run, a sweep or a study")
    add("--workdir", default="", metavar="DIR", help="the same as a flag")
    add("--every", type=at_least(0.1, number), default=2.0, metavar="SECONDS", help="between pictures")
    add("--once", action="store_true", help="one picture, then end")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    workdir = flags.folder or flags.workdir
    if not workdir:
        raise ConfigError("the folder is missing; wanted distill watch WORKDIR (see --help)")
    from distill.report.runs import watch

    console = Console()
    if flags.once or not console.is_terminal:
        console.print(watch.screen(workdir, console.width))
        return 0
    with (
        contextlib.suppress(KeyboardInterrupt),
        interrupts.raised(),
        Live(watch.screen(workdir, console.width), console=console, screen=True, auto_refresh=False) as live,
    ):
        while True:
            time.sleep(flags.every)
            height = max(min(console.height - 20, 20), 6)
            live.update(watch.screen(workdir, console.width, height), refresh=True)
    return 0


if __name__ == "__main__":
    sys.exit(cli.guard(main))
