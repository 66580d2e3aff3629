"""Checks the rooms of this package by its imports: floors, arrows, imports that run up, circles.

    python -m distill.diagnostics.imports

Files are parsed with `ast`, never imported. tests/test_floors.py checks the code against `FLOORS`.
"""

import ast
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import distill

# A room imports only from rooms on lines above its own. `errors` and `types` are modules outside any room.
FLOORS = (
    ("errors", "types"),
    ("system",),
    ("config",),
    ("records", "data", "model", "laws"),
    ("losses", "interop", "report"),
    ("teacher",),
    ("training",),
    ("study", "diagnostics"),
    ("bench",),
)
# The only upward import: `.plot()` of a fit, a bootstrap and a plan loads the figures when it is called.
EXCEPTIONS = frozenset({("distill.laws.forms.plots", "distill.report.law.plots")})
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
PACKAGE = Path(distill.__file__).parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Import:
    """One module of this package importing another; both by their full names."""

    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}: imports {self.imported}"


def modules(folder: Path = PACKAGE) -> dict[str, Path]:
    """Every module below `folder` (a package), by its full name."""
    root = folder.parent
    name = lambda path: ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    return {name(path): path for path in sorted(folder.rglob("*.py"))}


@functools.cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(path.read_text("utf-8"))))


def imported_names(path: Path) -> Iterator[tuple[str, str, int]]:
    """(module, name or '', line) of every import anywhere in a file, inside functions too."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "", node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{path}, line {node.lineno}: a relative import; write the module's full name")
            yield from ((str(node.module), alias.name, node.lineno) for alias in node.names)


def imports(known: dict[str, Path]) -> list[Import]:
    """Every import among `known` modules. `from package import module` counts as an import of the module."""
    arrows = []
    for importer, path in known.items():
        for module, name, line in imported_names(path):
            imported = f"{module}.{name}" if f"{module}.{name}" in known else module
            if imported in known and imported != importer:
                arrows.append(Import(importer=importer, imported=imported, line=line))
    return arrows


def room(module: str) -> str:
    """'laws' for distill.laws.forms.law; 'launch' for launch.fit."""
    parts = module.split(".")
    return parts[1] if parts[0] == "distill" and len(parts) > 1 else parts[0]


def subroom(module: str) -> str:
    """'distill.laws.forms' for distill.laws.forms.law: a package in a room counts as one, a loose module as itself."""
    return ".".join(module.split(".")[:3])


def _ruled(arrows: list[Import]) -> list[Import]:
    """The imports that the rules apply to."""
    return [arrow for arrow in arrows if (arrow.importer, arrow.imported) not in EXCEPTIONS]


def back_runs(arrows: list[Import]) -> list[Import]:
    """Imports from a room on the same floor or a higher one, without EXCEPTIONS."""
    between = [arrow for arrow in _ruled(arrows) if room(arrow.importer) != room(arrow.imported)]
    inside = [arrow for arrow in between if {room(arrow.importer), room(arrow.imported)} <= set(FLOOR)]
    return [arrow for arrow in inside if FLOOR[room(arrow.imported)] >= FLOOR[room(arrow.importer)]]


def circle(edges: set[tuple[str, str]]) -> list[str]:
    """The nodes of one circle in a graph of (from, to), or []."""
    after: dict[str, set[str]] = {}
    for start, end in edges:
        after.setdefault(start, set()).add(end)
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for other in sorted(after.get(node, ())):
            if met := visit(other, [*path, node]):
                return met
        done.add(node)
        return []

    return next((met for node in sorted(after) if (met := visit(node, []))), [])


def circles(arrows: list[Import]) -> list[list[str]]:
    """A circle among modules, and one among sub-rooms (packages inside a room); [] if there is none."""
    by_module = {(arrow.importer, arrow.imported) for arrow in _ruled(arrows)}
    by_subroom = {(subroom(start), subroom(end)) for start, end in by_module if subroom(start) != subroom(end)}
    # A package's own __init__ only declares its public names, which load on first use.
    return [met for edges in (by_module, by_subroom) if (met := circle(edges))]


def main() -> int:
    """Prints the rooms floor by floor with their arrows; returns 1 where an import runs back up or in a circle."""
    known = modules()
    arrows = imports(known)
    rooms = sorted({room(name) for name in known if name != "distill"})
    pairs = sorted({(room(a.importer), room(a.imported)) for a in arrows if room(a.importer) != room(a.imported)})
    pairs = [pair for pair in pairs if "distill" not in pair]
    for floor, names in reversed(list(enumerate(FLOORS))):
        for name in names:
            files = [path for module, path in known.items() if room(module) == name]
            lines = sum(len(path.read_text("utf-8").splitlines()) for path in files)
            below = ", ".join(end for start, end in pairs if start == name)
            print(f"{floor + 1:>2}  {name:<12} {len(files):>3} files {lines:>6} lines   {below}")
    loose = [name for name, path in known.items() if name.count(".") == 1 and path.name != "__init__.py"]
    back, round_trips = back_runs(arrows), circles(arrows)
    unplaced = sorted(set(rooms) - set(FLOOR))
    print(
        f"{len(rooms) - len(loose)} rooms, {len(loose)} loose modules, {len(FLOORS)} floors, {len(pairs)} arrows, "
        f"{len(back)} back up, {len(round_trips)} circles" + (f"; without a floor: {unplaced}" if unplaced else "")
    )
    for arrow in back:
        print(f"back up: {arrow}")
    for met in round_trips:
        print("circle: " + " -> ".join(met))
    return int(bool(back or round_trips or unplaced))


if __name__ == "__main__":
    raise SystemExit(main())
