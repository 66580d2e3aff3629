"""What each kind of signal does to a student: validation loss against the online teacher's, with the noise of seeds.

    python -m launch.bench signals [--tokens=250K] [--teacher_tokens=1M] [--seeds=3] [--workdir=DIR]

One teacher (width 64) on the teacher's half of the embedded text, then students (width 32, 27K parameters) of every
kind, the same seeds for each. A difference is between runs of the same seed; its standard error is over the seeds.
Seconds are of CPU, by this process, from the opened store to the record. Finished runs in WORKDIR are not run
again (their seconds are then nothing).
"""

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from distill.config import DataConfig, ExperimentConfig, ModelConfig, ObjectiveConfig, TeacherConfig, parse
from distill.config.flags import Parser
from distill.system import process
from distill.teacher.signals.spec import SignalSpec
from distill.training import cache, loop

# Name in the table: (what is stored, the objective that reads it, lambda = 0 for labels alone).
ROUTES: dict[str, tuple[SignalSpec | None, ObjectiveConfig]] = {
    "online, whole distribution": (None, ObjectiveConfig()),
    "labels alone (supervised)": (None, ObjectiveConfig(lambda_=0.0)),
    "hidden states, float16": (SignalSpec(kind="hidden"), ObjectiveConfig()),
    "top-k 32": (SignalSpec(kind="topk", top_k=32), ObjectiveConfig(target="topk", top_k=32)),
    "top-k 8": (SignalSpec(kind="topk", top_k=8), ObjectiveConfig(target="topk", top_k=8)),
    "top-k 8, renormalised": (
        SignalSpec(kind="topk", top_k=8),
        ObjectiveConfig(target="topk", top_k=8, tail="renormalise"),
    ),
    "top-p .9, at most 32": (
        SignalSpec(kind="topp", top_p=0.9, top_k=32),
        ObjectiveConfig(target="topp", top_p=0.9, top_k=32),
    ),
    "random sampling, 50 draws": (
        SignalSpec(kind="sampled", draws=50),
        ObjectiveConfig(target="sampled", draws=50),
    ),
    "random sampling, 12 draws": (
        SignalSpec(kind="sampled", draws=12),
        ObjectiveConfig(target="sampled", draws=12),
    ),
    "argmax": (SignalSpec(kind="argmax"), ObjectiveConfig(target="argmax")),
}


class Row(TypedDict):
    """One student: losses and KL in nats per token, bytes of the store a token, seconds of CPU."""

    route: str
    seed: int
    loss: float
    kl: float
    bytes: float | None
    seconds: float


def experiment(folder: Path, tokens: int) -> ExperimentConfig:
    """The student of configs/train.py:micro."""
    return ExperimentConfig(
        model=ModelConfig(d_model=32, n_layers=2, d_head=16, d_ff_multiple=16, tied=False, unroll=2),
        data=DataConfig(cache=str(folder / "data")),
        tokens=tokens,
    )


def run(folder: Path, tokens: int, teacher_tokens: int, seeds: int) -> list[Row]:
    """A row for each route and seed: name, seed, loss, KL to the teacher, bytes per token, seconds of CPU."""
    base = experiment(folder, tokens)
    teacher = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, d_model=64),
        data=dataclasses.replace(base.data, split="teacher"),
        tokens=teacher_tokens,
    )
    trained = loop.train(teacher, folder / "teacher")
    print(f"teacher: {trained.N:,d} parameters, {trained.D:,d} tokens, loss {trained.loss:.4f}", flush=True)
    base = dataclasses.replace(base, teacher=TeacherConfig(source=str(folder / "teacher")))
    rows: list[Row] = []
    for name, (signal, objective) in ROUTES.items():
        config, size = dataclasses.replace(base, objective=objective), None
        if signal is not None:
            out = folder / "stores" / signal.label.replace(" ", "-")
            size = cache.cache_signals(base, signal, out)["bytes_per_token"]
            reading = dataclasses.replace(base.teacher, signal="stored", store=str(out))
            config = dataclasses.replace(config, teacher=reading)
        for seed in range(seeds):
            began = time.process_time()
            workdir = folder / "runs" / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
            record = loop.train(dataclasses.replace(config, seed=seed), workdir)
            assert record.kl is not None  # every route has the teacher
            seconds = time.process_time() - began
            rows.append(Row(route=name, seed=seed, loss=record.loss, kl=record.kl, bytes=size, seconds=seconds))
            print(f"  {name:<28} seed {seed}  loss {record.loss:.4f}  KL {record.kl:.4f}", flush=True)
    return rows


def table(rows: list[Row]) -> str:
    """Markdown: mean loss, difference to the online route by seed with its standard error, bytes, seconds."""
    by = {name: [row for row in rows if row["route"] == name] for name in dict.fromkeys(r["route"] for r in rows)}
    online = [row["loss"] for row in next(iter(by.values()))]
    lines = [
        "| route | loss | against online | KL to the teacher | bytes a token | CPU s a run |",
        "|---|---|---|---|---|---|",
    ]
    for name, group in by.items():
        differences = [row["loss"] - o for row, o in zip(group, online)]
        error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else float("nan")
        loss, kl = statistics.mean(row["loss"] for row in group), statistics.mean(row["kl"] for row in group)
        # A process's first run of a route compiles; the others show what the route costs.
        seconds = min(row["seconds"] for row in group)
        size = "-" if group[0]["bytes"] is None else f"{group[0]['bytes']:.1f}"
        against = "0" if name == next(iter(by)) else f"{statistics.mean(differences):+.4f} ± {error:.4f}"
        lines.append(f"| {name} | {loss:.4f} | {against} | {kl:.4f} | {size} | {seconds:.1f} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("bench signals", __doc__)
    parser.add_argument("--tokens", default="250K")
    parser.add_argument("--teacher_tokens", default="1M")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workdir", default="")
    flags = parser.parse_args(argv)
    counts = [parse(ExperimentConfig, "tokens", text) for text in (flags.tokens, flags.teacher_tokens)]
    process.cache_compilations()
    with tempfile.TemporaryDirectory() as folder:
        rows = run(Path(flags.workdir or folder), counts[0], counts[1], flags.seeds)
    losses = [row["loss"] for row in rows if row["route"] == next(iter(ROUTES))]
    print(table(rows))
    if len(losses) > 1:
        print(f"\nstandard deviation of the online loss over {len(losses)} seeds: {statistics.stdev(losses):.4f}")
    print(f"load {os.getloadavg()[0]:.1f} at the end")
    return 0
