"""The short report for a terminal: the table, the laws, one sentence of advice; and a study's closing lines."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from distill.records.runs import RunRecord
from distill.report.study import findings, prose, results
from distill.report.study.findings import Findings
from distill.report.study.results import FittedLaw, Results
from distill.system import numbers
from distill.system.numbers import number, si, signed

_ROWS = 60  # of the table; more are cut in its middle


def summary(source: str | Path | Results | Iterable[RunRecord], *, limit: int = _ROWS) -> Group:
    """A study's workdir, its results, or bare rows, as renderables: table, answers, laws with intervals, advice.

    At most `limit` rows of the table are shown. Raises ReportError for a workdir without finished runs.
    """
    if isinstance(source, (str, Path)):
        study = results.load(source)
    elif isinstance(source, Results):
        study = source
    else:
        study = Results(workdir=Path(), runs=tuple(source))
    counted = findings.find(study)
    parts: list[RenderableType] = []
    if counted.pairs:
        parts += [students(counted, limit), Text()]
    for question, verdict, grounds in prose.answers(counted):
        parts += [Text.assemble((f"{question} {verdict}. ", "bold"), grounds), Text()]
    book = prose.ledger(counted)
    if book:
        parts += [Text.assemble(("Predictions: ", "bold"), book), Text()]
    parts.append(Text(prose.noise_sentence(counted.noise), style="dim"))
    for law in study.laws:
        parts += [Text(), fitted(law), _standing(law)]
    if study.missing:
        named = ", ".join(f"{name} ({why})" for name, why in list(study.missing.items())[:3])
        parts += [
            Text(),
            Text(f"{numbers.plural(len(study.missing), 'run')} not in the table: {named}", style="yellow"),
        ]
    advice = study.plan.sentence if study.plan else "none, for a plan needs both laws." if study.laws else ""
    if advice:
        parts += [Text(), Text.assemble(("Advice: ", "bold"), advice)]
    return Group(*parts)


def ending(study: Results) -> Group:
    """The lessons, and the meaning of "not identified" if a law of the study has that status."""
    parts: list[RenderableType] = []
    if learnt := prose.lessons(findings.find(study)):
        parts += [Text.assemble(("What was learnt: ", "bold"), " ".join(learnt)), Text()]
    if meaning := prose.not_identified(study):
        parts += [Text.assemble(('"Not identified" means: ', "bold"), meaning), Text()]
    return Group(*parts)


def students(counted: Findings, limit: int = _ROWS) -> Table:
    """Students beside supervised training of the same N and D; a star marks a difference beyond noise."""
    table = Table(title="students, and supervised training of the same N and D", title_justify="left", box=SIMPLE_HEAD)
    for name in ("N", "D", "L_T", "L_S", "supervised", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    pairs = counted.pairs
    cut = len(pairs) - limit if len(pairs) > limit else 0
    middle = limit // 2
    size = None
    for i, p in enumerate(pairs):
        if cut and middle <= i < middle + cut:
            if i == middle:
                table.add_row(*["..."] * 6)
            continue
        if size not in (None, (p.student.N, p.student.D)):
            table.add_section()
        size = p.student.N, p.student.D
        beyond = counted.noise.exceeded(p.difference, p.alone, p.count)
        style = ("green" if p.difference < 0 else "red") if beyond else ""
        table.add_row(
            si(p.student.N), si(p.student.D), f"{p.student.L_T:.4f}", f"{p.student.loss:.4f}",
            f"{p.alone:.4f}", Text(signed(p.difference) + ("*" if beyond else " "), style=style),
        )  # fmt: skip
    table.caption = "* beyond noise" + (f"; {cut} rows not shown" if cut else "")
    return table


def fitted(law: FittedLaw) -> Table:
    """A law's parameters with their intervals."""
    table = Table(title=f"{law.title} ({law.name})", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("parameter")
    table.add_column("estimate", justify="right")
    table.add_column(f"{law.level:.0%} interval", justify="right")
    for name in dict.fromkeys([*law.law.values(), *law.intervals]):
        ends = law.intervals.get(name)
        span = f"[{number(ends[0])}, {number(ends[1])}]" if ends else "-"
        table.add_row(name, number(float(getattr(law.law, name))), Text(span))
    return table


def _standing(law: FittedLaw) -> Text:
    good = law.status == "ok"
    parts: list[Any] = [(law.status or "status not recorded", "green" if good else "yellow")]
    if law.message:
        parts.append(f": {law.message}")
    if law.error:
        parts.append(f"; error {law.error[0]:.2%} on average, {law.error[1]:.2%} at most")
    if law.resamples:
        parts.append(f"; {law.failed} of {law.resamples} resamples failed")
    return Text.assemble(*parts)
