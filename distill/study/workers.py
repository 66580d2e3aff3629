"""Worker processes of a study, each on its own cores and GPUs: at small sizes two with a core each beat one with both.

A worker trains one run at a time, or several together (distill/training/vmapped.py). It sends its progress and the
rows of finished runs, which its study tabulates, and caches what later runs may need: the token store, compiled steps,
and the signals of its teachers up to `teacher.memory_gib`.
"""

import dataclasses
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from distill.config import DistillError, ExperimentConfig
from distill.records.runs import RunRecord
from distill.study import ledger
from distill.study.matrix import PlannedRun
from distill.system import preemption, process
from distill.system.progress import Progress

if TYPE_CHECKING:  # JAX may start only after a worker has been pinned to its cores
    from distill.data import Mixture, TokenStore
    from distill.training.teachers import TeacherSource
    from distill.training.vmapped import VmappedRuns

    Store = TokenStore | Mixture

# Seconds that a run has to save its state when its study is asked to stop.
GRACE = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgressMessage:
    """The progress of a run."""

    run: str
    progress: Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedMessage:
    """A run that finished, and its row."""

    run: str
    record: RunRecord


@dataclasses.dataclass(frozen=True, kw_only=True)
class FailedMessage:
    """A run that failed: one line for the screen, the whole text for error.txt."""

    run: str
    line: str
    detail: str


Message = ProgressMessage | FinishedMessage | FailedMessage


class Worker:
    """A process that receives runs through a pipe; `compiled` holds the compile keys of the runs it has trained."""

    def __init__(self, share: process.Share, workdir: Path):
        context = process.worker_context()
        self.pipe, far_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(far_end, share, workdir), daemon=True)
        self.process.start()
        far_end.close()
        self.tasks: dict[str, PlannedRun] = {}  # active, by fingerprint
        self.progress: dict[str, ProgressMessage] = {}
        self.teacher = ""
        self.compiled: set[Hashable] = set()

    def assign(self, tasks: Sequence[PlannedRun]) -> None:
        """Sends runs to the process: one, or several to be trained together."""
        self.tasks, self.progress, self.teacher = {task.run: task for task in tasks}, {}, tasks[0].config.teacher.run
        self.compiled.add(compile_key(tasks[0]))
        self.pipe.send(list(tasks))

    def receive(self) -> list[Message]:
        """The next message, or a FailedMessage for each run of a process that has died. Blocks until there is one."""
        try:
            return [self.pipe.recv()]
        except (EOFError, ConnectionError):
            self.process.join(5)
            line = f"its process ended (exit code {self.process.exitcode}); possibly out of memory"
            return [FailedMessage(run=run, line=line, detail=line) for run in self.tasks]

    def stop(self) -> None:
        """Ends the process; an active run first saves its state, for which it has GRACE seconds."""
        self.process.terminate()
        self.process.join(GRACE)
        if self.process.is_alive():
            self.process.kill()


def compile_key(task: PlannedRun) -> Hashable:
    """The key of the program that a run compiles: runs of equal keys share it within a worker."""
    c = task.config
    return c.model, bool(c.teacher.run), c.objective.divergence, c.objective.target, c.objective.tempered


def vmap_key(task: PlannedRun) -> Hashable:
    """The key that runs trained together must share: everything compiled, and the lengths of their calls of steps."""
    from distill.training import step

    c = task.config
    # A signal in memory comes with the batch; for any other signal all must share the teacher.
    teacher = dataclasses.replace(c.teacher, source="", run="") if c.teacher.signal == "memory" else c.teacher
    lengths = c.batch_size, c.seq_len, c.steps, c.stable_steps, c.loop
    return step.step_spec(c), c.model, c.data, teacher, bool(c.teacher.sources), lengths


def _serve(pipe: Connection, share: process.Share, workdir: Path) -> None:
    """The main function of a worker process: trains the runs that arrive through the pipe until it closes."""
    process.die_with_parent()
    process.take(share)
    process.use_fast_cpu_compilation()
    process.cache_compilations()
    trainer, lock = Trainer(workdir), threading.Lock()

    def send(message: Message) -> None:
        with lock:  # runs that train together send from their own threads
            pipe.send(message)

    while True:
        try:
            tasks = pipe.recv()
        except EOFError:
            return
        try:
            trainer.train(tasks, send)
        except preemption.Preempted:
            return


class Trainer:
    """Trains runs in this process and caches token stores and teachers for the next ones."""

    def __init__(self, workdir: Path):
        self._workdir = workdir
        self._stores: dict[Hashable, Store] = {}
        self._teachers: OrderedDict[Hashable, TeacherSource] = OrderedDict()
        self._lock = threading.Lock()

    def train(self, tasks: Sequence[PlannedRun], send: Callable[[Message], None]) -> None:
        """Trains one run, or several together, and sends the result of each. Raises Preempted when asked to stop."""
        # Imported here, after the process has been pinned to its cores.
        from distill.training.vmapped import VmappedRuns

        if len(tasks) == 1:
            self._one(tasks[0], send)
        else:
            with preemption.catch_preemption() as flag, ThreadPoolExecutor(len(tasks)) as pool:
                pack = VmappedRuns(len(tasks), flag)
                ended = [pool.submit(self._one, task, send, pack) for task in tasks]
            for future in ended:
                future.result()
        process.clear_jit_caches()

    def _one(self, task: PlannedRun, send: Callable[[Message], None], pack: "VmappedRuns | None" = None) -> None:
        from distill.training import loop as train

        config, folder = task.config, self._workdir / "runs" / task.run
        trunk = self._workdir / "trunks" / task.trunk if config.optim.schedule == "wsd" else None

        def send_progress(progress: Progress) -> None:
            send(ProgressMessage(run=task.run, progress=progress))

        try:
            with self._lock:
                ledger.begin(self._workdir, task)
                store, teacher = self._shared(config)
            record = train.train(
                config, folder, store=store, teacher=teacher, trunk=trunk, on_progress=send_progress, vmapped=pack
            )
            send(FinishedMessage(run=task.run, record=record))
        except preemption.Preempted:
            raise
        except DistillError as error:
            send(FailedMessage(run=task.run, line=str(error), detail=str(error)))
        except Exception as error:  # an error inside a run must not stop the study
            line = f"{type(error).__name__}: {error}".splitlines()[0]
            send(FailedMessage(run=task.run, line=line, detail=traceback.format_exc()))
        finally:
            if pack:
                pack.leave()

    def _shared(self, config: ExperimentConfig) -> "tuple[Store, TeacherSource | None]":
        """The token store and the teacher that runs of this process share; None if a run opens its own teacher."""
        from distill.training import inputs

        key = dataclasses.replace(config.data, split="student")
        if key not in self._stores:
            self._stores[key] = inputs.open_store(config, self._workdir)
        store = self._stores[key]
        # A store of signals is checked against the steps of one run.
        shared = config.teacher.sources and config.teacher.signal != "stored"
        return store, self._teacher(config, store) if shared else None

    def _teacher(self, config: ExperimentConfig, store: "Store") -> "TeacherSource":
        # The fields that an open teacher depends on; a student's size, rate and divergence are not among them.
        crossing = config.objective.cross_tokenizer
        key = (config.teacher, config.data, config.seq_len, config.eval, config.mesh, config.model.vocab_size, crossing)
        if key not in self._teachers:
            self._teachers[key] = open_teacher(config, store)
        self._teachers.move_to_end(key)
        limit = config.teacher.memory_gib * 2**30
        while len(self._teachers) > 1 and sum(teacher.bytes for teacher in self._teachers.values()) > limit / 2:
            self._teachers.popitem(last=False)
        return self._teachers[key]


def open_teacher(config: ExperimentConfig, store: "Store") -> "TeacherSource":
    """The teacher of a config, for several runs on the mesh that they share."""
    import jax

    from distill.model import sharding
    from distill.training import inputs, teachers

    with jax.set_mesh(sharding.make(config.mesh)):
        teacher = teachers.open_teacher(inputs.resolve(config, store), store)
    assert teacher is not None
    return teacher
