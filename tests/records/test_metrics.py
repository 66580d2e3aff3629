"""Logs of metrics as curves: the same numbers as line by line, whatever the number of points, and nothing made up."""

import json
import random

import numpy as np
import pytest

from distill.records import metrics
from distill.records.metrics import MetricsError


def write(path, count, blanks=()):
    chance = random.Random(count)
    lines = [{"step": 2 * i + 1, "tokens": 64 * i, "time": 0.5 * i, "ntp": chance.uniform(0, 5)} for i in range(count)]
    for i in blanks:
        del lines[i]["ntp"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


@pytest.mark.parametrize("blanks", [(), (3, 4, 1990)])
@pytest.mark.parametrize("points, workers", [(1, 1), (7, 1), (300, 1), (5000, 1), (7, 2)])
def test_points_are_the_means_and_extremes_of_their_lines(tmp_path, points, workers, blanks, monkeypatch):
    monkeypatch.setattr(metrics, "_FEW", 1)  # 2000 lines are many
    lines = write(tmp_path / "m.jsonl", 2000, blanks)
    found = metrics.read(tmp_path / "m.jsonl", ["ntp"], points, workers)
    assert len(found) <= points and found.lines.sum() == 2000
    last = np.cumsum(found.lines) - 1
    for name in metrics.AT:
        assert found.at[name].tolist() == [lines[i][name] for i in last]
    for i, end in enumerate(last):
        values = [line["ntp"] for line in lines[end + 1 - found.lines[i] : end + 1] if "ntp" in line]
        if not values:
            assert np.isnan([found.mean["ntp"][i], found.low["ntp"][i], found.high["ntp"][i]]).all()
            continue
        assert found.mean["ntp"][i] == pytest.approx(np.mean(values), rel=1e-12)
        assert (found.low["ntp"][i], found.high["ntp"][i]) == (min(values), max(values))


def test_a_short_log_has_a_point_a_line_and_a_torn_line_none(tmp_path):
    path = tmp_path / "m.jsonl"
    lines = write(path, 5)
    with open(path, "a") as file:
        file.write('{"step": 99, "ntp')
    found = metrics.read(path, ["ntp", "kd"])
    assert found.lines.tolist() == [1] * 5 and found.mean["ntp"].tolist() == [line["ntp"] for line in lines]
    assert np.isnan(found.mean["kd"]).all() and metrics.last(path) == lines[-1]


@pytest.mark.parametrize("text", [None, "", "torn"])
def test_no_whole_line_is_no_point(tmp_path, text):
    path = tmp_path / "m.jsonl"
    if text is not None:
        path.write_text(text)
    assert len(metrics.read(path, ["ntp"])) == 0 and metrics.last(path) is None


def test_what_is_not_finite_or_not_a_number_is_in_no_mean(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1, "ntp": NaN}\n{"step": 2, "ntp": 2.0}\n{"step":3,"ntp":4}\n{"step": 4, "ntp": "x"}\n')
    found = metrics.read(path, ["ntp"], 1)
    assert (found.mean["ntp"][0], found.low["ntp"][0], found.high["ntp"][0]) == (3.0, 2.0, 4.0)


def test_the_last_line_is_found_however_long(tmp_path):
    path, line = tmp_path / "m.jsonl", {"step": 7, "ntp": 1.0, "note": "x" * 50_000}
    path.write_text('{"step": 1}\n' + json.dumps(line) + "\n")
    assert metrics.last(path) == line


@pytest.mark.parametrize("bad", ["not JSON", "[1]", '{"ntp": 1.0}', "[" * 100_000])
def test_a_line_that_is_none_is_named_by_its_place(tmp_path, bad):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1, "ntp": 1.0}\n' + bad + "\n")
    with pytest.raises(MetricsError, match=r"m.jsonl, byte 24: got b'.*wanted a line of metrics"):
        metrics.read(path, ["ntp"])
    with pytest.raises(MetricsError, match="byte 24"):
        metrics.last(path)
