"""The page is self-contained, escaped and accessible: parsed, not searched."""

import base64
import hashlib
import io
from html.parser import HTMLParser

import pytest
from matplotlib import image

from distill.report import page
from distill.report.page import Column, TableCell

VOID = {"meta", "img", "source", "br", "link", "input"}


class Reader(HTMLParser):
    """Every element with its attributes; fails on tags that do not close in order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.stack, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


HOSTILE = "</td><script>alert('&')</script>\"<b>"


@pytest.mark.parametrize(
    "make",
    [
        page.paragraph,
        lambda text: page.section("a", text, ""),
        lambda text: page.contents([("a", text)]),
        lambda text: page.answers([(text, text, text)]),
        lambda text: page.table(
            text, [Column(name=text), Column(name=text)], [[text, TableCell(text=text, tone="good")]]
        ),
        lambda text: page.details(text),
        lambda text: page.figure(b"png", b"png", text, text),
        lambda text: page.page(text, []),
    ],
)
def test_no_text_becomes_markup(make):
    read = Reader(make(HOSTILE))
    assert not read.all("script") and not read.all("b")
    inside = read.text + "".join(str(value) for _, attributes in read.elements for value in attributes.values())
    assert HOSTILE in inside


def test_tables_have_headers_with_scope_and_a_caption_and_scroll_by_keyboard():
    columns = [Column(name="run", text=True), Column(name="loss")]
    read = Reader(page.table("losses", columns, [["a", "1"], ["b", "2"]]))
    assert [th["scope"] for th in read.all("th")] == ["col", "col", "row", "row"]
    assert len(read.all("caption")) == 1
    (region,) = read.all("div")
    assert (region["role"], region["tabindex"], region["aria-label"]) == ("region", "0", "losses")


def test_the_policy_forbids_everything_that_is_not_inside():
    read = Reader(page.page("t", [page.paragraph("x")]))
    policy = next(m["content"] for m in read.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert read.all("html")[0]["lang"] == "en"
    assert any(m.get("name") == "viewport" for m in read.all("meta"))


def test_no_script_runs_but_those_that_were_given():
    script = "document.title = 'x';\n"
    read = Reader(page.page("t", [], scripts=[script]))
    policy = next(m["content"] for m in read.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.endswith(f"; script-src 'sha256-{digest}'") and "unsafe-inline'" not in policy.split("script-src")[1]


def test_a_long_table_shows_its_first_rows_and_finds_all(visit, tmp_path):
    """Elements of 2,000 rows took 2.6 times the CPU to open; links and tones survive in the rows beside the table."""
    columns = [Column(name="run", text=True), Column(name="D"), Column(name="loss")]
    tokens = [f"{i}K" for i in range(1, 301)]
    rows = [[TableCell(text=f"r{i}", link=f"run={i}"), D, TableCell(text=f"{1 / (i + 1):.4f}", tone="good")]
            for i, D in enumerate(tokens)]  # fmt: skip
    path = tmp_path / "table.html"
    path.write_text(page.page("t", [page.table("c", columns, rows, sorts="runs")], [page.table_script()]), "utf-8")
    tab = visit(path)
    shown, count = tab.locator("#runs tbody tr"), tab.locator(".filter output")
    assert shown.count() == 100
    tab.locator(".filter button").click()
    assert shown.count() == 200 and count.inner_text() == "200 shown of 300, 300 rows"
    tab.locator("input").fill("D>=299K")
    assert [line.split() for line in shown.all_inner_texts()] == [
        ["r298", "299K", "0.0033"],
        ["r299", "300K", "0.0033"],
    ]
    assert count.inner_text() == "2 of 300 rows" and not tab.locator(".filter button").is_visible()
    cells = shown.first.locator("th, td")
    assert (
        cells.nth(0).locator("a").get_attribute("href") == "#run=298" and cells.nth(2).get_attribute("class") == "good"
    )
    tab.locator("input").fill("")
    tab.locator("#runs thead th").nth(1).locator("button").dblclick()
    assert shown.first.inner_text().split()[:2] == ["r299", "300K"]
    assert tab.seen == [tab.url]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_wider_than_a_phone_says_so(visit, tmp_path, scheme):
    """A table that is cut at the edge has a shadow there; the page itself does not scroll sideways."""
    columns = [Column(name=f"column {i}") for i in range(12)]
    path = tmp_path / "wide.html"
    path.write_text(page.page("wide", ["<h1>wide</h1>", page.table("wide", columns, [["123456789"] * 12])]), "utf-8")
    tab = visit(path, viewport={"width": 390, "height": 600}, color_scheme=scheme)
    wide = tab.locator(".scroll")
    assert wide.evaluate("e => e.scrollWidth > e.clientWidth + 100")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    pixels = lambda: image.imread(io.BytesIO(wide.screenshot()))[2, :, :3]  # a row above the letters
    row = pixels()
    assert abs(row[-2] - row[len(row) // 2]).max() > 0.1
    wide.evaluate("e => e.scrollTo(e.scrollWidth, 0)")
    row = pixels()
    assert abs(row[-2] - row[len(row) // 2]).max() < 0.02 < abs(row[1] - row[len(row) // 2]).max()
