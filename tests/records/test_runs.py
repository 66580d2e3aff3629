"""The runs table under many writers, torn writes and bad cells; finished runs at rest."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest

from distill.config import DistillError
from distill.records.runs import (
    CurvePoint,
    CurveTable,
    RunRecord,
    RunTable,
    TableError,
    as_columns,
    load_record,
    save_record,
)
from distill.system.files import atomic_write

COLUMNS = (
    "run,kind,N,D,D_unique,loss,loss_se,L_T,teacher,N_T,D_T,flops_student,flops_teacher,lambda,tau,seed,trunk,model,"
    "tokenizer,bits_per_byte,kl,agreement,ece,start,end,machine,commit,N_total,N_T_total"
)


def record(run="a", **changes) -> RunRecord:
    values = dict(
        **dict(run=run, kind="distillation", N=1000, D=2000, D_unique=1500, loss=2.1, loss_se=0.01, L_T=1.9),
        **dict(teacher="t", N_T=5000, D_T=9000, flops_student=1.5e12, flops_teacher=1 / 3, lambda_=0.5, tau=2.0),
        **dict(seed=0, trunk="k", model="32x2", tokenizer="bytes", bits_per_byte=1.3, kl=0.2, agreement=0.6),
        **dict(ece=0.01, start="2026-01-01T00:00:00+00:00", end="later", machine='1 x "cpu", 2 cores', commit="abc+"),
    )
    return RunRecord(**values | changes)


SUPERVISED = dict(L_T=None, teacher=None, N_T=None, D_T=None, lambda_=None, tau=None, kl=None, agreement=None)


def test_rows_come_back_as_they_went_in(tmp_path):
    table = RunTable(tmp_path / "deep" / "runs.csv")
    assert table.load() == []
    records = [record("a"), record("b", kind="supervised", **SUPERVISED), record("c", machine="a, b\nc")]
    table.append(records[:1])
    table.append(records[1:])
    assert table.load() == records
    assert (tmp_path / "deep" / "runs.csv").read_text().splitlines()[0] == COLUMNS


def test_a_table_of_before_opens_without_the_columns_that_came_later(tmp_path):
    """It gets them only with the first run that says something in them, and no row is lost."""
    table, before = RunTable(tmp_path / "runs.csv"), [record("a"), record("b", machine="x, y")]
    table.append(before)
    lines = table.path.read_text().splitlines()
    table.path.write_text("".join(line.removesuffix(",N_total,N_T_total").removesuffix(",,") + "\n" for line in lines))
    assert table.load() == before
    table.add(record("c"))
    assert table.path.read_text().splitlines()[0] == COLUMNS.removesuffix(",N_total,N_T_total")
    table.add(record("d", N_total=4000))
    assert table.path.read_text().splitlines()[0] == COLUMNS
    assert table.load() == [*before, record("c"), record("d", N_total=4000)]


def test_scores_on_tasks_are_columns_at_the_end(tmp_path):
    table = RunTable(tmp_path / "runs.csv")
    scores = {"b": {"colours:acc": 0.5}, "c": {"sums:exact_match:strict-match": 1.0, "colours:acc": 0.25}}
    rows = [record("a"), *(record(name, scores=found) for name, found in scores.items()), record("d")]
    for row in rows:
        table.add(row)
    assert table.load() == rows
    assert table.path.read_text().splitlines()[0] == f"{COLUMNS},colours:acc,sums:exact_match:strict-match"
    names, cells = as_columns(rows, ["run"])
    assert names[0] == "run" and [row[names.index("colours:acc")] for row in cells] == [None, 0.5, 0.25, None]
    table.path.write_text(table.path.read_text().replace("0.25", "good"))
    with pytest.raises(TableError, match="line 4, column colours:acc: got 'good', wanted float"):
        table.load()
    save_record(rows[1], tmp_path / "result.json")
    assert load_record(tmp_path / "result.json") == rows[1]


def test_a_result_of_before_opens(tmp_path):
    save_record(record(), tmp_path / "result.json")
    values = json.loads((tmp_path / "result.json").read_text())
    del values["N_total"], values["N_T_total"]
    (tmp_path / "result.json").write_text(json.dumps(values))
    assert load_record(tmp_path / "result.json") == record()


def test_a_run_is_added_once(tmp_path):
    table = RunTable(tmp_path / "runs.csv")
    for name in ("a", "b", "a"):
        table.add(record(name))
    assert list(table.runs()) == ["a", "b"]


WRITER = """
import sys
from distill.records.runs import CurvePoint, CurveTable
table = CurveTable(sys.argv[1])
sys.stdin.read()  # until all are there
for i in range(12):
    table.append([CurvePoint(run=sys.argv[2], step=i, tokens=j, flops=0.5, loss=2.25) for j in range(3)])
"""


def test_sixteen_processes_append_at_once_and_lose_nothing(tmp_path):
    path, names = tmp_path / "curves.csv", "abcdefghijklmnop"
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, name], stdin=subprocess.PIPE) for name in names]
    for writer in writers:
        writer.stdin.close()
    assert [writer.wait(120) for writer in writers] == [0] * 16
    points = CurveTable(path).load()
    want = {(name, i, j) for name in names for i in range(12) for j in range(3)}
    assert {(p.run, p.step, p.tokens) for p in points} == want and len(points) == len(want)
    assert path.read_text().count("\n") == len(want) + 1  # one header, no torn line
    for name in names:  # and each writer's rows stay in its order
        steps = [(p.step, p.tokens) for p in points if p.run == name]
        assert steps == sorted(steps)


ADDER = """
import os, sys, tests_record
from distill.records.runs import RunTable
print("ready", flush=True)
sys.stdin.read()  # until all are ready
for i in range(40):
    RunTable(sys.argv[1]).add(tests_record.record(str(i)))
"""


def test_processes_that_add_the_same_runs_add_each_once(tmp_path):
    """Two workers of a killed and restarted study may finish the same run at the same moment."""
    (tmp_path / "tests_record.py").write_text(
        "from distill.records.runs import RunRecord\n"
        f"VALUES = {dataclasses.asdict(record())!r}\n"
        "def record(run): return RunRecord(**VALUES | {'run': run})\n"
    )
    path = tmp_path / "runs.csv"
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path)
    adders = [subprocess.Popen([sys.executable, "-c", ADDER, str(path)], **pipes) for _ in range(4)]
    assert [adder.stdout.readline() for adder in adders] == [b"ready\n"] * 4
    for adder in adders:
        adder.stdin.close()
    assert [adder.wait(60) for adder in adders] == [0] * 4
    assert sorted(row.run for row in RunTable(path).load()) == sorted(str(i) for i in range(40))


@pytest.mark.parametrize("torn", ["a", "a,distillation,1", '"half a quoted ce'])
def test_a_torn_last_line_is_not_read_and_is_healed_by_the_next_append(tmp_path, torn):
    table = RunTable(tmp_path / "runs.csv")
    table.append([record("a")])
    with open(table.path, "a") as file:
        file.write(torn)
    assert [row.run for row in table.load()] == ["a"]
    table.append([record("b")])
    assert [row.run for row in table.load()] == ["a", "b"]
    assert torn not in table.path.read_text().splitlines()


def test_a_torn_header_is_written_again(tmp_path):
    (tmp_path / "runs.csv").write_text("run,ki")
    table = RunTable(tmp_path / "runs.csv")
    assert table.load() == []
    table.append([record("a")])
    assert table.load() == [record("a")]


@pytest.mark.parametrize(
    ("column", "text", "wanted"),
    [("N", "many", "int"), ("loss", "", "float"), ("tau", "hot", "float"), ("D", "1.5", "int")],
)
def test_a_bad_cell_is_named_by_file_line_and_column(tmp_path, column, text, wanted):
    table = RunTable(tmp_path / "runs.csv")
    table.append([record("a"), record("b")])
    lines = table.path.read_text().splitlines()
    cells = lines[2].split('"1 x')[0].split(",")  # up to the quoted machine
    cells[table.columns.index(column)] = text
    lines[2] = ",".join(cells) + '"1 x"'
    table.path.write_text("\n".join(lines) + "\n")
    with pytest.raises(TableError, match=f"line 3, column {column}: got '{text}', wanted {wanted}") as error:
        table.load()
    assert str(table.path) in str(error.value)


def test_a_table_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("run,kind,los\na,b,c\n")
    with pytest.raises(TableError, match="no column 'los'. Did you mean 'loss'?"):
        RunTable(path).load()
    path.write_text("run,kind\na,b\n")
    with pytest.raises(TableError, match="column 'N' is missing; got run, kind"):
        RunTable(path).load()


def test_a_finished_run_at_rest(tmp_path):
    path = tmp_path / "work" / "result.json"
    assert load_record(path) is None
    save_record(record(), path)
    assert load_record(path) == record()
    assert json.loads(path.read_text())["flops_teacher"] == 1 / 3
    path.write_text('{"run": "a"')
    with pytest.raises(TableError, match="delete it to run again"):
        load_record(path)
    path.write_text('{"run": "a"}')
    with pytest.raises(TableError, match="cannot be read as a finished run"):
        load_record(path)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_run_that_diverged_is_not_finished(tmp_path, bad):
    with pytest.raises(DistillError, match="not finite; lower optim.learning_rate"):
        save_record(record(loss=bad), tmp_path / "result.json")
    assert load_record(tmp_path / "result.json") is None


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    atomic_write(path, "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, "new")
    assert path.read_text() == "old"


def test_curves_keep_every_digit(tmp_path):
    point = CurvePoint(run="a", step=3, tokens=10**12, flops=1.2345678901234567e25, loss=0.1 + 0.2)
    table = CurveTable(tmp_path / "curves.csv")
    table.append([point])
    assert table.load() == [point]
