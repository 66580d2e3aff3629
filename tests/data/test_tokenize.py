"""The command line: python -m launch.tokenize."""

import json
import re
import subprocess
import sys

import pytest

from distill import data
from launch import tokenize
from launch.support import cli


def run(*argv):
    return cli.guard(tokenize.main, [str(a) for a in argv])


def test_files_to_store_in_one_command(corpus, tmp_path, capsys):
    out = tmp_path / "store"
    assert run(f"--output={out}", "--workers=0", *corpus.glob("*.jsonl")) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name}" in printed for name in ("teacher", "student", "validation")) and "bytes" in printed
    store = data.TokenStore(out)
    assert sum(split.documents for split in store.splits.values()) == 400
    assert run(f"--output={out}", "--verify") == 0
    assert "bytes match their hashes" in capsys.readouterr().out


def test_any_field_is_a_flag(corpus, tmp_path):
    flags = ("--tokenizer.kind=bpe", "--tokenizer.vocab_size=300", "--splits.validation=0.5", "--splits.teacher=1")
    assert run(f"--output={tmp_path}/s", "--workers=0", f"{corpus}/*.jsonl", *flags) == 0
    store = data.TokenStore(tmp_path / "s")
    assert store.vocab_size == 300 and store.split("student").documents == 0
    assert 150 < store.split("validation").documents < 250


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--tokeniser.kind=bpe"], "there is no flag --tokeniser.kind.* Did you mean --tokenizer.kind"),
        (["--tokenizer.kind=bp"], "got 'bp', wanted one of .*Did you mean 'bpe'"),
        (["--tokenizer.vocab_size=many"], "got 'many', wanted an integer"),
        (["--source=tfds"], "neither name nor data_dir is set"),
        (["nothing/*.txt"], "matches no file"),
        (["--source"], "got '--source' without a value"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(tmp_path, capsys, flags, message):
    assert run(f"--output={tmp_path}/s", *flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ")
    assert re.search(message, error), error


def test_verify_finds_damage(corpus, tmp_path, capsys):
    out = tmp_path / "s"
    run(f"--output={out}", "--workers=0", f"{corpus}/*.jsonl")
    with open(out / "teacher.bin", "r+b") as file:
        file.seek(77)
        file.write(b"\xfe")
    capsys.readouterr()
    assert run(f"--output={out}", "--verify") == 2
    assert "teacher.bin: bytes 0.." in capsys.readouterr().err


def test_as_a_process_with_workers(corpus, tmp_path):
    """What a user runs: a fresh interpreter and two workers; nothing on stderr for work that short."""
    command = [sys.executable, "-m", "launch.tokenize", f"--output={tmp_path}/s", "--workers=2", f"{corpus}/*.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert json.loads((tmp_path / "s/manifest.json").read_text())["counts"]["documents"] == 400
