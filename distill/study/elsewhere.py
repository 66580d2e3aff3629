"""A study or sweep on other machines: its units go to a backend, which runs `launch.study --part=...` there."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from rich.console import Console

from distill.config import StudyExperimentConfig
from distill.study import driver, execute, ledger, matrix, run, slurm, units
from distill.study.board import Board
from distill.study.matrix import LAST_STAGE, PlannedRun
from distill.study.tables import Tables
from distill.study.units import Unit
from distill.system import process


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A study or sweep as a backend gets it: all runs, those that are finished, the command whose --part jobs run."""

    workdir: Path
    tasks: Sequence[PlannedRun]
    done: frozenset[str]
    command: tuple[str, ...]

    def units(self, queued: Sequence[str] = ()) -> list[Unit]:
        """What is left, in an order in which each unit comes after what it needs."""
        return units.remaining(units.make(self.tasks), self.done, queued)


def opened(config: StudyExperimentConfig, workdir: Path, command: str, console: Console) -> Study:
    """Prepares the folder of a study: text, config.txt, study.json, the tables of what is finished.

    Runs that were added to a study that has a law are predicted now. The caller holds the lock of the folder. Raises
    ConfigError for runs that several hosts cannot train, before anything is written.
    """
    matrix.refuse_memory_of_several(run.planned(config, workdir))
    config, tasks = run.prepare(config, workdir)
    execute.write_note(tasks, workdir, run.note(config, tasks, command))
    tables = Tables(workdir)
    tables.collect(tasks)
    done = frozenset(task.run for task in tasks if task.run in tables.runs)
    if added := [task for task in tasks if task.stage != LAST_STAGE and task.run not in done]:
        ledger.Predictor(config, workdir, tasks, console)(added)
    console.print(f"{len(tasks)} runs, {len(done)} of them finished, in {workdir}", highlight=False)
    part = ("python", "-m", "launch.study", f"--workdir={workdir}")
    return Study(workdir=workdir, tasks=tasks, done=done, command=part)


def print_units(config: StudyExperimentConfig, workdir: Path, command: str) -> int:
    """Prints the units that are left, one JSON object a line: their command, and the names of the units before it.

    `needs` must have succeeded and `after` must have ended; `outputs` are files that are there when it has succeeded.
    """
    with process.folder_lock(workdir):
        study = opened(config, workdir, command, Console(stderr=True))
    left = study.units()
    names = {key: unit.name for unit in left for key in unit.keys}
    for unit in left:
        outputs = [f"runs/{task.run}/result.json" for task in unit.runs]
        outputs += {units.PREDICT: [ledger.UNPREDICTED], units.CONCLUDE: ["report/index.html"]}.get(unit.name, [])
        tree = {
            "name": unit.name,
            "command": [*study.command, f"--part={unit.part}"],
            "hosts": unit.place.hosts,
            "needs": sorted({names[key] for key in unit.needs}),
            "after": sorted({names[key] for key in unit.after}),
            "outputs": [str(workdir / path) for path in outputs],
        }
        print(json.dumps(tree))
    return 0


def submit(
    workdir: Path, prepare: Callable[[Console], Study], *, script: Path, flags: Sequence[str], follow: bool = False
) -> int:
    """Submits what is left of a study or sweep to Slurm by launch/slurm.sh (`script`, with `flags`); see slurm.py.

    Returns 0, or with `follow`, which waits for the end, 1 where runs are missing. Raises SlurmError, and FolderLocked
    while a driver of the folder lives.
    """
    console = Console()
    with driver.lock(workdir), process.folder_lock(workdir):
        study, jobs = prepare(console), slurm.Jobs(workdir, script, flags)
        alive = jobs.alive()
        left = study.units(list(alive))
        n_queued = sum(task.run in alive for task in study.tasks)
        if len(left) == 1 and alive:
            left = []  # nothing but a conclusion, and the one that is queued does
        count = jobs.submit(left, alive, study.command)
    console.print(f"{count} jobs submitted; {n_queued} runs were in the queue already", highlight=False)
    if not follow:
        return 0
    board = Board(study.tasks, workdir, console)
    jobs.follow(board)
    return _end(board, console)


def drive(
    workdir: Path,
    prepare: Callable[[Console], Study],
    engine: Callable[[Study], AbstractContextManager[driver.Engine]],
) -> int:
    """Runs what is left of a study or sweep on an engine, from this process, which may be killed and started again.

    Returns 1 where runs are missing at the end, else 0. Raises SlurmError where jobs of it are queued, and FolderLocked
    while another driver of the folder lives.
    """
    console = Console()
    slurm.refuse_beside_jobs(workdir)
    with driver.lock(workdir):
        with process.folder_lock(workdir):
            study = prepare(console)
        board = Board(study.tasks, workdir, console)

        def show(lines: list[str]) -> None:
            board.refresh()
            for line in lines:
                if not line.startswith("finished"):  # the board says so, run by run
                    console.print(line, highlight=False, markup=False, soft_wrap=True)

        with engine(study) as hosts:
            outcome = driver.drive(study.units(), hosts, show)
    for name, why in outcome.failed.items():
        console.print(f"failed {name}: {why}", highlight=False, markup=False, soft_wrap=True)
    return _end(board, console)


def _end(board: Board, console: Console) -> int:
    board.refresh()
    for name in (missing := board.missing())[:10]:
        console.print(f"missing: {name}; the same command tries it again", highlight=False, markup=False)
    return 1 if missing else 0
