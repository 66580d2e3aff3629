"""Worker processes, each held to its own cores: two on a core each beat one on both at small sizes.

A worker takes one run at a time, tells how it goes, writes the finished run into the tables itself, and keeps what
the next run may need: the token store, compiled steps, and its teachers' signals up to `teacher.memory_gib`.
"""

import dataclasses
import multiprocessing
import signal
import traceback
from collections import OrderedDict
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from distill import runtime
from distill.config import DistillError, ExperimentConfig
from distill.runs import CurvePoint, CurveTable, RunRecord, RunTable, load_record
from distill.study.matrix import Planned

# Seconds that a run has for saving itself when its study is asked to end.
GRACE = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moment:
    """How far a run is, as its worker tells it."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Done:
    """A finished run."""

    record: RunRecord


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failed:
    """A run that ended with an error: one line for the screen, and all of it for error.txt."""

    line: str
    detail: str


class Worker:
    """A process that takes runs through a pipe."""

    def __init__(self, processors: list[int], workdir: Path):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, processors, workdir), daemon=True)
        self.process.start()
        theirs.close()
        self.task: Planned | None = None
        self.moment: Moment | None = None
        self.teacher = ""
        self.shapes: set[Any] = set()

    def give(self, task: Planned) -> None:
        self.task, self.moment, self.teacher = task, None, task.config.teacher.run
        self.shapes.add(shape(task))
        self.pipe.send(task)

    def stop(self) -> None:
        self.process.terminate()  # a run that is under way saves itself first
        self.process.join(GRACE)
        if self.process.is_alive():
            self.process.kill()


def shape(task: Planned) -> Any:
    """What a worker has compiled once it has done this task."""
    wanted = task.config.objective
    return task.config.model, bool(task.config.teacher.run), wanted.divergence, wanted.target, wanted.tempered


def _serve(pipe: Connection, processors: list[int], workdir: Path) -> None:
    """The life of a worker process."""
    runtime.die_with_parent()
    runtime.hold(processors)
    runtime.compile_quickly()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and ends its workers
    runtime.cache_compilations()
    memory = _Memory(workdir)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            record = memory.train(task, lambda p: pipe.send(Moment(**dataclasses.asdict(p))))
            pipe.send(Done(record=record))
        except runtime.Preempted:
            return
        except DistillError as error:
            pipe.send(Failed(line=str(error), detail=str(error)))
        except Exception as error:  # a study outlives any of its runs, whatever went wrong inside
            pipe.send(Failed(line=f"{type(error).__name__}: {error}".splitlines()[0], detail=traceback.format_exc()))


class _Memory:
    """What a worker keeps from run to run."""

    def __init__(self, workdir: Path):
        self._workdir = workdir
        self._stores: dict[Any, Any] = {}
        self._lessons: OrderedDict[Any, Any] = OrderedDict()

    def train(self, task: Planned, on_progress: Any) -> RunRecord:
        # Imported here, after the process has been held to its cores.
        from distill import lesson as lessons
        from distill import train

        config = task.config
        folder = self._workdir / "runs" / task.run
        key = dataclasses.replace(config.data, split="student")
        if key not in self._stores:
            self._stores[key] = lessons.open_store(config, self._workdir)
        lesson = self._lesson(config, self._stores[key]) if config.teacher.sources else None
        trunk = self._workdir / "trunks" / task.trunk if config.optim.schedule == "wsd" else None
        record = train.train(
            config, folder, store=self._stores[key], lesson=lesson, trunk=trunk, on_progress=on_progress
        )
        tabulate(self._workdir, record, folder)
        runtime.forget_programs()
        return record

    def _lesson(self, config: ExperimentConfig, store: Any) -> Any:
        # What a lesson depends on; a student's size, rate and objective are not among it.
        key = (config.teacher, config.data, config.seq_len, config.eval, config.mesh, config.model.vocab_size)
        if key not in self._lessons:
            self._lessons[key] = open_lesson(config, store)
        self._lessons.move_to_end(key)
        limit = config.teacher.memory_gib * 2**30
        while len(self._lessons) > 1 and sum(lesson.bytes for lesson in self._lessons.values()) > limit / 2:
            self._lessons.popitem(last=False)
        return self._lessons[key]


def open_lesson(config: ExperimentConfig, store: Any) -> Any:
    """A teacher that may serve several runs, on the mesh that they all make."""
    import jax

    from distill import lesson as lessons
    from distill import mesh

    with jax.set_mesh(mesh.make(config.mesh)):
        return lessons.Lesson(store, config)


def collect(workdir: Path, tasks: Sequence[Planned]) -> set[str]:
    """The finished runs, by their result.json; a row that a killed worker did not get to write is written now."""
    known = RunTable(workdir / "runs.csv").runs()
    for task in tasks:
        record = load_record(workdir / "runs" / task.run / "result.json")
        if record is not None and task.run not in known:
            tabulate(workdir, record, workdir / "runs" / task.run)
            known[task.run] = record
    return set(known)


def tabulate(workdir: Path, record: RunRecord, folder: Path) -> None:
    """Writes a finished run into runs.csv and its losses into curves.csv, each once."""
    from distill.meter import read_metrics

    curves = CurveTable(workdir / "curves.csv")
    if record.run not in {point.run for point in curves.load()}:
        each = record.flops_student / record.D
        curves.append(
            [
                CurvePoint(run=record.run, step=m["step"], tokens=m["tokens"], flops=each * m["tokens"], loss=m["ntp"])
                for m in read_metrics(folder / "metrics.jsonl")
            ]
        )
    RunTable(workdir / "runs.csv").add(record)
