"""Notebooks: pointed at one repository, no logic of their own, and the same outputs from a clean kernel."""

import ast
import json
import re

import numpy as np
import pytest

from distill import laws
from distill.report.charts import picture
from distill.report.law import planner_page
from distill.report.study import results, run_figures
from launch.notebooks import FOLDER, SETTING, execute, main, point
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
    def test_badge_and_install_name_the_one_repository(self, path):
        text, repository = path.read_text(encoding="utf-8"), SETTING.read_text(encoding="utf-8").strip()
        assert f"colab.research.google.com/github/{repository}/blob/main/notebooks/{path.name}" in text
        assert text == point(text, repository)
        moved = point(text, "someone/else")
        assert repository not in moved and moved.count("someone/else") == text.count(repository)

    def test_the_first_cell_installs_only_what_lacks(self, path):
        first = code(path)[0]
        assert first.startswith("try:\n    import distill\nexcept ImportError:") and "%pip install" in first

    def test_no_logic_of_its_own(self, path):
        for source in code(path)[1:]:
            tree = ast.parse(source)
            banned = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.While, ast.Try, ast.BinOp)
            assert not [node for node in ast.walk(tree) if isinstance(node, banned)], source

    def test_every_cell_that_promises_a_figure_has_one(self, path):
        for cell in cells(path):
            source = "".join(cell["source"])
            wanted = {"Image(": "image/png", "HTML(": "text/html"}
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


def test_a_wrong_repository_is_one_line(capsys):
    assert cli.guard(main, ["--repository=nonsense"]) == 2
    assert capsys.readouterr().err == "error: --repository=nonsense: wanted owner/repo\n"
