"""Runs of one shape together under one vmapped step, beside the same runs one after the other: what study.pack to use.

    python -m launch.bench pack [--shapes=micro-7K,micro-25K,micro-100K] [--sizes=2,4,8] [--rounds=5] [--seconds=2]

One process on one core (of an accelerator: on one device). Every size takes its turn in every round; a line gives the
tokens/s of all its runs, and the median and range of the ratio to a run alone, round by round.
"""

import functools
import os
import statistics
import time
from collections.abc import Callable, Sequence

from distill.bench import turns
from distill.bench.step import SHAPES
from distill.bench.step_peers import CALL
from distill.config import ConfigError, ExperimentConfig, MeshConfig, nearest
from distill.config.flags import Parser
from distill.system import process


def _prepare(shape: str, size: int) -> Callable[[], object]:
    """A compiled call of CALL steps of `size` runs, which returns a value to block on."""
    import jax

    from distill.diagnostics import profile
    from distill.training import step, vmapped

    model, batch, length = SHAPES[shape]
    config = ExperimentConfig(model=model, batch_size=batch, seq_len=length)
    spec, placed = step.step_spec(config), profile.random_batches(config, CALL)
    states = [step.init_state(config) for _ in range(size)]

    def call() -> object:
        if size == 1:
            states[0], sums = step.train_steps(spec, states[0], None, placed, CALL)
            return sums
        answers = vmapped.vmapped_steps(spec, list(states), None, [placed] * size, CALL)
        states[:] = [state for state, _ in answers]
        return [sums for _, sums in answers]

    jax.block_until_ready(call())
    return call


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one line per shape and size."""
    parser = Parser("bench pack", __doc__)
    parser.add_argument("--shapes", default="micro-7K,micro-25K,micro-100K")
    parser.add_argument("--sizes", default="2,4,8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    flags = parser.parse_args(argv)
    shapes = flags.shapes.split(",")
    for shape in shapes:
        if shape not in SHAPES:
            raise ConfigError(f"--shapes: there is no {shape!r}.{nearest(shape, SHAPES)}")
    sizes = flags.sizes.split(",")
    if flags.rounds < 1 or not all(size.isdecimal() and int(size) > 1 for size in sizes):
        raise ConfigError(f"--sizes={flags.sizes} --rounds={flags.rounds}: wanted whole numbers from 2, and from 1")
    process.pin_to_cores(process.cores()[:1])
    process.use_fast_cpu_compilation()
    import jax

    from distill.model import sharding

    with jax.set_mesh(sharding.make(MeshConfig(data=1), jax.devices()[:1])):
        for shape in shapes:
            _measure(shape, [1, *map(int, sizes)], flags.rounds, flags.seconds)
    return 0


def _measure(shape: str, sizes: list[int], rounds: int, seconds: float) -> None:
    import jax

    _, batch, length = SHAPES[shape]
    calls = {size: _prepare(shape, size) for size in sizes}

    def rate(size: int) -> float:
        begin, done = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            jax.block_until_ready(calls[size]())
            done += 1
        return done * size * CALL * batch * length / (time.perf_counter() - begin)

    each = {str(size): functools.partial(rate, size) for size in sizes}
    rates = turns.take_turns(each, rounds, warm_up=False)
    print(f"{shape}, {batch} x {length} a run, {jax.devices()[0].device_kind}; load {os.getloadavg()[0]:.1f}")
    for size in sizes:
        ratio = turns.spread(turns.ratios(rates[str(size)], rates["1"]))
        print(
            f"  {size} together: {statistics.median(rates[str(size)]) / 1e3:8.1f} k tokens/s, {ratio} times alone",
            flush=True,
        )
