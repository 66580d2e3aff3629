"""Every command as a person starts it, on a pseudo-terminal: it ends well, shows no traceback and its last line."""

import sys

import pytest

from tests import terminal

TINY = ["--config.tokens=20K"]


def module(name, *arguments):
    return [sys.executable, "-m", f"launch.{name}", *arguments]


@pytest.mark.parametrize("columns", [80, 200])
def test_training_on_a_terminal(tmp_path, columns):
    """Was seen to fail when the bar's total, None until the first step, was formatted as a number."""
    ended = terminal.run(module("train", f"--workdir={tmp_path}/run", *TINY), columns=columns)
    assert ended.returncode == 0, ended.text
    assert "Traceback" not in ended.text
    assert (tmp_path / "run" / "result.json").exists()
    assert "step" in ended.text
