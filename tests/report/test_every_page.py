"""Every page, on a desk and on a phone, in both themes: nothing is cut without a sign, every text can be read, nothing
is asked of the network."""

import json
import threading
from pathlib import Path

import pytest

from distill import laws
from distill.laws.planning.lawfile import read
from distill.report.law import law_page, planner_page
from distill.report.law.law_charts import Fitted
from distill.report.runs import run, side_by_side
from distill.report.runs.live import LivePage
from distill.report.study import write
from tests.report.conftest import rows, write_study
from tests.report.test_charts import SIZES
from tests.report.test_law_page import table
from tests.report.test_watch import log

FAULTS = Path(__file__).with_name("faults.js").read_text("utf-8")
OPEN = """() => {
  document.querySelectorAll("details").forEach(e => { e.open = true; });
  document.querySelectorAll("figure.chart").forEach(f => f.querySelector("script") && !f.state && charts.show(f));
}"""


def a_run(folder, D=300, kl=0.198):
    """A finished student with scores along its way and samples of its text."""
    log(folder, [3.0, 2.0, 1.5], kd=1.82, mfu=0.4)
    scores = {"loss_se": 0.01, "ece": 0.02, "agreement": 0.6, "prompt": "It was " * 30}
    held = [{"step": 10 * i, "tokens": 5120 * i, "loss": 3.0 - i, "kl": 1.0 - i / 4, **scores} for i in range(3)]
    for line, sample in zip(held, ("e e e " * 30, "", "the best of times " * 10)):
        line["sample"] = sample
    (folder / "heldout.jsonl").write_text("".join(json.dumps(line) + "\n" for line in held))
    record = next(one for one in rows() if one.kind == "distillation").__dict__
    (folder / "result.json").write_text(json.dumps(record | {"D": D, "kl": kl}))
    return folder


def the_study(folder):
    return write.write(write_study(folder, rows()))


def the_run(folder):
    return run.write(a_run(folder / "a-student-with-a-name-as-long-as-people-like-them"))


def the_runs(folder):
    names = [a_run(folder / f"{i}-of-the-students-that-share-a-teacher", D=15_000 + 5000 * i) for i in range(5)]
    (names[-1] / "result.json").unlink()
    return side_by_side.write([str(name) for name in names], folder / "five")[-1]


def the_law(folder):
    one = laws.fit("chinchilla", table())
    law_page.write(folder / "law.html", Fitted(fit=one, boot=laws.bootstrap(one, resamples=30)))
    return folder / "law.html"


def the_planner(folder):
    planner_page.write(read("paper"), folder / "planner.html")
    return folder / "planner.html"


MAKERS = (the_study, the_run, the_runs, the_law, the_planner)


@pytest.fixture(scope="module", params=MAKERS, ids=lambda make: make.__name__)
def place(request, tmp_path_factory):
    """A file's path, of each kind of page."""
    folder = tmp_path_factory.mktemp(request.param.__name__)
    return request.param(folder)


def check(tab, start, width):
    """Everything open and drawn: no fault, no message, no request but to where the page lies."""
    tab.evaluate(OPEN)
    tab.wait_for_timeout(200)
    assert tab.evaluate(FAULTS) == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert [message for message in tab.seen if not message.startswith(start)] == []


@pytest.mark.parametrize("width, scheme", SIZES)
def test_nothing_is_cut_and_all_can_be_read(visit, place, width, scheme):
    tab = visit(place, viewport={"width": width, "height": 900}, color_scheme=scheme)
    if tab.locator("#numbers").count():
        tab.wait_for_selector("#by_teacher[data-drawn]", timeout=120_000)
    check(tab, place.as_uri(), width)


@pytest.mark.parametrize("width, scheme", SIZES)
def test_nothing_of_a_live_page_is_cut(visit, tmp_path, width, scheme):
    for i in range(3):
        log(tmp_path / "runs" / f"{i}-of-the-students-that-share-a-teacher", [3.0, 2.0, 1.5])
    with LivePage(tmp_path, every=60.0) as page:
        thread = threading.Thread(target=page.run, daemon=True)
        thread.start()
        try:  # a failure must not leave a server that keeps the tests from ending
            tab = visit(page.address, viewport={"width": width, "height": 900}, color_scheme=scheme)
            tab.wait_for_selector("#live[data-drawn]")
            check(tab, page.address, width)
        finally:
            page.stop()
            thread.join()


def test_the_check_finds_what_it_is_for(visit, tmp_path):
    """Faults that were put into a page, one of each kind."""
    bad = {
        "beyond the window": '<p style="width: 3000px">wide</p>',
        "cut": '<p style="width: 40px; overflow: hidden; white-space: nowrap">a text that is cut</p>',
        "1.": '<p style="opacity: .1">a text that cannot be read</p>',
    }
    for kind, part in bad.items():
        (tmp_path / "bad.html").write_text(f"<!doctype html><body><main>{part}</main>")
        found = visit(tmp_path / "bad.html").evaluate(FAULTS)
        assert len(found) >= 1 and all(one.startswith(kind) for one in found), (kind, found)
