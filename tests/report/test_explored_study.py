"""A reader explores the page of a study in a real browser, on a desk and on a phone, in both themes."""

import re
import shutil

import pytest

from distill.report.study import write
from tests.report.conftest import rows
from tests.report.test_charts import SIZES


@pytest.fixture(scope="module")
def page(study_dir, tmp_path_factory):
    return write.write(shutil.copytree(study_dir, tmp_path_factory.mktemp("explored") / "smoke"))


@pytest.mark.parametrize("width, scheme", SIZES)
def test_a_reader_filters_sorts_and_opens_a_run(visit, page, width, scheme):
    from playwright.sync_api import expect

    tab = visit(page, viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    filters, shown = tab.locator("input[data-filters=runs]"), tab.locator("#runs tbody tr:visible")
    students = [run for run in rows() if run.kind == "distillation"]
    filters.fill("distillation D<=250K")
    assert shown.count() == sum(run.D <= 250_000 for run in students)
    filters.fill("L_T < 1.6")
    assert shown.count() == sum(run.L_T < 1.6 for run in students)
    assert (
        f"{shown.count()} of {len(rows())} rows" in tab.locator("#table ~ * output, .filter output").all_inner_texts()
    )
    loss = tab.locator("#runs thead th", has_text="loss")
    for word, sign in (("ascending", 1), ("descending", -1)):
        loss.locator("button").click()
        assert loss.get_attribute("aria-sort") == word
        column = [float(text) for text in tab.locator("#runs tbody tr:visible td:nth-child(6)").all_inner_texts()]
        assert column == sorted(column, reverse=sign < 0)

    run = students[-1]
    tab.locator(f"#runs a[href='#run={run.run}']").click()
    dialog = tab.locator("#run-dialog")
    expect(dialog).to_be_visible()
    assert f"loss {run.loss:.4f}" in dialog.inner_text()
    labels = dialog.locator(".legend button").all_inner_texts()
    twin = next(i for i, r in enumerate(rows()) if i >= 4 and r.kind == "supervised" and (r.N, r.D) == (run.N, run.D))
    assert labels == ["run-48", f"supervised twin: run-{twin}", "its teacher's loss"]
    expect(tab).to_have_url(re.compile(f"#run={run.run}$"))
    tab.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(tab).not_to_have_url(re.compile("#run"))
    assert not [message for message in tab.seen if not message.startswith(page.as_uri())]


def test_an_address_opens_its_run_and_figures_are_drawn_when_they_are_seen(visit, page):
    from playwright.sync_api import expect

    run = rows()[-1]
    tab = visit(f"{page.as_uri()}#run={run.run}")
    expect(tab.locator("#run-dialog")).to_be_visible()
    tab.keyboard.press("Escape")
    assert tab.locator("#figure-learning[data-drawn]").count() == 0
    tab.locator("#figure-learning").scroll_into_view_if_needed()
    tab.wait_for_selector("#figure-learning[data-drawn]")
    panel = tab.locator("#figure-learning .u-over").first
    size = panel.bounding_box()
    # Figures above may still be drawn and move it: hover waits until it stands still.
    panel.hover(position={"x": 0.6 * size["width"], "y": 0.6 * size["height"]})
    words = tab.locator("#figure-learning .tip:visible").inner_text()
    assert all(f"{name} " in words for name in ("run", "N", "D", "seed", "tokens seen"))


def test_a_page_without_scripts_shows_pictures(visit, page):
    tab = visit(page, java_script_enabled=False)
    images = tab.locator("figure.chart picture img")
    assert images.count() == 6 and images.first.is_visible()
