"""One run on the screen: what it is before it starts, a bar while it trains, what came out."""

import dataclasses
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from distill import config as configs
from distill import counts
from distill.config import ExperimentConfig


def describe(config: ExperimentConfig) -> int:
    """Prints N, D, FLOPs, steps and the fingerprint of a run without running it."""
    from distill import train

    config = train.identify(config)
    N, D = counts.non_embedding(config.model), counts.training_tokens(config)
    forward = counts.forward_flops(config.model, config.seq_len)
    table = Table.grid(padding=(0, 2))
    rows = {
        "run": configs.fingerprint(config),
        "teacher": config.teacher.run or "none (supervised)",
        "N": f"{N:,d} non-embedding parameters, {counts.total(config.model):,d} in all",
        "D": f"{D:,d} tokens in {config.steps:,d} steps of {config.batch_size} x {config.seq_len}",
        "F": f"{forward:.4g} forward FLOPs per token ({forward / (2 * N):.2f} times 2N)",
        "C": f"{3 * forward * D:.4g} FLOPs of training",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table, highlight=False)
    return 0


def follow(config: ExperimentConfig, workdir: str | Path) -> int:
    """Trains a run under a progress bar and prints its row."""
    from distill import runtime, train

    runtime.cache_compilations()
    console = Console(stderr=True)
    describe(config)
    bar = Progress(
        TextColumn("step {task.completed:,.0f}/{task.total:,.0f}"), BarColumn(), TextColumn("{task.description}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console, disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        task, tenth = bar.add_task("starting", total=config.steps), max(config.steps // 10, 1)

        def show(progress: train.Progress) -> None:
            rate = f"loss {progress.loss:.4f}  {progress.tokens_per_second / 1e3:,.1f}k tokens/s"
            bar.update(task, completed=progress.step, description=rate)
            if bar.disable and progress.step // tenth > (progress.step - config.loop.steps_per_call) // tenth:
                console.print(f"step {progress.step:,d}/{progress.steps:,d}  {rate}", highlight=False)

        record = train.train(config, workdir, on_progress=show)
        bar.update(task, completed=config.steps)
    table = Table.grid(padding=(0, 2))
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if value is not None:
            table.add_row(field.name.rstrip("_"), f"{value:.6g}" if isinstance(value, float) else str(value))
    Console().print(table, highlight=False)
    return 0
