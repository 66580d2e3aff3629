"""What a run says: lines with speed and time left, event files beside them, Weights & Biases where it is asked for."""

import dataclasses
import sys
import types

import pytest

from distill import config as configs
from distill.config import ConfigError, chips, counts
from distill.records.logger import CLOCK, MetricsLogger, read_metrics


def call(steps, loss=2.0, rejected=0.0):
    """The sums over `steps` steps, as train_steps gives them."""
    made = steps - rejected
    return {"ntp": loss * made, "grad_norm": 0.5 * made, "rejected": rejected, "consecutive_rejections": 0}


@pytest.fixture
def logged(tiny):
    """A config with a line for every five steps."""
    return dataclasses.replace(tiny, loop=dataclasses.replace(tiny.loop, log_steps=5))


def follow(config, tmp_path, **kwargs):
    meter = MetricsLogger(config, tmp_path / "metrics.jsonl", 0, lambda _: None, **kwargs)
    for step in (5, 10):
        meter.add(step, 5, call(5))
    meter.flush()
    return read_metrics(tmp_path / "metrics.jsonl")


def test_a_line_has_its_speed_and_the_time_left(logged, tmp_path):
    lines = follow(logged, tmp_path)
    assert [line["step"] for line in lines] == [5, 10]
    for line in lines:
        assert line["ntp"] == 2.0 and line["tokens_per_second"] > 0 and "mfu" not in line
        left = (20 - line["step"]) * 64 / line["tokens_per_second"]
        assert line["seconds_left"] == pytest.approx(left, abs=0.1)


def test_mfu_counts_the_teachers_forward_pass(logged, tmp_path, monkeypatch):
    cpu = dataclasses.replace(chips.CHIPS["h100"], name="cpu", kinds=("cpu",), peak={"bfloat16": 1e6})
    monkeypatch.setitem(chips.CHIPS, "cpu", cpu)
    for name, more in (("a", 0.0), ("b", 5e3)):
        (tmp_path / name).mkdir()
        last = follow(logged, tmp_path / name, teacher_flops=more)[-1]
        each = last["mfu"] * 8e6 / last["tokens_per_second"]  # eight fake devices
        assert each == pytest.approx(3 * counts.forward_flops(logged.model, 16) + more, rel=0.02)


def test_tensorboard_has_the_same_numbers(logged, tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    lines = follow(logged, tmp_path)
    found = reader.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(found.Tags()["scalars"]) == set(lines[0]) - {"step", "time"}
    for name in ("ntp", "tokens_per_second", "seconds_left"):
        got = [(event.step, event.value) for event in found.Scalars(name)]
        assert got == [(line["step"], pytest.approx(line[name], rel=1e-5)) for line in lines]


def asked(config):
    return dataclasses.replace(config, loop=dataclasses.replace(config.loop, wandb="law"))


def test_weights_and_biases_is_told_where_it_is_asked_for(logged, tmp_path, monkeypatch):
    told, begun = [], []
    run = types.SimpleNamespace(log=lambda scalars, step: told.append((step, scalars)))
    fake = types.SimpleNamespace(init=lambda **given: begun.append(given) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    (tmp_path / "a").mkdir()
    follow(logged, tmp_path / "a")
    assert not begun
    lines = follow(asked(logged), tmp_path)
    assert begun[0]["project"] == "law" and begun[0]["id"] == configs.fingerprint(logged)
    assert [step for step, _ in told] == [5, 10] and told[0][1]["ntp"] == lines[0]["ntp"]


def test_weights_and_biases_that_is_not_installed_is_named(logged, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="wandb is not installed: pip install wandb"):
        follow(asked(logged), tmp_path)


def test_the_clock_is_all_that_differs_between_two_runs(logged, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    one, two = (follow(logged, tmp_path / name) for name in "ab")
    rest = lambda lines: [{k: v for k, v in line.items() if k not in CLOCK} for line in lines]
    assert rest(one) == rest(two)
