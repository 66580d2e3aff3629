"""Writes the page of a study: workdir -> workdir/report/index.html; its figures lie beside it as PNG, SVG and CSV.

It reads only the workdir, so the page can be written again at any time (python -m launch.report).
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

from distill.errors import ReportError
from distill.report.charts import files, web
from distill.report.charts.chart import Chart
from distill.report.study import ablations, findings, law_figures, results, run_figures, sections
from distill.report.study.results import Results
from distill.system.files import atomic_write
from distill.system.progress import Progress


def write(source: str | Path | Results, on_progress: Callable[[Progress], None] = lambda _: None) -> Path:
    """Writes the report of a workdir, or of its loaded results, and returns the page's path.

    Calls `on_progress` before every figure.

    Raises ReportError if there is nothing to report or the folder cannot be written.
    """
    study = source if isinstance(source, Results) else results.load(source)
    counted = findings.find(study)
    folder = study.workdir / "report"
    figures: dict[str, str] = {}
    jobs = list(_figures(study))
    try:
        for done, (name, describe) in enumerate(jobs):
            on_progress(Progress(done=done, total=len(jobs), unit="figure", text=name))
            chart = describe()
            if chart is None:
                files.remove(folder, name)
                continue
            figures[name] = web.figure(chart, files.names(chart), files.write(folder, chart))
        for field in ablations.fields(study):
            atomic_write(folder / f"{ablations.file(field)}.csv", ablations.table(study, field))
        on_progress(Progress(done=len(jobs), total=len(jobs), unit="figure", text="page"))
        atomic_write(folder / "index.html", sections.compose(study, counted, figures))
    except OSError as error:
        raise ReportError(f"{folder}: the report cannot be written ({error.strerror})") from None
    return folder / "index.html"


def _figures(study: Results) -> Iterator[tuple[str, Callable[[], Chart | None]]]:
    yield "students", lambda: run_figures.students(study)
    yield "tokens", lambda: run_figures.tokens(study)
    yield "accuracy", lambda: law_figures.accuracy(study)
    yield "intervals", lambda: law_figures.intervals(study)
    yield "plan", lambda: law_figures.plan(study, law_figures.plan_curves(study))
    yield "learning", lambda: run_figures.learning(study)
    for field in ablations.fields(study):
        yield ablations.file(field), functools.partial(ablations.chart, study, field)
