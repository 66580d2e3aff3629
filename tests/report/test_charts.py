"""Charts: one description gives picture, table and page, and a reader explores the page in a real browser."""

import csv
import hashlib
import io
import json
import re
from importlib import resources

import numpy as np
import pytest

from distill.errors import ReportError
from distill.report import page
from distill.report.charts import chart as charts
from distill.report.charts import picture, web
from distill.report.charts.chart import Axis, Chart, Panel, Series, floats
from distill.report.theme import LIGHT

SIZES = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]


def example(count=5):
    """Two series over a positive x: one with facts of each point, one of two lines with a fact of each line."""
    x = floats(10.0 ** np.arange(count))
    facts = {"run": [f"run-{i}" for i in range(count)], "N": ["25K"] * count}
    dots = Series(label="dots", x=x, y=floats(np.arange(count) + 1), colour="blue", marker="o", size=8, facts=facts)
    two_x, two_y, starts = charts.joined([([1, 10], [3, 2]), ([1, 100, 1000], [4, 3, 1])])
    lines = Series(label="lines", x=two_x, y=two_y, starts=starts, colour=0.5, line="-", facts={"run": ["a,b", "c"]})
    panel = Panel(
        title="one", x=Axis(label="tokens", log=True, counts=True), y=Axis(label="loss"), series=(dots, lines)
    )
    return Chart(name="example", alt="dots and lines", caption="An example.", panels=(panel,), columns=1)


def written(tmp_path, chart):
    path = tmp_path / "page.html"
    path.write_text(page.page("t", [web.figure(chart), web.colophon()], web.scripts(), web.style()), "utf-8")
    return path


def test_the_table_has_a_row_for_every_point_with_its_facts():
    rows = list(csv.DictReader(io.StringIO(charts.table(example()))))
    assert [row["run"] for row in rows] == [*(f"run-{i}" for i in range(5)), "a,b", "a,b", "c", "c", "c"]
    assert [float(row["y"]) for row in rows] == [1, 2, 3, 4, 5, 3, 2, 4, 3, 1]
    assert {row["panel"] for row in rows} == {"one"} and [row["N"] for row in rows][-1] == ""


def test_the_page_holds_the_numbers_of_the_picture():
    """One description: what matplotlib draws and what the page's JSON says are the same points."""
    chart = example()
    with LIGHT.applied():
        (axes,) = picture.draw(chart, LIGHT).axes
    told = json.loads(web.data(chart))["panels"][0]
    assert axes.get_xscale() == "log" and told["x"]["log"]
    (drawn,) = axes.get_lines()
    assert drawn.get_xdata().tolist() == told["series"][0]["x"] and drawn.get_ydata().tolist() == told["series"][0]["y"]
    parts = [path.vertices.tolist() for path in axes.collections[0].get_paths()]
    assert parts == [[[1, 3], [10, 2]], [[1, 4], [100, 3], [1000, 1]]]
    assert told["series"][1]["starts"] == [0, 2]


@pytest.mark.parametrize("low, high", [(0.27, 3.3), (0.9, 1.1), (0.002, 0.03), (1e-6, 1e3)])
def test_numbers_of_a_logarithmic_axis_lie_beside_each_other(low, high):
    """`3 x 10^-1`, `4 x 10^-1` and `6 x 10^-1` lay on each other in the picture of a fit."""
    series = Series(label="s", x=floats([low, high]), y=floats([low, high]), colour="ink", line="-")
    axis = Axis(label="over", log=True)
    panels = tuple(Panel(title=title, x=axis, y=axis, series=(series,)) for title in "abc")
    with LIGHT.applied():
        figure = picture.draw(Chart(name="short", alt="a", caption="c", panels=panels), LIGHT)
        figure.canvas.draw()
    for ax in figure.axes:
        for one, ends in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
            ticks = [*one.get_major_ticks(), *one.get_minor_ticks()]
            shown = [t for t in ticks if t.label1.get_text() and ends[0] <= t.get_loc() <= ends[1]]
            side = 0 if one is ax.xaxis else 1
            boxes = sorted((t.label1.get_window_extent() for t in shown), key=lambda box: box.min[side])
            assert len(boxes) >= 2 and all(a.max[side] <= b.min[side] for a, b in zip(boxes, boxes[1:]))


def test_a_series_whose_columns_differ_is_refused():
    with pytest.raises(ReportError, match="series 'x': x, y, intervals and facts differ in length"):
        Series(label="x", x=floats([1, 2]), y=floats([1, 2]), colour="ink", facts={"run": ["a"]})


def test_the_same_chart_is_the_same_svg_and_hostile_text_stays_text():
    chart = example()
    assert picture.svg(chart, LIGHT) == picture.svg(chart, LIGHT)
    bad = Series(label="</script><b>", x=floats(1), y=floats(1), colour="ink")
    panel = Panel(title="<i>", x=Axis(label="x"), y=Axis(label="y"), series=(bad,))
    text = web.figure(Chart(name="a", alt='"><b>', caption="<u>", panels=(panel,)))
    assert text.count("</script>") == 1 and "<b>" not in text.split("<script")[0] and "<u>" not in text


def test_the_library_is_the_one_that_its_note_names():
    folder = resources.files("distill.report.charts").joinpath("uplot")
    hashes = dict(re.findall(r"\| (\S+) \| ([0-9a-f]{64}) \|", folder.joinpath("ORIGIN.md").read_text("utf-8")))
    assert set(hashes) == {"uPlot.iife.min.js", "uPlot.min.css", "LICENSE"}
    for name, digest in hashes.items():
        assert hashlib.sha256(folder.joinpath(name).read_bytes()).hexdigest() == digest, name
    assert "MIT" in web.licence() and web.licence().splitlines()[0] in web.colophon().replace("&#x27;", "'")
    library = sum(len(text.encode()) for text in (*web.scripts(), web.style(), page.table_script()))
    assert library < 2 * 1024**2


@pytest.mark.parametrize("width, scheme", SIZES)
def test_a_reader_hovers_zooms_and_hides(visit, tmp_path, width, scheme):
    tab = visit(written(tmp_path, example()), viewport={"width": width, "height": 800}, color_scheme=scheme)
    tab.wait_for_selector("figure[data-drawn]")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    over = tab.locator(".u-over").bounding_box()

    # The dot of run-2 is at x = 100, y = 3; the frame's limits are those of all points.
    def place(x, y):
        low, high = tab.evaluate("[charts.views()[0].view.x, charts.views()[0].view.y]")
        across = (np.log10(x) - np.log10(low[0])) / (np.log10(low[1]) - np.log10(low[0]))
        return over["x"] + across * over["width"], over["y"] + (high[1] - y) / (high[1] - high[0]) * over["height"]

    tab.mouse.move(*place(100, 3.05))
    tip = tab.locator(".tip")
    assert tip.is_visible() and "run run-2" in tip.inner_text() and "tokens 100" in tip.inner_text()
    box = tip.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width

    before = tab.evaluate("charts.views()[0].view.x")
    tab.mouse.move(*place(5, 4.5))
    tab.mouse.down()
    tab.mouse.move(*place(200, 2.5), steps=4)
    tab.mouse.up()
    zoomed = tab.evaluate("charts.views()[0].view.x")
    assert zoomed == pytest.approx([5, 200], rel=0.1) and zoomed != before
    tab.get_by_role("button", name="reset").click()
    assert tab.evaluate("charts.views()[0].view.x") == pytest.approx(before)

    dots = tab.get_by_role("button", name="dots")
    dots.click()
    assert dots.get_attribute("aria-pressed") == "false"
    tab.mouse.move(*place(100, 3.05))
    assert "run-2" not in tip.inner_text() or not tip.is_visible()
    log = tab.get_by_role("button", name="log x")
    assert log.get_attribute("aria-pressed") == "true"
    log.click()
    assert tab.evaluate("charts.views()[0].log.x") is False
    assert tab.seen == [tab.url]


def test_a_reader_with_a_keyboard_hears_the_points(visit, tmp_path):
    tab = visit(written(tmp_path, example()))
    tab.wait_for_selector("figure[data-drawn]")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "plot"
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    for _ in range(3):
        tab.keyboard.press("ArrowRight")
    spoken = tab.locator("figure output").inner_text()
    assert spoken == "dots, run run-2, N 25K, tokens 100, loss 3"
    tab.keyboard.press("ArrowUp")
    assert "lines, run a,b" in tab.locator("figure output").inner_text()
    before = tab.evaluate("charts.views()[0].view.y")
    tab.keyboard.press("+")
    assert np.diff(tab.evaluate("charts.views()[0].view.y"))[0] == pytest.approx(np.diff(before)[0] / 1.5)
    tab.keyboard.press("0")
    assert tab.evaluate("charts.views()[0].view.y") == pytest.approx(before)


def test_a_point_without_a_width_has_no_interval(visit, tmp_path):
    """A tip said `interval [2.3067, 2.3067]`, and an x that is a fact too twice."""
    x, y = floats([1, 2, 3]), floats([6, 3, 2])
    facts = {"N": ["one", "two", "three"], "run": ["a", "b", "c"]}
    one = Series(label="one", x=x, y=y, colour="ink", line="-", low=y, high=y + floats([0, 1, np.nan]), facts=facts)
    panel = Panel(title="t", x=Axis(label="N"), y=Axis(label="loss"), series=(one,))
    tab = visit(written(tmp_path, Chart(name="width", alt="a", caption="c", panels=(panel,))))
    tab.wait_for_selector("figure[data-drawn]")
    tab.locator(".plot").focus()
    heard = []
    for _ in range(3):
        tab.keyboard.press("ArrowRight")
        heard.append(tab.locator("figure output").inner_text())
    assert heard == ["one, run a, N 1, loss 6", "one, run b, N 2, loss 3, interval [3, 4]", "one, run c, N 3, loss 2"]


def test_the_saved_csv_is_the_file_beside_the_picture(visit, tmp_path):
    tab = visit(written(tmp_path, example()), accept_downloads=True)
    tab.wait_for_selector("figure[data-drawn]")
    with tab.expect_download() as saved:
        tab.get_by_role("button", name="CSV").click()
    text = saved.value.path().read_text("utf-8")
    mine, theirs = (list(csv.reader(io.StringIO(text))) for text in (text, charts.table(example())))
    assert mine == theirs and saved.value.suggested_filename == "example.csv"
    tab.get_by_text("The data").click()
    tab.wait_for_selector("details.data tbody tr")
    assert tab.locator("details.data tbody tr").count() == 10


def test_a_run_from_its_first_step_on_has_a_logarithmic_axis_and_bands_are_whole(visit, tmp_path):
    """A point at 0 tokens hid the button; the ends of a band were cut off, and one 100 times as wide is cut still."""
    x, y = floats([0, 1e3, 1e5]), floats([6, 3, 2])
    band = lambda half: {"low": y - half, "high": y + half}
    series = [Series(label=f"{half}", x=x, y=y, colour="ink", line="-", **band(half)) for half in (0.5, 100.0)]
    panels = [Panel(title=s.label, x=Axis(label="tokens"), y=Axis(label="loss"), series=(s,)) for s in series]
    tab = visit(written(tmp_path, Chart(name="begin", alt="a", caption="c", panels=tuple(panels))))
    tab.wait_for_selector("figure[data-drawn]")
    narrow, wide = tab.evaluate("charts.views().map(plot => plot.view.y)")
    assert narrow[0] <= 1.5 and 6.5 <= narrow[1] < 7 and wide[1] - wide[0] < 12
    log = tab.get_by_role("button", name="log x")
    assert log.get_attribute("aria-pressed") == "false"
    log.click()
    low, high = tab.evaluate("charts.views()[0].view.x")
    assert 0 < low <= 1e3 and high >= 1e5
    assert tab.seen == [tab.url]
