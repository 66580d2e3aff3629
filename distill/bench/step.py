"""The training step against torch: tokens/s, model FLOP/s, MFU, compilation, memory; what a teacher costs.

    python -m launch.bench step [--shapes=micro-25K,...] [--peers=eager,compiled] [--layout=pinned,whole]
                                [--rounds=5] [--seconds=2] [--parts=step,distilled]
                                [--microbatches=8]

Every contender runs in processes of its own: `pinned` is one process a core, each with a batch of its own (how a study
runs), `whole` one process on all cores. They take turns of `seconds` (ours of a call of 16 steps at least: two minutes
of SmolLM2), `rounds` times, and a line gives the median and range of each and of the ratio, round by round; the ratio
per processor second hardly depends on what else runs. The peer is the same model by `transformers` in torch: same
batch, float32, same cores, fused AdamW. Model FLOPs are 3 F a token (distill/config/counts.py), the ceiling a product
of 1024 x 1024 in the same rounds. GPU shapes are skipped where there is no GPU. `--microbatches` is config.microbatches
of our step (the same update): a smaller one stays in a core's cache. Where it does not divide a shape's batch, their
greatest common divisor is taken, and printed.
"""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from distill.bench import turns
from distill.bench.step_peers import Job
from distill.bench.turns import spread
from distill.config import ConfigError, ModelConfig, counts, nearest
from distill.config.flags import Parser


def _micro(width: int, layers: int) -> ModelConfig:
    """A model of the micro study."""
    heads = -(-width // 16)
    return ModelConfig(
        d_model=width, n_layers=layers, n_heads=heads, d_head=16, d_ff_multiple=16, tied=False, unroll=layers
    )


_SMOLLM2 = ModelConfig(
    vocab_size=49152, d_model=576, n_layers=30, n_heads=9, n_kv_heads=3, d_ff=1536, qk_norm=False, rope_base=1e5,
    norm_eps=1e-5, scaled_embedding=False,
)  # fmt: skip
# name: model, batch, sequence
SHAPES: dict[str, tuple[ModelConfig, int, int]] = {
    "micro-7K": (_micro(16, 2), 4, 128),
    "micro-25K": (_micro(32, 2), 4, 128),
    "micro-100K": (_micro(64, 2), 4, 128),
    "micro-620K": (_micro(160, 2), 4, 128),
    "micro-200K": (_micro(64, 4), 4, 128),
    "micro-1.2M": (_micro(160, 4), 4, 128),
    "micro-200K-32": (_micro(64, 4), 32, 128),
    "micro-1.2M-32": (_micro(160, 4), 32, 128),
    "smollm2-135M": (_SMOLLM2, 2, 512),
}
_GPU = {"gpu-350M": (1024, 24, 16), "gpu-1B": (2048, 20, 8), "gpu-1.8B": (2304, 26, 4)}
SHAPES |= {
    name: (
        ModelConfig(vocab_size=32768, d_model=d, n_layers=n, n_heads=d // 128, dtype="bfloat16", remat="dots"), b, 2048
    )
    for name, (d, n, b) in _GPU.items()
}  # fmt: skip


class Contender:
    """The processes of one kind of work, on disjoint cores or together on all."""

    def __init__(self, kind: str, shape: str, layout: str, microbatches: int = 1):
        model, batch, length = SHAPES[shape]
        cores = sorted(os.sched_getaffinity(0))
        groups = [(core,) for core in cores] if layout == "pinned" else [tuple(cores)]
        self.kind, self.rates, self.efforts = kind, list[float](), list[float]()
        self._workers = [
            subprocess.Popen(
                [sys.executable, "-m", "distill.bench.step_peers"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for _ in groups
        ]  # fmt: skip
        for worker, group in zip(self._workers, groups):
            quick = layout == "pinned" and kind != "matmul"
            job = Job(
                kind=kind, cores=group, model=model, batch_size=batch, seq_len=length, quick=quick,
                microbatches=math.gcd(microbatches, batch),
            )  # fmt: skip
            self._send(worker, json.dumps(dataclasses.asdict(job)))
        self.told = [self._hear(worker) for worker in self._workers]

    @staticmethod
    def _send(worker: subprocess.Popen[str], line: str) -> None:
        assert worker.stdin is not None  # a pipe
        worker.stdin.write(line + "\n")
        worker.stdin.flush()

    def _hear(self, worker: subprocess.Popen[str]) -> dict[str, float]:
        assert worker.stdout is not None  # a pipe
        while line := worker.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        last = (worker.communicate()[1].strip().splitlines() or ["it ended"])[-1]
        raise ConfigError(f"{self.kind}: the worker said {last!r}")

    def turn(self, seconds: float) -> None:
        """Runs all of its processes at the same time."""
        for worker in self._workers:
            self._send(worker, str(seconds))
        answers = [self._hear(worker) for worker in self._workers]
        self.rates.append(sum(one["units"] / one["seconds"] for one in answers))
        self.efforts.append(sum(one["units"] for one in answers) / sum(one["processor"] for one in answers))

    def stop(self) -> None:
        for worker in self._workers:
            worker.kill()
            worker.communicate()


def compete(
    kinds: Sequence[str], shape: str, layout: str, rounds: int, seconds: float, microbatches: int = 1
) -> dict[str, Contender]:
    """The rates of all kinds, alternated; one that cannot be prepared is skipped with a message."""
    teams: dict[str, Contender] = {}
    try:
        for kind in kinds:
            try:
                teams[kind] = Contender(kind, shape, layout, microbatches)
            except ConfigError as error:
                print(f"  {error}", flush=True)
        each = {kind: functools.partial(team.turn, seconds) for kind, team in teams.items()}
        turns.take_turns(each, rounds, warm_up=False)
    finally:
        for team in teams.values():
            team.stop()
    return teams


def flops(kind: str, shape: str) -> float:
    """Model FLOPs per token: 3 F, plus F for a teacher of the same shape."""
    model, _, length = SHAPES[shape]
    return (4 if kind == "distilled" else 3) * counts.forward_flops(model, length)


def report(shape: str, layout: str, teams: dict[str, Contender]) -> None:
    """Prints one line per contender."""
    model, batch, length = SHAPES[shape]
    ceiling = statistics.median(teams["matmul"].rates)
    load = os.getloadavg()[0]
    print(f"{shape} ({counts.non_embedding(model):,} N, {batch} x {length}), {layout}; product {ceiling / 1e9:.0f} "
          f"GFLOP/s; load {load:.1f}", flush=True)  # fmt: skip
    ours = teams.get("ours")
    for kind, team in teams.items():
        if kind == "matmul":
            continue
        rate, done = statistics.median(team.rates), flops(kind, shape)
        told, line = team.told[0], f"  {kind:9s} {spread(team.rates, ',.0f')} tokens/s"
        line += f", {rate * done / 1e9:6.1f} GFLOP/s, MFU {rate * done / ceiling:.2f}"
        line += f"; compilation {told['compile']:.1f} s, peak {max(t['peak'] for t in team.told) / 2**20:,.0f} MiB"
        if told.get("microbatches", 1) > 1:
            line += f", {told['microbatches']:.0f} microbatches"
        if "dispatch" in told:
            line += f", dispatch {1e3 * told['dispatch']:.2f} ms"
        if ours and kind not in ("ours", "distilled"):
            line += f"; ours / it {spread(turns.ratios(ours.rates, team.rates))}"
            line += f", per processor second {spread(turns.ratios(ours.efforts, team.efforts))}"
        if ours and kind == "distilled":
            dearer = turns.ratios(ours.rates, team.rates)
            line += (
                f"; a step takes {spread(dearer)} times the supervised one, its FLOPs 1.33 times (goal: at most 1.47)"
            )
        print(line, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one block per shape and layout."""
    parser = Parser("bench step", __doc__)
    parser.add_argument("--shapes", default="micro-25K,micro-200K,micro-1.2M,micro-200K-32,micro-1.2M-32")
    parser.add_argument("--peers", default="eager,compiled")
    parser.add_argument("--layout", default="", help="pinned, whole or both; default: pinned up to 2M parameters")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one turn")
    parser.add_argument("--parts", default="step,distilled")
    parser.add_argument("--microbatches", type=int, default=1)
    flags = parser.parse_args(argv)
    if min(flags.rounds, flags.microbatches) < 1:
        raise ConfigError(f"--rounds={flags.rounds} --microbatches={flags.microbatches}: wanted 1 or more of each")
    parts, peers = flags.parts.split(","), [peer for peer in flags.peers.split(",") if peer]
    names = [name for name in flags.shapes.split(",") if name]
    if unknown := set(parts) - {"step", "distilled"}:
        raise ConfigError(f"--parts: there is no {min(unknown)!r}; wanted step, distilled or both")
    for name in names:
        if name not in SHAPES:
            raise ConfigError(
                f"--shapes: there is no {name!r}; wanted some of {', '.join(SHAPES)}.{nearest(name, SHAPES)}"
            )
    print(_machine(), flush=True)
    kinds = ["matmul", *(["ours"] if "step" in parts else []), *(["distilled"] if "distilled" in parts else [])]
    if "step" in parts:
        kinds += peers
    for name in names if len(kinds) > 1 else []:
        if name.startswith("gpu") and not list(Path("/dev").glob("nvidia[0-9]*")):
            print(f"{name}: skipped, there is no GPU", flush=True)
            continue
        small = counts.non_embedding(SHAPES[name][0]) < 2e6
        for layout in flags.layout.split(",") if flags.layout else ["pinned" if small else "whole"]:
            report(name, layout, compete(kinds, name, layout, flags.rounds, flags.seconds, flags.microbatches))
    return 0


def _machine() -> str:
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("jax", "torch", "transformers")
                if importlib.util.find_spec(name)]  # fmt: skip
    models = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0))
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    return f"{cores} cores of {models[0] if models else platform.machine()}; {', '.join(versions)}; load {load} before"


def _lines(path: str) -> list[str]:
    return Path(path).read_text("utf-8").splitlines() if Path(path).exists() else []
