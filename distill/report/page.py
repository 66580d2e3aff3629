"""Builds a self-contained HTML page of headings, paragraphs, tables and figures, and escapes every text.

The page fetches nothing: styles, images and scripts are inline, a content policy forbids requests, and no script runs
but those whose hash the policy names. It follows the reader's light or dark preference, fits a phone, prints, and suits
screen readers (table headers with scope, alternative texts, one h1).
"""

import base64
import dataclasses
import functools
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from importlib import resources

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_TALL = 20  # rows from which a table that sorts scrolls in a window of its own
# A table that sorts with more rows shows its first ones: with 2,000 the whole page took 2.6 times the CPU to open.
_MOST, _FIRST = 200, 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableCell:
    """A table cell: its text, a tone ('good' or 'bad') that sets its colour (the text must express it too), a link."""

    text: str
    tone: str = ""
    link: str = ""  # an anchor of this page


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """A table column; `text` columns align left."""

    name: str
    text: bool = False


def escape(text: str) -> str:
    """Text for HTML, in content and in attributes."""
    return html.escape(str(text), quote=True)


@functools.cache
def page_style() -> str:
    """The style sheet of every page."""
    return resources.files("distill.report").joinpath("page.css").read_text("utf-8")


@functools.cache
def table_script() -> str:
    """The JavaScript of tables that sort and filter."""
    return resources.files("distill.report").joinpath("tables.js").read_text("utf-8")


def page(
    title: str, sections: Iterable[str], scripts: Sequence[str] = (), style: str = "", *, live: bool = False
) -> str:
    """The whole document; no script runs but those given. A `live` page may ask the server that it came from."""
    body = "\n".join(sections)
    code = "".join(f"<script>{script}</script>\n" for script in scripts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy(scripts, live=live)}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{page_style()}{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n{code}</body>\n</html>\n"
    )


def policy(scripts: Sequence[str], *, live: bool = False) -> str:
    """The content policy of a page: nothing from outside, of scripts only these; a `live` page may ask its server."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = "; script-src " + " ".join(f"'sha256-{text}'" for text in hashes) if hashes else ""
    return _POLICY + allowed + ("; connect-src 'self'" if live else "")


def section(name: str, title: str, *parts: str) -> str:
    """A section with its heading; `name` is its anchor."""
    inside = "\n".join(part for part in parts if part)
    return f'<section aria-labelledby="{name}">\n<h2 id="{name}">{escape(title)}</h2>\n{inside}\n</section>'


def contents(entries: Iterable[tuple[str, str]]) -> str:
    """Links to sections (anchor, title)."""
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title in entries)
    return f'<nav aria-label="Contents">{links}</nav>'


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f"<p{_class(kind)}>{escape(text)}</p>"


def answers(entries: Iterable[tuple[str, str, str]]) -> str:
    """Questions with their verdict and its grounds."""
    inside = "".join(
        f'<dt>{escape(question)}</dt><dd><span class="verdict">{escape(verdict)}.</span> {escape(text)}</dd>'
        for question, verdict, text in entries
    )
    return f'<dl class="answers">{inside}</dl>' if inside else ""


def table(caption: str, columns: Sequence[Column], rows: Iterable[Sequence[str | TableCell]], sorts: str = "") -> str:
    """A table that scrolls horizontally on a narrow screen; the first cell of a row is its header.

    With a name in `sorts`, a reader sorts and filters it; the page then needs `table_script`.
    """
    head = "".join(f'<th scope="col"{_class("text" if c.text else "")}>{escape(c.name)}</th>' for c in columns)
    every = [[cell if isinstance(cell, TableCell) else TableCell(text=cell) for cell in row] for row in rows]
    long = sorts != "" and len(every) > _MOST
    inside = "\n".join(_row(columns, row) for row in (every[:_FIRST] if long else every))
    name = f' id="{escape(sorts)}" data-sorts' if sorts else ""
    kind = "scroll tall" if sorts and len(every) > _TALL else "scroll"
    return (
        (_filter(sorts, len(every), long) if sorts else "")
        + f'<div class="{kind}" role="region" tabindex="0" aria-label="{escape(caption)}">\n<table{name}>\n'
        f"<caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{inside}\n</tbody>\n"
        f"</table>\n</div>{_beside(sorts, every) if long else ''}"
    )


def encode(tree: object) -> str:
    """JSON that may stand inside of a script element."""
    return json.dumps(tree, separators=(",", ":"), allow_nan=False).replace("</", "<\\/").replace("<!--", "<\\!--")


def _row(columns: Sequence[Column], row: Sequence[TableCell]) -> str:
    first, *rest = zip(columns, row)
    line = f'<th scope="row"{_class("text" if first[0].text else "")}>{_text(first[1])}</th>'
    for column, cell in rest:
        kind = " ".join(part for part in ("text" if column.text else "", cell.tone) if part)
        line += f"<td{_class(kind)}>{_text(cell)}</td>"
    return f"<tr>{line}</tr>"


def _beside(name: str, rows: Sequence[Sequence[TableCell]]) -> str:
    """All rows of a long table, from which the page makes elements when they are shown."""
    short = [
        [[cell.text, cell.tone, cell.link] if cell.tone or cell.link else [cell.text] for cell in row] for row in rows
    ]
    return f'<script type="application/json" data-rows="{escape(name)}">{encode(short)}</script>'


def _text(cell: TableCell) -> str:
    return f'<a href="#{escape(cell.link)}">{escape(cell.text)}</a>' if cell.link else escape(cell.text)


def _filter(name: str, rows: int, long: bool) -> str:
    more = '<button type="button">Show more</button>' if long else ""
    count = f"{_FIRST} shown of {rows}, {rows} rows" if long else f"{rows} of {rows} rows"
    return (
        f'<div class="filter"><label for="filter-{escape(name)}">Show rows with</label>'
        f'<input id="filter-{escape(name)}" data-filters="{escape(name)}" type="search" autocomplete="off" '
        f'placeholder="words, or D&lt;=2M"><output>{count}</output>{more}</div>'
    )


def details(summary: str, *parts: str) -> str:
    """Content that opens on demand."""
    inside = "\n".join(parts)
    return f"<details><summary>{escape(summary)}</summary>\n{inside}\n</details>"


def figure(light: bytes, dark: bytes, alt: str, caption: str) -> str:
    """A light and a dark PNG of a figure, with its alternative text and a caption."""
    return (
        '<figure><div class="scroll" role="region" tabindex="0" aria-label="figure">'
        f"{picture(light, dark, alt)}</div>\n<figcaption>{escape(caption)}</figcaption></figure>"
    )


def picture(light: bytes, dark: bytes, alt: str) -> str:
    """A light and a dark PNG, of which the reader's theme shows one."""
    light_uri, dark_uri = (f"data:image/png;base64,{base64.b64encode(b).decode()}" for b in (light, dark))
    return (
        f'<picture><source srcset="{dark_uri}" media="(prefers-color-scheme: dark)">'
        f'<img src="{light_uri}" alt="{escape(alt)}"></picture>'
    )


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
