"""Runs a study's runs on its workers, in the order of their needs, and shows how it goes.

A run waits for its teacher and for the shorter runs of its trunk, whose state it continues; students of the largest
budget wait for all others, from which they are predicted. Among those that may start, a worker takes a teacher that
others wait for; then, rather than take a new teacher's signals, one of the teacher that it holds, or without one as it
has had so far; and of these the trunk with the most left to do, so that no long one is left for the end.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from distill.study import workers
from distill.study.matrix import LAST, Planned
from distill.study.workers import Done, Failed, Moment, Worker
from distill.system import process
from distill.system.files import atomic_write


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a study: the names of finished and of failed runs (with the error's first line)."""

    finished: tuple[str, ...]
    failed: dict[str, str]


def run_all(
    tasks: Sequence[Planned],
    done: set[str],
    workdir: Path,
    n_workers: int,
    before_start: Callable[[Sequence[Planned]], None],
    console: Console,
    pack: int = 1,
) -> Outcome:
    """Runs what is not `done` yet; `before_start` is called with runs that are about to start.

    A worker trains up to `pack` runs of one shape together.

    A failed run is recorded in its error.txt; the others go on, except those that need it. Raises Preempted when the
    system, or Ctrl-C, asks this process to end.
    """
    waiting = [task for task in tasks if task.run not in done]
    finished: list[str] = []
    failed: dict[str, str] = {}
    if not waiting:
        return Outcome(finished=(), failed={})
    processors = process.cores()
    n = max(1, min(n_workers, len(waiting)))
    share = max(len(processors) // n, 1)
    places = [processors[i * share % len(processors) :][:share] for i in range(n)]
    team = [Worker(place, workdir) for place in places]
    screen = _Screen(tasks, done, console)
    try:
        with screen, process.heed() as notice:
            while waiting or any(worker.tasks for worker in team):
                if notice.given:
                    raise process.Preempted(
                        f"{notice.given}: {len(finished)} runs were finished and those under way are saved in "
                        f"{workdir}; run the same command again to continue"
                    )
                for worker in [w for w in team if not w.tasks]:
                    chosen = _choose(waiting, worker, [task for w in team for task in w.tasks.values()], pack)
                    if not chosen:
                        continue
                    before_start(chosen)
                    for task in chosen:
                        waiting.remove(task)
                    worker.give(chosen)
                if not any(worker.tasks for worker in team):
                    raise AssertionError(f"nothing may start of {', '.join(task.name for task in waiting)}")
                for worker in _heard(team):
                    for message in _messages(worker):
                        if isinstance(message, Moment):
                            worker.moments[message.run] = message
                            continue
                        task = worker.tasks.pop(message.run)
                        if isinstance(message, Done):
                            finished.append(task.name)
                            screen.finish(task, message)
                            continue
                        failed[task.name] = message.line
                        screen.fail(task, message)
                        atomic_write(workdir / "runs" / task.run / "error.txt", message.detail + "\n")
                        for orphan in [t for t in waiting if _needs(t, task)]:
                            waiting.remove(orphan)
                            failed[orphan.name] = f"not run: it needs {task.name}, which failed"
                    if not worker.tasks and not worker.process.is_alive():
                        place = places[team.index(worker)]
                        team[team.index(worker)] = Worker(place, workdir)
                screen.show(team)
    finally:
        for worker in team:
            worker.process.terminate()
        for worker in team:
            worker.stop()
    return Outcome(finished=tuple(finished), failed=failed)


def _needs(task: Planned, other: Planned) -> bool:
    return task.config.teacher.run == other.run


def _choose(waiting: list[Planned], worker: Worker, busy: list[Planned], pack: int = 1) -> list[Planned]:
    """The best run that may start now on this worker, first, and up to `pack` in all that can be trained with it."""
    if not waiting:
        return []
    trunks = {task.trunk for task in busy}
    # A teacher from elsewhere, as a sweep may have one, is no run of ours to wait for.
    unfinished = {task.run for task in (*waiting, *busy)}
    only_last = all(task.stage == LAST for task in (*waiting, *busy))
    teachers = {task.config.teacher.run for task in waiting}
    shortest: dict[str, int] = {}
    left: dict[str, float] = {}  # as if each run were trained from its start: enough for an order
    awaited = set()
    for task in waiting:
        shortest[task.trunk] = min(shortest.get(task.trunk, task.config.tokens), task.config.tokens)
        left[task.trunk] = left.get(task.trunk, 0.0) + task.flops
        if task.run in teachers:
            awaited.add(task.trunk)
    free = [
        task
        for task in waiting
        if (only_last or task.stage < LAST)
        and task.config.teacher.run not in unfinished
        and task.trunk not in trunks
        and task.config.tokens == shortest[task.trunk]
    ]
    held = {task.config.teacher.run for task in busy}

    def worth(task: Planned) -> tuple[bool, bool, bool, float, bool]:
        teacher = task.config.teacher.run
        mine = teacher == worker.teacher
        compiled = workers.shape(task) in worker.shapes
        return task.trunk in awaited, mine, teacher not in held, left[task.trunk], compiled

    free.sort(key=worth, reverse=True)
    chosen = free[:1]
    for task in free[1:] if pack > 1 else ():
        alone = all(task.trunk != other.trunk for other in chosen)
        if alone and len(chosen) < pack and workers.packable(task) == workers.packable(chosen[0]):
            chosen.append(task)
    return chosen


def _heard(team: list[Worker]) -> list[Worker]:
    """The workers that have something to say, or have died; waits a little where there is none."""
    pipes = {worker.pipe: worker for worker in team if worker.tasks}
    return [pipes[pipe] for pipe in wait(list(pipes), timeout=0.2) if pipe in pipes]  # type: ignore[index]


def _messages(worker: Worker) -> list[Moment | Done | Failed]:
    """What a worker says; where it has died, that each of its runs has failed."""
    try:
        return [worker.pipe.recv()]
    except (EOFError, ConnectionError):
        worker.process.join(5)
        line = f"its process ended (exit code {worker.process.exitcode}); out of memory, perhaps"
        return [Failed(run=run, line=line, detail=line) for run in worker.tasks]


class _Screen:
    """A bar over all runs with the time left, and a line a worker; plain lines where there is no terminal."""

    def __init__(self, tasks: Sequence[Planned], done: set[str], console: Console):
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

    def __enter__(self) -> "_Screen":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def finish(self, task: Planned, message: Done) -> None:
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

    def fail(self, task: Planned, message: Failed) -> None:
        self._console.print(f"[red]failed[/] {task.name}: {message.line}")

    def show(self, team: list[Worker]) -> None:
        running = [(task, worker.moments.get(run)) for worker in team for run, task in worker.tasks.items()]
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
                f"{m.tokens_per_second / 1e3:,.1f}k tokens/s", f"{left / max(m.tokens_per_second, 1):.0f} s left",
            )  # fmt: skip
        self._live.update(Group(self._bar, grid))
