"""Links inside the repository lead somewhere, anchors included, and the site's navigation names every page once."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tests" / "golden").rglob("*.md")])
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(text: str) -> set[str]:
    """The anchors that GitHub and MkDocs give to the headings of a page."""
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    heads = re.findall(r"^#+ (.*)$", outside, re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", head.lower()).strip()) for head in heads}


def lost(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    text = page.read_text("utf-8")
    result = []
    for link in _LINK.findall(text):
        place, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = page.parent / place if place else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text("utf-8"))):
            result.append(link)
    return result


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert not lost(page)


def test_links_that_lead_nowhere_are_seen(tmp_path):
    (tmp_path / "other.md").write_text("# A head, with: signs\n\n```bash\n# no head\n```\n")
    page = tmp_path / "page.md"
    page.write_text("[a](other.md#a-head-with-signs) [b](other.md#no-head) [c](gone.md) [d](https://x.y) [e](#here)\n")
    assert lost(page) == ["other.md#no-head", "gone.md", "#here"]


def test_the_navigation_has_every_page_and_every_room():
    """A new page goes into `nav` of mkdocs.yml."""

    def flat(entries):
        for entry in entries:
            for value in entry.values() if isinstance(entry, dict) else [entry]:
                yield from flat(value) if isinstance(value, list) else [value]

    nav = list(flat(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]))
    docs = ROOT / "docs"
    hidden = ("study", "campaigns", "figures", "site")
    written = {str(p.relative_to(docs)) for p in docs.rglob("*.md") if p.relative_to(docs).parts[0] not in hidden}
    loose = {path.stem for path in (ROOT / "distill").glob("*.py")} - {"__init__"}
    rooms = loose | {path.parent.name for path in (ROOT / "distill").glob("*/__init__.py")}
    assert sorted(nav) == sorted(written | {f"api/{room}.md" for room in rooms})
