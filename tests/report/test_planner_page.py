"""The page in a real browser: equal to Python, driven by keyboard, readable on a phone, and silent on the network."""

import dataclasses
import itertools
import json
import re

import numpy as np
import pytest

from distill import laws
from distill.laws.forms.law import LawError
from distill.laws.planning.lawfile import StoredLaws, read
from distill.laws.planning.scenarios import SCENARIOS, Flops
from distill.report.law import planner_page
from tests.report.test_charts import SIZES

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


def warned(page):
    return page.locator("#warning li").all_inner_texts()


def drawn(page):
    """Waits for the curves, which come a moment after the numbers."""
    from playwright.sync_api import expect

    expect(page.locator("#crossover")).not_to_have_text("...", timeout=120_000)


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
            np.testing.assert_allclose(mine[name], best.interval[name], rtol=1e-6)
        assert mine["probability"] == best.probability
        told = page.evaluate("asked => planner.warnings(planner.plan(asked), asked)", asked)
        assert told == [*law.caveats(), *best.warnings]
    assert "wins with probability" in page.locator("#advice").inner_text()
    assert "[" in page.locator("#numbers").inner_text()
    assert page.seen == [page.url.partition("#")[0]]


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


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_warnings_and_sentence_are_those_of_the_command(tab, scenario):
    """Over random plans in and out of the region of the runs: the words of `distill plan`, warning by warning.

    Not where the law is flat to its last digit: there the grid's second optimum is one of rounding.
    """
    random, page = np.random.default_rng(3), tab()
    for _ in range(12):
        N_S, compute = 10 ** random.uniform(8, 10.5), 10 ** random.uniform(19, 23)
        asked = {"N_S": N_S, "compute": compute, "scenario": scenario}
        best = laws.plan(PAPER.supervised, PAPER.distillation, **asked, flops=PAPER.flops, region=PAPER.region)
        assert page.evaluate("asked => planner.warnings(planner.plan(asked), asked)", asked) == list(best.warnings)
    page.select_option("#scenario", scenario)
    page.fill("#N_S", "1.5B")
    page.fill("#budget", "3e21")
    best = laws.plan(
        PAPER.supervised, PAPER.distillation, N_S=1.5e9, compute=3e21, scenario=scenario, flops=PAPER.flops
    )
    assert page.locator("#advice").inner_text() == best.sentence().split(" Warning:")[0]


def test_a_law_whose_supervised_law_was_not_resampled_warns_as_the_command_does(tab):
    stack = dataclasses.replace(PAPER.distillation, c0=2.549 * np.ones(20))
    page = tab(dataclasses.replace(PAPER, name="mine", boot=StoredLaws(kept=stack)))
    (told,) = [text for text in warned(page) if "taken as known" in text]
    best = laws.plan(PAPER.supervised, PAPER.distillation, N_S=1e9, compute=1e21, boot=StoredLaws(kept=stack))
    assert told in best.warnings


@pytest.mark.parametrize(
    "typed, compute",
    [
        ("1e22", 1e22),
        ("2.5e21 FLOPs", 2.5e21),
        ("20K GPU-hours", 20e3 * 3600 * 989e12 * 0.4),
        ("5,000 h", 5e3 * 3600 * 989e12 * 0.4),
        ("5000 H100-hours", 5e3 * 3600 * 989e12 * 0.4),
        ("$39,900", 1e4 * 3600 * 989e12 * 0.4),
        ("39.9K dollars", 1e4 * 3600 * 989e12 * 0.4),
        ("14 days", 14 * 24 * 64 * 3600 * 989e12 * 0.4),
    ],
)
def test_budgets_as_people_type_them(tab, typed, compute):
    page = tab()
    page.fill("#hourly", "3.99")
    page.fill("#accelerators", "64")
    page.fill("#budget", typed)
    assert float(page.locator("#compute_out").inner_text().split()[0]) == pytest.approx(compute, rel=5e-3)
    assert page.locator("#problem").inner_text() == ""


@pytest.mark.parametrize(
    "field, typed, why",
    [
        ("budget", "5 apples", '"apples" is no unit; wanted FLOPs, GPU-hours, dollars or days'),
        ("N_S", "many", 'student size: got "many", wanted a positive number such as 1.5B'),
        ("budget", "5K v5p-hours", "in hours of v5p, where the chip is h100; choose v5p below"),
        ("budget", "2 weeks", '"weeks" is no unit'),
        ("budget", "\u20ac50K", "in EUR, where the list price of h100 is in USD; type what an hour costs in EUR"),
        ("mfu", "-3", 'MFU: got "-3"'),
        ("mfu", "400", "wanted a share of the peak, at most 100"),
        ("m", "2.5", 'students: got "2.5", wanted a whole number such as 4'),
        ("accelerators", "0.5", 'accelerators: got "0.5", wanted a whole number such as 64'),
    ],
)
def test_a_mistake_is_told_beside_the_field(tab, field, typed, why):
    page = tab()
    before = page.locator("#advice").inner_text()
    page.fill(f"#{field}", typed)
    assert why in page.locator("#problem").inner_text()
    assert page.locator(f"#{field}").get_attribute("aria-invalid") == "true"
    assert page.locator("#advice").inner_text() == before


def test_a_price_that_was_typed_is_in_the_money_of_the_budget(tab):
    """It was said in USD."""
    page = tab()
    page.fill("#hourly", "2.50")
    page.fill("#budget", "\u20ac50K")
    assert page.locator("#problem").inner_text() == ""
    assert "50,000 EUR" in page.locator("#numbers").inner_text()
    assert "2.5 EUR an accelerator-hour (as given)" in page.locator("#price").inner_text()


def test_a_person_with_a_keyboard(tab):
    page = tab()
    before = page.text_content("#advice")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "N_S"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "N_S_slider"
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert page.text_content("#advice") != before and page.input_value("#N_S") == "1.26B"
    page.focus("#compute_slider")
    page.keyboard.press("End")
    page.focus("#scenario")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.getElementById('scenario').value") == "teacher_pretraining"
    assert page.text_content("#advice").startswith("Pretrain")
    drawn(page)


def test_the_address_restores_what_was_typed(tab, visit):
    from playwright.sync_api import expect

    page = tab()
    page.fill("#N_S", "750M")
    page.fill("#budget", "20K GPU-hours")
    page.select_option("#scenario", "teacher_pretraining")
    page.select_option("#teacher", "given")
    page.fill("#N_T", "7B")
    page.fill("#L_T", "2.05")
    page.check("#store")
    expect(page).to_have_url(re.compile("store=yes"))  # page.url is told by an event, a little later
    again = visit(page.url)
    drawn(again)
    assert again.locator("#advice").inner_text() == page.locator("#advice").inner_text()
    assert again.input_value("#budget") == "20K GPU-hours" and again.is_checked("#store")
    again.check("#store")
    # Another address pasted over this one: what it does not name is as at first.
    again.evaluate("location.hash = '#N_S=1.5B&budget=3e21&teacher=best'")
    expect(again.locator("#N_S")).to_have_value("1.5B")
    assert not again.is_checked("#store")
    assert again.locator("#advice").inner_text().count("1.5B") == 2
    page.locator("#share").click()
    assert page.locator("#advice").inner_text() in page.input_value("#shared") and page.url in page.input_value(
        "#shared"
    )


DROP = """([name, text]) => {
  const data = new DataTransfer();
  data.items.add(new File([text], name, {type: "application/json"}));
  document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
}"""


def test_a_law_file_that_is_dropped_is_the_law_of_the_page(tab, tmp_path):
    """Oracle: the page that Python writes for the same file."""
    from playwright.sync_api import expect

    spread = np.exp(0.01 * np.random.default_rng(4).standard_normal((2, 30)))
    values = PAPER.distillation.values()
    draws = {name: (value * spread[0]).tolist() for name, value in values.items()}
    draws["supervised"] = {name: (v * spread[1]).tolist() for name, v in PAPER.supervised.values().items()}
    region = {"N_S": [1e8, 2e9], "D_S": [1e9, 1e11], "L_T": [1.9, 2.7], "N_T": [1e8, 5e9], "D_T": [1e9, 2e11]}
    path = tmp_path / "mine.json"
    PAPER.distillation.save(path, draws=draws, region=region, flops=[5.0, 7.0])
    theirs, mine = tab(read(path)), tab()
    mine.evaluate(DROP, ["mine.json", path.read_text()])
    expect(mine.locator("#name")).to_have_text("mine.json")  # until the file is read, the page is done with its own law
    for page in (mine, theirs):
        page.wait_for_selector("#numbers[data-state=done]", timeout=120_000)
    assert mine.locator("#advice").inner_text() == theirs.locator("#advice").inner_text()
    assert warned(mine) == warned(theirs)
    assert mine.locator("#numbers").inner_text() == theirs.locator("#numbers").inner_text()
    for text, why in (
        ("{", "not a law file"),
        ('{"form": "sparse-experts", "parameters": {}}', "the page knows laws of the forms distillation"),
        ('{"supervised": {}}', "wanted a law as"),
    ):
        mine.evaluate(DROP, ["bad.json", text])
        expect(mine.locator("#problem")).to_contain_text(why)
    assert mine.locator("#name").inner_text() == "mine.json"
    assert [message for message in mine.seen if not message.startswith("file:")] == []


def test_what_was_never_measured_is_grey_and_curves_are_not_clamped(tab):
    page = tab()
    page.fill("#N_S", "1B")
    drawn(page)
    shades = page.evaluate("document.getElementById('by_compute').state.chart.panels[0].shades")
    chart = page.evaluate("document.getElementById('difference').state.chart.panels[0]")
    curve = next(s for s in chart["series"] if "minus" in s["label"])
    region, budgets = PAPER.region, np.array(curve["x"])
    best = laws.allocate(
        PAPER.supervised, PAPER.distillation, 1e9, budgets, SCENARIOS["teacher_inference"], flops=PAPER.flops
    )
    inside = (region.D_S[0] / 1.05 <= best.D_S) & (1.05 * region.D_S[1] >= best.D_S)
    edges = budgets[inside][[0, -1]]
    assert [shade[:2] for shade in shades] == [[budgets[0], edges[0]], [edges[1], budgets[-1]]]
    alone = PAPER.supervised(1e9, budgets / (3 * PAPER.flops(1e9)))
    np.testing.assert_allclose(curve["y"], best.L_S - alone, atol=1e-9)
    assert len(set(curve["y"])) == len(curve["y"])
    page.fill("#N_S", "1e13")
    drawn(page)
    assert page.evaluate("document.getElementById('by_compute').state.chart.panels[0].shades.length") == 1


def test_a_given_teacher_worse_than_the_student_is_told(tab):
    page = tab()
    assert not page.is_visible("#L_T")
    page.select_option("#teacher", "given")
    assert page.is_visible("#L_T")
    page.fill("#L_T", "2.8")
    assert any("worse than the student alone" in text for text in warned(page))


def test_it_asks_nothing_of_the_network_and_raises_no_error(tab):
    page = tab()
    page.fill("#budget", "1e24")
    page.check("#store")
    assert page.seen == [page.url.partition("#")[0]]


@pytest.mark.parametrize("width, scheme", [*SIZES, (360, "light")])
def test_readable_on_a_phone_in_both_themes(tab, width, scheme):
    page = tab(viewport={"width": width, "height": 740}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ink, ground = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    assert _contrast(ink, ground) > 7
    soft = page.evaluate("getComputedStyle(document.querySelector('.soft')).color")
    assert _contrast(soft, ground) > 4.5
    page.locator("#by_compute").scroll_into_view_if_needed()
    box = page.locator("#by_compute .u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 0.9 * box["height"])
    assert "compute (FLOPs)" in page.locator("#by_compute .tip").inner_text()


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
