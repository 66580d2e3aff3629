"""The programs of `bench compile` for GPUs, by XLA's GPU compiler, beside the committed figures.

Needs the extra gpu-compiler (1.6 GB) in this environment; launch/test.sh leaves it out where it is not installed.
Figures are of the versions that they name; under others the test prints what it found and holds nothing.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill.bench.compile import PROGRAMS
from distill.config.chips import CHIPS

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.gpu_compiler
@pytest.mark.parametrize("program", [name for name, one in PROGRAMS.items() if CHIPS[one.chip].node])
def test_no_figure_of_the_compiler_grows_by_a_tenth(program):
    command = [sys.executable, "-m", "launch.bench", "compile", f"--programs={program}"]
    done = subprocess.run(
        [*command, "--against=docs/results/compiled.json"], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": ""},
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"| {program} |" in done.stdout, done.stdout
    assert "cudnn" in done.stdout
