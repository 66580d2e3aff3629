"""The measures of code, on modules made up for it and on this package."""

import io
import textwrap
import tokenize
from pathlib import Path

import pytest

import distill
from distill.diagnostics import code


def module(text: str, name: str = "package/one.py") -> code.Module:
    return code.measure_module(textwrap.dedent(text), name)


def test_any_is_counted_in_every_part_of_a_signature_and_nowhere_else():
    measured = module(
        """
        from typing import Any
        import typing

        x: Any = 1

        def clean(a: int, b: "Float[Array, 'batch d']") -> str:
            y: Any = a
            return y

        def loose(a: Any, *rest: Any, b: dict[str, typing.Any], c: "Any | None" = None, **more: list) -> list[Any]: ...
        """
    )
    assert {f.name: f.anys for f in measured.functions} == {"package.one.clean": 0, "package.one.loose": 5}


def test_functions_count_their_lines_and_parameters_without_self():
    measured = module(
        """
        class Thing:
            @property
            def first(self) -> int:
                return 1

            async def second(self, a, /, b, *rest, c, **more):
                def inner(self, x):
                    return x

                return inner

            @staticmethod
            def third(self_made, b): ...

            @classmethod
            def fourth(cls): ...
        """
    )
    sizes = {f.name.removeprefix("package.one.Thing."): (f.lines, f.parameters) for f in measured.functions}
    assert sizes == {"first": (2, 0), "second": (5, 5), "second.inner": (2, 2), "third": (1, 2), "fourth": (1, 0)}


def test_suppressions_are_comments_and_not_text():
    measured = module(
        """
        a = 1  # type: ignore[misc]
        b = 2  # noqa: E501
        c = "# noqa"
        d = 4  # ignore that noqa is written here
        """
    )
    assert measured.suppressions == 2


def test_vague_assignments_count_every_way_to_bind_the_name():
    measured = module(
        """
        found = 1
        found += 1
        for found in range(2): ...
        if (found := 1): print(found)
        found.x = 1
        founded = 2
        """
    )
    assert measured.vague_assignments == 4


def test_repeated_classes_are_those_of_several_modules():
    one = module("class A: ...\nclass B: ...", "p/one.py")
    two = module("class A:\n    class B: ...", "p/two.py")
    twice = module("if x:\n    class C: ...\nelse:\n    class C: ...", "p/three.py")
    assert code.repeated_classes([one, two, twice]) == {"A": ["p/one.py", "p/two.py"], "B": ["p/one.py", "p/two.py"]}


def test_the_report_of_a_folder_names_what_is_behind_its_numbers(tmp_path, capsys):
    body = "\n".join(f"    x{i} = {i}" for i in range(code.LONG_FUNCTION))
    parameters = ", ".join(f"p{i}" for i in range(code.MANY_PARAMETERS + 1))
    package = tmp_path / "package"
    (package / "sub").mkdir(parents=True)
    (package / "a.py").write_text(f"def long():\n{body}\n\ndef wide({parameters}): ...\nclass Same: ...\n")
    (package / "sub" / "b.py").write_text("class Same: ...\n" + "\n" * code.LONG_MODULE)
    assert code.main([str(package)]) == 0
    printed = capsys.readouterr().out
    table = dict(line.split("  ", 1) for line in printed.splitlines() if "  " in line.strip())
    table = {name.strip(): value.strip() for name, value in table.items()}
    assert table["functions over 60 lines"] == "1 (50.0%)" and table["functions over 8 parameters"] == "1"
    assert table["modules over 400 lines"] == "1" and table["class names in more than one module"] == "1"
    assert "61  package.a.long" in printed and "9  package.a.wide" in printed
    assert "401  package/sub/b.py" in printed and "Same: package/a.py, package/sub/b.py" in printed


def test_a_folder_without_modules_or_with_a_broken_one_is_an_error(tmp_path, capsys):
    assert code.main([str(tmp_path)]) == 2
    assert "no *.py file" in capsys.readouterr().err
    (tmp_path / "broken.py").write_text("def f(:\n")
    assert code.main([str(tmp_path)]) == 2
    assert "broken.py" in capsys.readouterr().err
    assert code.main(["--help"]) == 2


@pytest.fixture(scope="module")
def package() -> list[code.Module]:
    return code.measure(Path(distill.__file__).parent)


def test_this_package_suppresses_little(package):
    """What an outsider would count: under one suppressed check in a thousand lines."""
    suppressions, lines = sum(m.suppressions for m in package), sum(m.lines for m in package)
    assert suppressions < lines / 1000


def test_no_function_of_this_package_is_missed(package):
    """As many functions as the tokens of its files have `def`."""
    root = Path(distill.__file__).parent.parent
    text = [(root / m.name).read_text("utf-8") for m in package]
    tokens = [token for t in text for token in tokenize.generate_tokens(io.StringIO(t).readline)]
    definitions = [token for token in tokens if token.type == tokenize.NAME and token.string == "def"]
    assert sum(len(m.functions) for m in package) == len(definitions)


def test_six_lines_that_stand_twice_are_one_run_and_imports_are_none():
    body = "\n".join(f"a{i} = f({i})" for i in range(6))
    imports = "\n".join(f"import m{i}" for i in range(8))
    one, two = module(f"{imports}\n{body}\n"), module(f"{imports}\nc = (\n)\n{body}\n", "package/two.py")
    assert list(code.repeated_runs([one, two]).values()) == [["package/one.py", "package/two.py"]]
    shorter = module("\n".join(f"a{i} = f({i})" for i in range(5)), "package/three.py")
    assert not code.repeated_runs([one, shorter])
