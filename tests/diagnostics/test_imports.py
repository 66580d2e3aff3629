"""The graph of imports that the floors are held to, on a package made up for it."""

import pytest

from distill.diagnostics import imports


@pytest.fixture
def package(tmp_path):
    """A package `distill` with imports down, one up, and a circle between two sub-rooms."""
    files = {
        "distill/__init__.py": "",
        "distill/errors.py": "class E: ...",
        "distill/config/__init__.py": "from distill import errors",
        "distill/config/tree.py": "def f():\n    from distill.records.runs import load",
        "distill/config/emit.py": "",
        "distill/records/runs.py": "import distill.config.emit as emit\nimport json",
        "distill/laws/forms/a.py": "from distill.laws.fitting import b",
        "distill/laws/fitting/b.py": "",
        "distill/laws/fitting/c.py": "from distill.laws.forms.a import x",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "distill"


def test_modules_go_by_their_full_names(package):
    known = imports.modules(package)
    assert known["distill.laws.forms.a"] == package / "laws" / "forms" / "a.py"
    assert known["distill.config"] == package / "config" / "__init__.py"


def test_imports_are_of_modules_with_their_lines_and_inside_functions_too(package):
    arrows = {(a.importer, a.imported, a.line) for a in imports.imports(imports.modules(package))}
    assert ("distill.config", "distill.errors", 1) in arrows  # the module, and not the package that it comes from
    assert ("distill.config.tree", "distill.records.runs", 2) in arrows
    assert ("distill.laws.forms.a", "distill.laws.fitting.b", 1) in arrows
    assert not [arrow for arrow in arrows if arrow[1] == "json"]


def test_an_import_of_a_higher_room_is_a_back_run(package):
    back = imports.back_runs(imports.imports(imports.modules(package)))
    assert [str(arrow) for arrow in back] == ["distill.config.tree, line 2: imports distill.records.runs"]


def test_a_circle_between_sub_rooms_is_found_where_the_modules_have_none(package):
    arrows = imports.imports(imports.modules(package))
    (circle,) = imports.circles(arrows)
    assert circle[0] == circle[-1] and set(circle) == {"distill.laws.forms", "distill.laws.fitting"}


def test_a_circle_of_modules_is_found(package):
    (package / "laws" / "fitting" / "b.py").write_text("from distill.laws.forms import a")
    first, *_ = imports.circles(imports.imports(imports.modules(package)))
    assert set(first) == {"distill.laws.forms.a", "distill.laws.fitting.b"}


def test_a_relative_import_is_an_error(package):
    (package / "config" / "up.py").write_text("from . import tree")
    with pytest.raises(ValueError, match="up.py, line 1: a relative import"):
        imports.imports(imports.modules(package))


def test_the_command_prints_every_room_and_the_totals(capsys):
    assert imports.main() == 0
    printed = capsys.readouterr().out
    for room in imports.FLOOR:
        assert f" {room} " in printed
    assert "0 back up, 0 circles" in printed
