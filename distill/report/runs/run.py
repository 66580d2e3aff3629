"""The page of one run, finished or not: workdir/report/index.html, from config.txt, metrics.jsonl and result.json."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from distill.errors import ReportError
from distill.records import metrics
from distill.records.runs import RunRecord
from distill.report import page
from distill.report.charts import files, web
from distill.report.page import Column
from distill.report.runs import curves
from distill.system.files import atomic_write
from distill.system.numbers import duration, flops, si, utc
from distill.system.progress import Progress

_POINTS = 500  # of each curve


def is_run(workdir: str | Path) -> bool:
    """Whether a folder belongs to one run, not to a study."""
    folder = Path(workdir)
    return (folder / "metrics.jsonl").exists() and not (folder / "runs.csv").exists()


def write(workdir: str | Path, on_progress: Callable[[Progress], None] = lambda _: None) -> Path:
    """Writes the page with its figures beside it and returns its path. Raises ReportError if nothing is there yet."""
    folder = Path(workdir)
    known = curves.load(folder, _POINTS)
    chart, path = curves.chart([known], "curves"), folder / "report" / "index.html"
    on_progress(Progress(done=0, total=1, unit="figure", text="curves"))
    try:
        drawn = web.figure(chart, files.names(chart), files.write(path.parent, chart))
        atomic_write(path, compose(folder, known, drawn))
    except OSError as error:
        raise ReportError(f"{path}: the report cannot be written ({error.strerror})") from None
    return path


def compose(folder: Path, known: curves.Curves, drawn: str) -> str:
    """The HTML of the page; `drawn` is that of its figure."""
    last = metrics.last(folder / "metrics.jsonl") or {}
    state = "Finished" if known.record else f"At step {last['step']:,}, not finished"
    parts = [f"<header><h1>Run {page.escape(known.name)}</h1>", page.paragraph(state, "soft")]
    if known.record:
        parts.append(page.paragraph(verdict(known.record), "headline"))
    parts += ["</header>", page.section("curves", "Curves", drawn)]
    parts.append(_samples(known))
    parts.append(page.section("now", "The last line of metrics.jsonl", _table("metrics", last)))
    if known.record:
        parts.append(page.section("result", "The result", _table("result.json", dataclasses.asdict(known.record))))
    config = dict(
        line.split(" = ", 1)
        for line in (folder / "config.txt").read_text("utf-8").splitlines()
        if " = " in line and not line.startswith("#")
    )
    parts.append(page.section("config", "The config", page.details("config.txt", _table("config", config))))
    return page.page(f"Run {known.name}", [*parts, web.colophon()], web.scripts(), web.style())


def _samples(known: curves.Curves) -> str:
    """How the model continues one held-out text before and after its training; how to get it where it was not kept."""
    written = [one for one in known.held if one.sample]
    if not written:
        ask = "Not kept: train with --config.eval.along=8 for samples, and for scores on held-out text along the run."
        return page.section("samples", "Samples of its text", page.paragraph(ask, "soft"))
    when = lambda one: "before training" if one.step == 0 else f"after {si(one.tokens)} tokens"
    rows = [(when(one), one.prompt, one.sample) for one in written]
    columns = [Column(name=name, text=True) for name in ("when", "held-out text", "its likeliest continuation")]
    return page.section("samples", "Samples of its text", page.table("Text before and after training", columns, rows))


def verdict(run: RunRecord) -> str:
    """What a finished run reached, in at most three sentences."""
    text = f"{si(run.N)} parameters on {si(run.D)} tokens ended at {run.loss:.4f} nats per token on held-out text"
    text += f" (standard error {run.loss_se:.4f})."
    if run.L_T is not None:
        text += f" Its teacher's loss is {run.L_T:.4f}"
        text += f"; the KL divergence from it is {run.kl:.4f}" if run.kl is not None else ""
        text += f", and both name the same likeliest token {run.agreement:.1%} of the time" if run.agreement else ""
        text += "."
    return (
        f"{text} Its calibration error is {run.ece:.2%}; it took {flops(run.flops_student + run.flops_teacher)} FLOPs."
    )


def _table(caption: str, values: Mapping[str, object]) -> str:
    rows = [(name, _text(name, value)) for name, value in values.items() if value is not None]
    return page.table(caption, [Column(name="name", text=True), Column(name="value", text=True)], rows)


def _text(name: str, value: object) -> str:
    """A value as text: times in UTC, durations in units, numbers with six digits."""
    if name == "time" and isinstance(value, int | float):
        return f"{utc(value)} UTC"
    if name == "seconds_left" and isinstance(value, int | float):
        return duration(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)
