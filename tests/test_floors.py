"""The rooms of the architecture page, enforced: what a module may import, and what an import may cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from distill.diagnostics import imports
from distill.diagnostics.imports import FLOOR, Import

ROOT = Path(__file__).parents[1]
# Entry points and config files see everything; nothing in distill sees them.
OUTSIDE = ("launch", "configs")
# The only import that runs up: `.plot()` of a fit, a bootstrap and a plan loads the pictures when it is called.
EXCEPTIONS = {("distill.laws.forms.plots", "distill.report.law.plots")}

LIBRARY = imports.modules()
MODULES = {**LIBRARY, **{name: path for folder in OUTSIDE for name, path in imports.modules(ROOT / folder).items()}}


def imported(path: Path) -> set[str]:
    """Every module that a file imports anywhere in it, `from package import module` included."""
    whole = {(module, f"{module}.{name}") for module, name, _ in imports.imported_names(path)}
    return {both if both in MODULES else module for module, both in whole}


def test_there_are_fourteen_rooms_and_few_loose_modules():
    rooms = {imports.room(name) for name in LIBRARY if name != "distill"}
    assert rooms == set(FLOOR), "give every room a floor in distill/diagnostics/imports.py, and in docs/architecture.md"
    loose = {name for name, path in LIBRARY.items() if name.count(".") == 1 and path.name != "__init__.py"}
    assert len(loose) <= 3 and len(rooms - {name.removeprefix("distill.") for name in loose}) <= 14


def test_imports_come_from_lower_floors_only():
    arrows = imports.imports(LIBRARY)
    back = imports.back_runs(arrows)
    assert not back, "\n".join(map(str, back))
    up = {(arrow.importer, arrow.imported) for arrow in arrows} & EXCEPTIONS
    assert imports.EXCEPTIONS == EXCEPTIONS == up, "an exception that no import needs has to go"


def test_no_modules_and_no_sub_rooms_import_in_a_circle():
    assert not imports.circles(imports.imports(LIBRARY))


def test_back_runs_and_circles_are_seen():
    """What the two tests above look for, on imports made up for it."""
    up = Import(importer="distill.config.tree", imported="distill.records.runs", line=1)
    beside = Import(importer="distill.model.decode", imported="distill.data.loader", line=1)
    down = Import(importer="distill.records.runs", imported="distill.config.tree", line=1)
    assert imports.back_runs([up, beside, down]) == [up, beside]
    assert imports.circles([up, down]) and not imports.circles([down, beside])
    # Modules without a circle whose packages have one.
    there = Import(importer="distill.laws.forms.a", imported="distill.laws.fitting.b", line=1)
    back = Import(importer="distill.laws.fitting.c", imported="distill.laws.forms.d", line=1)
    assert imports.circles([there, back]) and not imports.circles([there])


@pytest.mark.parametrize("name", sorted(LIBRARY))
def test_the_library_knows_no_entry_points(name):
    assert not {module for module in imported(LIBRARY[name]) if module.split(".")[0] in OUTSIDE}


def test_private_names_stay_in_their_module():
    """No module reads another's `_name`: not by import, and not as an attribute of a module that it imported."""
    for name, path in MODULES.items():
        aliases = set()
        for module, own, line in imports.imported_names(path):
            private = own.startswith("_") and not own.startswith("__")
            assert not (private and module.split(".")[0] in ("distill", *OUTSIDE)), f"{name}, line {line}: {own}"
            if f"{module}.{own}" in MODULES:
                aliases.add(own)
        for node in imports.nodes(path):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
                private = node.attr.startswith("_") and not node.attr.startswith("__")
                assert not private, f"{name}, line {node.lineno}: {node.value.id}.{node.attr}"


def test_ml_collections_stays_at_the_edge():
    users = {name for name, path in MODULES.items() if any(m.startswith("ml_collections") for m in imported(path))}
    assert not {name for name in users if name.startswith("distill")}


def test_nothing_is_unpickled_or_executed():
    """What is read from disk is data: no pickle, no eval or exec, no yaml.load, and NumPy may not unpickle."""
    for name, path in MODULES.items():
        assert not imported(path) & {"pickle", "dill", "cloudpickle", "shelve", "marshal", "yaml"}, name
        for node in imports.nodes(path):
            if isinstance(node, ast.Call):
                called = node.func.id if isinstance(node.func, ast.Name) else ""
                assert called not in ("eval", "exec", "__import__"), f"{name}, line {node.lineno}: {called}"
                unpickled = [k for k in node.keywords if k.arg == "allow_pickle" and ast.unparse(k.value) != "False"]
                assert not unpickled, f"{name}, line {node.lineno}: allow_pickle"


def test_modules_are_short():
    for name, path in MODULES.items():
        assert len(path.read_text("utf-8").splitlines()) <= 400, f"{name} is over 400 lines; split it by meaning"


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_laws_cost_no_flax_orbax_or_tfds():
    statement = "import distill.laws; distill.laws.paper()"
    heavy = {"flax", "orbax", "tensorflow_datasets", "tensorflow", "matplotlib", "ml_collections"}
    assert not loaded_by(statement) & heavy


def test_configs_counts_and_runs_need_the_standard_library_only():
    loaded = loaded_by("import distill.config, distill.config.counts, distill.records.runs, distill.config.ladder")
    assert not loaded & {"jax", "jaxlib", "numpy", "flax", "ml_collections", "scipy"}
