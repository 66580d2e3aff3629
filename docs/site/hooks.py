"""What the site adds to the pages: a reference of every room from its docstrings, and links that leave docs/ as names.

MkDocs calls these functions (mkdocs.yml, `hooks`).
"""

import os
import re
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
_LINK = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+[^)\s]*)\)")


def on_files(files: Files, config) -> Files:
    """Adds api/ROOM.md for every package of distill, with a section for each module, and a page for a loose module."""
    for module in sorted(path.stem for path in (ROOT / "distill").glob("*.py") if path.stem != "__init__"):
        text = f"::: distill.{module}\n    options:\n      heading_level: 1\n"
        files.append(File.generated(config, f"api/{module}.md", content=text))
    for folder in sorted(path.parent for path in (ROOT / "distill").glob("*/__init__.py")):
        modules = sorted(path for path in folder.rglob("*.py") if not path.name.startswith("_"))
        names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules]
        package = f"::: distill.{folder.name}\n    options:\n      members: false\n      heading_level: 1\n"
        text = "\n".join([package, *(f"::: {name}\n" for name in names)])
        files.append(File.generated(config, f"api/{folder.name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page, config, files) -> str:
    """A link to a file of the repository outside docs/ becomes the path of that file; MkDocs checks all others."""
    here = ROOT / "docs" / Path(page.file.src_uri).parent

    def outside(match: re.Match[str]) -> str:
        target = os.path.normpath(here / match[2].partition("#")[0])
        inside = os.path.relpath(target, ROOT / "docs").partition(os.sep)[0] != ".."
        if inside or not os.path.exists(target):
            return match[0]
        return f"{match[1]} (`{os.path.relpath(target, ROOT)}`)"

    return _LINK.sub(outside, markdown)
