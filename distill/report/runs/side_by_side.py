"""Several runs in one figure, one page and one table: losses over tokens, and the result of each."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

from distill.records.runs import as_columns
from distill.report import page
from distill.report.charts import picture, web
from distill.report.charts.chart import Chart
from distill.report.page import Column
from distill.report.runs import curves
from distill.report.runs.curves import LOSSES, Curves
from distill.report.theme import LIGHT
from distill.system.files import atomic_write
from distill.system.numbers import flops, si

_POINTS = 200  # of each curve


def write(workdirs: Sequence[str], out: str | Path) -> list[Path]:
    """Writes OUT.png and OUT.svg (the losses), OUT.csv (a row per run) and OUT.html (all metrics).

    Curves are training losses; the dots at their ends are losses on held-out text.
    Raises ReportError for a folder without metrics.
    """
    runs = [curves.load(Path(workdir), _POINTS) for workdir in workdirs]
    drawn, path = figure(runs, Path(out).name), Path(out)
    atomic_write(path.with_suffix(".png"), picture.image(drawn))
    atomic_write(path.with_suffix(".svg"), picture.svg(drawn, LIGHT))
    atomic_write(path.with_suffix(".csv"), _rows(runs))
    atomic_write(path.with_suffix(".html"), compose(runs, path.name))
    return [path.with_suffix(kind) for kind in (".png", ".svg", ".csv", ".html")]


def figure(runs: Sequence[Curves], name: str) -> Chart:
    """Next-token loss over tokens and, if a run has a teacher, the distillation loss that it trains on."""
    drawn = curves.chart(runs, name, LOSSES, log=True)
    return dataclasses.replace(drawn, height=3.0)


def compose(runs: Sequence[Curves], name: str) -> str:
    """The HTML of the page: every metric of the runs in one figure, and their results in a table."""
    names = ", ".join(run.name for run in runs)
    drawn = web.figure(curves.chart(runs, name, log=True))
    columns = [Column(name="run", text=True)]
    columns += [Column(name=n) for n in ("N", "D", "L_T", "held-out loss", "KL", "agreement", "ECE", "FLOPs")]
    table = page.table("The results; losses in nats per token", columns, [_results(run) for run in runs], sorts="runs")
    parts = [
        f"<header><h1>{page.escape(str(len(runs)))} runs side by side</h1>",
        page.paragraph(names, "soft"),
        "</header>",
        page.section("results", "Results", table),
        page.section("curves", "Curves", drawn),
        web.colophon(),
    ]
    return page.page(f"Runs: {names}", parts, (*web.scripts(), page.table_script()), web.style())


def _results(run: Curves) -> list[str]:
    found = run.record
    if found is None:
        return [run.name, "", "", "", "not finished", "", "", "", ""]
    spent = (found.flops_student or 0.0) + (found.flops_teacher or 0.0)
    known = [_text(found.L_T, ".4f"), _text(found.loss, ".4f"), _text(found.kl, ".4f"), _text(found.agreement, ".1%")]
    return [run.name, si(found.N), si(found.D), *known, _text(found.ece, ".2%"), flops(spent)]


def _text(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _rows(runs: Sequence[Curves]) -> str:
    """The result of every run, as CSV; an unfinished run has only its name."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names, cells = as_columns([run.record for run in runs if run.record])
    rows = iter(cells)
    writer.writerow(["name", *names])
    for run in runs:
        found = next(rows) if run.record else [None] * len(names)
        writer.writerow([run.name, *("" if cell is None else cell for cell in found)])
    return text.getvalue()
