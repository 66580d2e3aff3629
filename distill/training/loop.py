"""One run, from a config to a row of the runs table; supervised or distilled, fresh, resumed or branched off a trunk.

A finished run is never run again; an unfinished one continues at its last checkpoint. Runs that differ only in their
budget share the constant-rate part of a WSD schedule: a run starts from the furthest state that its trunk has left,
and leaves its own there when its decay begins.
"""

import contextlib
import dataclasses
import datetime
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from distill import config as configs
from distill import data
from distill.config import ConfigError, DistillError, ExperimentConfig, counts
from distill.data.loader import prefetch
from distill.data.mixture import Mixture
from distill.data.store.store import TokenStore
from distill.model import sharding, warm_start
from distill.model.transformer import Transformer
from distill.records import runs
from distill.records.checkpoints import Checkpoints
from distill.records.logger import Meter, Progress
from distill.records.runs import RunRecord
from distill.system import cloud, distributed, files, process
from distill.teacher import load
from distill.training import step as steps
from distill.training.evaluate import evaluate
from distill.training.inputs import Lesson, identify, make_loader, open_store
from distill.training.teachers import StoredLesson, open_lesson
from distill.training.vmapped import Pack
from distill.types import Batch


class Diverged(DistillError):
    """A run whose updates were rejected too often in a row: from which step on, and how to look at it."""


def train(
    config: ExperimentConfig,
    workdir: str | Path,
    *,
    store: TokenStore | Mixture | None = None,
    lesson: Lesson | StoredLesson | None = None,
    trunk: str | Path | None = None,
    fork: str | Path | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
    pack: Pack | None = None,
) -> RunRecord:
    """Trains to the end and returns the finished run; returns at once where WORKDIR/result.json says it is.

    `store` and `lesson` are opened from the config where a study does not share its own; `trunk` is the folder that
    runs of one trunk share; `fork` is the workdir of another run, whose last checkpoint this one begins with;
    in a `pack`, this run, in a thread of its own, takes its steps together with others.
    Leaves config.txt, checkpoints/, metrics.jsonl and result.json in `workdir`.
    Raises DistillError for a workdir of another config, and for whatever the config asks for and cannot have.
    """
    place = cloud.Workdir(workdir)
    workdir = place.path
    with contextlib.ExitStack() as stack:
        with distributed.agreed():
            with distributed.in_turn():
                place.pull()
                store = store or open_store(config, workdir)
            config = _forked(identify(config, store), workdir, fork)
            if distributed.first():
                stack.enter_context(process.sole(workdir))
            with distributed.in_turn():
                place.pull()
                _claim(place, config)
                finished = runs.load_record(workdir / "result.json")
        if finished is not None:
            return finished
        start = _now()
        notice = pack.notice if pack else stack.enter_context(process.heed())
        # In the order of their needs: mesh, teacher, state.
        with distributed.agreed():
            device_mesh = sharding.make(config.mesh)
            stack.enter_context(jax.set_mesh(device_mesh))
            sharding.check(config.model, config.batch_size // config.microbatches, device_mesh)
            lesson = lesson or open_lesson(store, config)
        checkpoints = stack.enter_context(Checkpoints(place.checkpoints, keep=config.loop.keep))
        stem = stack.enter_context(Checkpoints(trunk, keep=0)) if trunk else None
        state = _first_state(config, lesson, checkpoints, stem, fork)
        state = _loop(config, place, state, store, lesson, checkpoints, stem, notice, on_progress, pack)
        record = _record(config, state.params, store, lesson, start)
    # Only now, with the last checkpoint safely on disk, is the run finished.
    if distributed.first():
        runs.save_record(record, workdir / "result.json")
        place.push("result.json")
    return record


def _claim(workdir: cloud.Workdir, config: ExperimentConfig) -> None:
    """Writes config.txt, or checks that the one there names the same run."""
    path, text = workdir.path / "config.txt", configs.to_text(config)
    name = configs.fingerprint(config)
    if path.exists():
        # A study's tree has more than an experiment's; only the experiment says what the run is.
        found = configs.from_text(type(config), path.read_text("utf-8"), str(path))
        if configs.fingerprint(found) != name:
            old, new = dict(configs.identity(found)), dict(configs.identity(config))
            keys = [key for key in configs.to_flat(config) if old.get(key) != new.get(key)]
            old, new = configs.to_flat(found), configs.to_flat(config)
            changes = ", ".join(f"config.{key} was {old[key]!r} and is now {new[key]!r}" for key in keys)
            raise ConfigError(
                f"{workdir}: this workdir belongs to another run: {changes}; use the old values to continue it, or "
                f"another --workdir, which may begin where this one is: --fork={workdir}"
            )
    if distributed.first():
        files.atomic_write(path, f"# run {name}\n{text}")
        workdir.push("config.txt")
    elif not distributed.appears(path):
        raise ConfigError(f"{workdir}: what process 0 has written there is not seen here; give a folder that all share")


def _forked(config: ExperimentConfig, workdir: Path, fork: str | Path | None) -> ExperimentConfig:
    """The config with the name of the state that it begins with, chosen once: at the first start."""
    if not fork:
        return config
    origin, path = cloud.pulled(fork) / "config.txt", workdir / "config.txt"
    if not origin.exists():
        raise ConfigError(f"--fork={fork}: there is no run (no config.txt); give the workdir of one")
    run = configs.fingerprint(configs.from_text(type(config), origin.read_text("utf-8"), str(origin)))
    if path.exists():
        begun = configs.from_text(type(config), path.read_text("utf-8"), str(path)).forked
        if begun.partition("@")[0] != run:
            raise ConfigError(
                f"--fork={fork}: {workdir} holds a run already, which began with {begun or 'fresh weights'} and not "
                f"with {run}; continue it without --fork or with the one it had, or use another --workdir"
            )
        return dataclasses.replace(config, forked=begun)
    with Checkpoints(cloud.Workdir(fork).checkpoints, readonly=True) as checkpoints:
        if not (found := checkpoints.steps()):
            raise ConfigError(f"--fork={fork}: this run has no checkpoint yet; start a fresh run instead")
    if found[-1] >= config.steps:
        raise ConfigError(
            f"--fork={fork}: its last checkpoint is of step {found[-1]}, and config.tokens={config.tokens} is "
            f"{config.steps} steps; give more tokens (those of the origin count)"
        )
    return dataclasses.replace(config, forked=f"{run}@{found[-1]}")


def _first_state(
    config: ExperimentConfig,
    lesson: Lesson | StoredLesson | None,
    checkpoints: Checkpoints,
    stem: Checkpoints | None,
    fork: str | Path | None,
) -> steps.TrainState:
    """The furthest state there is: of this run, else of its trunk before the decay, of its origin, or a fresh one."""
    # Features are of one teacher.
    state = steps.init_state(config, lesson.teachers[0].config.model if lesson else None)
    found = checkpoints.newest(state.stored())
    if found is None and stem:
        found = stem.newest(state.stored(), before=config.stable_steps)
    if found is None and config.forked:
        if not fork:
            raise ConfigError(
                f"config.forked={config.forked!r} has no checkpoint of its own yet; give --fork=WORKDIR again"
            )
        step = int(config.forked.partition("@")[2])
        with Checkpoints(cloud.Workdir(fork).checkpoints, readonly=True) as origin:
            found = step, origin.restore(step, state.stored())
    if found is None and config.init.source:
        weights = warm_start.inherit(config.init, config.model, load.load(config.init.source).params)
        return dataclasses.replace(state, params=weights)
    return state if found is None else state.restored(found[1])


def _loop(
    config: ExperimentConfig,
    workdir: cloud.Workdir,
    state: steps.TrainState,
    store: TokenStore | Mixture,
    lesson: Lesson | StoredLesson | None,
    checkpoints: Checkpoints,
    stem: Checkpoints | None,
    notice: process.Notice,
    on_progress: Callable[[Progress], None],
    pack: Pack | None,
) -> steps.TrainState:
    """Dispatches one call of K steps, then reads the metrics of the call before while it runs."""
    text, structure, device_mesh = configs.to_text(config), steps.shape(config), jax.sharding.get_mesh()
    loader = make_loader(config, store, config.data.split)
    done, size = int(state.step), config.loop.steps_per_call
    taught = lesson.teachers if lesson and config.teacher.signal == "online" else ()
    teacher_flops = sum(counts.forward_flops(t.config.model, config.seq_len) for t in taught)
    meter = Meter(config, workdir.path / cloud.LINES, done, on_progress, teacher_flops)
    if distributed.first():
        workdir.rewind()
    read = lesson.reader(config.data.split) if lesson else None
    params = lesson.params if lesson and config.teacher.signal != "memory" else None
    train_steps = pack.train_steps if pack else steps.train_steps
    saved = time.monotonic()
    patience = min(config.loop.patience, max(config.steps // 4, 1))

    def watch() -> None:
        if meter.row >= patience:
            raise Diverged(_divergence(workdir, config, loader, meter.step - meter.row, meter.row))

    def due() -> bool:
        return time.monotonic() - saved > config.loop.checkpoint_seconds

    def fetch(call: tuple[int, int]) -> tuple[int, int, Batch]:
        first, count = call
        batches = loader.batches(first, size)
        if read:
            ids = np.stack([loader.windows(first + i if i < count else first) for i in range(size)])
            with jax.set_mesh(device_mesh):  # each thread has its own
                batches = dataclasses.replace(batches, signal=read(ids))
        return first, count, sharding.place(batches, device_mesh, leading=1)

    with contextlib.closing(prefetch(fetch, _calls(done, config))) as calls:
        for first, count, batches in calls:
            answers = distributed.vote(device_mesh, lambda: bool(notice.given), due)
            state, sums = train_steps(structure, state, params, batches, count)
            meter.add(first + count, count, sums)
            watch()
            if stem and first + count == config.stable_steps:
                stem.save(first + count, state.stored(), text)
            asked, late = answers()
            if first + count == config.steps or late or asked:
                meter.flush()
                watch()
                checkpoints.save(first + count, state.stored(), text)
                if distributed.first():
                    workdir.push_lines()
                saved = time.monotonic()
            if asked and first + count < config.steps:
                checkpoints.wait()
                raise process.Preempted(
                    f"{'asked to end' if distributed.several() else notice.given}: step {first + count} of "
                    f"{config.steps} is saved in {workdir}; run the same command again to continue"
                )
    meter.flush()
    if distributed.first():
        workdir.push_lines()
    return state


def _divergence(workdir: cloud.Workdir, config: ExperimentConfig, loader: data.Loader, bad: int, row: int) -> str:
    """What to say of a run whose updates from step `bad` on, `row` of them, were rejected."""
    windows = ", ".join(str(i) for i in loader.windows(bad)[:8])
    return (
        f"{workdir}: in all of the last {row} steps, from step {bad} on, the loss or the gradient was not finite or "
        f"spiked, and no update was made. Step {bad} reads windows {windows} of the {config.data.split!r} split; to "
        f"look at it: python -m launch.replay --workdir={workdir} --step={bad}. To go on from here with other numbers: "
        f"--fork={workdir} and a new --workdir"
    )


def _calls(done: int, config: ExperimentConfig) -> Iterator[tuple[int, int]]:
    """(first step, number of steps) of every call; one ends exactly where the decay begins."""
    while done < config.steps:
        end = min(done + config.loop.steps_per_call, config.steps)
        if done < config.stable_steps < end:
            end = config.stable_steps
        yield done, end - done
        done = end


def _record(
    config: ExperimentConfig,
    params: Transformer,
    store: TokenStore | Mixture,
    lesson: Lesson | StoredLesson | None,
    start: str,
) -> RunRecord:
    evaluation = store.evaluation(
        "validation",
        config.seq_len,
        config.eval.tokens,
        packing=config.data.packing,
        completions_only=config.data.completions_only,
    )
    batch_size = config.eval.batch_size
    scores = lesson.scores(params, evaluation) if lesson else evaluate(params, evaluation, batch_size)
    loader = make_loader(config, store, config.data.split)
    taught = lesson.teachers if lesson else ()
    maker = getattr(store, "maker", {})
    tokens = counts.training_tokens(config)
    flops = [counts.run_flops(config, t.config.model, t.record.D) for t in taught] or [counts.run_flops(config)]
    return RunRecord(
        run=configs.fingerprint(config),
        kind="distillation" if lesson else "generated" if maker else "supervised",
        N=counts.non_embedding(config.model),
        D=tokens,
        D_unique=loader.unique_tokens(config.steps),
        loss=scores.loss,
        loss_se=scores.loss_se,
        L_T=lesson.loss(evaluation, config) if lesson else None,
        teacher=lesson.run if lesson else maker.get("teacher"),
        N_T=sum(t.record.N for t in taught) if taught else maker.get("N"),
        D_T=(sum(t.record.D for t in taught) if taught else maker.get("D")) or None,  # 0: a published model's
        flops_student=flops[0].student,
        flops_teacher=sum(cost.teacher_forward for cost in flops) + maker.get("flops", 0.0),
        lambda_=config.objective.lambda_ if lesson else None,
        tau=config.objective.temperature if lesson else None,
        seed=config.seed,
        trunk=configs.trunk_fingerprint(config),
        model=f"{config.model.d_model}x{config.model.n_layers}",
        tokenizer=store.tokenizer_name,
        bits_per_byte=scores.bits_per_byte,
        kl=scores.kl,
        agreement=scores.agreement,
        ece=scores.ece,
        start=start,
        end=_now(),
        machine=f"{jax.device_count()} x {jax.devices()[0].device_kind} {platform.machine()}, {os.cpu_count()} cores",
        commit=process.commit(),
    )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
