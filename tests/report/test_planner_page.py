"""The page in a real browser: equal to Python, driven by keyboard, readable on a phone, and silent on the network."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from distill import laws
from distill.laws.forms.law import LawError
from distill.laws.planning.lawfile import StoredLaws, read
from distill.laws.planning.scenarios import SCENARIOS, Flops
from distill.report.law import planner_page

PAPER = read("paper")


@pytest.fixture
def tab(browser, tmp_path):
    """open(law, **context): a tab with the page of a law; its errors and requests are kept in `tab.seen`."""
    contexts = []

    def open_page(law=PAPER, **options):
        path = tmp_path / "planner.html"
        planner_page.write(law, path)
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.seen = []
        page.on("pageerror", lambda error: page.seen.append(str(error)))
        page.on("request", lambda request: page.seen.append(request.url))
        page.goto(path.as_uri())
        drawn(page)
        return page

    yield open_page
    for context in contexts:
        context.close()


def drawn(page):
    """Waits for the curves, which come a moment after the numbers."""
    from playwright.sync_api import expect

    expect(page.locator("#crossover")).not_to_have_text("...")


def random_cases(count, seed):
    random = np.random.default_rng(seed)
    sharing = ((1, False), (7, True))
    cases = []
    for i, name in zip(range(count), itertools.cycle(SCENARIOS)):
        m, store = sharing[(i // len(SCENARIOS)) % len(sharing)]
        N_S, compute = 10 ** random.uniform(8, 11), 10 ** random.uniform(19, 26)
        cases.append({"N_S": N_S, "compute": compute, "scenario": name, "m": m, "store": store})
    return cases


def test_thousand_random_plans_equal_pythons(tab):
    cases = random_cases(1000, seed=0)
    found = tab().evaluate("cases => cases.map(planner.plan)", cases)
    groups = {}
    for case, mine in zip(cases, found):
        groups.setdefault((case["scenario"], case["m"], case["store"]), []).append((case, mine))
    for (name, m, store), pairs in groups.items():
        N_S = np.array([case["N_S"] for case, _ in pairs])
        compute = np.array([case["compute"] for case, _ in pairs])
        scenario = SCENARIOS[name].shared(m, store)
        theirs = laws.allocate(PAPER.supervised, PAPER.distillation, N_S, compute, scenario, flops=PAPER.flops)
        for field in ("L_S", "L_T", "D_S", "N_T", "D_T"):
            mine = np.array([pair[1][field] for pair in pairs])
            np.testing.assert_allclose(mine, getattr(theirs, field), rtol=1e-6, err_msg=f"{field} of {name}")
        D = np.minimum(compute / (3 * PAPER.flops(N_S)), 1e17)
        alone = np.array([pair[1]["supervised_L"] for pair in pairs])
        np.testing.assert_allclose(alone, PAPER.supervised(N_S, D), rtol=1e-12)
    for case, mine in zip(cases[:40], found):
        token = float(laws.crossover_tokens(PAPER.supervised, PAPER.distillation, case["N_S"], mine["L_T"]))
        assert (mine["crossover_tokens"] is None) == np.isnan(token)
        if np.isfinite(token):
            assert mine["crossover_tokens"] == pytest.approx(token, rel=1e-6)


def test_intervals_and_probability_equal_pythons(tab):
    random = np.random.default_rng(2)
    factors = np.exp(0.003 * random.standard_normal((100, 15)))
    own = {k: v * f for (k, v), f in zip(PAPER.supervised.values().items(), factors.T)}
    taught = {k: v * f for (k, v), f in zip(PAPER.distillation.values().items(), factors.T[6:])}
    inside = dataclasses.replace(PAPER.supervised, **own)
    stack = dataclasses.replace(PAPER.distillation, **taught, supervised=inside)
    law = dataclasses.replace(PAPER, name="mine", boot=StoredLaws(kept=stack))
    page = tab(law)
    for scenario in ("best_case", "teacher_inference", "teacher_pretraining"):
        asked = {"N_S": 1e9, "compute": 1e21, "scenario": scenario}
        mine = page.evaluate("asked => planner.doubt(planner.plan(asked), asked)", asked)
        best = laws.plan(PAPER.supervised, PAPER.distillation, **asked, boot=law.boot, flops=PAPER.flops)
        for name in ("L_S", "supervised_L"):
            np.testing.assert_allclose(mine[name], best.interval[name], rtol=2e-5)
        assert mine["probability"] == pytest.approx(best.probability, abs=0.011)
    assert "wins with probability" in page.locator("#advice").inner_text()
    assert "[" in page.locator("#numbers").inner_text()
    assert page.seen == [page.url]


@pytest.mark.parametrize("form", ["distillation-limit", "overtaking"])
def test_other_forms_equal_pythons(tab, form):
    shared = {
        "A": 2243.0,
        "B": 24181.0,
        "alpha": 0.32,
        "beta": 0.64,
        "gamma": 0.76,
        "c0": 2.5,
        "kappa": 2.2,
        "f1": 0.09,
    }
    more = {"w": 0.1} if form == "overtaking" else {}
    law = laws.get(form)(**shared, **more, supervised=laws.Chinchilla(A=406.4, B=410.7, E=1.69, alpha=0.34, beta=0.28))
    file = dataclasses.replace(PAPER, name="mine", supervised=law.supervised, distillation=law, flops=Flops(10.0, 50.0))
    random = np.random.default_rng(1)
    points = [[10 ** random.uniform(7, 11), 10 ** random.uniform(9, 13), random.uniform(1.8, 3)] for _ in range(50)]
    page = tab(file)
    mine = page.evaluate("points => points.map(p => planner.distillation(...p))", points)
    np.testing.assert_allclose(mine, law(*np.array(points).T), rtol=1e-12)
    assert page.evaluate("planner.F(1e6)") == pytest.approx(float(Flops(10.0, 50.0)(1e6)), rel=1e-12)


def test_a_person_with_a_keyboard(tab):
    page = tab()
    before = page.text_content("#advice")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "N_S"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert page.text_content("#advice") != before and page.text_content("#N_S_out") == "1.26B"
    page.keyboard.press("Tab")
    page.keyboard.press("End")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.getElementById('scenario').value") == "teacher_pretraining"
    assert page.text_content("#advice").startswith("Pretrain")
    drawn(page)


def test_a_given_teacher_worse_than_the_student_is_told(tab):
    page = tab()
    assert not page.is_visible("#L_T")
    page.select_option("#teacher", "given")
    assert page.is_visible("#L_T")
    page.fill("#L_T", "2.8")
    assert "worse than the student alone" in page.text_content("#warning")


def test_it_asks_nothing_of_the_network_and_raises_no_error(tab):
    page = tab()
    page.fill("#compute", "24")
    page.check("#store")
    assert page.seen == [page.url]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_readable_on_a_phone_in_both_themes(tab, scheme):
    page = tab(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    ink, ground = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    assert _contrast(ink, ground) > 7
    soft = page.evaluate("getComputedStyle(document.querySelector('.soft')).color")
    assert _contrast(soft, ground) > 4.5
    assert page.evaluate("document.querySelectorAll('svg path.curve').length") == 7


def _contrast(one, other):
    """The contrast ratio of WCAG 2."""

    def luminance(text):
        channels = np.array([float(x) for x in text[text.index("(") + 1 : -1].split(",")[:3]]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_page_holds_the_law_and_nothing_executable_of_it():
    file = dataclasses.replace(PAPER, name="</script><script>alert(1)</script>")
    text = planner_page.page(file)
    assert "<script>alert(1)" not in text
    payload = text.split('id="law">')[1].split("</script>")[0]
    assert json.loads(payload)["distillation"]["parameters"]["c0"] == 2.549


def test_a_form_that_the_page_does_not_know():
    supervised = laws.PowerLaw(A=1.0, E=1.0, alpha=0.5)
    with pytest.raises(LawError, match="the page knows supervised laws of the forms"):
        planner_page.page(dataclasses.replace(PAPER, supervised=supervised))
