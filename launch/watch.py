"""Live curves in a terminal, of a run, a sweep or a study: the loss, speed and time left of what was written last.

With --page it serves the curves as a page that refreshes itself, to this machine alone: the address, with a secret
token, is printed. It only reads files, so it may watch from another machine that sees the folder. A run whose process
has ended on this machine is dead. Ctrl-C ends it; the run goes on. Where there is no terminal it prints one picture.
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
    "distill watch runs/smoke --page",
)


def parser() -> Parser:
    parser = Parser("watch", __doc__, examples=EXAMPLES)
    add = parser.group("what to watch")
    add("folder", nargs="?", metavar="WORKDIR", help="folder of a run, a sweep or a study")
    add("--workdir", default="", metavar="DIR", help="the same as a flag")
    add("--every", type=at_least(0.1, number), default=2.0, metavar="SECONDS", help="between pictures")
    add("--once", action="store_true", help="one picture, then end")
    add("--page", action="store_true", help="serve a page on this machine in place of the terminal's picture")
    add("--port", type=at_least(0, int), default=0, metavar="PORT", help="of --page (default any free one)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    workdir = flags.folder or flags.workdir
    if not workdir:
        raise ConfigError("the folder is missing; wanted distill watch WORKDIR (see --help)")
    if flags.page:
        return _serve(workdir, flags.port, flags.every)
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


def _serve(workdir: str, port: int, every: float) -> int:
    from distill.report.runs.live import LivePage

    with contextlib.suppress(KeyboardInterrupt), interrupts.raised(), LivePage(workdir, port, every) as live:
        print(f"{live.address}\nOpen it on this machine; who has the address may read. Ctrl-C ends it.", flush=True)
        live.run()
    return 0


if __name__ == "__main__":
    sys.exit(cli.guard(main))
