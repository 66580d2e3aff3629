"""Every block of README.md and docs/ is typed by a reader, in order, in a clean clone (tests/docs/reader.py).

README and the guides in the fast suite, without blocks marked slow; with --slow all of every page, results included,
in another clone that downloads what it installs. A failure names page and line.
"""

import re
from pathlib import Path

import pytest

from tests.docs import pages
from tests.docs.reader import ABSENT, PROVIDED, ROOT, Reader

GUIDES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "guide").glob("*.md"))]
ALL = [*GUIDES, *sorted({str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")} - {*GUIDES})]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return Reader(tmp_path_factory.mktemp("reader"))


@pytest.fixture(scope="module")
def patient_reader(tmp_path_factory):
    return Reader(tmp_path_factory.mktemp("patient"), timeout=3 * 3600, real=True)


def read(reader: Reader, page: str, slow: bool) -> int:
    """Reads a page in a new terminal, in the environment that README makes; returns how many blocks it ran."""
    blocks = pages.read(ROOT, page)
    if page != "README.md" and not (reader.clone / ".venv").exists():
        reader.forget()
        reader.read(next(block for block in pages.read(ROOT, "README.md") if "pip install" in block.text))
    reader.forget()
    todo = [block for block in blocks if block.runs and block.needs not in ABSENT and (slow or not block.slow)]
    for block in todo:
        reader.read(block)
    print(f"{page}: {reader.seconds.get(page, 0):.0f} s of processor time")
    return len(todo)


@pytest.mark.dear("a reader types whole pages")
@pytest.mark.parametrize("page", GUIDES)
def test_the_readme_and_the_guides(reader, page):
    read(reader, page, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", ALL)
def test_all_of_every_page(patient_reader, page):
    read(patient_reader, page, slow=True)


@pytest.mark.parametrize("page", ALL)
def test_pages_can_be_checked(page):
    for block in pages.read(ROOT, page):
        assert not block.needs or block.needs in {*PROVIDED, *ABSENT}, f"{block}: needs {block.needs!r}"
        assert len(block.text.splitlines()) < 60, f"{block}: nobody types this"


def written(blocks):
    """What the commands of these blocks write: (folder or file, the command without its comment)."""
    for block in blocks:
        for line in block.text.replace("\\\n", " ").splitlines() if block.language == "bash" else []:
            command = " ".join(line.partition("  #")[0].split())
            if "--dry-run" not in command:
                yield from ((place, command) for place in re.findall(r"--(?:workdir|out|output)=(\S+)", command))


def collisions(blocks):
    """Places that two different commands write."""
    commands: dict[str, set[str]] = {}
    for place, command in written(blocks):
        if not command.startswith(("python -m launch.report", "python -m launch.replay")):
            commands.setdefault(place, set()).add(command)
    return {place: sorted(them) for place, them in commands.items() if len(them) > 1}


def test_no_two_commands_write_to_one_place():
    """A reader who follows several pages gets no `belongs to another run`, and no file is overwritten unasked."""
    assert not collisions([block for page in ALL for block in pages.read(ROOT, page)])


def test_collisions_are_seen():
    text = "```bash\nrun --workdir=a --x=1\nrun --workdir=a  # the same\nrun \\\n  --workdir=b\n```\n"
    first = pages.blocks("a.md", text)
    second = pages.blocks("b.md", "```bash\nrun --workdir=b\n```\n")
    assert collisions(first + second) == {"a": ["run --workdir=a", "run --workdir=a --x=1"]}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 110


def test_every_page_is_read():
    """No page lies where the reader does not look, and none of these tests is about nothing."""
    on_disk = {str(p.relative_to(ROOT)) for p in Path(ROOT).glob("docs/**/*.md")}
    assert on_disk == set(ALL) - {"README.md"} and len(GUIDES) > 10
    assert sum(block.runs for page in GUIDES for block in pages.read(ROOT, page)) > 30
