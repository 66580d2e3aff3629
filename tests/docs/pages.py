"""The fenced blocks of a page, in reading order, with the marks that stand above them.

A mark is an HTML comment on a line of its own directly above a fence, so that no reader sees it:

    <!-- slow -->                 only with --slow
    <!-- needs: cluster -->       needs what is not at hand, or what a test makes (`reader.PROVIDED`)
    <!-- SHORT=--dry-run -->      an environment variable, which the page itself names, shortens the block
    <!-- file: mine.py -->        the reader saves the block under this name, or adds it to that file
    <!-- output -->               a text block: what the block before prints, compared

bash and python blocks are run. Other blocks without a file are shown only.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

LANGUAGES = ("bash", "python", "text", "json", "yaml")
_MARK = re.compile(r"<!-- (?:(slow|output)|needs: (\w+)|file: ([\w./-]+)|([A-Z][A-Z0-9_]*)=(.*?)) -->")


class PageError(Exception):
    """A page is written in a way that cannot be checked."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block; `line`: that of its opening fence; `output`: what the page shows of its output, or None."""

    page: str
    line: int
    language: str
    text: str
    slow: bool = False
    needs: str = ""
    file: str = ""
    variables: tuple[tuple[str, str], ...] = ()
    output: str | None = None

    @property
    def runs(self) -> bool:
        return self.language in ("bash", "python") or bool(self.file)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str, text: str) -> list[Block]:
    """The blocks of a page. Raises PageError for an unknown mark or language, a lost output, an unclosed fence."""
    result: list[Block] = []
    for number, marks, language, body in _fences(page, text):
        where = f"{page}:{number}"
        if language not in LANGUAGES:
            raise PageError(f"{where}: a fence of language {language!r}; wanted one of {', '.join(LANGUAGES)}")
        values = _read(where, marks)
        if values.pop("output"):
            if language != "text" or not result or not result[-1].runs or result[-1].output is not None:
                raise PageError(f"{where}: an output must be a text block after the block that prints it")
            result[-1] = dataclasses.replace(result[-1], output=body)
        else:
            result.append(Block(page=page, line=number, language=language, text=body, **values))
    for block in result:
        named = text.replace(f"<!-- {'=' if not block.variables else block.variables[0][0]}=", "")
        for name, _ in block.variables:
            if f"${name}" not in block.text or f"`{name}`" not in named:
                raise PageError(f"{block}: the variable {name} must be used in the block and named by the page")
    return result


def _fences(page: str, text: str) -> Iterator[tuple[int, list[str], str, str]]:
    """(line, marks above, language, text) of every fence."""
    lines = text.splitlines()
    marks: list[str] = []
    i = 0
    while i < len(lines):
        line = lines[i]
        if line.startswith("```"):
            end = next((k for k in range(i + 1, len(lines)) if lines[k].rstrip() == "```"), None)
            if end is None:
                raise PageError(f"{page}:{i + 1}: a fence that is not closed")
            yield i + 1, marks, line[3:].strip() or "text", "\n".join(lines[i + 1 : end]) + "\n"
            marks, i = [], end + 1
            continue
        marks = [*marks, line.strip()] if line.startswith("<!--") else []
        if re.match(r"( {4}|\t)(\$ )?(python -m|bash|pip) ", line):
            raise PageError(f"{page}:{i + 1}: a command in an indented block is never run; write a bash block")
        i += 1


def _read(where: str, marks: list[str]) -> dict:
    values: dict = {"slow": False, "output": False, "needs": "", "file": "", "variables": ()}
    for mark in marks:
        match = _MARK.fullmatch(mark)
        if match is None:
            raise PageError(f"{where}: unknown mark {mark!r}")
        word, needs, file, name, value = match.groups()
        if word:
            values[word] = True
        elif needs:
            values["needs"] = needs
        elif file:
            values["file"] = file
        else:
            values["variables"] += ((name, value),)
    return values


def difference(expected: str, got: str) -> str:
    """'' where `expected` stands in `got`, else what is missing.

    Lines are compared without the width of their blanks. `...` inside a line stands for anything in it, a line of `...`
    for any lines; text before and after is not compared.
    """
    lines = [" ".join(line.split()) for line in got.splitlines() if line.strip()]
    wanted = [" ".join(line.split()) for line in expected.splitlines() if line.strip()]
    starts, first = range(len(lines) + 1), True
    for piece in _pieces(wanted):
        patterns = [re.compile(".*".join(map(re.escape, re.split(r"\.{3}(?!\.)", line)))) for line in piece]
        at = next((s for s in starts if _matches(patterns, lines[s:])), None)
        if at is None:
            closest = _closest(piece, lines)
            return (
                f"{'not' if first else 'not afterwards'} in the output:\n" + "\n".join(piece) + f"\nnearest:\n{closest}"
            )
        starts, first = range(at + len(piece), len(lines) + 1), False
    return ""


def _pieces(wanted: list[str]) -> list[list[str]]:
    """Runs of lines between those of `...`."""
    pieces: list[list[str]] = [[]]
    for line in wanted:
        if line == "...":
            pieces.append([])
        else:
            pieces[-1].append(line)
    return [piece for piece in pieces if piece]


def _matches(patterns: list[re.Pattern[str]], lines: list[str]) -> bool:
    return len(lines) >= len(patterns) and all(p.fullmatch(line) for p, line in zip(patterns, lines))


def _closest(piece: list[str], lines: list[str]) -> str:
    """The lines that share a first word with those wanted."""
    heads = {line.split(" ")[0] for line in piece}
    return "\n".join(line for line in lines if line.split(" ")[0] in heads) or "(nothing)"


def read(root: Path, page: str) -> list[Block]:
    return blocks(page, (root / page).read_text("utf-8"))
