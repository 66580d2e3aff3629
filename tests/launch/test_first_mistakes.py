"""docs/guide/first_mistakes.md: what a new user gets wrong, and the one line that each mistake gets.

The page is what this test gets when it makes every mistake; UPDATE_GOLDEN=1 pytest writes it anew.
"""

import importlib
import os
import shlex
from pathlib import Path

import pytest

from launch import __main__ as launch_main
from launch.support import cli

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "first_mistakes.md"
HEAD = """# Forty first mistakes

Each is made by `tests/launch/test_first_mistakes.py`, which also writes this page: what was typed, and all that is
printed. The exit code is 2, nothing is written, and there is no traceback.
"""
MISTAKES = {
    "The command": (
        "distill trian --workdir=runs/x",
        "distill --workdir=runs/x",
        "distill bench stpe",
        "distill --completion=fish",
    ),
    "A flag": (
        "distill train",
        "distill train --workdir=",
        "distill train --workdir",
        "distill train runs/x",
        "distill train -w runs/x",
        "distill train --workdri=runs/x",
        "distill train --output=runs/x",
        "distill train --workdir=runs/x --dry-run=perhaps",
        "distill train --workdir=runs/x --cluster=slrum",
        "distill train --workdir=runs/x --coordinator=here --processes=2 --process=0",
        "distill watch",
        "distill watch runs/nothing",
        "distill report",
        "distill replay --workdir=runs/x",
    ),
    "A field of the config": (
        "distill train --workdir=runs/x --tokens=1M",
        "distill train --workdir=runs/x --seed=3",
        "distill train --workdir=runs/x --lr=1e-3",
        "distill train --workdir=runs/x --epochs=3",
        "distill train --workdir=runs/x --steps=1000",
        "distill train --workdir=runs/x --teacher=runs/teacher",
        "distill train --workdir=runs/x --config.lr=1e-3",
        "distill train --workdir=runs/x --config.optim.learning_rat=1e-3",
        "distill train --workdir=runs/x --config.tokens=lots",
        "distill train --workdir=runs/x --config.tokens=10",
        "distill train --workdir=runs/x --config.model=large",
        "distill train --workdir=runs/x --config.model.dtype=fp16",
        "distill train --workdir=runs/x --config.model.n_heads=5 --config.model.d_head=0",
        "distill train --workdir=runs/x --config.microbatches=3",
        "distill train --workdir=runs/x --config.objective.temperature=0",
        "distill train --workdir=runs/x --config.data.split=teachers",
    ),
    "A file": (
        "distill train --workdir=runs/x --config=configs/trian.py",
        "distill train --workdir=runs/x --config=configs/train.py:macro",
        "distill train --workdir=runs/x --config.teacher.source=runs/nothing",
        "distill convert --in=runs/nothing --out=models/x",
        "distill tokenize --out=stores/x 'texts/*.txt'",
        "distill tokenize --out=stores/x --tokeniser.kind=bpe texts.txt",
        "distill generate --out=runs/hard",
        "distill evaluate --model=runs/nothing",
        "distill cache --out=stores/x --kind=topkk",
        "distill sweep --workdir=runs/x --sweep=model.n_layers",
        "distill sweep --workdir=runs/x --sweep=seed=0,1 --backend=slrum",
    ),
}


def line(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command line prints, in this process."""
    words = shlex.split(command)[1:]
    assert cli.guard(launch_main.main, words) == 2, command
    printed = capsys.readouterr()
    assert not printed.out and printed.err.startswith("error: ") and printed.err.count("\n") == 1, printed
    return printed.err.strip()


def test_the_page_is_what_the_mistakes_get(capsys, tmp_path, monkeypatch):
    importlib.import_module("distill.training.loop")  # before the folder is left
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CI", raising=False)
    parts = [HEAD]
    for title, commands in MISTAKES.items():
        parts.append(f"## {title}\n")
        parts += [f"```\n$ {command}\n{line(command, capsys)}\n```\n" for command in commands]
    text = "\n".join(parts).replace(str(tmp_path), "/home/you")
    assert sum(map(len, MISTAKES.values())) >= 40
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"]
    if os.environ.get("UPDATE_GOLDEN"):
        PAGE.write_text(text, "utf-8")
    assert text == PAGE.read_text("utf-8"), f"UPDATE_GOLDEN=1 pytest {__file__} writes it anew"
