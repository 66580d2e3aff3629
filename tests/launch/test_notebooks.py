"""Notebooks: pointed at one repository, no logic of their own, and the same outputs from a clean kernel."""

import ast
import json
import re
import shutil
import sys

import nbformat
import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell

from distill import laws
from distill.report.charts import picture
from distill.report.law import planner_page
from distill.report.study import results, run_figures
from launch.notebooks import FOLDER, execute, main, point, repository
from launch.support import cli

PATHS = sorted(FOLDER.glob("*.ipynb"))
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?")


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def code(path):
    return ["".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "code"]


def printed(notebook_cells):
    """The text that code cells print or return, one string a cell."""
    texts = []
    for cell in notebook_cells:
        if cell["cell_type"] == "code":
            parts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell["outputs"]]
            texts.append("".join("".join(part) for part in parts))
    return texts


def numbers(text):
    return np.array([float(number.replace(",", "")) for number in _NUMBER.findall(text)])


def test_there_are_four():
    assert [path.stem for path in PATHS] == ["distill_quickstart", "fit_laws", "micro_study", "plan_compute"]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
class TestStored:
    def test_badge_and_install_come_from_the_repository(self, path):
        """As stored: those of the repository that was set, and without one no badge. Badges of nobody's were dead."""
        stored, moved = (nbformat.read(path, as_version=4) for _ in range(2))
        point(stored, path.stem, repository())
        assert nbformat.writes(stored) == path.read_text(encoding="utf-8").rstrip("\n")
        assert ("colab" in path.read_text(encoding="utf-8")) == bool(repository())
        point(moved, path.stem, "someone/else")
        badge = f"colab.research.google.com/github/someone/else/blob/main/notebooks/{path.name}"
        assert badge in moved.cells[0].source and "git+https://github.com/someone/else" in moved.cells[1].source
        assert moved.cells[0].source.endswith("\n\n" + stored.cells[0].source) or repository()
        point(moved, path.stem, repository())
        assert moved == stored

    def test_no_logic_of_its_own(self, path):
        for source in code(path)[1:]:
            tree = ast.parse(source)
            banned = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.While, ast.Try, ast.BinOp)
            assert not [node for node in ast.walk(tree) if isinstance(node, banned)], source

    def test_every_cell_that_promises_a_figure_has_one(self, path):
        for cell in cells(path):
            source = "".join(cell["source"])
            wanted = {"Image(": "image/png", ".plot()": "image/png", "HTML(": "text/html"}
            kinds = {kind for output in cell.get("outputs", []) for kind in output.get("data", {})}
            for call, kind in wanted.items():
                assert cell["cell_type"] != "code" or call not in source or kind in kinds, source

    def test_what_it_imports_exists(self, path):
        """Only the imports are run; test_runs_from_a_clean_kernel_to_the_same_outputs runs all."""
        for source in code(path)[1:]:
            imports = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
            exec(compile(ast.Module(imports, []), path.name, "exec"), {})

    def test_keeps_rendered_outputs(self, path):
        assert any(printed(cells(path))) and '"output_type": "error"' not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("source", ["/a/checkout of mine", "/tmp/distill.zip", "git+https://example.org/distill", None])
def test_the_install_cell_takes_a_checkout_a_zip_or_an_address(source, monkeypatch):
    """IPython's own reading of the cell, with a %pip that only notes its line."""
    asked, shell = [], InteractiveShell()
    shell.register_magic_function(asked.append, magic_name="pip")
    monkeypatch.setitem(sys.modules, "distill", None)  # as where it is not installed
    monkeypatch.delenv("DISTILL_SOURCE", raising=False)
    if source:
        monkeypatch.setenv("DISTILL_SOURCE", source)
    assert shell.run_cell(code(FOLDER / "fit_laws.ipynb")[0]).success
    given = source or (f"git+https://github.com/{repository()}" if repository() else "..")
    assert asked == [f'install -q "{given}"']


@pytest.mark.slow
def test_a_number_is_changed_and_cells_are_run_again(tmp_path):
    """Today's notebook of one run, with another number in its first cell, in the kernel that already ran it."""
    notebook = nbformat.read(FOLDER / "distill_quickstart.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"][1:]
    for cell in cells:  # smaller than stored: what counts is that they run twice
        cell.source = cell.source.replace("125_000", "30_000").replace("500_000", "60_000")
    again = [nbformat.v4.new_code_cell(cell.source.replace("30_000", "40_000")) for cell in cells]
    notebook.cells = [*cells, *again]
    nbformat.write(notebook, tmp_path / "twice.ipynb")
    last = [cell for cell in execute(tmp_path / "twice.ipynb").cells if "table.load()" in cell.source]
    assert [len(printed([cell])[0].strip().splitlines()) for cell in last] == [3, 5]
    assert "teacher's loss 0.000" not in printed(last)[1]


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_runs_from_a_clean_kernel_to_the_same_outputs(path):
    stored, fresh = printed(cells(path)), printed(execute(path).cells)
    for before, after in zip(stored, fresh, strict=True):
        assert _NUMBER.sub("#", before) == _NUMBER.sub("#", after)
        np.testing.assert_allclose(numbers(after), numbers(before), rtol=0.05, atol=0.02)


def test_the_figures_of_the_micro_study_are_drawn_from_their_cells():
    """The two cells that draw, run on the shipped table alone."""
    known = {
        "found": results.load(laws.shipped("micro")),
        "run_figures": run_figures,
        "picture": picture,
        "Image": bytes,
    }
    drawn = [source for source in code(FOLDER / "micro_study.ipynb") if "run_figures." in source and "Image(" in source]
    assert len(drawn) == 2
    for source in drawn:
        assert eval(source, known).startswith(b"\x89PNG")


def test_the_stored_planner_is_todays():
    stored = next(cell for cell in cells(FOLDER / "plan_compute.ipynb") if "planner.frame" in "".join(cell["source"]))
    assert "".join(stored["outputs"][0]["data"]["text/html"]) == planner_page.frame(laws.read("paper")), (
        "distill notebooks --only=plan_compute"
    )


def test_a_repository_is_written_into_every_notebook(tmp_path, monkeypatch):
    shutil.copytree(FOLDER, tmp_path / "notebooks")
    monkeypatch.setattr("launch.notebooks.FOLDER", tmp_path / "notebooks")
    monkeypatch.setattr("launch.notebooks.SETTING", tmp_path / "notebooks" / "repository.txt")
    assert main(["--repository=someone/else"]) == 0 and repository() == "someone/else"
    for path in (tmp_path / "notebooks").glob("*.ipynb"):
        assert "colab" in cells(path)[0]["source"][0] and "github.com/someone/else" in code(path)[0]


def test_a_wrong_repository_is_one_line(capsys):
    assert cli.guard(main, ["--repository=nonsense"]) == 2
    assert capsys.readouterr().err == "error: --repository=nonsense: wanted owner/repo\n"
