"""A workdir is read as it was left: what is missing is told, what is damaged is named."""

import json
import shutil

import jax
import numpy as np
import pytest

from distill import laws
from distill.config import DistillError
from distill.errors import ReportError
from distill.records.runs import RunTable
from distill.report.study import results
from tests.report.conftest import BUDGETS, DISTILLATION, SUPERVISED, rows


@pytest.fixture
def workdir(study_dir, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(study_dir, tmp_path / "copy")


def test_everything_a_study_leaves_is_read(study_dir):
    found = results.load(study_dir)
    assert found.runs == tuple(rows())
    assert [len(points) for points in found.curves.values()] == [30] * len(found.runs)
    assert [law.name for law in found.laws] == ["supervised", "distillation"]
    assert len(found.predictions) == sum(run.kind == "distillation" and BUDGETS[-1] == run.D for run in rows())
    assert found.command == "python -m launch.study --workdir=runs/smoke"
    assert [run.loss for run in found.teachers] == sorted((run.loss for run in rows()[:4]), reverse=True)
    assert found.plan is not None and found.plan.compute == 6e12


def test_laws_predict_runs_as_they_were_made(study_dir):
    found = results.load(study_dir)
    alone, taught = found.law(False), found.law(True)
    assert alone and taught
    for run in found.runs:
        law = taught if run.kind == "distillation" else alone
        assert law.covers(run) and not (taught if law is alone else alone).covers(run)
        truth = DISTILLATION(run.N, run.D, run.L_T) if run.L_T else SUPERVISED(run.N, run.D)
        assert law.predict(run) == truth
    assert taught.status == "not identified" and taught.message == "c1, d1 only kappa"
    assert (taught.error, taught.resamples, taught.failed) == ((0.008, 0.03), 256, 3)
    assert taught.intervals["kappa"] == pytest.approx((0.9 * DISTILLATION.kappa, 1.2 * DISTILLATION.kappa))


def test_a_law_file_of_the_fitter_is_read_whole(workdir):
    """The contract with laws.fit and laws.bootstrap: status, errors and intervals arrive as they were saved."""
    table = laws.load_table(workdir / "runs.csv")
    with jax.numpy_rank_promotion("allow"):  # what is tested here is the file, not the solver's strictness
        fitted = laws.fit("chinchilla", table, start_count=8, units=False)
        boot = laws.bootstrap(fitted, resamples=16, cluster="trunk")
    fitted.save(workdir / "laws" / "supervised.json", bootstrap=boot.to_dict(0.8))
    law = results.load(workdir).law(False)
    assert law is not None
    assert (law.status, law.error, law.rows) == (fitted.status.kind, fitted.error, 13)
    assert (law.level, law.resamples, law.failed) == (0.8, 16, int(boot.failed.sum()))
    assert law.intervals == {name: ends for name, ends in boot.interval(0.8).items() if name not in boot.open}
    own = [run for run in results.load(workdir).runs if law.covers(run)]
    errors = np.log([law.predict(run) / run.loss for run in own])
    np.testing.assert_allclose(errors, fitted.residuals, atol=1e-12)


def test_runs_that_are_missing_are_named_with_the_reason(workdir):
    begun = workdir / "runs" / "begun0000000"
    begun.mkdir()
    (begun / "config.txt").write_text("")
    note = json.loads((workdir / "study.json").read_text())
    note["planned"]["never0000000"] = "t@8M"
    (workdir / "study.json").write_text(json.dumps(note))
    assert results.load(workdir).missing == {
        "s@1M>r@500K": "MemoryError: <big>",
        "t@8M": "not run",
        "begun0000000": "begun, not finished",
    }


def test_a_runs_table_is_enough(tmp_path):
    RunTable(tmp_path / "runs.csv").append(rows())
    found = results.load(tmp_path)
    assert (found.curves, found.laws, found.predictions, found.plan, found.missing) == ({}, (), (), None, {})


@pytest.mark.parametrize(
    "file, text, message",
    [
        ("runs.csv", "", "no finished run"),
        ("laws/distillation.json", "{", "not valid JSON"),
        ("laws/distillation.json", '{"form": "distilation", "parameters": {}}', "Did you mean 'distillation'"),
        ("laws/supervised.json", '{"form": "powerlaw", "parameters": {"A": 1, "E": -1, "alpha": 1}}', "positive"),
        ("laws/plan.json", '{"sentence": "Distil."}', "plan.json: damaged"),
        ("laws/plan.json", "[1]", "wanted a JSON object"),
        ("predictions.csv", "run,N\nx,1\n", "column"),
        ("study.json", "nonsense", "study.json: not valid JSON"),
    ],
)
def test_damage_is_named(workdir, file, text, message):
    (workdir / file).write_text(text)
    with pytest.raises(DistillError, match=message):
        results.load(workdir)


def test_a_folder_without_a_study_is_refused(tmp_path):
    with pytest.raises(ReportError, match=r"is a folder without runs.csv; wanted the workdir of a study"):
        results.load(tmp_path)


@pytest.mark.parametrize("column, value", [("kind", "destillation"), ("loss", "nan"), ("N", "0"), ("L_T", "")])
def test_rows_that_cannot_be_are_refused_by_line(workdir, column, value):
    lines = (workdir / "runs.csv").read_text().splitlines()
    place = lines[0].split(",").index(column)
    # Quoted cells hold commas, but only in the columns at the end.
    cells = lines[20].split(",")
    cells[place] = value
    lines[20] = ",".join(cells)
    (workdir / "runs.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(DistillError, match="line 21"):
        results.load(workdir)
