"""Tables as W&B, MLflow, pandas and Excel write them: formats, marks, separators, comments, folders."""

import codecs
import io
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from distill import laws

ROWS = [{"N": 1e8, "D": 1e10, "loss": 3.0}, {"N": 2e8, "D": 2e10, "loss": 2.75}, {"N": 4e8, "D": 4e10, "loss": 2.5}]
CSV = "N,D,loss\n1e8,1e10,3.0\n2e8,2e10,2.75\n4e8,4e10,2.5\n"
GOLDEN = Path(__file__).parents[1] / "golden" / "first"


def load(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return laws.load_table(path)


def check(table):
    for name in ("N", "D", "loss"):
        np.testing.assert_array_equal(table.numbers(name), [row[name] for row in ROWS])


def frame(orient):
    """What DataFrame.to_json writes."""
    names = list(ROWS[0])
    return {
        "records": ROWS,
        "list": {name: [row[name] for row in ROWS] for name in names},
        "columns": {name: {str(i): row[name] for i, row in enumerate(ROWS)} for name in names},
        "split": {"columns": names, "index": [0, 1, 2], "data": [list(row.values()) for row in ROWS]},
        "table": {"schema": {"fields": []}, "data": ROWS},
    }[orient]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", CSV),
        ("a.csv", CSV.replace(",", ";")),
        ("a.csv", CSV.replace(",", "\t")),
        ("a.tsv", CSV.replace(",", "\t")),
        ("a.csv", "sep=;\n" + CSV.replace(",", ";")),
        ("a.csv", "sep=,\r\n" + CSV.replace("\n", "\r\n")),
        ("a.csv", codecs.BOM_UTF8 + b"sep=;\r\n" + CSV.replace(",", ";").replace("\n", "\r\n").encode()),
        ("a.csv", codecs.BOM_UTF8 + CSV.encode()),
        ("a.csv", CSV.encode("utf-16")),
        ("a.csv", codecs.BOM_UTF16_BE + CSV.encode("utf-16-be")),
        ("a.csv", CSV.replace("\n", ",,\n")),
        ("a.csv", CSV.replace("\n", ",\n", 1)),
        ("a.csv", CSV + ",,\n,,\n\n"),
        ("a.csv", "# exported by hand\n\n" + CSV.replace("2e8", "#2e8,x\n2e8")),
        ("a.csv", "# exported\n# N,D,loss\n" + CSV.partition("\n")[2]),
        ("a.csv", CSV.replace(",", ";").replace("3.0", "3,0").replace("2.75", "2,75").replace("2.5", "2,5")),
        ("a.csv", CSV.replace("1e8", '"100,000,000"')),
        ("a.csv", CSV.replace("N", " N ").replace("loss", "loss ")),
        ("a.csv", "".join(f"{i - 1 if i else ''},{line}\n" for i, line in enumerate(CSV.splitlines()))),
        ("a.jsonl", "\n".join(json.dumps(row) for row in ROWS)),
        ("a.jsonl", codecs.BOM_UTF8 + "\r\n".join(json.dumps(row) for row in ROWS).encode()),
        ("a.jsonl", "\n".join(json.dumps(row | {"note": "a\u2028b\x85c"}, ensure_ascii=False) for row in ROWS)),
        *(("a.json", json.dumps(frame(orient))) for orient in ("records", "list", "columns", "split", "table")),
        ("a.json", codecs.BOM_UTF8 + json.dumps(ROWS).encode()),
    ],
)
def test_one_table_in_many_dialects(tmp_path, name, content):
    check(load(tmp_path, name, content))


def test_marks_separators_and_line_ends_in_all_combinations(tmp_path):
    """240 seeded files: an encoding, a separator, line ends, comments, blank columns and rows, quotes."""
    draw = random.Random(1)
    for _ in range(240):
        cells = [list(ROWS[0]), *([repr(value) for value in row.values()] for row in ROWS)]
        separator, end = draw.choice(",;\t"), draw.choice(["\n", "\r\n"])
        if draw.random() < 0.4:
            cells = [[f'"{cell}"' for cell in row] for row in cells]
        if draw.random() < 0.4:
            cells = [[*row, "", ""] for row in cells]
        if draw.random() < 0.4:
            cells.append([""] * len(cells[0]))
        lines = [separator.join(row) for row in cells]
        if draw.random() < 0.4:
            lines.insert(draw.choice([0, 2]), "# a comment; with, separators")
        if draw.random() < 0.3:
            lines.insert(0, f"sep={separator}")
        if draw.random() < 0.3:
            lines.append("")
        text = end.join(lines) + draw.choice(["", end])
        encoding = draw.choice(["utf-8", "utf-8-sig", "utf-16"])
        check(load(tmp_path, "a.csv", text.encode(encoding)))


def test_excel(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    first = book.active
    first.title = "notes"
    sheet = book.create_sheet("runs")
    sheet.append([None])
    sheet.append([*ROWS[0], None])
    for row in ROWS:
        sheet.append(list(row.values()))
    sheet.append([None, None, None])
    stream = io.BytesIO()
    book.save(stream)
    table = load(tmp_path, "a.xlsx", stream.getvalue())
    check(table)
    assert table.lines.tolist() == [3, 4, 5] and not table.notes
    first["A1"] = "also cells"
    stream = io.BytesIO()
    book.save(stream)
    with pytest.raises(laws.LawError, match="no rows"):
        load(tmp_path, "a.xlsx", stream.getvalue())
    with pytest.raises(laws.LawError, match=r"not a whole .xlsx workbook"):
        load(tmp_path, "a.xlsx", stream.getvalue()[:-200])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"N,D,loss\n1,2,\xff\n", "not a CSV file in UTF-8"),
        ("a.csv", b"N,D,loss\n1,2,3,4\n", "row 2 has 4 cells, the header has 3"),
        ("a.csv", b"N,D,loss\n1,2\n", "row 2 has 2 cells, the header has 3"),
        ("a.csv", b"# only a comment\n", "empty"),
        ("a.csv", b"N,D,N\n1,2,3\n", "'N' appears twice"),
        ("a.json", b"3", "wanted a list of objects"),
        ("a.json", b'{"N": [1], "D": [1, 2]}', "1, 2 cells"),
        ("a.json", b"[1]", "wanted a list of objects"),
        ("a.json", b"[" * 100_000, "not JSON"),
        ("a.jsonl", b"\xff{}", "in UTF-8"),
        ("a.xls", b"", "got '.xls'"),
    ],
)
def test_files_that_are_no_tables(tmp_path, name, content, message):
    with pytest.raises(laws.LawError, match=message):
        load(tmp_path, name, content)


def test_an_ambiguous_comma_is_not_guessed(tmp_path):
    table = load(tmp_path, "a.csv", "N;D;loss\n1,300;1e10;3\n2,600;2e10;2.8\n")
    with pytest.raises(laws.LawError, match="column 'N' in row 2 .1,300.*wanted a finite number"):
        table.numbers("N")


def test_nested_objects_have_dotted_names(tmp_path):
    table = load(tmp_path, "a.jsonl", '{"config": {"model": {"params": 5}}, "summary": {"loss": 2, "x": null}}\n')
    assert list(table.columns) == ["config.model.params", "summary.loss", "summary.x"]


def test_numbers_of_rows_are_those_of_the_file(tmp_path):
    table = load(tmp_path, "a.csv", "sep=,\n# a comment\n\n" + CSV.replace("2e8", "many"))
    with pytest.raises(laws.LawError, match="column 'N' in row 6 .many."):
        table.numbers("N")


def make_runs(folder, count=3):
    for i in range(count):
        shutil.copytree(GOLDEN / "run", folder / f"r{i}", ignore=shutil.ignore_patterns("checkpoints"))
        path = folder / f"r{i}" / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"run": f"run{i}", "N": 1e6 * (i + 1)}))
    (folder / "crashed").mkdir()
    (folder / "crashed" / "config.txt").write_text("x")
    (folder / "unrelated").mkdir()


@pytest.mark.parametrize("source", ["runs", "runs/*", "runs/r*"])
def test_folders_of_runs_are_a_table(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    make_runs(tmp_path / "runs")
    table = laws.load_table(source)
    assert table["run"].tolist() == ["run0", "run1", "run2"] and table["N"].tolist() == [1e6, 2e6, 3e6]
    assert "lambda" in table.columns and len(table.digest) == 64
    assert table.notes == (() if source == "runs/r*" else ("1 unfinished left out: runs/crashed",))
    alone = laws.load_table(tmp_path / "runs" / "r0")
    assert len(alone) == 1 and alone["run"].tolist() == ["run0"]
    with pytest.raises(laws.LawError, match="row 2 of runs/r1 .2000000.0."):
        table.refuse(table["N"] == 2e6, "N", "another")


def test_a_studys_folder_is_its_table(tmp_path):
    make_runs(tmp_path / "study")
    shutil.copy(GOLDEN / "runs.csv", tmp_path / "study")
    table = laws.load_table(tmp_path / "study")
    known = laws.load_table(GOLDEN / "runs.csv")
    assert table["run"].tolist() == known["run"].tolist()
    np.testing.assert_array_equal(table["loss"], known["loss"])


def test_folders_without_runs(tmp_path):
    with pytest.raises(laws.LawError, match="no finished run"):
        laws.load_table(tmp_path)
    with pytest.raises(laws.LawError, match="no file or folder matches"):
        laws.load_table(f"{tmp_path}/none*")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "result.json").write_text("{")
    with pytest.raises(laws.LawError, match=r"torn/result.json: cannot be read as a finished run"):
        laws.load_table(tmp_path)
