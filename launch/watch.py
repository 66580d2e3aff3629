"""Live curves in a terminal, of a run, a sweep or a study: the loss, speed and time left of what was written last.

    python -m launch.watch WORKDIR [--every=2] [--once]

It reads metrics.jsonl and nothing else, so it may watch from another machine that sees the folder. Ctrl-C ends it; the
run goes on. --once prints one picture and ends, as it does where there is no terminal.
"""

import argparse
import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live

from launch.support import cli


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m launch.watch", allow_abbrev=False, description=__doc__.split("\n")[0])
    parser.add_argument("workdir", help="folder of a run, a sweep or a study")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between pictures")
    parser.add_argument("--once", action="store_true", help="one picture, then end")
    flags = parser.parse_args(argv)
    from distill.report.runs import watch

    console = Console()
    if flags.once or not console.is_terminal:
        console.print(watch.screen(flags.workdir, console.width))
        return 0
    with Live(watch.screen(flags.workdir, console.width), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(max(flags.every, 0.1))
            height = max(min(console.height - 20, 20), 6)
            live.update(watch.screen(flags.workdir, console.width, height), refresh=True)


if __name__ == "__main__":
    sys.exit(cli.guard(main))
