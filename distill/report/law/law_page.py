"""The page of a fit: the law with its data, what the rows fix, how far it carries, which run to make next.

`distill fit --page=FILE` writes it, with its figures in a folder of the page's name beside it.
"""

import functools
import math
import tempfile
from importlib import resources
from pathlib import Path

import numpy as np

from distill.laws.fitting.fit import LACK_OF_FIT, NOT_IDENTIFIED, OK, Fit, fit
from distill.laws.fitting.table import as_table
from distill.laws.forms.law import FORMS, Law, LawError
from distill.laws.planning import lawfile
from distill.laws.uncertainty.compare import Compared, left_out
from distill.laws.uncertainty.designs import design
from distill.laws.uncertainty.text import report
from distill.report import page
from distill.report.charts import files, web
from distill.report.law import interval_chart, law_charts
from distill.report.law.interval_chart import Estimates, symbol
from distill.report.law.law_charts import Fitted, counted, value_text
from distill.report.page import Column
from distill.system.files import atomic_write
from distill.system.numbers import number

_NEXT = 3  # runs that are proposed
_FAR = 10.0  # times the largest run: where the law's word is asked for
_GRID = 6  # values of each input among the candidates
_FOLDS = 5


@functools.cache
def script() -> str:
    """The JavaScript that saves the law file."""
    return resources.files("distill.report.law").joinpath("law_page.js").read_text("utf-8")


def write(path: Path, fitted: Fitted, first: Fit | None = None) -> None:
    """Writes the page and its figures, atomically. `first` is the fit of the supervised law inside. Raises LawError."""
    charts = [
        law_charts.slices(fitted),
        law_charts.residuals(fitted),
        law_charts.against(fitted),
        law_charts.beyond(fitted),
    ]
    intervals = interval_chart.chart([_estimates(fitted)])
    folder = path.with_suffix("")
    try:
        drawn = {
            chart.name: web.figure(chart, files.names(chart, f"{folder.name}/"), files.write(folder, chart))
            for chart in (*charts, intervals)
        }
        atomic_write(path, compose(fitted, drawn, first))
    except OSError as error:
        raise LawError(f"{path}: cannot be written ({error.strerror}).") from error


def compose(fitted: Fitted, drawn: dict[str, str], first: Fit | None = None) -> str:
    """The HTML of the page; `drawn` holds its figures by name."""
    parts = [
        ("slices", "The law and its runs", drawn["slices"] + drawn["against"]),
        ("residuals", "What is left over", drawn["residuals"]),
        ("fixed", "What the runs fix, and what they do not", fixed(fitted) + drawn["intervals"]),
        ("beyond", "Beyond the runs", _further(fitted) + drawn["beyond"]),
        ("forms", "The forms that fit as well", _forms(fitted)),
        ("next", "Which run to make next", _next(fitted)),
        ("file", "The law", _file(fitted, first)),
    ]
    source = Path(fitted.fit.table.source).name
    title = f"{fitted.fit.law.name} law of {source}"
    top = [
        f"<header><h1>{page.escape(title)}</h1>",
        page.paragraph(f"{len(fitted.fit.rows)} runs, {fitted.fit.minimised}", "soft"),
        page.paragraph(_headline(fitted), "headline"),
        page.contents((anchor, words) for anchor, words, _ in parts) + "</header>",
    ]
    body = [*top, *(page.section(*part) for part in parts), web.colophon()]
    return page.page(title, body, (*web.scripts(), page.table_script(), script()), web.style())


def _headline(fitted: Fitted) -> str:
    """Three sentences: what do the runs fix, how far off is the law, how far does it carry."""
    coefficients, (mean, largest) = fitted.fit.coefficients, fitted.fit.error
    held = fitted.held
    out = f"; {held.errors.mean():.2%} on {len(held.errors)} runs that were held out" if held else ""
    verdict = {OK: "The runs fix every coefficient", NOT_IDENTIFIED: "The runs do not fix every coefficient"}
    trust = verdict.get(coefficients.kind, f"The fit is not to be trusted, {coefficients.kind}")
    trust += f": {coefficients.message}" if coefficients.message else ""
    lacks = ", and its form does not describe the runs" if fitted.predictions.kind == LACK_OF_FIT else ""
    error = f"The law's error is {mean:.2%} on average and {largest:.2%} at most in the sample{out}{lacks}."
    return f"{trust}. {error} {_further_sentence(fitted)}"


def _further_sentence(fitted: Fitted) -> str:
    at = fitted.scaled(_FAR)
    law, _ = fitted.bands(at)
    run = fitted.extrapolation.predict(fitted.level, **dict(zip(fitted.names, at)))
    given = "" if not fitted.boot.laws.given() or fitted.boot.supervised else ", given the supervised law inside"
    return (
        f"At ten times the largest run it says {law.estimate[0]:.4f}, with a {fitted.level:.0%} interval of "
        f"[{run.low[0]:.4f}, {run.high[0]:.4f}] for a new run (calibrated); the bootstrap alone has "
        f"[{law.low[0]:.4f}, {law.high[0]:.4f}]{given}."
    )


def _further(fitted: Fitted) -> str:
    sizes = ", ".join(
        f"{symbol(name)} from {value_text(name, low)} to {value_text(name, high)}"
        for name in fitted.names
        for low, high in [fitted.inside(name)]
    )
    forms = fitted.extrapolation.named()
    averaged = (
        f" The calibrated interval is averaged over {forms} (weights by held-out likelihood)." if "," in forms else ""
    )
    return page.paragraph(
        f"The runs cover {sizes}. Outside of this the law is a guess that its form makes. Rolled forward, from smaller "
        f"runs to larger ones, its predictions are: {fitted.predictions}.{averaged}"
    )


def fixed(fitted: Fitted) -> str:
    """A sentence for each direction in parameter space, the least fixed first, and a table of the estimates."""
    lines = [f"<li>{page.escape(sentence)}</li>" for sentence in directions(fitted.fit)]
    why = fitted.boot.open
    rows = [
        [
            symbol(name),
            number(float(getattr(fitted.fit.law, name))),
            f"open: {why[name]}" if name in why else f"[{number(low)}, {number(high)}]",
        ]
        for name, (low, high) in fitted.boot.interval(fitted.level).items()
    ]
    columns = [
        Column(name="parameter", text=True),
        Column(name="estimate"),
        Column(name=f"{fitted.level:.0%} interval", text=True),
    ]
    return f"<ul>{''.join(lines)}</ul>" + page.table("Estimates and bootstrap intervals", columns, rows)


def directions(fitted: Fit) -> list[str]:
    """What the rows say about each direction in log parameters, in plain words, the least fixed first."""
    sentences = []
    for direction in fitted.directions():
        names = [symbol(name) for name in direction.main]
        several = len(names) > 1
        if direction.open:
            keeps = ", ".join(symbol(name) for name in direction.keeps)
            size = f"by a factor of {math.exp(direction.error):.2g}" if direction.error < 20 else "by any factor"
            text = f"Not fixed: {_list(names)} may move {'together ' if several else ''}{size}"
            text += f"; only {keeps} is known." if keeps else " and the runs would look the same."
        else:
            far = math.exp(direction.error)
            within = f"a factor of {far:.2g}" if far > 1.5 else f"{100 * (far - 1):.2g}%"
            text = f"Fixed within {within}: {_list(names)}"
            text += " in one combination." if several else "."
        sentences.append(text)
    return sentences


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _forms(fitted: Fitted) -> str:
    """Every form of the same inputs, fitted to the same rows, by its error on rows that were left out."""
    own = fitted.fit
    found = [Compared(fit=own, left_out=left_out(own, _FOLDS))]
    failed = []
    for form in _alike(type(own.law)):
        try:
            other = fit(
                form,
                own.table,
                supervised=own.rows.given.get("supervised"),
                objective=own.minimised,
                units=False,
                seed=own.seed,
            )
            compared = Compared(fit=other, left_out=left_out(other, _FOLDS))
        except LawError as error:
            failed.append(f"{form.name}: {error}")
            continue
        if math.isfinite(compared.error):
            found.append(compared)
        else:
            failed.append(f"{form.name}: no fit without a tenth of the runs passed its certificate")
    found.sort(key=lambda one: one.error)
    rows = [
        [
            one.fit.law.name,
            str(len(one.fit.law.parameters())),
            f"{one.error:.3%} \N{PLUS-MINUS SIGN} {one.standard_error:.3%}",
            f"{one.fit.error[0]:.3%}",
            f"{float(one.fit.law(*fitted.scaled(_FAR))[0]):.3f}",
            one.fit.status.kind,
        ]
        for one in found
    ]
    names = ("parameters", "left-out error", "error in the sample", "at ten times the largest run")
    columns = [Column(name="form", text=True), *(Column(name=name) for name in names), Column(name="status", text=True)]
    best = found[0]
    alike = [
        one.fit.law.name for one in found[1:] if one.error - one.standard_error <= best.error + best.standard_error
    ]
    sentence = (
        f"Of {len(found)} forms of the same inputs, {best.fit.law.name} has the lowest error on runs that were left out"
        + (f"; {_list(alike)} cannot be told from it." if alike else ", and no other comes within a standard error.")
        if len(found) > 1
        else "No other form that ships has the same inputs."
    )
    text = page.paragraph(sentence)
    text += page.table(f"Forms by their error on left-out runs ({_FOLDS} folds, relative)", columns, rows)
    return text + "".join(page.paragraph(f"Not fitted: {words}", "soft") for words in failed)


def _alike(form: type[Law]) -> list[type[Law]]:
    same = lambda other: (
        (other.inputs, other.output, tuple(other.given())) == (form.inputs, form.output, tuple(form.given()))
    )
    return [other for _, other in sorted(FORMS.items()) if other is not form and same(other)]


def _next(fitted: Fitted) -> str:
    """The runs that would reduce the error of the law at ten times its largest run most, for what they cost."""
    own = fitted.fit
    axes = []
    for name in fitted.names:
        low, high = fitted.inside(name)
        axes.append(np.geomspace(low, high * 4, _GRID) if counted(name) else np.geomspace(low, high, _GRID))
    grid = dict(zip(fitted.names, (values.ravel() for values in np.meshgrid(*axes, indexing="ij"))))
    far = dict(zip(fitted.names, fitted.scaled(_FAR)))
    output = type(own.law).output
    cost = np.prod([values for name, values in grid.items() if counted(name)], axis=0)
    try:
        chosen = design(
            own,
            as_table(grid | {output: np.ones(cost.size)}),
            as_table(far | {output: np.ones(1)}),
            _NEXT,
            cost=(cost / np.min(cost)) ** 0.25,
        )
    except LawError as error:
        return page.paragraph(f"No proposal: {error}")
    rows = [
        [str(place + 1), *(value_text(name, float(values[row])) for name, values in grid.items()), f"{error:.2%}"]
        for place, (row, error) in enumerate(zip(chosen.rows, chosen.error))
    ]
    columns = [Column(name="run"), *(Column(name=symbol(name)) for name in grid)]
    columns.append(Column(name="standard error then, at ten times the largest run"))
    text = (
        f"Today the law's standard error at ten times the largest run is about {chosen.before:.2%}, its form's own "
        f"error included. Of {cost.size} runs on a grid up to four times the largest, these reduce it most for the "
        "fourth root of what they cost; each assumes that those before it were made."
    )
    return page.paragraph(text) + page.table("Runs to make next", columns, rows)


def _estimates(fitted: Fitted) -> Estimates:
    title = f"{fitted.fit.law.name}: {fitted.level:.0%} intervals, {len(fitted.boot)} resamples"
    spans = {name: ends for name, ends in fitted.boot.interval(fitted.level).items() if name not in fitted.boot.open}
    return Estimates(title=title, law=fitted.fit.law, intervals=spans, level=fitted.level)


def _file(fitted: Fitted, first: Fit | None) -> str:
    """The report as text, and the law file, which the page saves."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "law.json"
        lawfile.write(file, fitted.fit, fitted.boot, fitted.held, first, level=fitted.level)
        law = file.read_text("utf-8")
    words = report(fitted.fit, fitted.boot, fitted.held, first, fitted.level)
    return (
        '<p><button type="button" id="save-law">Save the law file</button> It is what '
        "<code>distill plan --law=FILE</code> and the planner's page read.</p>"
        f"<pre>{page.escape(words)}</pre>"
        f'<script type="application/json" id="law-file">{page.encode(law)}</script>'
    )
