"""What a run says while it trains: lines of metrics.jsonl, and how far it is."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from distill import runs, series
from distill.config import ExperimentConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is: steps done of all, the latest training loss (nats per token), tokens per second."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float


class Meter:
    """Averages the metrics of calls into lines of metrics.jsonl, one call behind the device.

    Steps whose update was rejected (guard.py) are in no mean; a line counts them as `rejected`.
    """

    def __init__(self, config: ExperimentConfig, path: Path, done: int, on_progress: Callable[[Progress], None]):
        self._config, self._path, self._on_progress = config, path, on_progress
        self._every = config.loop.log_steps or max(config.steps // 100, 1)
        self._pending: tuple[int, int, Any] | None = None
        self._sums: dict[str, float] = {}
        self._count, self._began, self._done = 0, time.monotonic(), done
        self.step, self.row = done, 0  # how far it has read, and how many updates up to there, in a row, were rejected
        self._tokens = config.batch_size * config.seq_len
        # A killed run may have logged past its last checkpoint: those steps are about to be logged again.
        if jax.process_index() == 0:
            kept = [line for line in read_metrics(path) if line["step"] <= done]
            runs.write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))

    def add(self, step: int, count: int, sums: Any) -> None:
        self._read()
        self._pending = (step, count, sums)

    def flush(self) -> None:
        self._read()
        self._write()

    def _read(self) -> None:
        if self._pending is None:
            return
        (step, count, sums), self._pending = self._pending, None
        sums = {name: float(value) for name, value in sums.items()}
        self.row = int(sums.pop("row"))
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count, self.step = self._count + count, step
        rate = (step - self._done) * self._tokens / max(time.monotonic() - self._began, 1e-9)
        loss = self._sums["ntp"] / max(self._count - self._sums["rejected"], 1)
        self._on_progress(Progress(step=step, steps=self._config.steps, loss=loss, tokens_per_second=rate))
        if self._count >= self._every:
            self._write()

    def _write(self) -> None:
        if not self._count:
            return
        line = {"step": self.step, "tokens": self.step * self._tokens, "time": round(time.time(), 3)}
        made = self._count - self._sums["rejected"]
        line |= {name: value / made for name, value in self._sums.items() if made and name != "rejected"}
        if self._sums["rejected"]:
            line["rejected"] = int(self._sums["rejected"])
        if jax.process_index() == 0:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        self._sums, self._count = {}, 0


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl, in order; a torn last line is left out. Raises SeriesError."""
    if not path.exists():
        return []
    content = path.read_bytes()
    return list(series.lines(path, 0, content[: content.rfind(b"\n") + 1]))
