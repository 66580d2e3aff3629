"""What a run asks of the host beside its steps: reading, dispatching, logging, checkpoints, starting.

    python -m launch.bench host [--shapes=micro-25K,micro-1.2M] [--parts=loader,loop,checkpoint,start] [--rounds=5]

loader      tokens/s that the loader reads and places, over those that the step takes (goal: 10 times)
loop        tokens/s of a whole run (launch.train's loop, with its log, its event files and its prefetching thread) over
            those of bare steps, and how long it takes to dispatch a call of 16 steps to an idle device (goal: 1 ms)
checkpoint  how long saving keeps the loop, and the processor time of its threads, over the 60 s between two (goal: 1%)
start       a run that was ended, started again: seconds from the command to its first logged call, with an empty cache
            of compiled programs and with a warm one (goal: 10 s and what the checkpoint takes to read)

All but `start` run in this process on one core (an accelerator: one device), as a worker of a study does.
"""

import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from distill.bench.step import SHAPES
from distill.bench.step_peers import CALL
from distill.bench.turns import spread
from distill.config import ConfigError, ExperimentConfig, LoopConfig, MeshConfig, nearest
from distill.config.flags import Parser
from distill.system import preemption, process

LONGEST = 600.0  # seconds that a start may take
PARTS = ("loader", "loop", "checkpoint", "start")


def _config(shape: str, seconds: float = 4.0, rate: float = 1e4) -> ExperimentConfig:
    """A run on the shipped corpus of about so many seconds at `rate` tokens/s."""
    model, batch, length = SHAPES[shape]
    steps = CALL * max(4, round(seconds * rate / (CALL * batch * length)))
    return ExperimentConfig(
        model=model, batch_size=batch, seq_len=length, tokens=steps * batch * length, loop=LoopConfig(log_steps=CALL)
    )


def _bare(config: ExperimentConfig) -> tuple[Callable[[], float], list[float]]:
    """A function that runs bare steps and returns their tokens/s, and the dispatch time of each call (ms)."""
    import jax

    from distill.diagnostics import profile
    from distill.training import step

    batches = profile.random_batches(config, CALL)
    state, spec, dispatch = step.init_state(config), step.step_spec(config), list[float]()

    def turn(calls: int = 8) -> float:
        nonlocal state
        begin = time.perf_counter()
        for _ in range(calls):
            asked = time.perf_counter()
            state, sums = step.train_steps(spec, state, None, batches, CALL)
            dispatch.append(1e3 * (time.perf_counter() - asked))
            jax.block_until_ready(sums)  # so that the next one is dispatched to an idle device
        return calls * CALL * config.batch_size * config.seq_len / (time.perf_counter() - begin)

    turn(1)
    dispatch.clear()
    return turn, dispatch


def loader(shape: str, rounds: int) -> None:
    import jax

    from distill import data
    from distill.model import sharding as mesh

    config = _config(shape)
    turn, _ = _bare(config)
    with tempfile.TemporaryDirectory() as folder:
        store = data.open_store(config.data, Path(folder) / "data")
        reader = data.Loader(store, split="student", batch_size=config.batch_size, seq_len=config.seq_len)
        rates, ratios = [], []
        for _ in range(rounds):
            begin, calls = time.perf_counter(), 0
            while time.perf_counter() - begin < 0.5:
                mesh.place(reader.batches(calls * CALL, CALL), jax.sharding.get_mesh(), leading=1)
                calls += 1
            rates.append(calls * CALL * config.batch_size * config.seq_len / (time.perf_counter() - begin))
            ratios.append(rates[-1] / turn())
    print(f"{shape} loader: {spread([rate / 1e3 for rate in rates])} k tokens/s, {spread(ratios)} times the step's")


def loop(shape: str, rounds: int) -> None:
    from distill.training import loop as train

    turn, dispatch = _bare(_config(shape))
    rate, ratios = turn(), []
    for i in range(rounds):
        config = dataclasses.replace(_config(shape, rate=rate), seed=i)
        with tempfile.TemporaryDirectory() as folder:
            train.train(config, folder)
            lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text("utf-8").splitlines()]
        whole = (lines[-1]["tokens"] - lines[0]["tokens"]) / (lines[-1]["time"] - lines[0]["time"])
        ratios.append(whole / turn())
    print(f"{shape} loop: {spread(ratios)} times the tokens/s of bare steps; "
          f"a call is dispatched in {spread(dispatch)} ms", flush=True)  # fmt: skip


def checkpoint(shape: str, rounds: int) -> None:
    from distill.records.checkpoints import Checkpoints
    from distill.training import step

    config = _config(shape)
    state, waits, busy = step.init_state(config), list[float](), list[float]()
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
        for i in range(rounds + 1):
            begin, spent = time.perf_counter(), time.process_time()
            checkpoints.save(i + 1, state.stored(), "")
            waits.append(1e3 * (time.perf_counter() - begin))
            checkpoints.wait()
            busy.append(1e3 * (time.process_time() - spent))
    every = config.loop.checkpoint_seconds
    shares = [statistics.median(values[1:]) / every / 10 for values in (waits, busy)]
    print(f"{shape} checkpoint: keeps the loop {spread(waits[1:])} ms, {shares[0]:.3f}% of {every:.0f} s; "
          f"processor time {spread(busy[1:])} ms, {shares[1]:.3f}%", flush=True)  # fmt: skip


def _seconds(flags: list[str], workdir: Path, cache: Path, after: int) -> float:
    """Seconds from the command to the first logged call past step `after`; the run is then stopped."""
    lines = workdir / "metrics.jsonl"
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        begin = time.perf_counter()
        worker = subprocess.Popen(
            [sys.executable, "-m", "launch.train", f"--workdir={workdir}", *flags],
            env=os.environ | {"DISTILL_CACHE": str(cache)}, stdout=subprocess.DEVNULL, stderr=said,
        )  # fmt: skip
        while worker.poll() is None and _step(lines) <= after and time.perf_counter() - begin < LONGEST:
            time.sleep(0.01)
        taken = time.perf_counter() - begin
        worker.send_signal(signal.SIGTERM)
        if worker.wait() != preemption.REQUEUE:
            said.seek(0)
            last = (said.read().strip().splitlines() or ["nothing"])[-1]
            raise ConfigError(f"launch.train ended with {worker.returncode} after {taken:.0f} s and said {last!r}")
        return taken


def _step(lines: Path) -> int:
    """The step of the last complete line; -1 if there is none."""
    text = lines.read_text("utf-8") if lines.exists() else ""
    whole = text[: text.rfind("\n") + 1].splitlines()
    return json.loads(whole[-1])["step"] if whole else -1


def start(shape: str, rounds: int) -> None:
    model, batch, length = SHAPES[shape]
    flags = ["--config=configs/train.py:micro", f"--config.batch_size={batch}", f"--config.seq_len={length}"]
    flags += [
        f"--config.model.{name}={value}" for name, value in dataclasses.asdict(model).items() if value is not None
    ]
    flags += [f"--config.tokens={10**9}", "--config.loop.log_steps=1", "--config.loop.steps_per_call=1"]
    with tempfile.TemporaryDirectory() as folder:
        workdir, cache = Path(folder) / "run", Path(folder) / "cache"
        cold, warm = _seconds(flags, workdir, cache, -1), []
        for _ in range(rounds):
            warm.append(_seconds(flags, workdir, cache, _step(workdir / "metrics.jsonl")))
    print(f"{shape} start: {cold:.1f} s with an empty cache, again {spread(warm)} s", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line a shape and part."""
    parser = Parser("bench host", __doc__)
    parser.add_argument("--shapes", default="micro-25K,micro-1.2M")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse_args(argv)
    for flag, known in (("shapes", SHAPES), ("parts", PARTS)):
        for name in getattr(flags, flag).split(","):
            if name not in known:
                raise ConfigError(f"--{flag}: there is no {name!r}; wanted some of {', '.join(known)}."
                                  f"{nearest(name, known)}")  # fmt: skip
    if flags.rounds < 1:
        raise ConfigError(f"--rounds={flags.rounds}: wanted 1 or more")
    print(f"load {os.getloadavg()[0]:.1f} before", flush=True)
    if "start" in flags.parts.split(","):  # in separate processes, on all cores
        for shape in flags.shapes.split(","):
            start(shape, flags.rounds)
    process.pin_to_cores(process.cores()[:1])
    process.use_fast_cpu_compilation()
    import jax

    from distill.model import sharding as mesh

    with jax.set_mesh(mesh.make(MeshConfig(data=1), jax.devices()[:1])):
        for shape in flags.shapes.split(","):
            for part in (loader, loop, checkpoint):
                if part.__name__ in flags.parts.split(","):
                    part(shape, flags.rounds)
    return 0
