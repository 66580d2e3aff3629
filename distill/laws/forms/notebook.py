"""Tables in HTML for notebooks."""

import html
from collections.abc import Iterable, Sequence


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table; the first cell of a row is its heading. All text is escaped."""
    cell = lambda tag, text: f"<{tag}>{html.escape(text)}</{tag}>"
    columns = "".join(cell("th", name) for name in head)
    body = "".join(f"<tr>{cell('th', first)}{''.join(cell('td', text) for text in rest)}</tr>" for first, *rest in rows)
    top = f"<caption>{html.escape(caption)}</caption><thead><tr>{columns}</tr></thead>"
    return f"<table>{top}<tbody>{body}</tbody></table>"
