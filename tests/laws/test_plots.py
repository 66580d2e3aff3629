"""What a fit, a bootstrap and a plan show of themselves at a prompt, in a notebook and as a figure."""

import json
import subprocess
import sys

import numpy as np
import pytest

from distill import laws
from distill.laws.forms import notebook
from distill.report.charts import web
from distill.report.law import fit_figure, plan_figure

TRUE = laws.Chinchilla(A=480.0, B=2100.0, E=1.82, alpha=0.35, beta=0.37)


@pytest.fixture(scope="module")
def fit():
    generator = np.random.default_rng(0)
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e8, 4e9, 5), np.geomspace(2e9, 2e11, 5)))
    table = laws.from_arrays(N=N, D=D, L=TRUE(N, D) * np.exp(0.003 * generator.standard_normal(25)))
    return laws.fit("chinchilla", table, delta=1e-2)


@pytest.fixture(scope="module")
def boot(fit):
    return laws.bootstrap(fit, resamples=20)


@pytest.fixture(scope="module")
def plan():
    return laws.plan(*laws.paper(), N_S=1e9, compute=1e22, scenario="teacher_inference")


def panels(figure):
    return [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes]


def test_a_fit_is_ten_lines_at_most(fit):
    lines = repr(fit).splitlines()
    assert len(lines) <= 10 and lines[0].startswith("chinchilla: 25 runs") and f"E = {fit.law.E:.6g}" in repr(fit)
    assert f"status     {fit.status.kind}" in repr(fit)
    many = laws.fit("distillation", laws.load_table("apple").where("L_S > 2.6"), supervised=laws.paper()[0])
    assert len(repr(many).splitlines()) <= 10 and all(f"{name} = " in repr(many) for name in many.law.parameters())


def test_html_has_every_parameter_and_escapes_text(fit, boot, plan):
    for name, value in fit.law.values().items():
        assert f"<tr><th>{name}</th><td>{value:.6g}</td></tr>" in fit._repr_html_()
        low, high = boot.interval()[name]
        assert f"<td>[{low:.5g}, {high:.5g}]</td>" in boot._repr_html_()
        assert f"{name} = {value:.6g} [{low:.5g}, {high:.5g}]" in repr(boot)
    assert plan.sentence() in plan._repr_html_() and f"<td>{plan.L_S:.4f}</td>" in plan._repr_html_()
    assert notebook.table("<b>", ("&",), []).startswith("<table><caption>&lt;b&gt;</caption>")


def test_figures_of_a_fit_and_its_bootstrap(fit, boot):
    assert panels(fit.plot()) == ["fit", "residuals"]
    assert panels(boot.plot())[:3] == ["fit", "residuals", "90% intervals"] and len(boot.plot().axes) == 4
    assert fit.plot()._repr_png_().startswith(b"\x89PNG")  # what a notebook shows
    points = fit.plot().axes[0].lines[0]
    np.testing.assert_array_equal(points.get_ydata(), fit.rows.target)


def test_the_figure_of_a_plan_goes_through_it(plan):
    losses, bill = plan.plot().axes
    distilled, alone, point = losses.lines
    x, y = distilled.get_data()
    middle = int(np.argmin(np.abs(np.log(x / plan.bill.total))))
    assert x[middle] == pytest.approx(plan.bill.total) and y[middle] == pytest.approx(plan.L_S, rel=1e-6)
    assert alone.get_ydata()[middle] == pytest.approx(plan.supervised.L, rel=1e-6)
    assert (point.get_xdata()[0], point.get_ydata()[0]) == (plan.bill.total, plan.L_S)
    assert bill.lines[0].get_xdata().sum() == pytest.approx(100.0)


def test_the_pages_hold_the_numbers_of_plot(fit, boot, plan):
    """One description makes both: what a page draws of these charts is what `.plot()` has drawn."""
    for chart, drawn in ((fit_figure.chart(fit, boot), boot.plot()), (plan_figure.chart(plan), plan.plot())):
        for panel, axes in zip(json.loads(web.data(chart))["panels"], drawn.axes, strict=True):
            for series, line in zip(panel["series"], axes.lines, strict=True):
                np.testing.assert_allclose(series["x"], line.get_xdata(), rtol=1e-6)
                np.testing.assert_allclose(series["y"], line.get_ydata(), rtol=1e-6)


def test_a_fit_loads_no_pictures_before_it_is_asked():
    code = (
        "import sys; from distill import laws; laws.fit, laws.plan, laws.bootstrap; print('matplotlib' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
