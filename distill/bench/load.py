"""What a project of some years leaves behind, and how long it takes to look at it.

    python -m launch.bench load [--part=runs,store,metrics]

runs     2,000 recorded runs with 100 points of a curve each: the table loaded, both laws fitted with 256 resamples,
         the report written (goal: 20 s)
store    a store of signals of 10,000 shards: opened, and 64 of its windows read (goal: 2 s)
metrics  ten million lines of a metrics.jsonl (2.3 GB): plotted, the process's memory beside it (goal: 10 s)

What is looked at is made up first, which is not counted.
"""

import hashlib
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill import laws
from distill.config import ConfigError
from distill.config.flags import Parser
from distill.laws.planning import lawfile
from distill.records import metrics
from distill.records.runs import CurvePoint, CurveTable, RunRecord, RunTable
from distill.report.study import write
from distill.report.study.results import load
from distill.system import process
from distill.teacher.signals import codec, manifest, writer
from distill.teacher.signals.reader import SignalStore
from distill.teacher.signals.spec import SignalSpec


def record_runs(workdir: Path, count: int = 2000, points: int = 100) -> None:
    """Half of the runs supervised, half distilled, with the paper's losses and a noise of 0.3%."""
    chance, (supervised, distilled) = np.random.default_rng(0), laws.paper()
    sizes = np.geomspace(1e8, 5e9, 20).round()
    alone: list[RunRecord] = []
    taught: list[RunRecord] = []
    curves: list[CurvePoint] = []
    for i in range(count):
        N, D = float(chance.choice(sizes)), float(np.geomspace(2e9, 5e11, 25).round()[i % 25])
        teacher = alone[chance.integers(len(alone) // 2 + 1)] if i >= count // 2 else None
        law: Any = (lambda: distilled(N, D, teacher.loss)) if teacher else (lambda: supervised(N, D))
        loss = float(law() * np.exp(0.003 * chance.standard_normal()))
        record = RunRecord(
            run=f"{i:012x}", kind="distillation" if teacher else "supervised", N=int(N), D=int(D), D_unique=int(D),
            loss=loss, loss_se=0.001, L_T=teacher.loss if teacher else None, teacher=teacher.run if teacher else None,
            N_T=teacher.N if teacher else None, D_T=teacher.D if teacher else None, flops_student=6 * N * D,
            flops_teacher=2 * teacher.N * D if teacher else 0.0, lambda_=1.0 if teacher else None,
            tau=1.0 if teacher else None, seed=0, trunk=f"{int(N):x}{teacher.run if teacher else ''}", model="64x8",
            tokenizer="bytes", bits_per_byte=loss, kl=0.1 if teacher else None, agreement=0.7 if teacher else None,
            ece=0.01, start="2026-01-01T00:00:00+00:00", end="2026-01-02T00:00:00+00:00", machine="made up", commit="x",
        )  # fmt: skip
        (taught if teacher else alone).append(record)
        along = np.linspace(1 / points, 1, points)
        curves += [
            CurvePoint(run=record.run, step=k + 1, tokens=int(D * share), flops=6 * N * D * share,
                       loss=loss + 2 * (1 - share) ** 3)
            for k, share in enumerate(along.tolist())
        ]  # fmt: skip
    RunTable(workdir / "runs.csv").append(alone + taught)
    CurveTable(workdir / "curves.csv").append(curves)


def look_at_runs(workdir: Path) -> dict[str, float]:
    """Seconds of each part."""
    clock = _Clock()
    table = laws.load_table(workdir / "runs.csv")
    load(workdir)
    clock.lap("tables loaded")
    first = laws.fit("supervised", table)
    fit = laws.fit("distillation", table, supervised=first.law)
    clock.lap("laws fitted")
    boot = laws.bootstrap((first, fit), resamples=256, cluster="trunk")
    lawfile.write(workdir / "laws" / "distillation.json", fit, boot, first=first)
    first.save(workdir / "laws" / "supervised.json")
    clock.lap("256 resamples")
    write.write(workdir)
    clock.lap("report written")
    return clock.laps


def make_store(folder: Path, shards: int = 10_000) -> None:
    """Writes a complete store with one window of 16 tokens per shard."""
    chance = np.random.default_rng(0)
    ranks = chance.integers(1, 50, (64, 16, 8)).cumsum(2)  # increasing, no rank twice
    packed = [codec.pack(codec.Ragged(np.full(16, 8), r, np.full(r.shape, 7), np.full(16, 3))) for r in ranks]
    signal = SignalSpec(kind="topk", top_k=8)
    recipe = {
        "signal": {"kind": signal.kind, **signal.parameters}, "codec": codec.CONSTANTS, "tau": 1.0,
        "teacher": {"run": "made up", "checkpoint": "", "vocab_size": 400, "d_model": 8},
        "data": {"seq_len": 16}, "shard_windows": 1,
        "windows": {"count": shards, "of": shards, "samples": 0, "seed": 0},
    }  # fmt: skip
    written = writer.write(
        folder, manifest.digest(recipe), np.arange(shards), per_shard=1, per_chunk=64,
        compute=lambda windows: windows, pack=lambda windows, row, window: (8, packed[window % 64]),
    )  # fmt: skip
    order = np.arange(400, dtype="<u4").tobytes()
    (folder / manifest.ORDER).write_bytes(order)
    files = {manifest.ORDER: {"sha256": hashlib.sha256(order).hexdigest()}}
    manifest.write(folder, {"format": 1, "recipe": recipe, "files": files, "shards": written, "bytes_per_token": 1.0})


def look_at_store(folder: Path) -> dict[str, float]:
    clock = _Clock()
    store = SignalStore(folder)
    clock.lap("opened")
    store.read(np.random.default_rng(1).integers(0, 10_000, 64))
    clock.lap("64 windows read")
    return clock.laps


def write_metrics(folder: Path, lines: int = 10_000_000) -> None:
    chance = np.random.default_rng(0)
    tails = [
        f', "time": {1.7e9 + i:.3f}, "grad_norm": {a}, "learning_rate": {b}, "loss": {c}, "ntp": {d}, "z": {e}}}\n'
        for i, (a, b, c, d, e) in enumerate(chance.random((20_000, 5)).astype(np.float32).astype(float).tolist())
    ]
    with open(folder / "metrics.jsonl", "w", encoding="utf-8") as file:
        for begin in range(0, lines, len(tails)):
            file.writelines(
                f'{{"step": {i + 1}, "tokens": {(i + 1) * 1024}{tail}' for i, tail in enumerate(tails, begin)
            )


def look_at_metrics(folder: Path) -> dict[str, float]:
    from matplotlib.figure import Figure

    clock, before = _Clock(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    curves = metrics.read(folder / "metrics.jsonl", ["ntp"])
    clock.lap("read")
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    axes.fill_between(curves.at["step"], curves.low["ntp"], curves.high["ntp"], alpha=0.3)
    axes.plot(curves.at["step"], curves.mean["ntp"])
    figure.savefig(folder / "metrics.png")
    clock.lap("plotted")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    memory = f"{grown / 1024:.0f} MB more here, {workers / 1024:.0f} MB the largest reader"
    print(f"metrics: {curves.lines.sum():,} lines as {len(curves)} points; {memory}")
    return clock.laps


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now


_PARTS: dict[str, tuple[Callable[[Path], None], Callable[[Path], dict[str, float]], float]] = {
    "runs": (record_runs, look_at_runs, 20.0),
    "store": (make_store, look_at_store, 2.0),
    "metrics": (write_metrics, look_at_metrics, 10.0),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the seconds of each part beside its goal; returns 1 if one was missed."""
    parser = Parser("bench load", __doc__)
    parser.add_argument("--part", default="runs,store,metrics")
    parser.add_argument("--folder", default="", help="where things are made; kept, and taken as they are if there")
    flags = parser.parse_args(argv)
    process.cache_compilations()  # as every command does
    late = 0
    for name in flags.part.split(","):
        if name not in _PARTS:
            raise ConfigError(f"--part={flags.part}: there is no part {name!r}, only {', '.join(_PARTS)}")
        make, look, goal = _PARTS[name]
        with tempfile.TemporaryDirectory(prefix="load-") as scratch:
            path = Path(flags.folder or scratch) / name
            if not path.exists():
                path.mkdir(parents=True)
                make(path)
            load_before = os.getloadavg()[0]
            laps = look(path)
        total = sum(laps.values())
        late += total > goal
        parts = ", ".join(f"{lap} {seconds:.2f} s" for lap, seconds in laps.items())
        print(f"{name}: {total:.2f} s (goal {goal:g} s; load {load_before:.1f}): {parts}", flush=True)
    return int(late > 0)
