"""Worker processes, each held to its own cores: two on a core each beat one on both at small sizes.

A worker takes one run at a time, or a pack of them (pack.py), tells how they go, writes finished runs into the tables
itself, and keeps what the next ones may need: the token store, compiled steps, and its teachers' signals up to
`teacher.memory_gib`.
"""

import dataclasses
import multiprocessing
import signal
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from distill.config import DistillError, ExperimentConfig
from distill.records.runs import CurvePoint, CurveTable, RunRecord, RunTable, load_record
from distill.study.matrix import Planned
from distill.system import process

# Seconds that a run has for saving itself when its study is asked to end.
GRACE = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moment:
    """How far a run is, as its worker tells it."""

    run: str
    step: int
    steps: int
    loss: float
    tokens_per_second: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Done:
    """A finished run."""

    run: str
    record: RunRecord


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failed:
    """A run that ended with an error: one line for the screen, and all of it for error.txt."""

    run: str
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
        self.tasks: dict[str, Planned] = {}  # under way
        self.moments: dict[str, Moment] = {}
        self.teacher = ""
        self.shapes: set[Any] = set()

    def give(self, tasks: Sequence[Planned]) -> None:
        self.tasks, self.moments, self.teacher = {task.run: task for task in tasks}, {}, tasks[0].config.teacher.run
        self.shapes.add(shape(tasks[0]))
        self.pipe.send(list(tasks))

    def stop(self) -> None:
        self.process.terminate()  # a run that is under way saves itself first
        self.process.join(GRACE)
        if self.process.is_alive():
            self.process.kill()


def shape(task: Planned) -> Any:
    """What a worker has compiled once it has done this task."""
    wanted = task.config.objective
    return task.config.model, bool(task.config.teacher.run), wanted.divergence, wanted.target, wanted.tempered


def packable(task: Planned) -> Any:
    """What runs must share to be trained together: all that is compiled, and the lengths of their calls of steps."""
    from distill.training import step

    c = task.config
    # A signal in memory comes with the batch; any other is of a teacher that all must share.
    teacher = dataclasses.replace(c.teacher, source="", run="") if c.teacher.signal == "memory" else c.teacher
    lengths = c.batch_size, c.seq_len, c.steps, c.stable_steps, c.loop
    return step.shape(c), c.model, c.data, teacher, bool(c.teacher.sources), lengths


def _serve(pipe: Connection, processors: list[int], workdir: Path) -> None:
    """The life of a worker process."""
    process.die_with_parent()
    process.hold(processors)
    process.compile_quickly()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and ends its workers
    process.cache_compilations()
    memory, lock = _Memory(workdir), threading.Lock()

    def send(message: Moment | Done | Failed) -> None:
        with lock:  # runs of a pack speak from their threads
            pipe.send(message)

    while True:
        try:
            tasks = pipe.recv()
        except EOFError:
            return
        try:
            memory.train(tasks, send)
        except process.Preempted:
            return


class _Memory:
    """What a worker keeps from run to run."""

    def __init__(self, workdir: Path):
        self._workdir = workdir
        self._stores: dict[Any, Any] = {}
        self._teachers: OrderedDict[Any, Any] = OrderedDict()
        self._lock = threading.Lock()

    def train(self, tasks: Sequence[Planned], send: Callable[[Any], None]) -> None:
        """Trains one run, or several together, and sends what becomes of each. Raises Preempted when asked to end."""
        # Imported here, after the process has been held to its cores.
        from distill.training.vmapped import Pack

        if len(tasks) == 1:
            self._one(tasks[0], send)
        else:
            with process.heed() as notice, ThreadPoolExecutor(len(tasks)) as pool:
                pack = Pack(len(tasks), notice)
                ended = [pool.submit(self._one, task, send, pack) for task in tasks]
            for future in ended:
                future.result()
        process.forget_programs()

    def _one(self, task: Planned, send: Callable[[Any], None], pack: Any = None) -> None:
        from distill.training import loop as train

        config, folder = task.config, self._workdir / "runs" / task.run
        trunk = self._workdir / "trunks" / task.trunk if config.optim.schedule == "wsd" else None

        def tell(p: Any) -> None:
            send(Moment(run=task.run, **dataclasses.asdict(p)))

        try:
            with self._lock:
                store, teacher = self._shared(config)
            record = train.train(config, folder, store=store, teacher=teacher, trunk=trunk, on_progress=tell, pack=pack)
            with self._lock:
                tabulate(self._workdir, record, folder)
            send(Done(run=task.run, record=record))
        except process.Preempted:
            raise
        except DistillError as error:
            send(Failed(run=task.run, line=str(error), detail=str(error)))
        except Exception as error:  # a study outlives any of its runs, whatever went wrong inside
            line = f"{type(error).__name__}: {error}".splitlines()[0]
            send(Failed(run=task.run, line=line, detail=traceback.format_exc()))
        finally:
            if pack:
                pack.leave()

    def _shared(self, config: ExperimentConfig) -> tuple[Any, Any]:
        """The token store and the teacher that runs of this process share; None where a run opens its own teacher."""
        from distill.training import inputs

        key = dataclasses.replace(config.data, split="student")
        if key not in self._stores:
            self._stores[key] = inputs.open_store(config, self._workdir)
        store = self._stores[key]
        # A store of signals is checked against the steps of one run.
        shared = config.teacher.sources and config.teacher.signal != "stored"
        return store, self._teacher(config, store) if shared else None

    def _teacher(self, config: ExperimentConfig, store: Any) -> Any:
        # What an open teacher depends on; a student's size, rate and objective are not part of it.
        key = (config.teacher, config.data, config.seq_len, config.eval, config.mesh, config.model.vocab_size)
        if key not in self._teachers:
            self._teachers[key] = open_teacher(config, store)
        self._teachers.move_to_end(key)
        limit = config.teacher.memory_gib * 2**30
        while len(self._teachers) > 1 and sum(teacher.bytes for teacher in self._teachers.values()) > limit / 2:
            self._teachers.popitem(last=False)
        return self._teachers[key]


def open_teacher(config: ExperimentConfig, store: Any) -> Any:
    """A teacher that may serve several runs, on the mesh that they all make."""
    import jax

    from distill.model import sharding
    from distill.training import inputs, teachers

    with jax.set_mesh(sharding.make(config.mesh)):
        return teachers.open_teacher(inputs.resolve(config, store), store)


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
    from distill.records.logger import read_metrics

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
