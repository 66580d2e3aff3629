"""Shared by studies and sweeps: runs the remaining tasks on workers and reports those that failed."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from distill.study import scheduler
from distill.study.matrix import PlannedRun
from distill.study.tables import Tables
from distill.system.files import atomic_write


def execute(
    tasks: Sequence[PlannedRun],
    workdir: Path,
    console: Console,
    *,
    note: Mapping[str, object],
    n_workers: int,
    pack: int = 1,
    before_start: Callable[[Sequence[PlannedRun]], None] = lambda _: None,
) -> scheduler.Outcome:
    """Runs the tasks that are not finished yet; the arguments are those of `scheduler.run_all`.

    Writes study.json first (`write_note`). Raises Preempted when the system or Ctrl-C asks this process to stop.
    """
    write_note(tasks, workdir, note)
    tables = Tables(workdir)
    tables.collect(tasks)
    done = tables.runs
    n_done = sum(task.run in done for task in tasks)
    console.print(f"{len(tasks)} runs, {n_done} of them finished, in {workdir}", highlight=False)
    return scheduler.run_all(tasks, done, workdir, console, n_workers=n_workers, pack=pack, before_start=before_start)


def write_note(tasks: Sequence[PlannedRun], workdir: Path, note: Mapping[str, object]) -> None:
    """Writes study.json: `note`, and the name and the teacher (of an ensemble, all) of every run by its fingerprint.

    From it a report lists missing runs, and `watch` says what they wait for.
    """
    planned = {task.run: task.name for task in tasks}
    teachers = {t.run: t.config.teacher.run for t in tasks if planned.keys() & set(t.teachers)}
    tree = {**note, "planned": planned, "teachers": teachers}
    atomic_write(workdir / "study.json", json.dumps(tree, indent=1) + "\n")


def print_failures(outcome: scheduler.Outcome, console: Console) -> int:
    """Prints a line for each failed run; returns the exit status: 1 if runs failed, else 0."""
    for name, line in outcome.failed.items():
        console.print(f"[red]failed[/] {name}: {line}; run the same command to try it again", highlight=False)
    return 1 if outcome.failed else 0
