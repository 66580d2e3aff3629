"""The table of all runs of a study, which readers sort and filter; a run's name opens its curve beside its twin's.

The twin of a run is supervised training of the same N and D, of the nearest seed.
"""

import functools
from collections.abc import Mapping
from importlib import resources

import numpy as np

from distill.records.runs import CurvePoint, RunRecord
from distill.report import page
from distill.report.charts import web
from distill.report.page import Column, TableCell
from distill.report.study.findings import Findings, Pair, baselines
from distill.report.study.results import Results
from distill.system.numbers import flops, si, signed

_POINTS = 40  # of a curve in the page
_NUMBERS = ("N", "D", "L_T", "loss", "supervised", "difference")


@functools.cache
def script() -> str:
    """The JavaScript that opens a run's curve."""
    return resources.files("distill.report.study").joinpath("runs.js").read_text("utf-8")


def section(study: Results, findings: Findings) -> str:
    """The table with the dialog of a run and the curves that it shows."""
    pairs = {pair.student.run: pair for pair in findings.pairs}
    columns = [Column(name="run", text=True), Column(name="kind", text=True), *(Column(name=name) for name in _NUMBERS)]
    columns += [Column(name="distilled is", text=True), *(Column(name=name) for name in ("seed", "KL", "FLOPs"))]
    rows = [_row(study, findings, run, pairs.get(run.run)) for run in study.runs]
    caption = (
        "Every finished run: losses in nats per token, beside supervised training of the same N and D. A run's name "
        "opens its curve."
    )
    made = page.table(caption, columns, rows, sorts="runs")
    return made + _dialog() + f'<script type="application/json" id="run-curves">{page.encode(_data(study))}</script>'


def _row(study: Results, findings: Findings, run: RunRecord, pair: Pair | None) -> list[str | TableCell]:
    name = TableCell(text=study.name(run), link=f"run={run.run}" if _curve(study, run) else "")
    cells: list[str | TableCell] = [name, run.kind, si(run.N), si(run.D), "" if run.L_T is None else f"{run.L_T:.4f}"]
    cells.append(f"{run.loss:.4f}")
    if pair:
        won, beyond = pair.difference < 0, findings.noise.exceeded(pair.difference, pair.alone, pair.count)
        word = ("lower" if won else "higher") + ("" if beyond else ", within noise")
        tone = ("good" if won else "bad") if beyond else ""
        cells += [
            f"{pair.alone:.4f}",
            TableCell(text=signed(pair.difference), tone=tone),
            TableCell(text=word, tone=tone),
        ]
    else:
        cells += ["", "", ""]
    spent = flops(run.flops_student + run.flops_teacher)
    return [*cells, str(run.seed), "" if run.kl is None else f"{run.kl:.4f}", spent]


def _dialog() -> str:
    return (
        '<dialog id="run-dialog" aria-labelledby="run-title"><form method="dialog"><h2 id="run-title"></h2>'
        '<button>Close</button></form><p id="run-facts" class="soft"></p>'
        '<figure class="chart"><div class="frames"></div><div class="legend" role="group" aria-label="series"></div>'
        '<div class="tools" role="group" aria-label="view"></div><output aria-live="polite"></output></figure></dialog>'
    )


def _data(study: Results) -> dict[str, object]:
    """Every run that has a curve: its name, its facts, its twin's name, and the curve."""
    twins = _twins(study)
    known = {
        run.run: {
            "name": study.name(run),
            "facts": _facts(run),
            "twin": twins.get(run.run, ""),
            "loss": run.loss,
            "L_T": run.L_T,
            "tokens": [point.tokens for point in curve],
            "losses": [_short(point.loss) for point in curve],
        }
        for run in study.runs
        if (curve := _curve(study, run))
    }
    return {"runs": known, "colours": {name: web.colours(name) for name in ("blue", "ink", "orange")}}


def _curve(study: Results, run: RunRecord) -> list[CurvePoint]:
    points = study.curves.get(run.run, ())
    if len(points) < 2:
        return []
    places = np.unique(np.linspace(0, len(points) - 1, min(len(points), _POINTS)).round().astype(int))
    return [points[i] for i in places]


def _twins(study: Results) -> Mapping[str, str]:
    """The supervised run of the same N and D and the nearest seed, of every student that has one."""
    alone = baselines(study.runs)
    return {
        run.run: min(others, key=lambda other: (abs(other.seed - run.seed), other.run)).run
        for run in study.distilled
        if (others := [other for other in alone.get((run.N, run.D), []) if _curve(study, other)])
    }


def _facts(run: RunRecord) -> str:
    taught = f", teacher's loss {run.L_T:.4f}" if run.L_T is not None else ""
    loss = f"loss {run.loss:.4f} \N{PLUS-MINUS SIGN} {run.loss_se:.4f}"
    return f"N {si(run.N)}, D {si(run.D)}, seed {run.seed}, {loss}{taught}"


def _short(value: float) -> float | None:
    return float(f"{value:.5g}") if np.isfinite(value) else None
