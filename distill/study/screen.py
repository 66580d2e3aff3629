"""A study's progress on a terminal: a bar over all runs with the time left, and a line for each active run."""

import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from distill.study.matrix import PlannedRun
from distill.study.workers import FailedMessage, FinishedMessage, Worker
from distill.system.numbers import duration
from distill.system.progress import Bar, Progress


class StudyScreen:
    """A bar and a line for each active run; without a terminal, only a line for each run that ends."""

    def __init__(self, tasks: Sequence[PlannedRun], done: set[str], console: Console):
        self._console = console
        self._total = len(tasks)
        self._count = sum(task.run in done for task in tasks)
        self._bar = Bar("", console)
        self._show_count()
        self._live = Live(self._bar.display, console=console, refresh_per_second=4, transient=True)
        self._began: dict[str, float] = {}

    def __enter__(self) -> "StudyScreen":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def finish(self, task: PlannedRun, message: FinishedMessage) -> None:
        """Prints the line of a finished run."""
        self._count += 1
        self._show_count()
        record = message.record
        taught = f", L_T {record.L_T:.4f}" if record.L_T is not None else ""
        seconds = time.monotonic() - self._began.pop(task.run, time.monotonic())
        self._console.print(
            f"[{self._count:3d}/{self._total}] {task.name:<20} N {record.N:>9,d}  D {record.D:>11,d}  "
            f"loss {record.loss:.4f} ± {record.loss_se:.4f}{taught}  ({seconds:.1f} s)",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    def fail(self, task: PlannedRun, message: FailedMessage) -> None:
        """Prints the line of a failed run."""
        self._console.print(f"[red]failed[/] {task.name}: {message.line}")

    def show(self, workers: Sequence[Worker]) -> None:
        """Redraws the lines of the active runs."""
        running = [(task, worker.progress.get(run)) for worker in workers for run, task in worker.tasks.items()]
        for task, _ in running:
            self._began.setdefault(task.run, time.monotonic())
        if not self._console.is_terminal:
            return
        grid = Table.grid(padding=(0, 2))
        for task, message in running:
            if message is None:
                grid.add_row(task.name, "starting")
                continue
            now = message.progress
            left = f"{duration(now.seconds_left)} left" if now.seconds_left is not None else ""
            grid.add_row(task.name, now.count(), now.text, left)
        self._live.update(Group(self._bar.display, grid))

    def _show_count(self) -> None:
        self._bar.show(Progress(done=self._count, total=self._total, unit="run"))
