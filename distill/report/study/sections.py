"""The sections of a study's page: findings, tables and figures in reading order."""

import shlex
from collections.abc import Mapping

from distill.report import page
from distill.report.charts import web
from distill.report.page import Column, TableCell
from distill.report.study import ablations, prose, run_table
from distill.report.study.findings import Findings
from distill.report.study.results import Results
from distill.system.numbers import flops, number, si, signed, utc


def compose(study: Results, findings: Findings, figures: Mapping[str, str]) -> str:
    """The HTML of the page; `figures` holds the HTML of every figure that could be drawn, by its name."""
    parts = [
        ("answers", "What the runs say", _answers(findings)),
        ("students", "Better teachers", figures.get("students", "")),
        ("tokens", "More tokens", figures.get("tokens", "") + _by_tokens(findings)),
        ("laws", "The fitted laws", _laws(study, figures)),
        ("plan", "The plan", _plan(study, figures)),
        ("ledger", "Predictions made before the runs", _ledger(study, findings)),
        ("table", "Every run", run_table.section(study, findings)),
        ("ablations", "One setting at a time", ablations.section(study, figures)),
        ("curves", "Learning curves", figures.get("learning", "")),
        ("missing", "Failed and missing runs", _missing(study)),
        ("costs", "Costs and provenance", _provenance(study, findings)),
    ]
    shown = [part for part in parts if part[2]]
    name = study.workdir.resolve().name
    top = [
        f"<header><h1>Study {page.escape(name)}</h1>",
        page.paragraph(_counts(study), "soft"),
        page.paragraph(" ".join(prose.opening(study, findings)), "headline"),
        page.contents((anchor, title) for anchor, title, _ in shown) + "</header>",
    ]
    body = [*top, *(page.section(*part) for part in shown), web.colophon()]
    return page.page(f"Study {name}", body, (*web.scripts(), page.table_script(), run_table.script()), web.style())


def _counts(study: Results) -> str:
    teachers = {run.teacher for run in study.distilled}
    tokenizer = ", ".join(sorted({run.tokenizer for run in study.runs}))
    return (
        f"{len(study.distilled)} students of {len(teachers)} teachers and {len(study.supervised)} supervised runs; "
        f"losses are validation cross-entropies in nats per token ({tokenizer})."
    )


def _answers(findings: Findings) -> str:
    book = prose.ledger(findings)
    text = page.answers(prose.answers(findings))
    if book:
        text += page.paragraph(f"Predictions: {book}")
    return text + page.paragraph(prose.noise_sentence(findings.noise), "soft")


def _by_tokens(findings: Findings) -> str:
    if not findings.by_tokens:
        return ""
    names = ("D", "pairs", "distilled wins", "beyond noise", "loses beyond noise", "mean difference",
             "strongest teacher wins", "its mean difference")  # fmt: skip
    rows = [
        [si(D), str(every.pairs), str(every.wins), str(every.wins_beyond), str(every.losses_beyond),
         signed(every.mean), f"{strong.wins} of {strong.pairs}", signed(strong.mean)]
        for D, (every, strong) in findings.by_tokens.items()
    ]  # fmt: skip
    return page.table("Distilled against supervised training by tokens", [Column(name=n) for n in names], rows)


def _laws(study: Results, figures: Mapping[str, str]) -> str:
    if not study.laws:
        return page.paragraph("No law was fitted: laws/ holds none.")
    text = ""
    for law in study.laws:
        rows = []
        for name in dict.fromkeys([*law.law.values(), *law.intervals]):
            low, high = law.intervals.get(name, (None, None))
            span = f"[{number(low)}, {number(high)}]" if low is not None and high is not None else "not bootstrapped"
            rows.append([name, number(float(getattr(law.law, name))), span])
        columns = [Column(name="parameter", text=True), Column(name="estimate")]
        columns.append(Column(name=f"{law.level:.0%} interval"))
        status = f"{law.title[0].upper()}{law.title[1:]}: {law.status or 'status not recorded'}"
        status += f" ({law.message})" if law.message else ""
        if law.error:
            status += f"; relative error in the sample {law.error[0]:.2%} on average, {law.error[1]:.2%} at most"
        status += f", {law.rows} runs" if law.rows is not None else ""
        if law.resamples:
            status += f"; {law.failed} of {law.resamples} resamples failed and are left out"
        caption = f"{law.title} ({law.name}, form {law.law.name})"
        text += page.paragraph(status + ".") + page.table(caption, columns, rows)
    return figures.get("accuracy", "") + text + figures.get("intervals", "")


def _ledger(study: Results, findings: Findings) -> str:
    book = prose.ledger(findings)
    if book is None:
        return ""
    finished = {run.run: run for run in study.runs}
    rows: list[list[str | TableCell]] = []
    for p in study.predictions:
        run = finished.get(p.run)
        truth = run.loss if run else None
        word = "pending" if truth is None else "inside" if p.contains(truth) else "outside"
        tone = {"inside": "good", "outside": "bad"}.get(word, "")
        rows.append(
            [study.name(run) if run else study.planned.get(p.run, p.run), si(p.N), si(p.D),
             "" if p.L_T is None else f"{p.L_T:.4f}",
             f"{p.predicted:.4f}", f"[{p.lower:.4f}, {p.upper:.4f}]", "" if truth is None else f"{truth:.4f}",
             TableCell(text=word, tone=tone), utc(p.made)]
        )  # fmt: skip
    names = ("N", "D", "L_T", "predicted", "interval", "measured")
    columns = [Column(name="run", text=True), *(Column(name=n) for n in names)]
    columns += [Column(name="truth", text=True), Column(name="made (UTC)", text=True)]
    made = page.table("Predicted and measured losses", columns, rows, sorts="predictions")
    return page.paragraph(book) + (made if len(rows) <= 30 else page.details(f"All {len(rows)} predictions", made))


def _plan(study: Results, figures: Mapping[str, str]) -> str:
    text = page.paragraph(study.plan.sentence) if study.plan else ""
    return text + figures.get("plan", "")


def _missing(study: Results) -> str:
    if not study.missing:
        known = f"all {len(study.planned)} planned runs" if study.planned else "every run that was begun"
        return page.paragraph(f"None: {known} finished.")
    columns = [Column(name="run", text=True), Column(name="why", text=True)]
    return page.table("Runs that are not in the table", columns, list(study.missing.items()))


def _provenance(study: Results, findings: Findings) -> str:
    runs = study.runs
    facts = [
        ("command", study.command or "not recorded (study.json is missing)"),
        ("machine", "; ".join(sorted({run.machine for run in runs}))),
        ("commit", ", ".join(sorted({run.commit for run in runs})) + _dirty(study)),
        ("first start, last end (UTC)", f"{utc(min(run.start for run in runs))}, {utc(max(run.end for run in runs))}"),
        ("seeds", ", ".join(str(seed) for seed in sorted({run.seed for run in runs}))),
        ("largest run", flops(max(run.flops_student + run.flops_teacher for run in runs)) + " FLOPs"),
        ("files", "runs.csv, curves.csv, laws/, predictions.csv in the study's folder"),
        ("made again by", f"python -m launch.report --workdir={_workdir(study)}"),
    ]
    columns = [Column(name="what", text=True), Column(name="value", text=True)]
    return page.paragraph(prose.costs_sentence(findings.costs)) + page.table("Provenance", columns, facts)


def _workdir(study: Results) -> str:
    """The folder as the study's command named it; without a command, the folder that was read."""
    flags = shlex.split(study.command) if study.command else []
    named = [flag.partition("=")[2] for flag in flags if flag.startswith("--workdir=")]
    return shlex.quote(named[-1] if named else str(study.workdir))


def _dirty(study: Results) -> str:
    changed = any(run.commit.endswith("+") for run in study.runs)
    return " (+: with changes that are not committed)" if changed else ""
