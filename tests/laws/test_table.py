"""Tables of runs: every format in, and every bad input named by row and column."""

import json
from pathlib import Path

import numpy as np
import pytest

from distill import laws
from distill.laws.fitting.rows import rows_of, select

GOOD = {"N": [1e8, 2e8, 4e8], "D": [1e10, 2e10, 4e10], "loss": [3.0, 2.8, 2.6]}


def write_csv(path, columns, lines=None):
    rows = lines or zip(*columns.values())
    path.write_text(",".join(columns) + "\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    return path


def test_csv_jsonl_and_parquet_agree(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    write_csv(tmp_path / "a.csv", GOOD)
    lines = [json.dumps(dict(zip(GOOD, row))) for row in zip(*GOOD.values())]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    parquet.write_table(pyarrow.table(GOOD), tmp_path / "a.parquet")
    for suffix in ("csv", "jsonl", "parquet"):
        table = laws.load_table(tmp_path / f"a.{suffix}")
        assert len(table) == 3 and table["N"].dtype == np.float64
        np.testing.assert_array_equal(table["loss"], GOOD["loss"])


def test_columns_are_renamed_and_aliases_found(tmp_path):
    path = write_csv(tmp_path / "a.csv", {"params": GOOD["N"], "tokens": GOOD["D"], "loss": GOOD["loss"]})
    rows = rows_of(laws.Supervised, laws.load_table(path, {"N": "params", "D": "tokens"}))
    np.testing.assert_array_equal(rows.inputs[0], GOOD["N"])
    np.testing.assert_array_equal(rows.target, GOOD["loss"])


def test_kinds_of_runs_are_told_apart():
    runs = laws.from_arrays(
        run=["a", "b", "c"],
        kind=["supervised", "distillation", "distillation"],
        N=[1e8, 2e8, 4e8],
        D=[1e10] * 3,
        loss=[3.0, 2.8, 2.6],
        L_T=["", 2.5, 2.5],
    )
    assert len(select(laws.Supervised, runs)) == 1
    students = select(laws.Distillation, runs)
    np.testing.assert_array_equal(rows_of(laws.Distillation, students).inputs[2], [2.5, 2.5])


def test_rules_select_rows():
    apple = laws.load_table("apple")
    assert len(apple) == 354
    assert len(apple.where("L_S > 2.3")) == 328 and len(apple.where("L_S<=2.3")) == 26
    assert len(apple.where("L_S > 2.3 and D_S < 1e10")) == int(
        ((apple["L_S"] > 2.3) & (apple["D_S_nominal"] < 1e10)).sum()
    )
    sweep = laws.from_arrays(**{"optim.learning_rate": [0.005, 0.014, 0.014]})  # as sweep.csv names its columns
    assert len(sweep.where("optim.learning_rate == 0.014")) == 2
    with pytest.raises(laws.LawError, match="cannot read 'L_S 2.3'"):
        apple.where("L_S 2.3")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"n": [1e8], "D": [1e10], "loss": [3.0]}, "no column for N .*Did you mean 'n'"),
        (GOOD | {"N": [1e8, "many", 4e8]}, "column 'N' in row 3 .many.; wanted a finite number"),
        (GOOD | {"N": [1e8, "", 4e8]}, "column 'N' in row 3 .nan.; wanted a finite number"),
        (GOOD | {"loss": [3.0, "inf", 2.6]}, "column 'loss' in row 3 .inf."),
        (GOOD | {"D": [1e10, 0, 4e10]}, "column 'D' in row 3 .0.0.; wanted a positive number"),
        (GOOD | {"N": [100, 200, 400]}, "is N in millions or billions"),
        (GOOD | {"D": [10, 20, 40], "N": [100.0, 200.0, 400.0]}, "wanted a plain count.*--scale=N=1e9"),
        (GOOD | {"D": [2e3, 2e4, 2e5], "N": [70.0, 400.0, 7e3]}, "wanted a plain count.*--scale=N=1e6"),
        (GOOD | {"loss": [300, 280, 260]}, "nats per token"),
        ({k: v + v[:1] for k, v in GOOD.items()}, "rows 2 and 5 are the same run twice"),
        (GOOD | {"run": ["a", "b", "a"]}, "rows 2 and 4 are the same run twice"),
    ],
)
def test_bad_cells_are_named(tmp_path, columns, message):
    runs = laws.load_table(write_csv(tmp_path / "runs.csv", columns))
    with pytest.raises(laws.LawError, match=message):
        rows_of(laws.Supervised, runs)


def test_percentages_are_no_shares_and_excels_missing_cells_are_empty(tmp_path):
    """A law of accuracies fitted to percentages would be nonsense, without a word."""
    columns = {"N": [1e8, 2e8, 4e8], "D": [1e10, 2e10, 4e10], "acc": [31.3, "#N/A", 38.3]}
    path = write_csv(tmp_path / "runs.csv", columns)
    scores = lambda table: rows_of(laws.Accuracy, select(laws.Accuracy, table)).target.tolist()
    with pytest.raises(laws.LawError, match="'acc' in row 2 .31.3., 4 .38.3.; wanted a share from 0 to 1.*=Q=0.01"):
        scores(laws.load_table(path))
    assert scores(laws.load_table(path, scale={"Q": 0.01})) == pytest.approx([0.313, 0.383])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "empty"),
        ("a.csv", "N,D,loss\n", "no rows"),
        ("a.csv", "N,D,loss\n1,2\n", "row 2 has 2 cells, the header has 3"),
        ("a.csv", "N,N,loss\n1,2,3\n", "appears twice"),
        ("a.jsonl", '{"N": 1}\n[2]\n', "row 2 is list"),
        ("a.jsonl", "{\n", "row 1 is not JSON"),
        ("a.txt", "x", "got '.txt'"),
    ],
)
def test_files_that_are_no_tables(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(laws.LawError, match=message):
        laws.load_table(tmp_path / name)


def test_a_missing_table_suggests_the_one_that_ships():
    with pytest.raises(laws.LawError, match="Did you mean 'apple'"):
        laws.load_table("aple")


def test_fewer_rows_than_parameters():
    with pytest.raises(laws.LawError, match="3 rows for the 6 parameters"):
        laws.fit("supervised", laws.from_arrays(**GOOD))


def test_unusual_units_can_be_accepted():
    runs = laws.from_arrays(x=np.arange(1.0, 9.0), L=100 / np.arange(1.0, 9.0) + 50)
    with pytest.raises(laws.LawError, match="nats per token"):
        laws.fit("powerlaw", runs)
    offset = laws.fit("powerlaw", runs, units=False).law.E
    assert offset == pytest.approx(50.0, rel=1e-6)


@pytest.mark.parametrize(
    "options", [{"objective": "hubert"}, {"delta": -1.0}, {"weights": np.ones(2)}, {"supervised": None}]
)
def test_bad_options_are_refused(options):
    with pytest.raises(laws.LawError):
        laws.fit("distillation", laws.load_table("apple"), **({"supervised": laws.paper()[0]} | options))


def test_our_own_study_ships_as_it_was_published():
    """The package's table is that of the workdir in docs/results/study.md; every row says where it is from."""
    content = laws.shipped("micro").read_bytes()
    assert content == (Path(__file__).parents[2] / "docs" / "study" / "micro" / "runs.csv").read_bytes()
    micro = laws.load_table("micro")
    taught = micro.where("kind == distillation")
    assert len(micro) >= 190 and len(set(micro["run"])) == len(micro)
    for column in ("N", "D"):
        assert taught.numbers(column).max() / taught.numbers(column).min() > 30
    teachers = dict(zip(micro["run"], micro.numbers("loss")))
    assert all(abs(teachers[run] - L_T) < 1e-9 for run, L_T in zip(taught["teacher"], taught.numbers("L_T")))
    assert all(micro[name].astype(str).all() for name in ("start", "end", "machine", "commit"))
