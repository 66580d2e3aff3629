"""The reader of the documents fails where a person would: seen on made-up pages in a made-up project."""

import subprocess
import time

import pytest

from tests.docs.pages import PageError, blocks, difference
from tests.docs.reader import Failed, Reader


@pytest.fixture
def reader(tmp_path):
    """A reader of a project that consists of one file."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "hello.py").write_text("print('loss 1.25 after 3 s')\n")
    (project / "ignored.log").write_text("")
    (project / ".gitignore").write_text("*.log\n")
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    return Reader(tmp_path / "reader", timeout=20, source=project)


def page(text):
    return blocks("page.md", text.replace("~~~", "```"))


def test_a_block_that_works_and_the_output_that_it_has(reader):
    first, second = page(
        "~~~bash\nexport A=4; B=5; mkdir -p sub; cd sub\n~~~\n~~~bash\necho $A $B $(basename $PWD)\n~~~\n"
        "<!-- output -->\n~~~text\n4 5 sub\n~~~\n"
    )
    reader.read(first)
    assert reader.read(second) == "4 5 sub\n"
    reader.forget()
    assert reader.read(page("~~~bash\necho A=$A $(basename $PWD)\n~~~")[0]) == "A= clone\n"


@pytest.mark.parametrize("text", ["false", "false\ntrue", "nowhere --flag", "echo $((", "exit 3"])
def test_a_block_that_fails(reader, text):
    with pytest.raises(Failed, match="page.md:1: exit code"):
        reader.read(page(f"~~~bash\n{text}\n~~~")[0])


def test_a_block_that_never_ends(reader):
    reader.timeout, begin = 1, time.monotonic()
    with pytest.raises(Failed, match="not finished after 1 s"):
        reader.read(page("~~~bash\nsleep 50 & sleep 60\n~~~")[0])
    assert time.monotonic() - begin < 15


def test_an_output_that_changed(reader):
    command = "~~~bash\npython3 hello.py\n~~~\n<!-- output -->\n~~~text\n{}\n~~~\n"
    reader.read(page(command.format("loss 1.25 after ... s"))[0])
    with pytest.raises(Failed, match=r"(?s)not in the output:\nloss 1.26 after ... s\nnearest:\nloss 1.25 after 3 s"):
        reader.read(page(command.format("loss 1.26 after ... s"))[0])


def test_python_blocks_and_files(reader):
    file, use, broken = page(
        "<!-- file: mine.py -->\n~~~python\nx = 3\n~~~\n~~~python\nimport mine\nassert mine.x == 3\n~~~\n"
        "~~~python\nimport mine\nassert mine.x == 4\n~~~\n"
    )
    with pytest.raises(Failed, match="python: command not found"):
        reader.read(use)
    reader.read(page("~~~bash\npython3 -m venv .venv && . .venv/bin/activate\n~~~")[0])
    reader.read(file)
    reader.read(use)
    with pytest.raises(Failed, match="AssertionError"):
        reader.read(broken)


def test_the_clone_has_what_git_has_and_nothing_beside_it(reader):
    out = reader.read(page("~~~bash\nls; ls ..; ls -A ~\n~~~")[0])
    assert "hello.py" in out and "ignored.log" not in out and "project" not in out


def test_nothing_is_installed_before_it_is_installed(tmp_path):
    """`jax` is there after the line that installs it; pytest, which only an extra asks for, is not."""
    reader = Reader(tmp_path / "reader", timeout=60)
    reader.read(page("~~~bash\npython3 -m venv .venv && . .venv/bin/activate\n~~~")[0])
    imports = page("~~~bash\ncd /\npython -c 'import numpy, launch.train'\n~~~")[0]
    with pytest.raises(Failed, match="No module named 'numpy'"):
        reader.read(imports)
    reader.forget()
    reader.read(page("~~~bash\npip install -e .\n~~~")[0])
    reader.read(imports)
    with pytest.raises(Failed, match="No module named 'pytest'"):
        reader.read(page("~~~python\nimport pytest\n~~~")[0])
    reader.forget()
    with pytest.raises(Failed, match="no extra 'nothing'"):
        reader.read(page("~~~bash\npip install -e '.[nothing]'\n~~~")[0])


def test_marks():
    short, hidden, plain = page(
        "Set `SHORT` for less.\n<!-- slow -->\n<!-- SHORT=--dry-run -->\n~~~bash\nrun $SHORT\n~~~\n"
        "<!-- needs: cluster -->\n~~~bash\nsrun\n~~~\n~~~text\nx\n~~~\n"
    )
    assert (short.slow, short.variables, short.line, str(short)) == (True, (("SHORT", "--dry-run"),), 4, "page.md:4")
    assert hidden.needs == "cluster" and hidden.runs and not plain.runs


@pytest.mark.parametrize(
    "text, match",
    [
        ("~~~bash\nrun\n", "not closed"),
        ("~~~sh\nrun\n~~~\n", "language 'sh'"),
        ("<!-- slwo -->\n~~~bash\nrun\n~~~\n", "unknown mark"),
        ("<!-- output -->\n~~~text\nx\n~~~\n", "after the block that prints it"),
        ("<!-- SHORT=1 -->\n~~~bash\nrun $SHORT\n~~~\n", "named by the page"),
        ("Set `SHORT`.\n<!-- SHORT=1 -->\n~~~bash\nrun\n~~~\n", "used in the block"),
        ("text\n\n    python -m launch.train\n", "indented"),
    ],
)
def test_pages_that_cannot_be_checked(text, match):
    with pytest.raises(PageError, match=match):
        page(text)


def test_outputs_are_compared_by_lines():
    got = "noise\nA   1.25\nB 2\n\nC 3\nD 4\n"
    assert not difference("A 1.25\nB 2", got) and not difference("A ...\n...\nD 4", got) and not difference("C 3", got)
    assert difference("A 1.26", got) and difference("D 4\n...\nA 1.25", got) and difference("A 1.25\nC 3", got)
    assert not difference("A 1....", got) and difference("A 2....", got) and not difference("", got)
