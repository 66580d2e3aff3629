"""Progress of long work: one value that every producer reports, and one bar that shows it.

On a terminal `bar` draws a bar on stderr with the count, the report's text, the elapsed time and the time left.
Elsewhere it prints a line at each tenth of the work or each minute, and nothing for work under five seconds.
"""

import collections
import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from distill.system.numbers import duration

if TYPE_CHECKING:
    from rich.console import Console

PATIENCE = 5.0  # seconds of work before the first line is printed
WINDOW = 10.0  # seconds over which a rate is averaged
REPORTS = 8
_MINUTE = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """`done` of `total` units of work, and a text such as a loss or tokens per second.

    A total of 0 is not known yet; with a total of 1, `done` is a fraction. `seconds_left` is the reporter's own
    estimate; if it is None, the display estimates it from the reports.
    """

    done: float
    total: float
    unit: str
    text: str = ""
    seconds_left: float | None = None

    def count(self) -> str:
        """'step 1,024/4,096', 'tokenizing 40%'; only the unit while the total is not known."""
        if not self.total:
            return self.unit
        if self.total == 1:
            return f"{self.unit} {self.done:.0%}".strip()
        return f"{self.unit} {self.done:,.0f}/{self.total:,.0f}".strip()


Show = Callable[[Progress], None]


class Rate:
    """Units per second over the last `WINDOW` seconds, or over the last `REPORTS` reports where those took longer.

    Counting starts at the first report, so what came before it (imports, compilation, work of an interrupted call) is
    excluded, and one slow interval is forgotten after ten seconds of frequent reports.
    """

    def __init__(self) -> None:
        self._reports: collections.deque[tuple[float, float]] = collections.deque()

    def update(self, done: float) -> float | None:
        """The rate, given that `done` units are done now; None until two reports are some time apart."""
        now = time.monotonic()
        if self._reports and done < self._reports[-1][1]:  # another piece of work
            self._reports.clear()
        self._reports.append((now, done))
        while len(self._reports) > REPORTS and self._reports[1][0] <= now - WINDOW:
            self._reports.popleft()
        began, first = self._reports[0]
        return (done - first) / (now - began) if now > began else None

    def left(self, progress: Progress) -> float | None:
        """Records a report and returns the seconds until the work is done; None while there is no rate yet."""
        rate = self.update(progress.done)
        if progress.seconds_left is not None:
            return progress.seconds_left
        return (progress.total - progress.done) / rate if rate and progress.total else None


def interactive() -> bool:
    """Whether stderr is a terminal that can redraw a line."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


@contextlib.contextmanager
def bar(text: str = "starting", *, shown: bool = True, transient: bool = False) -> Iterator[Show]:
    """Yields show(progress), which may be called at any frequency.

    `text` is shown until the first report. A transient bar is removed from the terminal at the end. Nothing is shown
    unless `shown` (false for all processes of a run but the first).
    """
    if not shown:
        yield lambda progress: None
    elif interactive():
        drawn = Bar(text, transient=transient)
        with drawn.display:
            yield drawn.show
    else:
        yield _Lines().show


@contextlib.contextmanager
def counter(unit: str, total: float) -> Iterator[Callable[..., None]]:
    """A transient `bar` for a loop that reports increments: yields add(amount, text='')."""
    done = 0.0
    with bar(unit, transient=True) as show:

        def add(amount: float, text: str = "") -> None:
            nonlocal done
            done += amount
            show(Progress(done=done, total=total, unit=unit, text=text))

        yield add


class Bar:
    """A bar on a console. `display` is rich's renderable, for a caller that draws more than the bar."""

    def __init__(self, text: str, console: "Console | None" = None, *, transient: bool = False) -> None:
        # Rich loads on first use: `import distill.laws` needs only jax, numpy and scipy.
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Display

        self.display = Display(
            TextColumn("{task.fields[count]}", markup=False),
            BarColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=console or Console(stderr=True),
            transient=transient,
        )
        self._rate, self._task = Rate(), self.display.add_task(text, total=None, count="", left="")

    def show(self, progress: Progress) -> None:
        left = self._rate.left(progress)
        self.display.update(
            self._task,
            completed=progress.done,
            total=progress.total or None,
            description=progress.text,
            count=progress.count(),
            left=f"{duration(left)} left" if left is not None else "",
        )


class _Lines:
    """Prints a line at each tenth of the way, or each minute where a tenth takes longer."""

    def __init__(self) -> None:
        self._began = self._printed = time.monotonic()
        self._unit, self._tenth, self._rate = "", -1, Rate()

    def show(self, progress: Progress) -> None:
        left, now = self._rate.left(progress), time.monotonic()
        tenth = int(10 * progress.done / progress.total) if progress.total else 0
        if self._tenth < 0 or progress.unit != self._unit:  # do not print what an earlier call had already done
            self._unit, self._tenth, self._printed = progress.unit, tenth, now
            return
        if now - self._began < PATIENCE or (tenth <= self._tenth and now - self._printed < _MINUTE):
            return
        self._printed, self._tenth = now, tenth
        parts = [f"{progress.count()}  {progress.text}".rstrip()]
        parts += [f"about {duration(left)} left"] if left is not None else []
        print(", ".join(parts), file=sys.stderr, flush=True)
