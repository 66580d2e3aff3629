"""The campaign of held-out budgets: what it counts, and the readers of tables that others published."""

import json

import numpy as np

from distill import laws
from distill.bench import extrapolation, odds, public

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


def test_coverage_and_width_are_those_of_the_log(tmp_path):
    errors = [round(x, 4) for x in np.linspace(-0.01, 0.01, 41)]
    band = {"errors": errors, "calibrated": [37, 41 * 0.018], "plain": [20, 41 * 0.009]}
    entry = {"table": "a", "form": "chinchilla", "share": 0.5, "rows": 30, "bands": {"2x": band}}
    (tmp_path / "log.jsonl").write_text(json.dumps(entry) + "\n")
    cells = extrapolation.summarise(tmp_path / "log.jsonl").splitlines()
    assert cells[2] == "| each form | 2x | 41 | 90% | 90% | 1.00 | 49% | 0.50 |"
    assert cells[-1] == "| a | chinchilla | 41 | 90% | 1.00 | 49% | 0.50 |"


def test_the_odds_are_summarised(tmp_path):
    lines = [{"seed": 0, "plans": [[0.8, 1.0, 1.0], [0.2, 0.0, 0.0]]}, {"seed": 1, "plans": [[0.8, 1.0, 0.0]]}]
    (tmp_path / "odds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = odds.summarise(tmp_path / "odds.jsonl")
    # (.04 + .04 + .64) / 3 and 1 / 3.
    assert "3 plans, 33% won by distillation: Brier 0.240 calibrated, 0.333 of the bootstrap alone" in text
    assert "| 0.7 to 0.9 | 2 | 0.80 | 0.50 | 0 |  |  |" in text


def test_readers_of_published_tables(tmp_path):
    (tmp_path / "chinchilla").mkdir()
    rows = "".join(f"1e9,{6e19 * (i + 1)},{3 + 0.1 * i}\n" for i in range(8))
    (tmp_path / "chinchilla/svg_extracted_data.csv").write_text("Model Size,Training FLOP,loss\n" + rows)
    (tmp_path / "openathena").mkdir()
    head = "experiment,params,tokens,loss\n"
    twice = "llama_3__raw_loss,1e9,2e10,2.5\n" * 2 + "llama_3__exp_loss,1e9,2e10,9\n"
    (tmp_path / "openathena/isoflops.csv").write_text(head + twice)
    (tmp_path / "misfitting").mkdir()
    sweep = "N_no_emb,D,loss\n1e8,1e9,3.5\n1e8,1e9,3.2\n2e8,1e9,3.1\n"
    (tmp_path / "misfitting/scaling_results_last_ckpt_only.csv").write_text(sweep)
    read = dict(public.tables(tmp_path))
    assert set(read) == {"chinchilla", "llama 3", "misfitting"}
    # The five highest losses are left out; D = C / 6 N.
    np.testing.assert_allclose(read["chinchilla"]["D"], [1e10, 2e10, 3e10])
    assert len(read["llama 3"]) == 2 and read["llama 3"].duplicates == "keep"
    np.testing.assert_allclose(read["misfitting"]["L"], [3.2, 3.1])


def test_our_own_tables_are_among_the_cases():
    names = [case.name for case, _ in zip(extrapolation.cases(None), range(2))]
    assert names == ["apple", "micro"]
