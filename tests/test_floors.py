"""The floors of docs and design, enforced: what a module may import, and what an import may cost."""

import ast
import functools
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A room (a module, or a package as a whole) imports only from rooms on lines above its own.
FLOORS = (
    ("errors", "exactness", "types", "data.config"),
    ("objective_config", "bucket"),
    ("tree",),
    ("config", "series"),
    (
        "seal",
        "guard",
        "counts",
        "runs",
        "mesh",
        "losses",
        "metrics",
        "optim",
        "ladder",
        "runtime",
        "layers",
        "events",
        "processes",
        "data",
    ),
    ("kernels",),
    ("config_file", "ledger", "targets", "model", "fused", "features", "checkpoint", "meter"),
    ("interop",),
    ("teacher", "decode", "objective"),
    ("on_policy", "generation", "inherit"),
    ("step",),
    ("evaluate", "pack"),
    ("lesson",),
    ("stored",),
    ("train", "replay", "profiling", "signals"),
    ("study",),
    ("bench", "chaos", "dryrun"),
)
# Side towers import from their own modules and these alone. Only floors that are given may import a tower.
TOWERS = {
    "laws": ("errors", "config", "config_file", "counts", "runs", "ladder", "data.config"),
    "report": ("errors", "config", "counts", "runs", "ladder", "runtime", "series", "ledger", "laws", "types"),
}
MAY_IMPORT_TOWERS = {"study", "bench", "report"}
# Entry points and config files see everything; nothing in distill sees them.
OUTSIDE = {"launch", "configs"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {
    module_name(path): path for folder in ("distill", "launch", "configs") for path in (ROOT / folder).rglob("*.py")
}


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text("utf-8"))))


@functools.cache
def imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere in it, `from package import module` included."""
    found: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import; write it whole"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in whole}
    return found


def room(name: str) -> str:
    """'laws' for distill.laws.forms; data.config is a room of its own, below the config that holds it."""
    inside = name.removeprefix("distill.")
    return "data.config" if inside == "data.config" else inside.split(".")[0]


FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
LIBRARY = sorted(name for name in MODULES if name.startswith("distill."))


def test_every_module_has_a_floor():
    unknown = {room(name) for name in LIBRARY} - set(FLOOR) - set(TOWERS)
    assert not unknown, f"give {sorted(unknown)} a floor in {Path(__file__).name}, and in docs"


@pytest.mark.parametrize("name", LIBRARY)
def test_imports_come_from_lower_floors_only(name):
    here = room(name)
    for other in imports(MODULES[name]):
        assert other.split(".")[0] not in OUTSIDE, f"{name} imports {other}: the library knows no entry points"
        if not other.startswith("distill.") or room(other) == here:
            continue
        there = room(other)
        if here in TOWERS:
            assert there in TOWERS[here], f"{name} imports {other}: the tower {here!r} stands on {TOWERS[here]}"
        elif there in TOWERS:
            assert here in MAY_IMPORT_TOWERS, f"{name} imports {other}: only {MAY_IMPORT_TOWERS} read the towers"
        else:
            assert FLOOR[there] < FLOOR[here], f"{name} (floor {FLOOR[here]}) imports {other} (floor {FLOOR[there]})"


PACKAGES = sorted(
    name for name in LIBRARY if MODULES[name].name == "__init__.py" and name.count(".") == 1 and name != "distill.bench"
)


@pytest.mark.parametrize("package", PACKAGES)
def test_inside_a_package_imports_follow_its_order(package):
    """`ORDER` names every module of the package; each imports only from those before it."""
    order = importlib.import_module(package).ORDER
    place = {f"{package}.{name}": i for i, name in enumerate(order)}
    child = lambda name: ".".join(name.split(".")[:3])  # a package inside counts as one
    inside = [name for name in LIBRARY if name.startswith(f"{package}.")]
    unlisted = {child(name) for name in inside} - set(place)
    assert not unlisted, f"{package}.ORDER does not list {sorted(unlisted)}"
    assert {child(name) for name in inside} == set(place), f"{package}.ORDER lists what is not there"
    for name in inside:
        for other in imports(MODULES[name]):
            if other.startswith(f"{package}.") and child(other) != child(name):
                assert place[child(other)] < place[child(name)], f"{name} imports {other}, which comes later in ORDER"


def test_ml_collections_stays_at_the_edge():
    users = {name for name, path in MODULES.items() if any(m.startswith("ml_collections") for m in imports(path))}
    assert not {name for name in users if name.startswith("distill")}


def test_nothing_is_unpickled_or_executed():
    """What is read from disk is data: no pickle, no eval or exec, no yaml.load, and NumPy may not unpickle."""
    for name, path in MODULES.items():
        assert not imports(path) & {"pickle", "dill", "cloudpickle", "shelve", "marshal", "yaml"}, name
        for node in nodes(path):
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
    loaded = loaded_by("import distill.config, distill.counts, distill.runs, distill.ladder")
    assert not loaded & {"jax", "jaxlib", "numpy", "flax", "ml_collections", "scipy"}
