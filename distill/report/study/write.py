"""Writes the page of a study: workdir -> workdir/report/index.html, with its figures as PNG files beside it.

It reads only the workdir, so the page can be written again at any time (python -m launch.report).
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from matplotlib.figure import Figure

from distill.errors import ReportError
from distill.report.study import ablations, findings, law_figures, results, run_figures, sections
from distill.report.study.results import Results
from distill.report.theme import THEMES, Theme, png
from distill.system.files import atomic_write
from distill.system.progress import Progress

Draw = Callable[[Theme], Figure | None]


def write(source: str | Path | Results, on_progress: Callable[[Progress], None] = lambda _: None) -> Path:
    """Writes the report of a workdir, or of its loaded results, and returns the page's path.

    Calls `on_progress` before every figure.

    Raises ReportError if there is nothing to report or the folder cannot be written.
    """
    study = source if isinstance(source, Results) else results.load(source)
    counted = findings.find(study)
    folder = study.workdir / "report"
    pictures: dict[str, tuple[bytes, bytes]] = {}
    jobs = list(_figures(study))
    try:
        for done, (name, draw) in enumerate(jobs):
            on_progress(Progress(done=done, total=len(jobs), unit="figure", text=name))
            images = _render(draw)
            if images is None:
                _remove(folder, name)
                continue
            pictures[name] = images
            for theme, image in zip(THEMES, images):
                atomic_write(folder / _file(name, theme), image)
        for field in ablations.fields(study):
            atomic_write(folder / f"{ablations.file(field)}.csv", ablations.table(study, field))
        on_progress(Progress(done=len(jobs), total=len(jobs), unit="figure", text="page"))
        atomic_write(folder / "index.html", sections.compose(study, counted, pictures))
    except OSError as error:
        raise ReportError(f"{folder}: the report cannot be written ({error.strerror})") from None
    return folder / "index.html"


def _figures(study: Results) -> Iterator[tuple[str, Draw]]:
    yield "students", lambda theme: run_figures.students(study, theme)
    yield "tokens", lambda theme: run_figures.tokens(study, theme)
    yield "accuracy", lambda theme: law_figures.accuracy(study, theme)
    yield "intervals", lambda theme: law_figures.intervals(study, theme)
    curves: list[law_figures.PlanCurves | None] = []

    def plan(theme: Theme) -> Figure | None:
        if not curves:
            curves.append(law_figures.plan_curves(study))
        return law_figures.plan(study, theme, curves[0])

    yield "plan", plan
    yield "learning", lambda theme: run_figures.learning(study, theme)
    for field in ablations.fields(study):
        yield ablations.file(field), lambda theme, field=field: ablations.figure(study, field, theme)  # type: ignore[misc]


def _render(draw: Draw) -> tuple[bytes, bytes] | None:
    images = []
    for theme in THEMES:
        with theme.applied():
            figure = draw(theme)
            if figure is None:
                return None
            images.append(png(figure))
    return images[0], images[1]


def _file(name: str, theme: Theme) -> str:
    return f"{name}.png" if theme.name == "light" else f"{name}-{theme.name}.png"


def _remove(folder: Path, name: str) -> None:
    """Removes figures of an earlier state that the new page does not have."""
    for theme in THEMES:
        with contextlib.suppress(FileNotFoundError):
            (folder / _file(name, theme)).unlink()
