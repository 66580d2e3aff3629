"""A run's log while it trains: lines of metrics.jsonl, the same metrics for TensorBoard and W&B, and its progress."""

import importlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax

from distill import config as configs
from distill.config import ConfigError, ExperimentConfig, chips, counts
from distill.records import metrics
from distill.records.tensorboard import EventWriter
from distill.system import files
from distill.system.progress import Progress, Rate

# Columns of time and speed, which differ between two runs of one config.
CLOCK = ("time", "tokens_per_second", "seconds_left", "mfu")


class _Run(Protocol):
    """The methods used of a Weights & Biases run."""

    def log(self, data: Mapping[str, object], step: int) -> object: ...


class MetricsLogger:
    """Averages the metrics of calls into lines of metrics.jsonl, one call behind the device.

    Steps whose update was rejected (guard.py) are excluded from means; a line counts them as `rejected`. A line has the
    speed since the previous one, and `mfu` if the device's peak is known: model FLOPs (counts.py), `teacher_flops` per
    token included, over that peak. Event files for TensorBoard are in a folder beside the path.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        path: Path,
        done: int,
        on_progress: Callable[[Progress], None],
        teacher_flops: float = 0.0,
    ):
        self._config, self._path, self._on_progress = config, path, on_progress
        self._flops = 3 * counts.forward_flops(config.model, config.seq_len) + teacher_flops
        here = [chips.recognise(device.device_kind) for device in jax.devices()]
        self._peak = sum(chip.flops for chip in here if chip)  # 0 where no device is in the table
        self._line_time, self._line_step = time.monotonic(), done
        self._every = config.loop.log_steps or max(config.steps // 100, 1)
        self._pending: tuple[int, int, Mapping[str, jax.Array]] | None = None
        self._sums: dict[str, float] = {}
        self._count, self._rate = 0, Rate()
        self._first_call: tuple[float, int] | None = None  # the time and step at which the first call of steps ended
        self.step, self.consecutive_rejections = done, 0  # as of the last metrics that were read
        self._tokens = config.batch_size * config.seq_len
        # A killed run may have logged past its last checkpoint: those steps will be logged again.
        if jax.process_index() == 0:
            kept = [line for line in read_metrics(path) if line["step"] <= done]
            files.atomic_write(path, "".join(json.dumps(line) + "\n" for line in kept))
            self._events = EventWriter(path.parent / "tensorboard")
            self._wandb = _wandb(config, path.parent) if config.loop.wandb else None

    def add(self, step: int, count: int, sums: Mapping[str, jax.Array]) -> None:
        self._read()
        self._pending = (step, count, sums)

    def flush(self) -> None:
        self._read()
        self._write()

    def _read(self) -> None:
        if self._pending is None:
            return
        (step, count, sums), self._pending = self._pending, None
        values = {name: float(value) for name, value in sums.items()}
        self.consecutive_rejections = int(values.pop("consecutive_rejections"))
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count, self.step = self._count + count, step
        self._first_call = self._first_call or (time.monotonic(), step)
        self._report()
        if self._count >= self._every:
            self._write()

    def _report(self) -> None:
        rate = self._rate.update(self.step)
        text = f"loss {self._sums['ntp'] / max(self._count - self._sums['rejected'], 1):.4f}"
        left = (self._config.steps - self.step) / rate if rate else None
        if rate:
            text += f"  {rate * self._tokens / 1e3:,.1f}k tokens/s"
        self._on_progress(Progress(done=self.step, total=self._config.steps, unit="step", text=text, seconds_left=left))

    def _write(self) -> None:
        if not self._count:
            return
        line = {"step": self.step, "tokens": self.step * self._tokens, "time": round(time.time(), 3)}
        made = self._count - self._sums["rejected"]
        line |= {name: value / made for name, value in self._sums.items() if made and name != "rejected"}
        if self._sums["rejected"]:
            line["rejected"] = int(self._sums["rejected"])
        now = time.monotonic()
        began, first = self._line_time, self._line_step
        if self._first_call and first < self._first_call[1] < self.step:  # the first line, without compilation
            began, first = self._first_call
        rate = (self.step - first) * self._tokens / max(now - began, 1e-9)
        line["tokens_per_second"] = round(rate, 1)
        line["seconds_left"] = round((self._config.steps - self.step) * self._tokens / rate, 1)
        if self._peak:
            line["mfu"] = round(rate * self._flops / self._peak, 4)
        self._line_time, self._line_step = now, self.step
        if jax.process_index() == 0:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            scalars = {name: value for name, value in line.items() if name not in ("step", "time")}
            self._events.add(self.step, line["time"], scalars)
            if self._wandb:
                self._wandb.log(scalars, step=self.step)
        self._sums, self._count = {}, 0


def _wandb(config: ExperimentConfig, workdir: Path) -> _Run:
    """A Weights & Biases run in the project `config.loop.wandb`; the workdir's own is continued."""
    try:
        wandb = importlib.import_module("wandb")
    except ImportError:
        raise ConfigError(
            f"config.loop.wandb={config.loop.wandb!r}, but wandb is not installed: pip install wandb, or leave it empty"
        ) from None
    name = configs.fingerprint(config)
    return wandb.init(
        project=config.loop.wandb, id=name, name=workdir.name, dir=str(workdir), resume="allow",
        config=configs.to_flat(config),
    )  # fmt: skip


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a metrics.jsonl, in order; a torn last line is skipped. Raises MetricsError."""
    if not path.exists():
        return []
    content = path.read_bytes()
    return list(metrics.lines(path, 0, content[: content.rfind(b"\n") + 1]))
