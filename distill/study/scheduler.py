"""Executes the runs of a study or a sweep on worker processes, in an order that respects their dependencies.

A run waits for its teacher and for the shorter runs of its trunk, whose state it continues; students of the largest
budget wait for all others, from which they are predicted. Among the runs that may start, a worker prefers, in this
order: a teacher that others wait for; the teacher that it already holds (or none, as before); a teacher that no other
worker holds; the trunk with the most remaining FLOPs, so that long ones start early; a program that it has compiled.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import cast

from rich.console import Console

from distill.config import ConfigError
from distill.study import places
from distill.study.matrix import LAST_STAGE, PlannedRun
from distill.study.screen import StudyScreen
from distill.study.tables import Tables
from distill.study.workers import FailedMessage, FinishedMessage, ProgressMessage, Worker, compile_key, vmap_key
from distill.system import preemption, process
from distill.system.files import atomic_write


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """The names of the runs that finished, and of those that failed with the first line of their error."""

    finished: tuple[str, ...]
    failed: dict[str, str]


def run_all(
    tasks: Sequence[PlannedRun],
    done: set[str],
    workdir: Path,
    console: Console,
    *,
    n_workers: int,
    pack: int = 1,
    before_start: Callable[[Sequence[PlannedRun]], None] = lambda _: None,
) -> Outcome:
    """Runs all that are not `done` on `n_workers` processes; `before_start` gets the runs that are about to start.

    A worker trains up to `pack` runs of one shape together. A failed run writes its error.txt; the others continue,
    except those that depend on it. Raises Preempted when the system or Ctrl-C asks this process to stop.
    """
    queue = _Queue(tasks, done)
    if not queue.waiting:
        return queue.outcome()
    tables = Tables(workdir)
    team = _Team(shares(queue.waiting, n_workers), workdir)
    screen = StudyScreen(tasks, done, console)
    try:
        with screen, preemption.catch_preemption() as flag:
            while queue.waiting or team.running():
                if flag.signal:
                    raise preemption.Preempted(
                        f"{flag.signal}: {len(queue.finished)} runs were finished and those under way are saved in "
                        f"{workdir}; run the same command again to continue"
                    )
                for worker in team.idle():
                    if chosen := pick_next(queue.waiting, worker, team.running(), pack):
                        before_start(chosen)
                        queue.start(chosen)
                        worker.assign(chosen)
                if not team.running():
                    raise AssertionError(f"nothing may start of {', '.join(task.name for task in queue.waiting)}")
                for task, message in team.ended():
                    if isinstance(message, FinishedMessage):
                        tables.add(message.record)
                        queue.finished.append(task.name)
                        screen.finish(task, message)
                        continue
                    queue.fail(task, message.line)
                    screen.fail(task, message)
                    atomic_write(workdir / "runs" / task.run / "error.txt", message.detail + "\n")
                team.replace_dead()
                screen.show(team.workers)
    finally:
        team.stop()
    return queue.outcome()


class _Queue:
    """The runs of a study: those that wait, in the given order, and the outcome of the others."""

    def __init__(self, tasks: Sequence[PlannedRun], done: set[str]):
        self.waiting = [task for task in tasks if task.run not in done]
        self.finished: list[str] = []
        self.failed: dict[str, str] = {}

    def start(self, tasks: Sequence[PlannedRun]) -> None:
        for task in tasks:
            self.waiting.remove(task)

    def fail(self, task: PlannedRun, line: str) -> None:
        """Marks a run as failed, and the waiting runs that depend on it as not run."""
        self.failed[task.name] = line
        for orphan in [other for other in self.waiting if task.run in other.teachers]:
            if orphan in self.waiting:
                self.waiting.remove(orphan)
                self.fail(orphan, f"not run: it needs {task.name}, which failed")

    def outcome(self) -> Outcome:
        return Outcome(finished=tuple(self.finished), failed=self.failed)


def shares(tasks: Sequence[PlannedRun], n_workers: int) -> list[process.Share]:
    """The parts of this machine, one a worker: as many accelerators as places say, or all of them shared out.

    Raises ConfigError for places of more accelerators than there are.
    """
    gpus, tpus = process.gpus(), process.tpus()
    each = places.devices_of(task.place for task in tasks) if gpus or tpus else 0
    if each > (there := len(gpus or tpus)):
        raise ConfigError(
            f"config.study.places: {tasks[0].name} is for {each} accelerators, and this machine has {there}; choose "
            "another backend, or a smaller mesh"
        )
    n = max(min(n_workers, len(tasks)), 1)
    return process.shares(n, process.cores(), gpus, tpus, each)[: len(tasks)]


class _Team:
    """Worker processes, each on its own cores and accelerators."""

    def __init__(self, shares: Sequence[process.Share], workdir: Path):
        self._workdir, self._shares = workdir, shares
        self.workers = [Worker(share, workdir) for share in self._shares]

    def idle(self) -> list[Worker]:
        return [worker for worker in self.workers if not worker.tasks]

    def running(self) -> list[PlannedRun]:
        """The active runs."""
        return [task for worker in self.workers for task in worker.tasks.values()]

    def ended(self) -> Iterator[tuple[PlannedRun, FinishedMessage | FailedMessage]]:
        """Reads the workers' messages, waiting briefly for them: yields the runs that ended, stores progress."""
        pipes = {worker.pipe: worker for worker in self.workers if worker.tasks}
        for pipe in wait(list(pipes), timeout=0.2):
            worker = pipes[cast(Connection, pipe)]
            for message in worker.receive():
                if isinstance(message, ProgressMessage):
                    worker.progress[message.run] = message
                else:
                    yield worker.tasks.pop(message.run), message

    def replace_dead(self) -> None:
        for i, worker in enumerate(self.workers):
            if not worker.tasks and not worker.process.is_alive():
                self.workers[i] = Worker(self._shares[i], self._workdir)

    def stop(self) -> None:
        """Asks all workers to stop, and then waits for each: their runs save themselves concurrently."""
        for worker in self.workers:
            worker.process.terminate()
        for worker in self.workers:
            worker.stop()


def pick_next(waiting: list[PlannedRun], worker: Worker, busy: list[PlannedRun], pack: int = 1) -> list[PlannedRun]:
    """The best run that may start now on this worker, and up to `pack` - 1 more that can be trained with it."""
    if not waiting:
        return []
    left: dict[str, float] = {}  # FLOPs by trunk, as if each run were trained from its start: exact enough for an order
    for task in waiting:
        left[task.trunk] = left.get(task.trunk, 0.0) + task.flops
    teachers = {run for task in waiting for run in task.teachers}
    awaited = {task.trunk for task in waiting if task.run in teachers}
    held = {task.config.teacher.run for task in busy}

    def preference(task: PlannedRun) -> tuple[bool, bool, bool, float, bool]:
        teacher = task.config.teacher.run
        compiled = compile_key(task) in worker.compiled
        return task.trunk in awaited, teacher == worker.teacher, teacher not in held, left[task.trunk], compiled

    ready = sorted(_startable(waiting, busy), key=preference, reverse=True)
    chosen = ready[:1]
    for task in ready[1:] if pack > 1 else ():
        alone = all(task.trunk != other.trunk for other in chosen)
        if alone and len(chosen) < pack and vmap_key(task) == vmap_key(chosen[0]):
            chosen.append(task)
    return chosen


def _startable(waiting: list[PlannedRun], busy: list[PlannedRun]) -> list[PlannedRun]:
    """The runs whose teacher and whose trunk's shorter runs are finished."""
    trunks = {task.trunk for task in busy}
    # A teacher from outside, as in some sweeps, is not among the runs to wait for.
    unfinished = {task.run for task in (*waiting, *busy)}
    only_last = all(task.stage == LAST_STAGE for task in (*waiting, *busy))
    shortest: dict[str, int] = {}
    for task in waiting:
        shortest[task.trunk] = min(shortest.get(task.trunk, task.config.tokens), task.config.tokens)
    return [
        task
        for task in waiting
        if (only_last or task.stage < LAST_STAGE)
        and unfinished.isdisjoint(task.teachers)
        and task.trunk not in trunks
        and task.config.tokens == shortest[task.trunk]
    ]
