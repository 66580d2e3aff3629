"""How a study goes, on a terminal: a bar over all runs with the time left, and a line for each run under way."""

import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from distill.study.matrix import PlannedRun
from distill.study.workers import FailedMessage, FinishedMessage, Worker
from distill.system.numbers import duration


class StudyScreen:
    """A bar and a line for each run under way; without a terminal, only a line for each run that ends."""

    def __init__(self, tasks: Sequence[PlannedRun], done: set[str], console: Console):
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False), console=console,
        )  # fmt: skip
        self._total = len(tasks)
        self._count = sum(task.run in done for task in tasks)
        self._id = self._bar.add_task("runs", total=self._total, completed=self._count)
        self._live = Live(self._bar, console=console, refresh_per_second=4, transient=True)
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
        self._bar.update(self._id, completed=self._count)
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
        """Redraws the lines of the runs under way."""
        running = [(task, worker.progress.get(run)) for worker in workers for run, task in worker.tasks.items()]
        for task, _ in running:
            self._began.setdefault(task.run, time.monotonic())
        if not self._console.is_terminal:
            return
        grid = Table.grid(padding=(0, 2))
        for task, m in running:
            if m is None:
                grid.add_row(task.name, "starting")
                continue
            left = (m.steps - m.step) * (task.config.batch_size * task.config.seq_len)
            grid.add_row(
                task.name, f"step {m.step:,d}/{m.steps:,d}", f"loss {m.loss:.4f}",
                f"{m.tokens_per_second / 1e3:,.1f}k tokens/s", f"{duration(left / max(m.tokens_per_second, 1))} left",
            )  # fmt: skip
        self._live.update(Group(self._bar, grid))
