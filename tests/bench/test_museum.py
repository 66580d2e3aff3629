"""The museum of laws: loaders on made files, rolled errors against refits, the committed page, published numbers."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from distill import laws
from distill.bench import lambdas, museum, museum_page, tables
from distill.config import ConfigError

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "campaigns" / "museum.json"
OTHERS = os.environ.get("DISTILL_DATA", "")
TRUE = laws.Chinchilla(A=480.0, B=2100.0, E=1.82, alpha=0.35, beta=0.37)


def grid(noise: float = 0.004) -> laws.Table:
    generator = np.random.default_rng(0)
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e8, 1e10, 6), np.geomspace(1e9, 1e11, 6)))
    return laws.from_arrays(N=N, D=D, L=TRUE(N, D) * np.exp(noise * generator.normal(size=36)))


def test_the_page_is_the_committed_results():
    """The section of docs/results/laws.md says what docs/campaigns/museum.json holds, and nothing else."""
    text = (ROOT / "docs" / "results" / "laws.md").read_text(encoding="utf-8")
    inside = text.partition(museum_page.BEGIN)[2].partition(museum_page.END)[0].strip()
    assert inside == museum_page.section(museum.read(RESULTS)), "python -m launch.bench tables --part=page"


def test_a_page_names_winners_and_bias(tmp_path):
    entries = [
        {"table": "t", "form": "chinchilla", "rows": 30, "parameters": 5, "status": "ok", "in_sample": 0.01,
         "rolled": 0.03, "approach_2_exponent": -0.05, "approach_2_size": 0.4},
        {"table": "t", "form": "supervised", "rows": 30, "parameters": 6, "status": "ok", "in_sample": 0.01,
         "rolled": 0.02},
        {"table": "t", "form": "farseer", "rows": 30, "parameters": 9, "status": "ok", "in_sample": 0.001},
    ]  # fmt: skip
    text = museum_page.section(entries)
    assert "| t | 30 | `chinchilla` | 5 | 1.00% | 3.00% | ok |" in text and "**2.00%**" in text
    assert "too few rows" in text and "`supervised` on t." in text and "| t | -0.050 | 0.40 |" in text
    page = tmp_path / "page.md"
    page.write_text("no section")
    with pytest.raises(ConfigError, match="no section between"):
        museum_page.write(entries, page)
    page.write_text(f"a\n{museum_page.BEGIN}\nold\n{museum_page.END}\nb\n")
    museum_page.write(entries, page)
    assert page.read_text() == f"a\n{museum_page.BEGIN}\n{text}\n{museum_page.END}\nb\n"


def test_rolled_errors_are_those_of_fits_to_the_rows_below():
    """An oracle of its own: laws.fit on the rows of least compute, and its errors on the next ones."""
    fit = laws.fit("chinchilla", grid())
    compute = np.argsort(fit.rows.inputs[0] * fit.rows.inputs[1], kind="stable")
    want = []
    for low, high in ((18, 27), (27, 36)):
        law = laws.fit("chinchilla", grid().where(np.sort(compute[:low]))).law
        held = compute[low:high]
        want += list(np.abs(law(*(x[held] for x in fit.rows.inputs)) / fit.rows.target[held] - 1))
    got = museum.rolled(fit, shares=(0.5, 0.75))
    np.testing.assert_allclose(np.sort(got), np.sort(want), rtol=1e-5)
    few = laws.fit("chinchilla", grid().where(np.arange(20)))
    assert museum.rolled(few) is None  # ten rows on the smallest share, for five parameters


def test_approach_2_is_biased_where_isoflops_are_off_centre():
    """Without noise, parabolas through a law's own IsoFLOPs: exact for exponents alike and centred, biased beside."""
    law = laws.Chinchilla(A=480.0, B=480.0, E=1.82, alpha=0.35, beta=0.35)
    C = np.repeat([1e19, 1e20, 1e21], 9)
    for shift, most in ((1.0, 1e-3), (4.0, 1.0)):
        N = np.sqrt(C / 6) * np.tile(np.geomspace(0.25, 4, 9), 3) * np.where(C > 5e20, shift, 1.0)
        table = laws.from_arrays(N=N, D=C / 6 / N, L=law(N, C / 6 / N))
        entry = museum.judge(museum.Specimen(name="t", table=table), "chinchilla")
        assert entry["in_sample"] < 1e-8
        assert abs(entry["approach_2_exponent"]) < most
        assert (abs(entry["approach_2_exponent"]) > 5e-3) == (shift > 1)


def test_loaders_read_files_as_published(tmp_path):
    """Columns, units, duplicates: one made file of each kind."""
    write = lambda name, text: (
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True),
        (tmp_path / name).write_text(text),
    )
    lines = "".join(f"{1e8 * k},{6e17 * k * k},{3 - 0.01 * k}\n" for k in range(1, 11))
    write("chinchilla/svg_extracted_data.csv", "Model Size,Training FLOP,loss\n" + lines)
    write("openathena/isoflops.csv", "experiment,tokens,params,loss\nllama_3__raw_loss,2e9,1e8,1.2\nother,1,1,1\n")
    write(
        "gadre_overtraining/runs_long.csv",
        "train_set,eval,N_no_emb,D,loss\na,c4_val,1e8,1e9,3\na,c4_val,1e8,1e9,2.5\na,x,1,1,1\n",
    )
    write("steplaw/dense_lr_bs_loss.csv", "N,D,smooth loss\n1e8,1e9,3.0\n1e8,1e9,2.9\n1e8,2e9,2.8\n")
    write(
        "gemstones/fineweb_edu_losses_combined.jsonl",
        '{"tokens": 2000000000, "params_active_precise": 5e7, "final_loss": 3.1}\n',
    )
    cell = {"method": "vanilla_opd", "s": 0.5, "t": 1.5, "gt": 0.4, "peak": 0.45}
    write("opd/law.json", json.dumps({"cells": [cell]}))
    got = {one.name: one for loader in museum.LOADERS for one in loader(tmp_path)}
    assert sorted(got) == ["chinchilla", "gadre a", "gemstones edu", "llama 3", "steplaw", "vanilla_opd"]
    assert len(got["chinchilla"].table) == 5 and got["chinchilla"].table["D"][0] == pytest.approx(1e9 * 6)
    assert got["llama 3"].table["N"].tolist() == [1e8] and len(got["llama 3"].table) == 1
    assert got["gadre a"].table.best_of == got["steplaw"].table.best_of == ("N", "D")
    assert got["vanilla_opd"].table["error_S"][0] == pytest.approx(0.55)


def test_results_are_kept_and_resumed(tmp_path, monkeypatch):
    out, judged = tmp_path / "museum.json", []
    one = museum.Specimen(name="grid", table=grid(), forms=("chinchilla",))
    monkeypatch.setattr(museum, "specimens", lambda folder: iter([one]))
    entry = {"rows": 36, "parameters": 5, "status": "ok", "in_sample": 0.01}

    def judge(one, form):
        judged.append(form)
        return {"table": one.name, "form": form, "digest": one.table.digest, **entry}

    monkeypatch.setattr(museum, "judge", judge)
    out.write_text(json.dumps([{"table": "elsewhere", "form": "chinchilla"}]))
    for _ in range(2):
        entries = museum.run(None, out, show=lambda text: None)
    assert judged == ["chinchilla"] and [e["table"] for e in entries] == ["elsewhere", "grid"]
    out.write_text("{}")
    with pytest.raises(ConfigError, match="not the results of a museum"):
        museum.read(out)


def test_left_out_groups_are_predicted_by_fits_to_the_others():
    table = grid().with_column("half", np.resize(["a", "b"], 36))
    fit = laws.fit("chinchilla", table)
    errors = lambdas.left_out(fit, table["half"])
    law = laws.fit("chinchilla", table.where("half == a")).law
    held = table["half"] == "b"
    want = np.abs(law(table["N"][held], table["D"][held]) / table["L"][held] - 1)
    np.testing.assert_allclose(errors[held], want, rtol=1e-5)


def test_a_wrong_part_is_named():
    with pytest.raises(ConfigError, match="Did you mean 'museum'"):
        tables.main(["--part=museun"])


@pytest.mark.data
@pytest.mark.skipif(not OTHERS, reason="$DISTILL_DATA is not set")
def test_llama_3_to_its_published_digits():
    """Published (2603.22339, VPNLS on raw losses): E .6047, A 59.1, B 155.1, alpha .3100, beta .3136."""
    table = next(one.table for one in museum.openathena(Path(OTHERS)) if one.name == "llama 3")
    law = laws.fit("chinchilla", table, objective="mse", units=False).law
    assert (f"{law.E:.4f}", f"{law.A:.1f}", f"{law.B:.1f}") == ("0.6047", "59.1", "155.1")
    assert (f"{law.alpha:.4f}", f"{law.beta:.4f}") == ("0.3100", "0.3136")


@pytest.mark.data
@pytest.mark.skipif(not OTHERS, reason="$DISTILL_DATA is not set")
def test_laws_of_repetition_on_muennighoffs_runs():
    table, held = museum.repeated(Path(OTHERS))
    errors = {}
    for form in ("chinchilla", "data-constrained", "additive-penalty"):
        fit = laws.fit(form, table)
        inputs = [held[name] for name in fit.law.inputs]
        errors[form] = fit.error[0], np.abs(fit.law(*inputs) / held["L"] - 1).mean()
    np.testing.assert_allclose(errors["additive-penalty"], (0.0296, 0.0247), atol=6e-5)
    np.testing.assert_allclose(errors["data-constrained"], (0.0371, 0.0384), atol=6e-5)
    np.testing.assert_allclose(errors["chinchilla"], (0.0515, 0.0280), atol=6e-5)
