"""The shell scripts: they refuse an old Python and a full disk with a sentence, and are clean."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def fake(folder, name, body):
    file = folder / name
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)


@pytest.fixture
def clone(tmp_path):
    """The scripts in a folder of their own, and tools that stand in for those of a machine."""
    shutil.copytree(ROOT / "launch", tmp_path / "clone" / "launch")
    shutil.copy(ROOT / "setup.cfg", tmp_path / "clone")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("dirname", "awk", "cksum", "cat", "bash"):
        (tools / name).symlink_to(shutil.which(name))
    return tmp_path / "clone", tools


def quickstart(clone, tools):
    script = clone / "launch" / "quickstart.sh"
    return subprocess.run(
        [tools / "bash", script], env={"PATH": str(tools)}, cwd="/", capture_output=True, text=True, timeout=60
    )


def test_an_old_python_is_refused_with_a_sentence(clone):
    folder, tools = clone
    fake(tools, "python3", 'case "$1" in --version) echo "Python 3.9.2" ;; *) exit 1 ;; esac')
    done = quickstart(folder, tools)
    assert done.returncode == 2
    assert done.stderr == (
        "error: distill needs Python 3.11 or newer; found Python 3.9.2. Install one and run this again.\n"
    )


def test_a_full_disk_is_refused_before_anything_is_installed(clone):
    folder, tools = clone
    fake(tools, "python3", 'case "$1" in --version) echo "Python 3.12.1" ;; *) exit 0 ;; esac')
    fake(tools, "df", "echo Filesystem 1M-blocks Used Available; echo /dev/x 9000 8950 50")
    done = quickstart(folder, tools)
    assert done.returncode == 2 and done.stderr.startswith("error: only 50 MiB free")
    assert not (folder / ".venv").exists()


def test_an_installed_project_is_not_installed_again(clone):
    folder, tools = clone
    binaries = folder / ".venv" / "bin"
    binaries.mkdir(parents=True)
    fake(binaries, "python", 'echo "ran: $*"')
    checksum = subprocess.run(
        ["cksum"], input=(folder / "setup.cfg").read_text(), capture_output=True, text=True
    ).stdout
    (folder / ".venv" / ".installed").write_text(checksum)
    done = quickstart(folder, tools)
    assert done.returncode == 0, done.stderr
    assert "installing" not in done.stdout
    assert f"ran: -m launch.study --config=configs/study.py:smoke --workdir={folder}/runs/smoke" in done.stdout


def test_the_scripts_are_executable():
    assert all(os.access(ROOT / name, os.X_OK) for name in ("launch/quickstart.sh", "launch/test.sh", ".ci/run"))
