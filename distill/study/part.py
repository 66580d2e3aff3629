"""One part of a study in this program, whoever started it: some runs in turn, the predictions, or the conclusion.

A part with runs writes runs/ and trunks/ alone. Tables, predictions, laws and the report have one writer: `predict` and
`conclude`, which hold the lock of the workdir.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from distill.config import ConfigError, DistillError
from distill.records.runs import RunRecord
from distill.records.study_table import StudyTable
from distill.study import ledger, run, sweep, sweep_elsewhere
from distill.study.matrix import PlannedRun
from distill.study.tables import Tables, finished
from distill.study.units import CONCLUDE, PREDICT
from distill.study.workers import FailedMessage, FinishedMessage, Message, Trainer
from distill.system import distributed, preemption, process
from distill.system.files import atomic_write

PATIENCE = 60.0  # seconds for the end of a former attempt whose host was cut off


def carry_out(workdir: Path, part: str, console: Console) -> int:
    """Carries out a part of the study or sweep in `workdir`: RUN,RUN or PREDICT or CONCLUDE. Returns 1 if a run failed.

    Raises ConfigError for a run that the study does not have, Preempted when asked to stop or where another process
    holds a run for too long.
    """
    if part == PREDICT:
        return _predict(workdir, console)
    if part == CONCLUDE:
        return _conclude(workdir, console)
    tasks = chosen(workdir, part)
    process.use_fast_cpu_compilation()
    process.cache_compilations()
    if distributed.several():
        return _train_together(workdir, tasks, console)
    return train(workdir, tasks, Trainer(workdir), console)


def chosen(workdir: Path, part: str) -> list[PlannedRun]:
    """The runs of a part, in its order. Raises ConfigError."""
    tasks = sweep_elsewhere.prepared(workdir) if sweep_elsewhere.is_sweep(workdir) else run.prepared(workdir)[1]
    by_run = {task.run: task for task in tasks}
    if unknown := [name for name in part.split(",") if name not in by_run]:
        raise ConfigError(
            f"--part={part}: the study in {workdir} has no run {unknown[0]!r}; wanted RUN,RUN, {PREDICT} or {CONCLUDE}"
        )
    return [by_run[name] for name in part.split(",")]


def train(workdir: Path, tasks: Sequence[PlannedRun], trainer: Trainer, console: Console) -> int:
    """Trains runs in turn; one that fails leaves error.txt, and the others go on. Returns 1 if one failed, else 0."""
    failed = 0
    for task in tasks:
        with patient_lock(workdir / "runs" / task.run):
            pass  # free: the run takes it itself
        ended: list[Message] = []
        trainer.train([task], ended.append)
        match ended[-1]:
            case FinishedMessage(record=record):
                _say(console, task, record)
            case FailedMessage() as message:
                failed += 1
                _report_failure(workdir, task, message.line, message.detail, console)
    return 1 if failed else 0


def _train_together(workdir: Path, tasks: Sequence[PlannedRun], console: Console) -> int:
    """The same on several hosts: every process trains the same runs in the same order. Process 0 writes and prints."""
    from distill.training import inputs, loop

    with distributed.process_zero_first():
        store = inputs.open_store(tasks[0].config, workdir)
    for task in tasks:
        folder = workdir / "runs" / task.run
        trunk = workdir / "trunks" / task.trunk if task.config.optim.schedule == "wsd" else None
        with distributed.raise_everywhere():
            if distributed.first():
                with patient_lock(folder):
                    ledger.begin(workdir, task)
        try:
            record = loop.train(task.config, folder, store=store, trunk=trunk)
        except preemption.Preempted:
            raise
        except DistillError as error:
            if distributed.first() and not distributed.lost(error):
                _report_failure(workdir, task, str(error), str(error), console)
            raise
        if distributed.first():
            _say(console, task, record)
    return 0


@contextlib.contextmanager
def patient_lock(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """The lock of a folder, as soon as no other process has it. Raises Preempted after `patience` seconds.

    A host that was cut off may still train what its scheduler gave to another: the lock keeps the second out, and a
    part that ends so is tried again.
    """
    deadline = time.monotonic() + patience
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(process.folder_lock(folder))
                break
            except process.FolderLocked as error:
                if time.monotonic() > deadline:
                    raise preemption.Preempted(str(error)) from None
                time.sleep(1)
        yield


def _say(console: Console, task: PlannedRun, record: RunRecord) -> None:
    console.print(f"{task.name} ({task.run}): loss {record.loss:.4f}", highlight=False, markup=False, soft_wrap=True)


def _report_failure(workdir: Path, task: PlannedRun, line: str, detail: str, console: Console) -> None:
    atomic_write(workdir / "runs" / task.run / "error.txt", detail + "\n")
    console.print(f"failed {task.name} ({task.run}): {line}", highlight=False, markup=False, soft_wrap=True)


def _predict(workdir: Path, console: Console) -> int:
    """Collects the finished runs, fits the laws and predicts the runs of the last stage that have not begun."""
    from distill.study import analysis

    config, tasks = run.prepared(workdir)
    process.cache_compilations()
    with patient_lock(workdir):
        Tables(workdir).collect(tasks)
        table = StudyTable.read(workdir / "runs.csv")
        ledger.predict_last(analysis.fit(config, table), workdir, tasks, table, console)
    return 0


def _conclude(workdir: Path, console: Console) -> int:
    """Collects the finished runs and makes laws, plan and report of them. Returns 1 if runs are missing."""
    if sweep_elsewhere.is_sweep(workdir):
        tasks = sweep_elsewhere.prepared(workdir)
        with patient_lock(workdir):
            Tables(workdir).collect(tasks)
            sweep.show(tasks, workdir, console)
    else:
        config, tasks = run.prepared(workdir)
        with patient_lock(workdir):
            Tables(workdir).collect(tasks)
            run.conclude(config, workdir, console)
    missing = [task.name for task in tasks if finished(workdir, task) is None]
    console.print(f"{len(tasks) - len(missing)} of {len(tasks)} runs are finished", highlight=False)
    for name in missing[:10]:
        console.print(f"missing: {name}", highlight=False, markup=False)
    return 1 if missing else 0
