"""Runs the notebooks from a clean kernel and keeps their outputs; points their badges at one repository.

Without --repository it executes notebooks/*.ipynb in place.
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
_PLACE = re.compile(r'(colab\.research\.google\.com/github/|git\+https://github\.com/)[\w.-]+/[\w.-]+?(?=/blob|["\\])')


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


def point(text: str, repository: str) -> str:
    """The notebook's text with every badge and install line naming `repository`."""
    return _PLACE.sub(lambda match: match.group(1) + repository, text)


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
            path.write_text(point(path.read_text(encoding="utf-8"), flags.repository), encoding="utf-8")
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
