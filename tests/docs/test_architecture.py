"""The architecture page against the code: its rooms, their floors and purposes, and the files of its tasks.

`pytest tests/docs/test_architecture.py --update-golden` writes the table of rooms anew.
"""

import ast
import re
from pathlib import Path

import pytest

from distill.diagnostics.imports import FLOOR

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = re.compile(r"<!-- rooms: .* -->\n"), "<!-- end of rooms -->"
# What a newcomer asks first; the page must lead to a file for each.
TASKS = ("divergence", "data source", "law form", "figure in the study report", "chip", "teacher signal")


def purpose(room: str) -> str:
    """The first sentence of a room's docstring, or the first line of one that has no full stop."""
    folder = ROOT / "distill" / room
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return docstring.partition("\n")[0].replace("](docs/", "](").strip()


def rooms() -> str:
    """The table of rooms, lowest floor first."""
    lines = ["| floor | room | what it is for |", "|---|---|---|"]
    for room, floor in sorted(FLOOR.items(), key=lambda item: (item[1], item[0])):
        path = f"distill/{room}/" if (ROOT / "distill" / room).is_dir() else f"distill/{room}.py"
        lines.append(f"| {floor + 1} | `{path}` | {purpose(room)} |")
    return "\n".join(lines) + "\n"


def tasks(text: str) -> dict[str, list[str]]:
    """Task -> the paths in its row of the table."""
    rows = text.partition("## Where do I change this?")[2].partition("\n## ")[0]
    cells = [line.strip("|").split("|", 1) for line in rows.splitlines() if line.startswith("| a new ")]
    return {task.strip().removeprefix("a new "): re.findall(r"`(distill/[^`]+)`", rest) for task, rest in cells}


def test_the_rooms_are_those_of_the_code(request):
    text = PAGE.read_text("utf-8")
    begin = BEGIN.search(text)
    assert begin and END in text
    end = text.index(END)
    if request.config.getoption("--update-golden"):
        PAGE.write_text(text[: begin.end()] + rooms() + text[end:], "utf-8")
    elif text[begin.end() : end] != rooms():
        pytest.fail(f"docs/architecture.md is behind the code; its table of rooms should be\n{rooms()}\n{__doc__}")


def test_every_task_leads_to_files_that_exist():
    found = tasks(PAGE.read_text("utf-8"))
    assert tuple(found) == TASKS
    for task, paths in found.items():
        assert paths, f"{task}: no file"
        missing = [path for path in paths if not (ROOT / path).exists()]
        assert not missing, f"{task}: {missing} do not exist"


def test_a_file_that_does_not_exist_is_seen():
    page = "## Where do I change this?\n\n| task | begin in |\n|---|---|\n| a new chip | `distill/nowhere.py` |\n"
    assert tasks(page) == {"chip": ["distill/nowhere.py"]} and not (ROOT / "distill/nowhere.py").exists()
