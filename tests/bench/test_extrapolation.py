"""The campaign of held-out budgets: what it counts."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from distill import laws
from distill.bench import extrapolation, odds

ROOT = Path(__file__).parents[2]
TRUTH = laws.Chinchilla(A=480.0, B=2100.0, E=1.70, alpha=0.35, beta=0.37)


def test_held_out_runs_are_counted_by_distance(tmp_path):
    generator = np.random.default_rng(0)
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e8, 4e9, 6), np.geomspace(2e9, 2e11, 6)))
    runs = laws.from_arrays(N=N, D=D, L=TRUTH(N, D) * np.exp(0.005 * generator.standard_normal(36)))
    case = extrapolation.Case(name="made", runs=runs, forms=("chinchilla",))
    entries = list(extrapolation.predicted(case, 0.7))
    # One form has an average with itself.
    assert [entry["form"] for entry in entries] == ["chinchilla", "average"]
    bands = entries[0]["bands"]
    compute = N * D
    far = compute / np.max(compute[compute <= np.quantile(compute, 0.7)])
    for name, (low, high) in extrapolation.BANDS.items():
        assert len(bands[name]["errors"]) == np.sum((far > low) & (far <= high))
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert "| each form | 2x |" in extrapolation.summarise(log)
    assert not list(extrapolation.predicted(case, 0.1))  # four runs for five parameters
    # A form beside is judged alone: it enters neither the average nor the pooled rows of "each form".
    more = list(extrapolation.predicted(dataclasses.replace(case, beside=("kaplan",)), 0.7))
    assert [(e["form"], e.get("beside", False)) for e in more] == [
        ("chinchilla", False), ("kaplan", True), ("average", False),
    ]  # fmt: skip
    assert more[2]["bands"] == entries[1]["bands"]
    log.write_text("".join(json.dumps(entry) + "\n" for entry in more))
    assert "kaplan" not in extrapolation.summarise(log)


def test_coverage_and_width_are_those_of_the_log(tmp_path):
    errors = [round(x, 4) for x in np.linspace(-0.01, 0.01, 41)]
    band = {"errors": errors, "calibrated": [37, 41 * 0.018], "plain": [20, 41 * 0.009]}
    entry = {"table": "a", "form": "chinchilla", "share": 0.5, "rows": 30, "bands": {"2x": band}}
    (tmp_path / "log.jsonl").write_text(json.dumps(entry) + "\n")
    cells = extrapolation.summarise(tmp_path / "log.jsonl").splitlines()
    assert cells[2] == "| each form | 2x | 41 | 90% | 90% | 1.00 | 49% | 0.50 |"
    share, width, rows = extrapolation.coverage([entry], "a", "chinchilla")
    assert (round(share, 2), round(width, 2), rows) == (0.90, 1.0, 41)
    assert extrapolation.coverage([entry], "a", "kaplan") is None
    assert cells[-1] == "| a | chinchilla | 41 | 90% | 1.00 | 49% | 0.50 |"


def test_the_odds_are_summarised(tmp_path):
    lines = [{"seed": 0, "plans": [[0.8, 1.0, 1.0], [0.2, 0.0, 0.0]]}, {"seed": 1, "plans": [[0.8, 1.0, 0.0]]}]
    (tmp_path / "odds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = odds.summarise(tmp_path / "odds.jsonl")
    # (.04 + .04 + .64) / 3 and 1 / 3.
    assert "3 plans, 33% won by distillation: Brier 0.240 calibrated, 0.333 of the bootstrap alone" in text
    assert "| 0.7 to 0.9 | 2 | 0.80 | 0.50 | 0 |  |  |" in text


def test_the_page_has_the_summaries_of_the_committed_logs():
    page = (ROOT / "docs" / "results" / "laws.md").read_text(encoding="utf-8")
    logs = ROOT / "docs" / "campaigns"
    assert odds.summarise(logs / "odds.jsonl") in page, "python -m launch.bench odds"
    assert extrapolation.summarise(logs / "extrapolation.jsonl") in page, (
        "python -m launch.bench extrapolation --summarise"
    )


def test_our_own_tables_are_among_the_cases():
    names = [case.name for case, _ in zip(extrapolation.cases(None), range(2))]
    assert names == ["apple students", "micro"]
