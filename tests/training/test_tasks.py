"""Tasks of the lm-evaluation-harness as columns of runs.csv: a made task file without network, a law of its scores."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from configs import train as preset
from distill import laws
from distill.config import ConfigError, EvalConfig, ExperimentConfig, build, fingerprint
from distill.records import heldout
from distill.records.runs import RunTable, load_record
from distill.report.runs import curves
from distill.training import tasks
from launch import evaluate
from tests.training.test_lm_eval import ROWS, TASK


def test_names_of_scores():
    """As the harness has them; a group that has no score of its own is its tasks."""
    results = {
        "colours": {"alias": "colours", "acc,none": 0.5, "acc_stderr,none": "N/A", "perplexity,none": float("inf")},
        "sums": {"alias": "sums", "exact_match,strict-match": 0.25, "exact_match_stderr,strict-match": 0.1},
    }
    assert tasks.named(results, ["colours"]) == {"colours:acc": 0.5}
    everything = {"colours:acc": 0.5, "sums:exact_match:strict-match": 0.25}
    assert tasks.named(results, ["sums", "colours"]) == everything
    assert tasks.named(results | {"both": {"alias": "both"}}, ["both"]) == everything


def test_without_the_harness_one_line_says_what_to_install(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(tasks.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"tasks need the lm-evaluation-harness: pip install 'distill\[lm_eval\]'"):
        tasks.Tasks(["colours"])
    monkeypatch.setattr(tasks.distributed, "several", lambda: True)
    with pytest.raises(ConfigError, match="tasks in several processes"):
        tasks.Tasks(["colours"])
    with pytest.raises(ConfigError, match="eval.tasks_every: got -1, wanted at least 0"):
        EvalConfig(tasks_every=-1)


def test_a_name_that_the_harness_does_not_know(monkeypatch, tmp_path):
    """One's own folder first: the harness's index of 14,000 names is read only for names that are not there."""
    asked = []

    class TaskManager:
        def __init__(self, include_path=None, include_defaults=True):
            asked.append((include_path, include_defaults))
            self.all_tasks = ["colours", *(["piqa"] if include_defaults else [])]

    monkeypatch.setattr(tasks, "_library", lambda name: SimpleNamespace(TaskManager=TaskManager))
    tasks.Tasks(["colours"], str(tmp_path))
    tasks.Tasks(["colours", "piqa"], str(tmp_path))
    tasks.Tasks(["piqa"])
    here = str(tmp_path)
    assert asked == [(here, False), (here, False), (here, True), (None, True)]
    with pytest.raises(ConfigError, match="the lm-evaluation-harness has no 'colors'. Did you mean 'colours'"):
        tasks.Tasks(["colors"], here)
    with pytest.raises(ConfigError, match="task_files: got 'nowhere', which is no folder"):
        tasks.Tasks(["colours"], "nowhere")


def test_a_run_with_tasks_is_another_run_wherever_their_files_lie():
    plain = ExperimentConfig()
    named = dataclasses.replace(plain, eval=EvalConfig(tasks=("colours",), task_files="here", tasks_every=2))
    moved = dataclasses.replace(plain, eval=EvalConfig(tasks=("colours",), task_files="there"))
    assert fingerprint(named) == fingerprint(moved) != fingerprint(plain)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="the extra `lm_eval` is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    place = tmp_path / "tasks"
    place.mkdir()
    (place / "rows.json").write_text("\n".join(map(json.dumps, ROWS)))
    (place / "colours.yaml").write_text(TASK.format(file=place / "rows.json"))
    return place


@pytest.mark.slow
def test_a_run_scores_its_tasks_on_the_way_and_at_its_end(folder, tmp_path, capsys):
    """Oracle: `distill evaluate` on the finished run; the table keeps the scores beside runs that have none."""
    from distill.training.loop import train

    small = build(ExperimentConfig, preset.get_config("micro").to_dict())
    config = dataclasses.replace(
        small,
        model=dataclasses.replace(small.model, d_model=16, n_layers=1),
        loop=dataclasses.replace(small.loop, steps_per_call=4),
        tokens=8192,
        eval=EvalConfig(tokens=4096, along=3, tasks=("colours",), task_files=str(folder), tasks_every=2),
        seq_len=64,
        batch_size=8,
    )
    record = train(config, tmp_path / "run")
    assert set(record.scores) == {"colours:acc"} and 0 <= record.scores["colours:acc"] <= 1
    assert load_record(tmp_path / "run" / "result.json") == record
    held = heldout.load(tmp_path / "run" / heldout.FILE)
    assert [one.scores is not None for one in held] == [True, False, True, False, False]
    panels = {panel.title: panel for panel in curves.chart([curves.load(tmp_path / "run", 100)], "curves").panels}
    assert panels["colours:acc"].series[0].y.tolist()[-1] == record.scores["colours:acc"]

    assert evaluate.main([f"--model={tmp_path / 'run'}", "--tasks=colours", f"--task_files={folder}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["colours:acc"] == record.scores["colours:acc"]


def test_the_downstream_law_of_a_studys_table_with_scores(tmp_path):
    """Columns that RunTable wrote are what the forms of accuracies read, by the column's name."""
    from tests.records.test_runs import SUPERVISED, record

    sizes, tokens = (x.ravel() for x in np.meshgrid(np.geomspace(1e8, 1e10, 6), np.geomspace(1e9, 1e11, 6)))
    true = laws.Accuracy(A=60.0, B=500.0, alpha=0.3, beta=0.35)
    rows = [
        record(str(i), **SUPERVISED, kind="supervised", N=int(N), D=int(D), scores={"colours:acc": float(true(N, D))})
        for i, (N, D) in enumerate(zip(sizes, tokens))
    ]
    table = RunTable(tmp_path / "runs.csv")
    table.append([record("without", **SUPERVISED, kind="supervised")])
    table.append(rows)
    fit = laws.fit("accuracy", laws.load_table(table.path, {"Q": "colours:acc"}), start_count=32)
    assert len(fit.rows.inputs[0]) == len(rows) and fit.law.values() == pytest.approx(true.values(), rel=1e-4)
