"""Replays one step of a run exactly, to find the sequences and parameters that are out of the ordinary."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from numpy.typing import NDArray

from distill import config as configs
from distill.config import ConfigError, ExperimentConfig
from distill.data import Mixture, TokenStore
from distill.model import sharding
from distill.model.transformer import Transformer
from distill.records.checkpoints import Checkpoints
from distill.system.progress import Progress
from distill.teacher.observe import StepTeacher
from distill.training import step as steps
from distill.training.inputs import make_loader, open_store, resolve
from distill.training.teachers import open_teacher
from distill.types import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sequence:
    """One row of the step's batch: its mean loss (nats per token) and the norm of its gradient."""

    window: int
    loss: float
    grad_norm: float
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay:
    """A replayed step (from 0): its means, its sequences, and {parameter: (its norm, its gradient's norm)}."""

    step: int
    start: int  # the checkpoint from which the earlier steps were recomputed; 0: the beginning
    means: dict[str, float]
    sequences: tuple[Sequence, ...]
    parameters: dict[str, tuple[float, float]]


def replay(workdir: str | Path, step: int, on_progress: Callable[[Progress], None] = lambda _: None) -> Replay:
    """Recomputes from the last intact checkpoint to `step`, and then the step sequence by sequence; writes nothing.

    Raises ConfigError if there is no such run or step.
    """
    workdir = Path(workdir)
    path = workdir / "config.txt"
    if not path.exists():
        raise ConfigError(f"--workdir={workdir}: there is no run (no config.txt)")
    config = configs.from_text(ExperimentConfig, path.read_text("utf-8"), str(path))
    if not 0 <= step < config.steps:
        raise ConfigError(f"--step={step}: the run in {workdir} has steps 0 to {config.steps - 1}")
    if config.mesh.context > 1:
        raise ConfigError(
            f"--workdir={workdir}: its devices share sequences (mesh.context={config.mesh.context}), and a replay "
            "looks at each sequence by itself; wanted a run with mesh.context=1"
        )
    store = open_store(config, workdir)
    with jax.set_mesh(sharding.make(config.mesh)):
        source = open_teacher(resolve(config, store), store)
        loader, spec = make_loader(config, store, config.data.split), steps.step_spec(config)
        read = source.signal_reader(config.data.split) if source else None
        teacher = source.step_argument if source else None

        def fetch(at: int) -> Batch:
            batch = loader.batches(at, 1)
            if read:
                batch = dataclasses.replace(batch, signal=read(loader.windows(at)[None]))
            return sharding.place(batch, jax.sharding.get_mesh(), leading=1)

        state = steps.init_state(config, source.teachers[0].config.model if source else None)
        with Checkpoints(workdir / "checkpoints", readonly=True) as checkpoints:
            saved = checkpoints.newest(state.stored(), before=step)
        start, state = (saved[0], state.restored(saved[1])) if saved else (0, state)
        for at in range(start, step):
            state, _ = steps.train_steps(spec, state, teacher, fetch(at), 1)
            on_progress(Progress(done=at + 1 - start, total=step - start, unit="step"))
        batch = jax.tree.map(lambda stack: stack[0], fetch(step))
        return _look(spec, state, teacher, batch, loader.windows(step), store, start)


def _look(
    spec: steps.StepSpec,
    state: steps.TrainState,
    teacher: StepTeacher | None,
    batch: Batch,
    windows: NDArray[np.int64],
    store: TokenStore | Mixture,
    start: int,
) -> Replay:
    @jax.jit
    def gradients(
        state: steps.TrainState, teacher: StepTeacher | None, batch: Batch, rows: jax.Array
    ) -> tuple[Transformer, dict[str, jax.Array], jax.Array]:
        weight = jax.sharding.reshard(rows, P(sharding.BATCH, None)) * batch.weight
        batch = dataclasses.replace(batch, weight=weight)
        (gradient, _), sums, _ = steps.gradients(spec, state, teacher, batch)
        return gradient, {name: value.mean() for name, value in sums.items()}, optax.tree.norm(gradient)

    count = len(windows)
    gradient, means, norm = gradients(state, teacher, batch, jnp.ones((count, 1)))
    decode = store.tokenizer().decode
    sequences, tokens = [], np.asarray(batch.tokens)
    for row, window in enumerate(windows):
        alone = (np.arange(count) == row).astype(np.float32)[:, None]
        _, own, own_norm = gradients(state, teacher, batch, jnp.asarray(alone))
        text = decode(tokens[row].tolist())
        sequences.append(Sequence(window=int(window), loss=float(own["loss"]), grad_norm=float(own_norm), text=text))
    leaves = jax.tree_util.tree_flatten_with_path(gradient)[0]
    params = jax.tree.leaves(state.params)
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
    size = lambda leaf: float(optax.tree.norm(leaf))
    return Replay(
        step=int(state.step),
        start=start,
        means={name: float(value) for name, value in means.items()} | {"grad_norm": float(norm)},
        sequences=tuple(sequences),
        parameters={name(path): (size(params[i]), size(leaf)) for i, (path, leaf) in enumerate(leaves)},
    )
