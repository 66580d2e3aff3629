"""One run, from a config to a row of the runs table; supervised or distilled, fresh, resumed or branched off a trunk.

A finished run is never run again; an unfinished one continues at its last checkpoint. Runs that differ only in their
budget share the constant-rate part of a WSD schedule: a run starts from the furthest state that its trunk has left,
and leaves its own there when its decay begins.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from distill import config as configs
from distill import data
from distill.config import DistillError, ExperimentConfig
from distill.data import spans
from distill.data.loader import prefetch
from distill.data.mixture import Mixture
from distill.data.store.store import TokenStore
from distill.model import sharding
from distill.records import runs
from distill.records.checkpoints import Checkpoints
from distill.records.logger import MetricsLogger
from distill.records.runs import RunRecord
from distill.system import cloud, distributed, preemption, process
from distill.system.progress import Progress
from distill.teacher.observe import StepTeacher, teacher_signal
from distill.training import origin, result, start
from distill.training import step as steps
from distill.training.along import Along
from distill.training.inputs import ResolvedRun, make_loader
from distill.training.step import Metrics, StepSpec, TrainState
from distill.training.tasks import RunTasks
from distill.training.teachers import TeacherSource, open_teacher
from distill.training.vmapped import VmappedRuns
from distill.types import Batch, CellSignal, ChunkSignal, TeacherSignal


class Diverged(DistillError):
    """Too many consecutive updates were rejected: since which step, and how to look at it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunContext:
    """What the loop of a run works with, opened once and on one mesh; only the state changes."""

    config: ExperimentConfig
    workdir: cloud.Workdir
    loader: data.Loader
    teacher: TeacherSource | None
    checkpoints: Checkpoints
    trunk: Checkpoints | None  # shared by all runs of one trunk
    preempted: preemption.PreemptionFlag
    on_progress: Callable[[Progress], None]
    train_steps: Callable[[StepSpec, TrainState, StepTeacher | None, Batch, int], tuple[TrainState, Metrics]]


def train(
    run: ExperimentConfig | ResolvedRun,
    workdir: str | Path,
    *,
    store: TokenStore | Mixture | None = None,
    teacher: TeacherSource | None = None,
    trunk: str | Path | None = None,
    fork: str | Path | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    vmapped: VmappedRuns | None = None,
) -> RunRecord:
    """Trains to the end and returns the finished run; returns at once if WORKDIR/result.json exists.

    `store` and `teacher` are opened from the config unless the caller shares its own; `trunk` is the folder that
    runs of one trunk share; `fork` is the workdir of another run, whose last checkpoint this one begins with;
    with `vmapped`, this run, in a thread of its own, takes its steps together with others.
    Leaves config.txt, checkpoints/, metrics.jsonl and result.json in `workdir`, and heldout.jsonl with `eval.along`.
    Raises DistillError for a workdir of another config, and for whatever the config asks for and cannot have.
    """
    place = cloud.Workdir(workdir)
    with contextlib.ExitStack() as stack:
        run, store, finished = _claimed(run, place, store, fork, stack)
        config = run.config
        if finished is not None:
            return finished
        began = result.now()
        preempted = vmapped.flag if vmapped else stack.enter_context(preemption.catch_preemption())
        # In this order: the teacher needs the mesh, the state needs the teacher.
        with distributed.raise_everywhere():
            device_mesh = sharding.make(config.mesh)
            stack.enter_context(jax.set_mesh(device_mesh))
            rows = config.batch_size // config.microbatches
            sharding.check(config.model, rows, device_mesh, config.mesh.context)
            tasks = RunTasks(config, store)
            teacher = teacher or open_teacher(run, store)
        context = RunContext(
            config=config,
            workdir=place,
            loader=make_loader(config, store, config.data.split),
            teacher=teacher,
            checkpoints=stack.enter_context(Checkpoints(place.checkpoints, keep=config.loop.keep)),
            trunk=stack.enter_context(Checkpoints(trunk, keep=0)) if trunk else None,
            preempted=preempted,
            on_progress=on_progress,
            train_steps=vmapped.train_steps if vmapped else steps.train_steps,
        )
        state = start.first_state(run, teacher, context.checkpoints, context.trunk, fork, store)
        state = _loop(context, state, Along(config, place, store, teacher, tasks, int(state.step)))
        record = result.run_record(config, state.params, store, teacher, began)
        record = dataclasses.replace(record, scores=tasks.scores(state.params))
    # Only now, with the last checkpoint safely on disk, is the run finished.
    if distributed.first():
        runs.save_record(record, place.path / "result.json")
        place.push("result.json")
    return record


def _claimed(
    run: ExperimentConfig | ResolvedRun,
    workdir: cloud.Workdir,
    store: TokenStore | Mixture | None,
    fork: str | Path | None,
    stack: contextlib.ExitStack,
) -> tuple[ResolvedRun, TokenStore | Mixture, RunRecord | None]:
    """The run, resolved, its token store, and its record if it is finished.

    From then until `stack` closes, the workdir is locked; its config.txt names this run.
    """
    with distributed.raise_everywhere():
        run, store = start.opened(run, workdir, store=store, fork=fork)
        if distributed.first():
            stack.enter_context(process.folder_lock(workdir.path))
        with distributed.process_zero_first():
            workdir.pull()
            start.claim(workdir, run.config, origin.describe(run, store).comments())
            finished = runs.load_record(workdir.path / "result.json")
    return run, store, finished


def _loop(run: RunContext, state: TrainState, along: Along) -> TrainState:
    """Dispatches one call of K steps, then reads the metrics of the previous call while it runs."""
    config, workdir, device_mesh = run.config, run.workdir, jax.sharding.get_mesh()
    text, spec = configs.to_text(config), steps.step_spec(config)
    done = int(state.step)
    teacher_argument = run.teacher.step_argument if run.teacher else None
    teacher_flops = run.teacher.step_flops(config.seq_len) if run.teacher else 0.0
    logger = MetricsLogger(config, workdir.path / cloud.LINES, done, run.on_progress, teacher_flops)
    if distributed.first():
        workdir.rewind()
    saved = time.monotonic()
    along.reach(done, state.params)

    def due() -> bool:
        return time.monotonic() - saved > config.loop.checkpoint_seconds

    with contextlib.closing(prefetch(_fetcher(run), _calls(done, config))) as calls:
        for first, count, batches in calls:
            answers = distributed.any_process(device_mesh, lambda: bool(run.preempted.signal), due)
            state, sums = run.train_steps(spec, state, teacher_argument, batches, count)
            done = first + count
            logger.add(done, count, sums)
            _check_divergence(run, logger)
            if run.trunk and done == config.stable_steps:
                run.trunk.save(done, state.stored(), text)
            along.reach(done, state.params)
            asked, late = answers()
            if done == config.steps or late or asked:
                logger.flush()
                _check_divergence(run, logger)
                run.checkpoints.save(done, state.stored(), text)
                if distributed.first():
                    workdir.push_lines()
                saved = time.monotonic()
            if asked and done < config.steps:
                run.checkpoints.wait()
                reason = "asked to end" if distributed.several() else run.preempted.signal
                raise preemption.Preempted(
                    f"{reason}: step {done} of {config.steps} is saved in {workdir}; run the same command again to "
                    "continue"
                )
    logger.flush()
    if distributed.first():
        workdir.push_lines()
    return state


def _fetcher(run: RunContext) -> Callable[[tuple[int, int]], tuple[int, int, Batch]]:
    """Reads the batches of a call (first step, number of steps) with the signals of their windows, onto the mesh.

    Always steps_per_call batches, so that one shape is compiled; those beyond the call's steps are not trained on.
    """
    loader, size, device_mesh = run.loader, run.config.loop.steps_per_call, jax.sharding.get_mesh()
    read = run.teacher.signal_reader(run.config.data.split) if run.teacher else None

    def fetch(call: tuple[int, int]) -> tuple[int, int, Batch]:
        first, count = call
        batches = loader.batches(first, size)
        if read:
            ids = np.stack([loader.windows(first + i if i < count else first) for i in range(size)])
            with jax.set_mesh(device_mesh):  # each thread has its own
                batches = dataclasses.replace(batches, signal=read(ids))
        shared = spans.split(batches, run.config.mesh.context, leading=1)
        return first, count, sharding.place(shared, device_mesh, leading=1)

    return fetch


def _calls(done: int, config: ExperimentConfig) -> Iterator[tuple[int, int]]:
    """(first step, number of steps) of every call; one ends exactly where the decay begins."""
    while done < config.steps:
        end = min(done + config.loop.steps_per_call, config.steps)
        if done < config.stable_steps < end:
            end = config.stable_steps
        yield done, end - done
        done = end


def _check_teacher(run: RunContext, step: int) -> None:
    """Raises Diverged, naming the window, where the teacher's own output on a step's windows is not finite."""
    if run.teacher is None or run.teacher.step_argument is None or distributed.several():
        return
    for window in run.loader.windows(step):
        rows = np.resize(window, run.config.batch_size * run.config.mesh.context)
        batch = run.loader.read(rows)
        if read := run.teacher.signal_reader(run.config.data.split):
            batch = dataclasses.replace(batch, signal=read(rows))
        batch = sharding.place(batch, jax.sharding.get_mesh())
        signal = teacher_signal(run.teacher.step_argument, batch)
        if isinstance(signal, TeacherSignal | ChunkSignal | CellSignal) and bool(
            jax.numpy.isnan(signal.log_probs).any()
        ):
            raise Diverged(
                f"{run.workdir}: the teacher's output on window {window} of the {run.config.data.split!r} split, which "
                f"step {step} reads, is not finite (NaN or inf): no student can learn from it"
            )


def _check_divergence(run: RunContext, logger: MetricsLogger) -> None:
    """Raises Diverged where the last config.loop.patience updates (a quarter of a short run) were all rejected."""
    config, workdir, rejected = run.config, run.workdir, logger.consecutive_rejections
    if rejected < min(config.loop.patience, max(config.steps // 4, 1)):
        return
    first = logger.step - rejected
    _check_teacher(run, first)
    windows = ", ".join(str(i) for i in run.loader.windows(first)[:8])
    raise Diverged(
        f"{workdir}: in each of the last {rejected} steps, from step {first} on, the loss or the gradient was not "
        f"finite or spiked, and no update was made. Step {first} reads windows {windows} of the {config.data.split!r} "
        f"split; to look at it: python -m launch.replay --workdir={workdir} --step={first}. To continue with other "
        f"values: --fork={workdir} and a new --workdir"
    )
