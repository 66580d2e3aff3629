"""Scores and samples along a run: what they are, and that the run does not know of them."""

import dataclasses
import json

import pytest

from configs import train as preset
from distill.config import ConfigError, EvalConfig, ExperimentConfig, build, fingerprint
from distill.records import heldout
from distill.records.heldout import HeldOutError
from distill.report.runs import curves, run
from distill.training.along import marks
from distill.training.loop import train


@pytest.fixture(scope="module")
def config():
    small = build(ExperimentConfig, preset.get_config("micro").to_dict())
    model = dataclasses.replace(small.model, d_model=16, n_layers=1)
    loop = dataclasses.replace(small.loop, steps_per_call=4)
    return dataclasses.replace(
        small, model=model, loop=loop, tokens=16_384, eval=EvalConfig(tokens=4096, along=3), seq_len=64, batch_size=8
    )


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    place = tmp_path_factory.mktemp("along") / "run"
    train(config, place)
    return place


def test_the_last_score_is_the_result_and_the_run_is_as_without(config, workdir, tmp_path):
    """Oracle: the row of the same run without scores along it; the marks are at even distances."""
    silent = dataclasses.replace(config, eval=dataclasses.replace(config.eval, along=0))
    assert fingerprint(silent) == fingerprint(config) and marks(silent) == []
    record, lines = train(silent, tmp_path / "run"), heldout.load(workdir / heldout.FILE)
    assert [one.step for one in lines] == [0, 8, 16, 24, 32] == marks(config)
    assert [one.tokens for one in lines] == [one.step * 512 for one in lines]
    assert (lines[-1].loss, lines[-1].ece) == (record.loss, record.ece)
    assert lines[0].loss > 5 > lines[-1].loss and lines[0].kl is None
    assert not (tmp_path / "run" / heldout.FILE).exists()
    bare = lambda place: [
        {k: v for k, v in json.loads(line).items() if k in ("step", "ntp", "grad_norm")}
        for line in (place / "metrics.jsonl").read_text().splitlines()
    ]
    assert bare(workdir) == bare(tmp_path / "run")


def test_samples_stand_on_the_page_and_scores_in_its_curves(workdir):
    known = curves.load(workdir, 100)
    panels = {panel.title: panel for panel in curves.chart([known], "curves").panels}
    held = panels["next-token loss (nats per token)"].series[1]
    assert held.y.tolist() == [one.loss for one in known.held] and len(held.x) == 5
    assert len(panels["calibration error, held-out text"].series[0].x) == 5
    assert "KL divergence from the teacher, held-out text" not in panels  # there is none
    text = run.write(workdir).read_text("utf-8")
    first, last = known.held[0], known.held[-1]
    assert first.prompt == last.prompt and len(first.sample) > 20 and first.sample != last.sample
    assert "before training" in text and "after 16.4K tokens" in text


def test_what_a_resumed_run_makes_again_goes(workdir, tmp_path):
    path = tmp_path / heldout.FILE
    path.write_text((workdir / heldout.FILE).read_text() + '{"step": 9')  # torn
    heldout.keep(path, 17)
    assert [one.step for one in heldout.load(path)] == [0, 8, 16]
    heldout.keep(path, 0)
    assert heldout.load(path) == []


def test_damage_is_one_line(tmp_path):
    (tmp_path / heldout.FILE).write_text('{"step": 1, "tokens": 512, "loss": 2.0}\n[]\n')
    with pytest.raises(HeldOutError, match="heldout.jsonl, line 2"):
        heldout.load(tmp_path / heldout.FILE)
    with pytest.raises(ConfigError, match="eval.along: got -1, wanted at least 0"):
        EvalConfig(along=-1)
