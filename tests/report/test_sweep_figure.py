"""Sweeps in one picture, and the best of every line in a table."""

import csv

import pytest

from launch import report
from launch.support import cli


@pytest.fixture
def sweep(tmp_path):
    """A sweep whose best rate is .01 for width 16 and .02 for 32; one setting was run with two seeds."""
    rows = [(16, 0.005, 2.2), (16, 0.01, 2.0), (16, 0.01, 2.1), (16, 0.02, 2.07), (32, 0.005, 2.0), (32, 0.02, 1.8)]
    folder = tmp_path / "rates"
    folder.mkdir()
    lines = [f"r{i},{d},{rate},{loss}" for i, (d, rate, loss) in enumerate(rows)]
    (folder / "sweep.csv").write_text("\n".join(["run,model.d_model,optim.learning_rate,loss", *lines]) + "\n")
    return folder


FLAGS = ["--x=optim.learning_rate", "--by=model.d_model"]


def test_the_best_of_every_line_is_told(sweep, tmp_path):
    out = tmp_path / "figures" / "rates"
    assert cli.guard(report.main, [f"--sweeps={sweep},{sweep}", *FLAGS, f"--out={out}"]) == 0
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    with open(out.with_suffix(".csv"), newline="") as file:
        found = [tuple(row.values()) for row in csv.DictReader(file)]
    # The mean of 2.0 and 2.1 is below 2.07.
    assert found == [("rates", "16", "0.01", "2.05", "3"), ("rates", "32", "0.02", "1.8", "2")] * 2


def test_budgets_stand_in_the_order_of_their_size(tmp_path):
    rows = [f"r{i},{budget},0.01,2.0" for i, budget in enumerate(("2M", "250K", "1M", "16M", "500K"))]
    (tmp_path / "sweep.csv").write_text("\n".join(["run,tokens,optim.learning_rate,loss", *rows]) + "\n")
    flags = [f"--sweeps={tmp_path}", "--x=optim.learning_rate", "--by=tokens", f"--out={tmp_path / 'f'}"]
    assert cli.guard(report.main, flags) == 0
    with open(tmp_path / "f.csv", newline="") as file:
        assert [row["tokens"] for row in csv.DictReader(file)] == ["250K", "500K", "1M", "2M", "16M"]


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            ["--x=optim.learning_rat", "--by=model.d_model", "--out=x"],
            "did not vary 'optim.learning_rat'. Did you mean",
        ),
        ([*FLAGS], "--sweeps needs --out"),
    ],
)
def test_a_mistake_is_one_line(sweep, capsys, flags, message):
    assert cli.guard(report.main, [f"--sweeps={sweep}", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_or_missing_table_is_named(sweep, tmp_path, capsys):
    assert cli.guard(report.main, [f"--sweeps={tmp_path}", *FLAGS, "--out=x"]) == 2
    assert "wanted the workdir of a launch.sweep" in capsys.readouterr().err
    with open(sweep / "sweep.csv", "a") as file:
        file.write("r9,16,fast,2.0\n")
    assert cli.guard(report.main, [f"--sweeps={sweep}", *FLAGS, "--out=x"]) == 2
    assert "row 8 has optim.learning_rate='fast'" in capsys.readouterr().err
