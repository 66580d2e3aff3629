"""Settings compared: paired differences against those of hand, the CSV, the page, and what stays out of the rest."""

import csv
import dataclasses
import io
import json

import numpy as np
import pytest

from distill import errors
from distill.records.runs import RunRecord, RunTable
from distill.report.study import ablations, results, write

# Loss of three seeds under lambda 0, 1 (as it is) and 0.5; the seeds differ more than the settings do.
LOSSES = {"0": (2.10, 2.30, 2.50), "1": (2.00, 2.22, 2.39), "0.5": (1.99, 2.20, 2.38)}


def record(run, seed, loss, teacher=None) -> RunRecord:
    return RunRecord(
        run=run, kind="distillation" if teacher else "supervised", N=12_000, D=250_000, D_unique=250_000, loss=loss,
        loss_se=0.01, L_T=1.5 if teacher else None, teacher=teacher, N_T=100_000 if teacher else None,
        D_T=10**6 if teacher else None, flops_student=1e10, flops_teacher=1e10 if teacher else 0.0,
        lambda_=1.0 if teacher else None, tau=1.0 if teacher else None, seed=seed, trunk=run, model="24x2",
        tokenizer="bytes", bits_per_byte=loss, kl=loss - 1.5 if teacher else None, agreement=0.5 if teacher else None,
        ece=0.02 if teacher else 0.01, start="2026-01-01T12:00:00+00:00", end="2026-01-01T12:00:50+00:00",
        machine="cpu", commit="abc",
    )  # fmt: skip


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablations")
    runs = [record(f"teacher{seed}", seed, 1.5) for seed in range(3)]
    ablated = {}
    for value, losses in LOSSES.items():
        for seed, loss in enumerate(losses):
            runs.append(record(f"s{value}#{seed}", seed, loss, teacher=f"teacher{seed}"))
            settings = [("lambda_", value)] + ([("target", "soft")] if value == "1" else [])
            ablated[runs[-1].run] = {"base": "s>q", "settings": settings, "plain": value == "1"}
    RunTable(folder / "runs.csv").append(runs)
    values = {"lambda_": ["0", "0.5", "1"], "target": ["soft", "argmax"]}
    note = {"command": "x", "planned": {run.run: run.run for run in runs}, "ablated": ablated, "values": values}
    (folder / "study.json").write_text(json.dumps(note))
    return folder


def test_differences_are_between_pairs_of_one_seed(workdir):
    found = ablations.compare(results.load(workdir), "lambda_")
    assert [setting.value for setting in found] == ["0", "0.5", "1"]  # as the line has them
    for setting in found:
        pairs = np.subtract(LOSSES[setting.value], LOSSES["1"])
        mean, error = setting.difference
        assert mean == pytest.approx(pairs.mean()) and error == pytest.approx(pairs.std(ddof=1) / np.sqrt(3))
        assert setting.mean("loss") == pytest.approx(np.mean(LOSSES[setting.value]))
        assert setting.spread("loss") == pytest.approx(np.std(LOSSES[setting.value], ddof=1))
    text = ablations.verdict("lambda", found)
    assert "lambda = 0.5 gives the lowest loss, \N{MINUS SIGN}0.0133 ± 0.0033 against 1, beyond the noise of 3" in text


def test_a_difference_within_noise_is_said_to_be(workdir):
    half, one = (next(s for s in ablations.compare(results.load(workdir), "lambda_") if s.value == v) for v in "01")
    noisy = dataclasses.replace(half, differences=(-0.5, 0.4, -0.1), runs=one.runs[:1])
    assert "within the noise of 3 pairs" in ablations.verdict("lambda", [one, noisy])


def test_the_csv_has_every_run_once(workdir):
    rows = list(csv.DictReader(io.StringIO(ablations.table(results.load(workdir), "lambda_"))))
    assert len(rows) == 9
    got = {(row["lambda"], row["seed"]): float(row["loss"]) for row in rows}
    assert got["0", "2"] == 2.5 and {row["teacher_ece"] for row in rows} == {"0.01"}


def test_varied_students_stay_out_of_the_rest_of_the_page(workdir):
    found = results.load(workdir)
    assert {run.run for run in found.distilled} == {"s1#0", "s1#1", "s1#2"} and len(found.ablated) == 9
    page = write.write(workdir).read_text()
    assert "One setting at a time" in page and "Students by lambda." in page
    folder = workdir / "report"
    assert {"ablation-lambda.csv", "ablation-lambda.png", "ablation-target.csv"} <= {p.name for p in folder.iterdir()}


def test_a_damaged_note_is_a_line(workdir, tmp_path):
    (tmp_path / "runs.csv").write_bytes((workdir / "runs.csv").read_bytes())
    (tmp_path / "study.json").write_text(json.dumps({"ablated": {"s0#0": {"base": "x"}}}))
    with pytest.raises(errors.ReportError, match="study.json: damaged"):
        results.load(tmp_path)
