"""Where a run starts: its workdir claimed for it, the run that it forks from, and its first state."""

import dataclasses
import functools
import logging
import operator
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from distill import config as configs
from distill.config import ConfigError, ExperimentConfig
from distill.data.mixture import Mixture
from distill.data.store.store import TokenStore
from distill.model import adapted, sharding, warm_start
from distill.model.importance import Importance, importance
from distill.model.transformer import Transformer
from distill.records.checkpoints import Checkpoints
from distill.system import cloud, distributed, files
from distill.system.progress import Progress
from distill.teacher import load, vocabulary
from distill.training import step as steps
from distill.training.evaluate import batches, in_turn
from distill.training.inputs import ResolvedRun, check_init, check_tokens, open_store, resolve
from distill.training.teachers import TeacherSource

_log = logging.getLogger(__name__)


def opened(
    run: ExperimentConfig | ResolvedRun,
    workdir: cloud.Workdir,
    *,
    store: TokenStore | Mixture | None = None,
    fork: str | Path | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> tuple[ResolvedRun, TokenStore | Mixture]:
    """The run under the name that it has to its end, and its token store, opened unless it is given.

    Raises DistillError where the text, or what else the config points at, is not there.
    """
    with distributed.process_zero_first():
        workdir.pull()
        run = resolve(run)  # before the text, which may take long
        store = store or open_store(run.config, workdir.path, on_progress=on_progress)
        check_tokens(run, store)
        if not (workdir.path / "config.txt").exists():  # a run that has begun has its weights
            check_init(run, store)
    return forked(resolve(run, store), workdir.path, fork), store


def claim(workdir: cloud.Workdir, config: ExperimentConfig, comments: str = "") -> None:
    """Writes config.txt, or checks that the one there names the same run; `comments` are lines for its head.

    Raises ConfigError, naming every field that differs, for the workdir of another run.
    """
    path, text = workdir.path / "config.txt", configs.to_text(config)
    run = configs.fingerprint(config)
    if path.exists():
        # A study's config has more fields than an experiment's; only those of the experiment identify the run.
        there = configs.from_text(type(config), path.read_text("utf-8"), str(path))
        if configs.fingerprint(there) != run:
            old, new = dict(configs.identity(there)), dict(configs.identity(config))
            keys = [key for key in configs.to_flat(config) if old.get(key) != new.get(key)]
            old, new = configs.to_flat(there), configs.to_flat(config)
            changes = ", ".join(f"config.{key} was {old[key]!r} and is now {new[key]!r}" for key in keys)
            raise ConfigError(
                f"{workdir}: this workdir belongs to another run: {changes}; use the old values to continue it, or "
                f"another --workdir, which may begin where this one is: --fork={workdir}"
            )
        if (workdir.path / "result.json").exists():
            return  # nothing of a finished run is written again
    if distributed.first():
        files.atomic_write(path, f"# run {run}\n{comments}{text}")
        workdir.push("config.txt")
    elif not distributed.wait_for_file(path):
        raise ConfigError(
            f"{workdir}: process 0 wrote config.txt but this process cannot see it; use a shared file system"
        )


def forked(run: ResolvedRun, workdir: Path, fork: str | Path | None) -> ResolvedRun:
    """The run with config.forked = RUN@STEP, the checkpoint that it begins with: chosen at its first start, then kept.

    Raises ConfigError where `fork` holds no run or no checkpoint before the end of this one, and where the run in
    `workdir` began otherwise.
    """
    if not fork:
        return run
    config = run.config
    origin, path = cloud.local_copy_of_run(fork) / "config.txt", workdir / "config.txt"
    if not origin.exists():
        raise ConfigError(f"--fork={fork}: there is no run (no config.txt); give the workdir of one")
    parent = configs.fingerprint(configs.from_text(type(config), origin.read_text("utf-8"), str(origin)))
    if path.exists():
        begun = configs.from_text(type(config), path.read_text("utf-8"), str(path)).forked
        if begun.partition("@")[0] != parent:
            raise ConfigError(
                f"--fork={fork}: {workdir} holds a run already, which began with {begun or 'fresh weights'} and not "
                f"with {parent}; continue it without --fork or with the one it had, or use another --workdir"
            )
        return dataclasses.replace(run, config=dataclasses.replace(config, forked=begun))
    with Checkpoints(cloud.Workdir(fork).checkpoints, readonly=True) as checkpoints:
        if not (kept := checkpoints.steps()):
            raise ConfigError(f"--fork={fork}: this run has no checkpoint yet; start a fresh run instead")
    if kept[-1] >= config.steps:
        raise ConfigError(
            f"--fork={fork}: its last checkpoint is of step {kept[-1]}, and config.tokens={config.tokens} is "
            f"{config.steps} steps; give more tokens (those of the origin count)"
        )
    return dataclasses.replace(run, config=dataclasses.replace(config, forked=f"{parent}@{kept[-1]}"))


def calibrated(config: ExperimentConfig, source: Transformer, store: TokenStore | Mixture) -> Importance:
    """What the parts of a run's source do on config.init.calibration tokens of the run's own training text."""
    text = store.evaluation(
        config.data.split,
        config.seq_len,
        config.init.calibration,
        packing=config.data.packing,
        completions_only=config.data.completions_only,
    )
    device_mesh = jax.sharding.get_mesh()
    parts = (
        importance(source, sharding.place(batch, device_mesh)) for _, batch in batches(text, config.eval.batch_size)
    )
    return functools.reduce(operator.add, in_turn(parts))


def first_state(
    run: ResolvedRun,
    teacher: TeacherSource | None,
    checkpoints: Checkpoints,
    trunk: Checkpoints | None,
    fork: str | Path | None,
    store: TokenStore | Mixture,
) -> steps.TrainState:
    """The furthest state there is: of this run, else of its trunk before the decay, else of the run it forks from.

    Without any of them, fresh weights, or those of the model that config.init names.
    """
    config = run.config
    # Feature losses have one teacher.
    state = steps.init_state(config, teacher.teachers[0].config.model if teacher else None)
    checkpoint = checkpoints.newest(state.stored())
    if checkpoint is None and trunk:
        checkpoint = trunk.newest(state.stored(), before=config.stable_steps)
    if checkpoint is None and config.forked:
        if not fork:
            raise ConfigError(
                f"config.forked={config.forked!r} has no checkpoint of its own yet; give --fork=WORKDIR again"
            )
        step = int(config.forked.partition("@")[2])
        with Checkpoints(cloud.Workdir(fork).checkpoints, readonly=True) as origin:
            checkpoint = step, origin.restore(step, state.stored())
    if checkpoint is not None:
        return state.restored(checkpoint[1])
    if run.init:
        rows = vocabulary.rows_by_text(run.init, store) if config.init.tokens == "text" else None
        if rows is not None:
            _log.warning(
                "%s: the rows of %d of %d tokens were carried over by their text; the others were drawn anew",
                run.init.source, np.sum(rows >= 0), len(rows),
            )  # fmt: skip
        source = adapted.merged(load.load_parameters(run.init))
        measured = calibrated(config, source, store) if warm_start.needs_importance(config.init) else None
        plain = adapted.plain(config.model)
        weights = warm_start.warm_start(config.init, plain, source, rows, config.seed, measured)
        return dataclasses.replace(state, params=adapted.adapt(state.params, weights))
    return state
