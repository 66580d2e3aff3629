"""Builds a self-contained HTML page of headings, paragraphs, tables and figures, and escapes every text.

The page fetches nothing: styles and images are inline, and a content policy forbids requests. It follows the reader's
light or dark preference, fits a phone, prints, and suits screen readers (table headers with scope, alternative texts,
one h1).
"""

import base64
import dataclasses
import html
from collections.abc import Iterable, Sequence

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #1b1f24; --soft: #57606a; --line: #d5dae0;
  --card: #f5f7f9; --accent: #00598c; --good: #00664b; --bad: #9a3b00; }
@media (prefers-color-scheme: dark) { :root { --ground: #14181c; --ink: #e8ebee; --soft: #a3adb7; --line: #343c44;
  --card: #1c2228; --accent: #6cc0f2; --good: #52d3a8; --bad: #f5ab63; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; padding-top: .8rem; border-top: 1px solid var(--line); }
p, li { max-width: 46rem; }
nav { margin: 1rem 0; } nav a { display: inline-block; margin: 0 .9rem .3rem 0; padding: .15rem 0; }
a { color: var(--accent); }
.soft { color: var(--soft); font-size: .9rem; }
.headline { margin: 1rem 0; padding: .9rem 1rem; background: var(--card); border-left: 4px solid var(--accent);
  font-size: 1.08rem; max-width: none; }
dl.answers { margin: 1rem 0; } dl.answers dt { font-weight: 600; margin-top: .8rem; }
dl.answers dd { margin: .1rem 0 0; max-width: 46rem; }
.verdict { font-weight: 700; }
.scroll { overflow-x: auto; margin: .6rem 0; } .scroll:focus-visible { outline: 2px solid var(--accent); }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: .3rem; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th.text, td.text { text-align: left; white-space: normal; min-width: 8.5rem; }
thead th { background: var(--card); vertical-align: bottom; white-space: normal; }
tbody th { font-weight: 600; }
td.good { color: var(--good); } td.bad { color: var(--bad); }
figure { margin: .8rem 0 1.4rem; } figure .scroll { margin: 0; }
figure img { display: block; width: 100%; min-width: 34rem; height: auto; }
figcaption { color: var(--soft); font-size: .9rem; max-width: 46rem; margin-top: .4rem; }
code { font: .88em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; background: var(--card);
  padding: .1em .3em; white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--accent); }
@media print {
  :root { --ground: #fff; --ink: #000; --soft: #444; --line: #bbb; --card: #f3f3f3; --accent: #000;
    --good: #000; --bad: #000; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; } .scroll { overflow: visible; } figure img { min-width: 0; }
  figure, tr, .headline { break-inside: avoid; } h2 { break-after: avoid; } thead { display: table-header-group; }
}
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableCell:
    """A table cell: its text, and a tone ('good' or 'bad') that sets its colour; the text must express it too."""

    text: str
    tone: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """A table column; `text` columns align left."""

    name: str
    text: bool = False


def escape(text: str) -> str:
    """Text for HTML, in content and in attributes."""
    return html.escape(str(text), quote=True)


def page(title: str, sections: Iterable[str]) -> str:
    """The whole document."""
    body = "\n".join(sections)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


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


def table(caption: str, columns: Sequence[Column], rows: Iterable[Sequence[str | TableCell]]) -> str:
    """A table that scrolls horizontally on a narrow screen; the first cell of a row is its header."""
    head = "".join(f'<th scope="col"{_class("text" if c.text else "")}>{escape(c.name)}</th>' for c in columns)
    body = []
    for row in rows:
        cells = [cell if isinstance(cell, TableCell) else TableCell(text=cell) for cell in row]
        first, *rest = zip(columns, cells)
        line = f'<th scope="row"{_class("text" if first[0].text else "")}>{escape(first[1].text)}</th>'
        for column, cell in rest:
            kind = " ".join(part for part in ("text" if column.text else "", cell.tone) if part)
            line += f"<td{_class(kind)}>{escape(cell.text)}</td>"
        body.append(f"<tr>{line}</tr>")
    rows_html = "\n".join(body)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}">\n<table>\n'
        f"<caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows_html}\n</tbody>\n"
        "</table>\n</div>"
    )


def details(summary: str, *parts: str) -> str:
    """Content that opens on demand."""
    inside = "\n".join(parts)
    return f"<details><summary>{escape(summary)}</summary>\n{inside}\n</details>"


def figure(light: bytes, dark: bytes, alt: str, caption: str) -> str:
    """A light and a dark PNG of a figure, with its alternative text and a caption."""
    light_uri, dark_uri = (f"data:image/png;base64,{base64.b64encode(b).decode()}" for b in (light, dark))
    return (
        '<figure><div class="scroll" role="region" tabindex="0" aria-label="figure">'
        f'<picture><source srcset="{dark_uri}" media="(prefers-color-scheme: dark)">'
        f'<img src="{light_uri}" alt="{escape(alt)}"></picture></div>\n'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
