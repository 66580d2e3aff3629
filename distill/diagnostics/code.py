"""Measures of Python code that a review asks for: loose types, suppressions, long functions, repeated names.

    python -m distill.diagnostics.code [FOLDER ...]

Every *.py file below the folders is measured, by default those of the package itself. Files are parsed, never imported.
"""

import ast
import dataclasses
import io
import re
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import distill

LONG_FUNCTION = 60  # lines, from `def` to the last one
MANY_PARAMETERS = 8  # without self and cls
LONG_MODULE = 400  # lines
RUN = 6  # lines of code in a row that stand in two places count as written twice
VAGUE_NAME = "found"  # once the most assigned variable of this package; it says nothing about its value
_SUPPRESSION = re.compile(r"#\s*(type:\s*ignore|noqa)")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclasses.dataclass(frozen=True, kw_only=True)
class FunctionSize:
    """One function or method: where it is, its lines, its parameters, and how often its signature says `Any`."""

    name: str
    lines: int
    parameters: int
    anys: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Module:
    """One file: its path from the measured folder's parent, its lines, and what was counted in it."""

    name: str
    lines: int
    suppressions: int
    vague_assignments: int
    classes: tuple[str, ...]
    functions: tuple[FunctionSize, ...]
    code: tuple[str, ...] = ()  # its lines of code without indentation, imports, comments and bare brackets


def measure(folder: str | Path) -> list[Module]:
    """Every module below `folder`, by name. Raises FileNotFoundError without a module, SyntaxError for a broken one."""
    paths = sorted(Path(folder).rglob("*.py"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no *.py file below this folder")
    parent = Path(folder).parent
    return [measure_module(path.read_text("utf-8"), path.relative_to(parent).as_posix()) for path in paths]


def measure_module(text: str, name: str) -> Module:
    """The measures of one module's text."""
    tree = ast.parse(text, filename=name)
    nodes = list(ast.walk(tree))
    return Module(
        name=name,
        lines=len(text.splitlines()),
        suppressions=sum(bool(_SUPPRESSION.search(comment)) for comment in _comments(text)),
        vague_assignments=sum(
            isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == VAGUE_NAME for node in nodes
        ),
        classes=tuple(node.name for node in nodes if isinstance(node, ast.ClassDef)),
        functions=tuple(_functions(tree, name.removesuffix(".py").replace("/", "."))),
        code=tuple(line for line in map(str.strip, text.splitlines()) if _counts(line)),
    )


def _counts(line: str) -> bool:
    """Whether a stripped line is code that says something: two files that import alike repeat nothing."""
    return any(c.isalnum() for c in line) and not line.startswith(("#", "import ", "from "))


def _comments(text: str) -> Iterator[str]:
    """The comments of a module; text inside strings does not count."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    yield from (token.string for token in tokens if token.type == tokenize.COMMENT)


def _functions(node: ast.AST, prefix: str, in_class: bool = False) -> Iterator[FunctionSize]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            name = f"{prefix}.{child.name}"
            yield FunctionSize(
                name=name,
                lines=(child.end_lineno or child.lineno) - child.lineno + 1,
                parameters=len(_parameters(child, in_class)),
                anys=sum(_anys(annotation) for annotation in _annotations(child)),
            )
            yield from _functions(child, name)
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}.{child.name}", in_class=True)
        else:
            yield from _functions(child, prefix, in_class)


def _arguments(function: Function) -> list[ast.arg]:
    a = function.args
    return [*a.posonlyargs, *a.args, *([a.vararg] if a.vararg else []), *a.kwonlyargs, *([a.kwarg] if a.kwarg else [])]


def _parameters(function: Function, in_class: bool) -> list[str]:
    names = [argument.arg for argument in _arguments(function)]
    return names[1:] if in_class and names[:1] in (["self"], ["cls"]) else names


def _annotations(function: Function) -> Iterator[ast.expr]:
    yield from (argument.annotation for argument in _arguments(function) if argument.annotation)
    if function.returns:
        yield function.returns


def _anys(annotation: ast.AST) -> int:
    """How often an annotation says `Any`, in quotes too."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        try:
            return _anys(ast.parse(annotation.value, mode="eval").body)
        except SyntaxError:
            return 0  # the axes of a jaxtyping shape
    if isinstance(annotation, ast.Name):
        return int(annotation.id == "Any")
    own = int(isinstance(annotation, ast.Attribute) and annotation.attr == "Any")
    return own + sum(_anys(child) for child in ast.iter_child_nodes(annotation))


def repeated_classes(modules: Sequence[Module]) -> dict[str, list[str]]:
    """The classes whose name stands in more than one module, with the modules."""
    places: dict[str, list[str]] = defaultdict(list)
    for module in modules:
        for name in set(module.classes):
            places[name].append(module.name)
    return {name: where for name, where in sorted(places.items()) if len(where) > 1}


def repeated_runs(modules: Sequence[Module]) -> dict[tuple[str, ...], list[str]]:
    """Every `RUN` lines of code in a row that stand in more than one place, with the modules (one twice: twice)."""
    places: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for module in modules:
        for start in range(len(module.code) - RUN + 1):
            places[module.code[start : start + RUN]].append(module.name)
    return {run: where for run, where in places.items() if len(where) > 1}


def summary(modules: Sequence[Module]) -> dict[str, str]:
    """One line a measure: its name -> its value as text."""
    functions = [function for module in modules for function in module.functions]
    lines = sum(module.lines for module in modules)
    suppressions = sum(module.suppressions for module in modules)
    rate = 1000 * suppressions / max(lines, 1)
    loose = [function for function in functions if function.anys]
    long = [function for function in functions if function.lines > LONG_FUNCTION]
    wide = [function for function in functions if function.parameters > MANY_PARAMETERS]
    vague = [module.vague_assignments for module in modules if module.vague_assignments]
    return {
        "modules, lines": f"{len(modules)}, {lines:,}",
        "functions": f"{len(functions):,}",
        "functions with Any in their signature": f"{len(loose)} ({_share(len(loose), len(functions))})",
        "Any in all signatures": f"{sum(function.anys for function in loose)}",
        "suppressions: type: ignore, noqa": f"{suppressions} ({rate:.1f} a thousand lines)",
        f"functions over {LONG_FUNCTION} lines": f"{len(long)} ({_share(len(long), len(functions))})",
        f"functions over {MANY_PARAMETERS} parameters": f"{len(wide)}",
        f"modules over {LONG_MODULE} lines": f"{sum(module.lines > LONG_MODULE for module in modules)}",
        "class names in more than one module": f"{len(repeated_classes(modules))}",
        f"runs of {RUN} lines that stand more than once": f"{len(repeated_runs(modules))}",
        f"assignments of `{VAGUE_NAME}`": f"{sum(vague)} in {len(vague)} modules",
    }


def _share(part: int, whole: int) -> str:
    return f"{part / max(whole, 1):.1%}"


def report(modules: Sequence[Module]) -> str:
    """The summary, then the functions, modules and classes behind its numbers."""
    table = summary(modules)
    width = max(map(len, table))
    functions = [function for module in modules for function in module.functions]
    wide = [(f.parameters, f.name) for f in functions if f.parameters > MANY_PARAMETERS]
    loose = [(sum(f.anys for f in module.functions), module.name) for module in modules]
    parts = [f"{name:<{width}}  {value}" for name, value in table.items()]
    parts += _largest("longest functions (lines)", [(f.lines, f.name) for f in functions], 10)
    parts += _largest(f"functions over {MANY_PARAMETERS} parameters", wide)
    parts += _largest("longest modules (lines)", [(module.lines, module.name) for module in modules], 5)
    parts += _largest("most Any in signatures", [pair for pair in loose if pair[0]], 10)
    if repeated := repeated_classes(modules):
        parts.append("\nclass names in more than one module")
        parts += [f"  {name}: {', '.join(where)}" for name, where in repeated.items()]
    return "\n".join(parts)


def _largest(title: str, counts: Sequence[tuple[int, str]], most: int | None = None) -> list[str]:
    """Lines of a title and the largest counts with their names; none without counts."""
    largest = sorted(counts, key=lambda pair: (-pair[0], pair[1]))[:most]
    return [f"\n{title}", *(f"{count:>6}  {name}" for count, name in largest)] if largest else []


def main(arguments: Sequence[str]) -> int:
    """Prints the report of some folders; returns 2 where one cannot be measured."""
    if any(argument.startswith("-") for argument in arguments):
        print(__doc__)
        return 2
    folders = [Path(argument).resolve() for argument in arguments] or [Path(distill.__file__).parent]
    try:
        modules = [module for folder in folders for module in measure(folder)]
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        print(f"cannot be measured: {error}", file=sys.stderr)
        return 2
    print(report(modules))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
