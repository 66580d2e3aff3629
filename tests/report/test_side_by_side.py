"""Several runs in one picture and one table."""

import csv
import dataclasses
import json

from distill.records.runs import RunRecord, load_record
from distill.report.charts import picture
from distill.report.runs import curves, side_by_side
from distill.report.theme import LIGHT
from launch import report
from launch.support import cli
from tests.report.test_page import Reader


def run(folder, losses, record=None):
    folder.mkdir()
    lines = [{"step": i, "tokens": 100 * i, "time": float(i), "ntp": loss} for i, loss in enumerate(losses, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if record:
        (folder / "result.json").write_text(json.dumps(record))
    return folder


def test_the_distillation_loss_is_not_called_a_divergence(tmp_path):
    """`kd` of the forward divergence is a cross-entropy: its KL stands in the legend, from the finished run."""
    record = {field.name: None for field in dataclasses.fields(RunRecord)} | {"D": 300, "loss": 1.5, "kl": 0.198}
    lines = [{"step": i, "tokens": 100 * i, "time": float(i), "ntp": 2.0, "kd": 1.82} for i in (1, 2, 3)]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "a" / "result.json").write_text(json.dumps(record))
    chart = side_by_side.figure([curves.load(tmp_path / name, 10) for name in ("a", "b")], "both")
    with LIGHT.applied():
        drawn = picture.draw(chart, LIGHT)
    titles = [axes.get_title(loc="left") for axes in drawn.axes]
    assert titles == ["next-token loss (nats per token)", "distillation loss (nats per token)"]
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["a, KL 0.198", "b"]
    assert {axes.get_xlabel() for axes in drawn.axes} == {"tokens"}
    drawn.canvas.draw()
    for axes in drawn.axes:  # 100 to 300 tokens: less than a decade has labels too
        low, high = axes.get_xlim()
        ticks = axes.xaxis.get_major_ticks()
        assert [t.label1.get_text() for t in ticks if low <= t.get_loc() <= high] == ["100", "200", "300"]


def test_runs_side_by_side(tmp_path, capsys):
    record = {field.name: None for field in dataclasses.fields(RunRecord)} | {"N": 10, "D": 300, "loss": 1.5}
    a, b = run(tmp_path / "a", [3.0, 2.0, 1.6], record), run(tmp_path / "b", [3.0, 2.5])
    assert load_record(a / "result.json") == RunRecord(**record)
    out = tmp_path / "figures" / "both"
    assert cli.guard(report.main, [f"--runs={a},{b}", f"--out={out}"]) == 0
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert out.with_suffix(".svg").read_text().lstrip().startswith("<?xml")
    page = Reader(out.with_suffix(".html").read_text("utf-8"))
    assert "2 runs side by side" in page.text and "not finished" in page.text and len(page.all("figure")) == 1
    with open(out.with_suffix(".csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["loss"], row["D"]) for row in rows] == [("a", "1.5", "300"), ("b", "", "")]
    capsys.readouterr()
    assert cli.guard(report.main, [f"--runs={a},{tmp_path / 'c'}", f"--out={out}"]) == 2
    assert "no metrics.jsonl" in capsys.readouterr().err
    assert cli.guard(report.main, [f"--runs={a}"]) == 2
