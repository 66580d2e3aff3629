"""Shows how far the building of a store has come: a bar on a terminal, a line every 10 s elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from distill.data.store.build import Progress

_PATIENCE = 5.0  # seconds of work that need no display
_EVERY = 10.0


@contextlib.contextmanager
def shown(title: str) -> Iterator[Callable[[Progress], None]]:
    """A callback for `open_store(on_progress=...)`; writes to stderr, and nothing for work under 5 seconds."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Display

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    stage: dict[str, tuple[float, Progress]] = {}  # when each stage began, and with what
    said = time.monotonic()
    with Display(*columns, console=console, transient=True, disable=not console.is_terminal) as display:
        task = display.add_task(title, total=1.0, note="", visible=False)

        def report(progress: Progress) -> None:
            nonlocal said
            now = time.monotonic()
            if progress.stage not in stage:
                stage[progress.stage] = now, progress
                display.reset(task, total=1.0, visible=False)
            began, first = stage[progress.stage]
            if now - began < _PATIENCE:
                return
            # A build that goes on from an earlier one counts its own speed only.
            note = describe(progress, progress.bytes - first.bytes, now - began)
            display.update(task, completed=progress.share, note=note, visible=True)
            if not console.is_terminal and now - said >= _EVERY:
                said = now
                moved = progress.share - first.share
                left = f", about {(now - began) * (1 - progress.share) / moved:.0f} s left" if moved > 0 else ""
                print(f"{title}: {progress.share:.0%}, {note}{left}", file=sys.stderr, flush=True)

        yield report


def describe(progress: Progress, bytes_here: int, seconds: float) -> str:
    """'tokenizing, 12.3 MB of text, 3.1 Mtok, 4.5 MB/s'."""
    rate = bytes_here / 1e6 / max(seconds, 1e-9)
    tokens = f", {progress.tokens / 1e6:.1f} Mtok" if progress.tokens else ""
    return f"{progress.stage}, {progress.bytes / 1e6:.1f} MB of text{tokens}, {rate:.1f} MB/s"
