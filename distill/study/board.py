"""How a study goes that runs elsewhere: a line for each run that ends, read from the folders of its runs."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from distill.study.matrix import PlannedRun
from distill.study.tables import finished


class Board:
    """Prints a line for each run that has ended since it was last asked."""

    def __init__(self, tasks: Sequence[PlannedRun], workdir: Path, console: Console):
        self._workdir, self._console, self._total = workdir, console, len(tasks)
        self.done = {task.run for task in tasks if finished(workdir, task) is not None}
        self._open = [task for task in tasks if task.run not in self.done]
        self._seen = {task.run: self._failure(task) for task in self._open}  # failures of former attempts

    def refresh(self) -> None:
        """Prints what has happened since."""
        for task in list(self._open):
            if (record := finished(self._workdir, task)) is not None:
                self._open.remove(task)
                self.done.add(task.run)
                taught = f", L_T {record.L_T:.4f}" if record.L_T is not None else ""
                self._print(f"[{len(self.done):3d}/{self._total}] {task.name:<20} loss {record.loss:.4f}{taught}")
            elif (failure := self._failure(task)) != self._seen[task.run]:
                self._seen[task.run] = failure
                self._print(f"failed {task.name}: {failure[1]}")

    def missing(self) -> list[str]:
        """The names of the runs that have not finished."""
        return [task.name for task in self._open]

    def _failure(self, task: PlannedRun) -> tuple[float, str]:
        """When a run last failed, and the last line of why."""
        path = self._workdir / "runs" / task.run / "error.txt"
        try:
            return path.stat().st_mtime, path.read_text("utf-8").strip().splitlines()[-1]
        except (OSError, IndexError):
            return 0.0, ""

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)
