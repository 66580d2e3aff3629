"""The page of a fit: what it says is what the fit, its bootstrap and its directions say; a reader explores it."""

import csv
import json

import numpy as np
import pytest

from distill import laws
from distill.laws.forms.law import Law
from distill.laws.planning import lawfile
from distill.laws.uncertainty import text
from distill.report.law import law_charts, law_page
from distill.report.law.law_charts import Fitted
from launch import fit as command
from launch.support import cli
from tests.report.conftest import SUPERVISED
from tests.report.test_charts import SIZES
from tests.report.test_page import Reader

N, D = (values.ravel() for values in np.meshgrid(np.geomspace(1e4, 1e6, 6), np.geomspace(1e5, 1e7, 5)))


def table(noise=0.003):
    losses = SUPERVISED(N, D) * np.exp(noise * np.random.default_rng(0).standard_normal(len(N)))
    return {"N": N, "D": D, "L": losses}


@pytest.fixture(scope="module")
def fitted():
    one = laws.fit("chinchilla", table())
    boot = laws.calibrated(laws.bootstrap(one, resamples=60), ("supervised",), resamples=20)
    return Fitted(fit=one, boot=boot)


@pytest.fixture(scope="module")
def page(fitted, tmp_path_factory):
    path = tmp_path_factory.mktemp("law") / "law.html"
    law_page.write(path, fitted)
    return path


def test_along_an_input_a_run_keeps_its_residual(fitted):
    """Oracle: the distance of a moved point from the curve is the run's log residual."""
    for i, panel in enumerate(law_charts.slices(fitted).panels):
        dots = next(series for series in panel.series if series.marker == "o")
        middle = [np.median(values) for values in fitted.fit.rows.inputs]
        at = [dots.x if k == i else np.full(len(dots.x), value) for k, value in enumerate(middle)]
        np.testing.assert_allclose(np.log(fitted.fit.law(*at) / dots.y), fitted.fit.residuals, atol=1e-12)
        narrow, wide = (next(s for s in panel.series if s.colour == colour) for colour in ("blue", "orange"))
        assert np.mean(wide.high - wide.low) > np.mean(narrow.high - narrow.low) > 0


def test_residuals_are_observed_over_predicted(fitted):
    every = law_charts.residuals(fitted).panels
    truth = 100 * (fitted.fit.rows.target / fitted.fit.law(*fitted.fit.rows.inputs) - 1)
    assert [panel.title for panel in every] == ["by predicted loss", "by N", "by D"]
    for panel in every:
        np.testing.assert_allclose(panel.series[0].y, truth, atol=1e-9)


def test_a_sentence_for_every_direction(fitted):
    sentences = law_page.directions(fitted.fit)
    assert len(sentences) == len(fitted.fit.law.parameters())
    # Two sizes cannot fix the exponent and the factor of N apart.
    few = {name: values[np.isin(N, (N.min(), N.max()))] for name, values in table().items()}
    few["D"] = np.full(len(few["D"]), 1e6) * (1 + 1e-3 * np.arange(len(few["D"])))
    open_ones = law_page.directions(laws.fit("chinchilla", few))
    assert open_ones[0].startswith("Not fixed: ")


def test_the_page_holds_figures_forms_runs_and_the_law(fitted, page):
    read = Reader(page.read_text("utf-8"))
    assert [figure["id"] for figure in read.all("figure")] == [
        f"figure-{name}" for name in ("slices", "against", "residuals", "intervals", "beyond")
    ]
    assert "supervised" in read.text and "Which run to make next" in read.text
    folder = page.with_suffix("")
    assert {file.suffix for file in folder.iterdir()} == {".png", ".svg", ".csv"}
    links = {a["href"] for a in read.all("a") if not a["href"].startswith("#")}
    assert links and all((page.parent / link).exists() for link in links)
    with open(folder / "against.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["series"] == "fitted runs"]
    np.testing.assert_allclose([float(row["x"]) for row in rows], fitted.fit.rows.target, rtol=1e-9)


def test_the_page_says_what_the_command_prints_below_it(fitted, page):
    """One status of the predictions, averaged over the same forms; what the report calls open has no interval."""
    read = Reader(page.read_text("utf-8"))
    sentence, report = read.text.split("Rolled forward")[1], read.text.split("predictions   ")[1]
    told = str(text.predictions(fitted.fit, fitted.boot))
    assert f"its predictions are: {told}." in sentence and report.startswith(told)
    assert f"averaged over {fitted.extrapolation.named()}" in sentence and "supervised" in fitted.extrapolation.named()
    few = {name: values[N.min() == N] for name, values in table().items()}
    narrow = laws.fit("chinchilla", few, units=False)
    boot = laws.bootstrap(narrow, resamples=20)
    assert boot.open
    cells = Reader(law_page.fixed(Fitted(fit=narrow, boot=boot))).text
    assert all(f"open: {why}" in cells for why in boot.open.values())


@pytest.mark.parametrize("width, scheme", SIZES)
def test_a_reader_hovers_and_saves_the_law(visit, fitted, page, tmp_path, width, scheme):
    tab = visit(page, viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.locator("#figure-slices").scroll_into_view_if_needed()
    tab.wait_for_selector("#figure-slices[data-drawn]")
    panel = tab.locator("#figure-slices .u-over").first
    size = panel.bounding_box()
    curve = tab.evaluate("document.querySelector('#figure-slices').state.chart.panels[0].series[1]")
    low, high = tab.evaluate("charts.views()[0].view.y")
    down = (high - curve["y"][len(curve["y"]) // 2]) / (high - low)
    # Figures above may still be drawn and move it: hover waits until it stands still.
    panel.hover(position={"x": size["width"] / 2, "y": down * size["height"]})
    assert "loss (nats per token)" in tab.locator("#figure-slices .tip").first.inner_text()
    with tab.expect_download() as saved:
        tab.locator("#save-law").click()
    kept: Law = laws.load(saved.value.path())
    assert kept.values() == pytest.approx(fitted.fit.law.values())
    assert not [message for message in tab.seen if not message.startswith((page.as_uri(), "blob:"))]


def test_the_command_writes_the_page(tmp_path, capsys):
    path = tmp_path / "runs.csv"
    columns = table()
    path.write_text("N,D,L\n" + "\n".join(f"{n},{d},{x}" for n, d, x in zip(*columns.values())) + "\n")
    out = tmp_path / "fit.html"
    assert cli.guard(command.main, [f"--table={path}", "--law=chinchilla", "--resamples=20", f"--page={out}"]) == 0
    assert f"wrote {out}" in capsys.readouterr().out
    assert "chinchilla law of runs.csv" in Reader(out.read_text("utf-8")).text
    tree = json.loads(out.read_text("utf-8").split('id="law-file">')[1].split("</script>")[0])
    assert json.loads(tree)["form"] == "chinchilla" and lawfile.DRAWS
