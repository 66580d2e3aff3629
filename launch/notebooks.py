"""Runs the notebooks from a clean kernel and keeps their outputs; points them at one repository.

Without --repository it executes notebooks/*.ipynb in place. Their first cell installs what $DISTILL_SOURCE names: a
checkout, a zip or a URL; else the repository, or the checkout that they lie in. Badges come with --repository.
"""

import os
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distill.config import DistillError, nearest
from distill.config.flags import Parser
from launch.support import cli

if TYPE_CHECKING:
    from nbformat import NotebookNode

EXAMPLES = (
    "distill notebooks",
    "distill notebooks --only=fit_laws",
    "distill notebooks --repository=owner/repo",
)

FOLDER = Path(__file__).parents[1] / "notebooks"
SETTING = FOLDER / "repository.txt"
_BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{repository}/blob/main/notebooks/{name}.ipynb)\n\n"
)
_INSTALL = '''import os

source = os.environ.get("DISTILL_SOURCE", "{default}")  # a checkout, a zip or a URL
try:
    import distill
except ImportError:
    %pip install -q "{{source}}"'''


class NotebookError(DistillError):
    """A notebook that cannot be read, run or pointed elsewhere."""


def execute(path: Path, timeout: int = 600) -> "NotebookNode":
    """The notebook with the outputs of a clean kernel, run in an empty folder."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": folder}}
        )
        try:
            # XLA_FLAGS: a test session's fake devices must not reach the notebook's kernel.
            client.execute(env={name: value for name, value in os.environ.items() if name != "XLA_FLAGS"})
        except CellExecutionError as error:
            raise NotebookError(f"{path.name}: a cell failed: {str(error).strip().splitlines()[-1]}") from None
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            # Progress and compiler notes on stderr differ from run to run.
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def repository() -> str:
    """The repository that the notebooks point at; "" until --repository was run."""
    return SETTING.read_text(encoding="utf-8").strip() if SETTING.exists() else ""


def point(notebook: "NotebookNode", name: str, repository: str) -> None:
    """Points the notebook of this name at owner/repo: its badge, and the source that its first cell installs.

    Without a repository there is no badge, and the source is the checkout that the notebook lies in.
    """
    title, install = notebook.cells[:2]
    badge = _BADGE.format(repository=repository, name=name) if repository else ""
    title.source = badge + title.source[max(title.source.find("# "), 0) :]
    install.source = _INSTALL.format(default=f"git+https://github.com/{repository}" if repository else "..")


def parser() -> Parser:
    parser = Parser("notebooks", __doc__, examples=EXAMPLES)
    add = parser.group("the notebooks")
    add("--only", default="", metavar="NAME", help="one notebook, such as fit_laws")
    add(
        "--repository",
        default="",
        metavar="OWNER/REPO",
        help="write it into notebooks/repository.txt, every badge and install line, and execute nothing",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    import nbformat

    if flags.repository:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", flags.repository):
            raise NotebookError(f"--repository={flags.repository}: wanted owner/repo")
        SETTING.write_text(flags.repository + "\n", encoding="utf-8")
        for path in sorted(FOLDER.glob("*.ipynb")):
            notebook = nbformat.read(path, as_version=4)
            point(notebook, path.stem, flags.repository)
            nbformat.write(notebook, path)
        return 0
    paths = {path.stem: path for path in sorted(FOLDER.glob("*.ipynb"))}
    if flags.only and flags.only not in paths:
        raise NotebookError(f"--only={flags.only}: there is no such notebook.{nearest(flags.only, paths)}")
    for path in [paths[flags.only]] if flags.only else paths.values():
        began = time.monotonic()
        nbformat.write(execute(path), path)
        print(f"{path.name}: {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.guard(main))
