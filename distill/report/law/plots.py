"""The figures of `.plot()` of a fit, a bootstrap and a plan: matplotlib, without pyplot."""

from matplotlib.figure import Figure

from distill.laws.fitting.fit import Fit
from distill.laws.planning.planner import Plan
from distill.laws.uncertainty.bootstrap import Bootstrap
from distill.report.charts import picture
from distill.report.charts.chart import Chart
from distill.report.law import fit_figure, plan_figure
from distill.report.theme import LIGHT


def fit(fit: Fit) -> Figure:
    """Predicted against observed losses, and residuals."""
    return _drawn(fit_figure.chart(fit))


def bootstrap(boot: Bootstrap) -> Figure:
    """The fit's two panels, the parameters' intervals, and the least fixed pair of parameters over the resamples."""
    return _drawn(fit_figure.chart(boot.fit, boot))


def plan(plan: Plan) -> Figure:
    """Loss against compute of distillation and supervised training with the plan on it, and where its compute goes."""
    return _drawn(plan_figure.chart(plan))


def _drawn(chart: Chart) -> Figure:
    with LIGHT.applied():
        return picture.draw(chart, LIGHT)
