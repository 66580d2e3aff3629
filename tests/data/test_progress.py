"""What is shown while a store is built: nothing for short work, then a line with MB/s and the time left."""

import itertools

import pytest

from distill import data
from distill.data import progress
from distill.data.store.build import Progress


@pytest.fixture
def clock(monkeypatch):
    """Every look at the clock finds it 4 seconds on."""
    ticks = itertools.count(0, 4)
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(ticks)))


def test_lines_tell_speed_and_time_left(clock, capsys):
    with progress.shown("stores/x") as report:
        for k in range(1, 8):
            report(Progress(k * 8_000_000, k * 2_000_000, k, k / 10))
    lines = capsys.readouterr().err.splitlines()
    # From the first report on, 8 MB and a tenth of the source every 4 s.
    assert lines[0] == "stores/x: 30%, tokenizing, 24.0 MB of text, 6.0 Mtok, 2.0 MB/s, about 28 s left"
    assert lines[1].startswith("stores/x: 60%") and len(lines) == 2


def test_a_new_stage_starts_its_own_count(clock, capsys):
    with progress.shown("x") as report:
        for k in range(6):
            report(Progress(k * 1_000_000, 0, k, 0.9, "learning the tokenizer"))
        for k in range(6):
            report(Progress(k * 4_000_000, k * 10**6, k, k / 10))
    lines = capsys.readouterr().err.splitlines()
    # The share stands still, so that nothing can be said of the time left.
    assert lines[0] == "x: 90%, learning the tokenizer, 2.0 MB of text, 0.2 MB/s"
    assert "tokenizing" in lines[-1] and "1.0 MB/s" in lines[-1]


def test_short_work_is_silent(config, tmp_path, capsys):
    with progress.shown("x") as report:
        data.open_store(config, tmp_path / "s", on_progress=report)
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


def test_every_stage_reports_and_ends_at_one(config, tmp_path):
    import dataclasses

    from distill.config.data import TokenizerConfig

    seen = []
    bpe = dataclasses.replace(config, tokenizer=TokenizerConfig(kind="bpe", vocab_size=300))
    data.open_store(bpe, tmp_path / "s", on_progress=seen.append)
    assert [stage for stage, _ in itertools.groupby(p.stage for p in seen)] == ["learning the tokenizer", "tokenizing"]
    assert seen[-1].share == 1.0 and seen[-1].documents == 400
    shares = [p.share for p in seen if p.stage == "tokenizing"]
    assert shares == sorted(shares)
