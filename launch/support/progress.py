"""How far a long command is: a bar with rate and time left, or lines where there is no terminal."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

_MINUTE = 60.0

Show = Callable[[float, float, str], None]


class _CountColumn(ProgressColumn):
    """'step 1,024/4,096'; the unit alone until the total is known (imports, data and compilation come before it)."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text(self.unit)
        return Text(f"{self.unit} {task.completed:,.0f}/{task.total:,.0f}")


@contextlib.contextmanager
def bar(unit: str, *, what: str = "starting", shown: bool = True) -> Iterator[Show]:
    """Yields show(done, total, text), to be called as often as one likes.

    Without a terminal it prints a line each tenth of the way, or each minute where a tenth takes longer. Unless
    `shown`, it says nothing (all processes of a run but the first).
    """
    console = Console(stderr=True)
    columns = (
        _CountColumn(unit),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not (console.is_terminal and shown)) as progress:
        task, began = progress.add_task(what, total=None), time.monotonic()
        told, first, tenth = began, 0.0, -1

        def show(done: float, total: float, text: str) -> None:
            nonlocal told, first, tenth
            progress.update(task, completed=done, total=total, description=text)
            now, part = time.monotonic(), int(10 * done / max(total, 1))
            if tenth < 0:  # what an interrupted run had done counts for no speed
                told, first, tenth = now, done, part
            elif shown and not console.is_terminal and (part > tenth or now - told > _MINUTE):
                told, tenth = now, part
                left = (total - done) * (now - began) / max(done - first, 1e-9)
                line = f"{unit} {done:,.0f}/{total:,.0f}  {text}, about {left:,.0f} s left"
                console.print(line, highlight=False)

        yield show
