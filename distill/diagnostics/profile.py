"""Profiles a training step: a trace, and the time of each compiled operation."""

import re
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from distill.config import ConfigError, ExperimentConfig
from distill.model import sharding
from distill.training import step
from distill.types import Batch


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A compiled operation: its time (microseconds per step, the median of its runs), and its source."""

    name: str
    shape: str
    source: str  # the operation of the program, as 'attention/dot_general'; with a prefix 'backward' for a gradient
    microseconds: float
    count: float  # runs per step


def random_batches(config: ExperimentConfig, count: int) -> Batch:
    """Random tokens for `count` steps of this config, placed on the current mesh, for measuring speed."""
    tokens = np.random.default_rng(0).integers(
        0, config.model.tokens, (count, config.batch_size, config.seq_len + 1), np.int32
    )
    weight = np.ones((count, config.batch_size, config.seq_len), np.float32)
    return sharding.place(Batch(tokens, weight), jax.sharding.get_mesh(), leading=1)  # type: ignore[arg-type]


def profile(config: ExperimentConfig, folder: str | Path, calls: int = 6) -> list[Operation]:
    """Traces `calls` calls of `train_steps` on random tokens into `folder`; returns its operations, slowest first.

    The trace opens in TensorBoard's profile plugin, XProf or Perfetto. The step is supervised, even if the config has a
    teacher. Raises ConfigError if the trace contains no operation of the step.
    """
    size = config.loop.steps_per_call
    with jax.set_mesh(sharding.make(config.mesh)):
        state, batches = step.init_state(config), random_batches(config, size)
        run = step.train_steps.lower(step.step_spec(config), state, None, batches, np.int32(size)).compile()
        state, sums = run(state, None, batches, np.int32(size))
        jax.block_until_ready(sums)
        with jax.profiler.trace(str(folder)):
            for _ in range(calls):
                state, sums = run(state, None, batches, np.int32(size))
            jax.block_until_ready(sums)
    traces = sorted(Path(folder).rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    timed = operations(run.as_text() or "", _events(traces[-1]), calls * size) if traces else []
    if not timed:
        raise ConfigError(f"{folder}: the trace contains no operation of the step on {jax.devices()[0]}")
    return timed


def _events(path: Path) -> Iterable[tuple[str, float]]:
    """(compiled operation, nanoseconds) of everything in a trace."""
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                name: Any = event.name
                if plane.name.startswith("/device:GPU"):  # a kernel's own name is not informative
                    name = dict(event.stats).get("hlo_op", name)
                yield str(name), event.duration_ns


def operations(hlo: str, events: Iterable[tuple[str, float]], steps: int) -> list[Operation]:
    """The operations of a compiled program by their time; a loop is not counted in addition to its body."""
    times: dict[str, list[float]] = defaultdict(list)
    for name, nanoseconds in events:
        times[name].append(nanoseconds)
    timed = []
    for line in hlo.splitlines():
        match = re.match(r"\s*(?:ROOT )?%([\w.\-]+) = (\S+) ([\w\-]+)\(", line)
        if not match or match[1] not in times or match[3] in ("while", "call", "conditional"):
            continue
        runs, path = times.pop(match[1]), re.search(r'op_name="([^"]*)"', line)
        shape = re.sub(r"\{[^}]*\}", "", match[2])
        taken = statistics.median(runs) * len(runs) / steps / 1e3
        source = _source(path[1] if path else "")
        timed.append(Operation(name=match[1], shape=shape, source=source, microseconds=taken, count=len(runs) / steps))
    return sorted(timed, key=lambda one: -one.microseconds)


def _source(path: str) -> str:
    """'jit(train_steps)/while/body/transpose(jvp())/closed_call/exp' is 'backward exp'."""
    parts = [part for part in path.split("/") if not re.fullmatch(r"jit\(.*\)|while|body|closed_call|jvp\(\)", part)]
    kept = [part for part in parts if not part.startswith("transpose(jvp(")]
    inner = [match[1] for part in parts if (match := re.match(r"transpose\(jvp\((.+)\)\)", part))]
    return ("backward " if "transpose(jvp" in path else "") + "/".join([*inner, *kept][-2:])
