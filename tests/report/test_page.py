"""The page is self-contained, escaped and accessible: parsed, not searched."""

from html.parser import HTMLParser

import pytest

from distill.report import page
from distill.report.page import Column, TableCell

VOID = {"meta", "img", "source", "br", "link"}


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
