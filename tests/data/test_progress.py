"""What is reported while a store is built: the stage, text so far, MB/s; nothing is shown for short work."""

import itertools

from distill import data
from distill.data.store.build import build_progress
from distill.system import progress


def test_a_report_names_the_stage_the_text_and_the_speed():
    now = build_progress("tokenizing", 0.3, 24_000_000, 6_000_000, 2e6)
    assert (now.count(), now.text) == ("tokenizing 30%", "24.0 MB of text, 6.0 Mtok, 2.0 MB/s")
    first = build_progress("learning the tokenizer", 0.9, 2_000_000, 0, None)
    assert (first.count(), first.text) == ("learning the tokenizer 90%", "2.0 MB of text")


def test_short_work_is_silent(config, tmp_path, capsys):
    with progress.bar("x") as report:
        data.open_store(config, tmp_path / "s", on_progress=report)
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


def test_every_stage_reports_and_ends_at_one(config, tmp_path):
    import dataclasses

    from distill.config.data import TokenizerConfig

    seen = []
    bpe = dataclasses.replace(config, tokenizer=TokenizerConfig(kind="bpe", vocab_size=300))
    data.open_store(bpe, tmp_path / "s", on_progress=seen.append)
    assert [stage for stage, _ in itertools.groupby(p.unit for p in seen)] == ["learning the tokenizer", "tokenizing"]
    assert seen[-1].done == seen[-1].total == 1.0
    shares = [p.done for p in seen if p.unit == "tokenizing"]
    assert shares == sorted(shares)
