"""runs.csv read once: its runs, its hash, its kinds; and the same columns for the laws as they read themselves."""

import hashlib

import numpy as np
import pytest

from distill import laws
from distill.records import runs
from distill.records.runs import RunTable, TableError
from distill.records.study_table import StudyTable
from distill.study import analysis


@pytest.fixture(scope="module")
def table():
    return StudyTable.read(laws.shipped("micro"))


def test_the_runs_are_those_of_the_file(table):
    path = laws.shipped("micro")
    assert list(table.runs) == RunTable(path).load() and len(table.runs) > 100
    assert table.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert table.workdir == path.parent
    assert {run.kind for run in table.supervised} == {"supervised"}
    assert {run.kind for run in table.distilled} == {"distillation"}
    assert {run.run for run in table.teachers} == {run.teacher for run in table.distilled}
    assert all(table.by_fingerprint[run.run] is run for run in table.runs)


def test_the_columns_for_a_law_are_those_that_a_law_reads_from_the_file(table):
    read, made = laws.load_table(table.path), analysis.law_table(table)
    assert read.digest == made.digest and read.source == made.source
    by_run = np.argsort(read.columns["run"])  # in one order, whatever order the runs ended in
    assert made.columns["run"].tolist() == sorted(read.columns["run"].tolist())
    np.testing.assert_array_equal(read.lines[by_run], made.lines)
    later = set(made.columns) - set(read.columns)  # the file is of before they were, and no run of it says them
    assert later <= runs.later_fields(runs.RunRecord) and all(set(made.columns[name]) == {""} for name in later)
    assert list(read.columns) == [name for name in made.columns if name not in later]
    for name, column in read.columns.items():
        assert column.dtype.kind == made.columns[name].dtype.kind, name
        np.testing.assert_array_equal(column[by_run], made.columns[name], err_msg=name)


def test_no_file_is_no_run_and_a_damaged_one_an_error(tmp_path):
    empty = StudyTable.read(tmp_path / "runs.csv")
    assert empty.runs == () and empty.sha256 == "" and empty.supervised == ()
    (tmp_path / "runs.csv").write_text("run,colour\n1,red\n")
    with pytest.raises(TableError, match="no column 'colour'"):
        StudyTable.read(tmp_path / "runs.csv")


def test_a_torn_last_line_is_no_run(table, tmp_path):
    whole = table.path.read_bytes()
    (tmp_path / "runs.csv").write_bytes(whole[:-20])
    assert StudyTable.read(tmp_path / "runs.csv").runs == table.runs[:-1]
