"""The closing lines of CI: the dearest tests, and those that nobody has excused."""

from pathlib import Path

import pytest

from tests import cost

pytest_plugins = ["pytester"]


def test_the_dearest_come_first_and_the_unexcused_are_named():
    costs = {"a.py::one": 40.0, "a.py::two": 1.0, "b.py::three": 31.0, **{f"c.py::{i}": 0.1 for i in range(20)}}
    lines = cost.summary(costs, excused={"b.py::three"})
    assert lines[1].split() == ["40.0", "s", "a.py::one"] and lines[2].split() == ["31.0", "s", "b.py::three"]
    assert lines[12].split() == ["41.0", "s", "a.py"]
    assert [line for line in lines if "without a reason" in line] == [
        "over 30 s without a reason (pytest.mark.dear): a.py::one"
    ]


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_it_counts_children_and_workers(pytester, monkeypatch, workers):
    """A test that starts a busy process pays for it: the time of its children counts."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    pytester.makeconftest("from tests import cost\ndef pytest_configure(config): config.pluginmanager.register(cost)\n")
    pytester.makepyfile(
        "import subprocess, sys\n"
        "def test_busy():\n"
        "    program = 'import time\\nwhile time.process_time() < 1: pass'\n"
        "    subprocess.run([sys.executable, '-c', program], check=True)\n"
        "def test_idle(): pass\n"
    )
    result = pytester.runpytest_subprocess(*workers)
    found = [line.split() for line in result.outlines if line.endswith(("::test_busy", "::test_idle"))]
    assert float(found[0][0]) >= 0.9 and found[0][2].endswith("test_busy") and float(found[1][0]) < 0.9
