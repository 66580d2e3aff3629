"""Progress: lines where there is no terminal, rates that forget compilation, counts that people can read."""

import sys

import pytest

from distill.system import progress
from distill.system.progress import Progress, Rate, bar, counter
from tests import terminal


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until the test sets it."""

    class Clock:
        now = 0.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def lines(capsys):
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("done", "total", "text"),
    [(1024, 4096, "step 1,024/4,096"), (0.4, 1, "step 40%"), (3, 0, "step")],
)
def test_a_count_is_readable(done, total, text):
    assert Progress(done=done, total=total, unit="step").count() == text


def test_without_a_terminal_a_line_is_printed_each_tenth(clock, capsys):
    with bar() as show:
        for done in range(20, 101):  # the first 20 were made before an interruption
            clock.now = 100 + 2 * done
            show(Progress(done=done, total=100, unit="step", text=f"loss {done}"))
    printed = lines(capsys)
    assert [line.split()[1] for line in printed] == [f"{done}/100" for done in range(30, 101, 10)]
    assert printed[0] == "step 30/100  loss 30, about 2 min 20 s left"  # 2 s a step


def test_a_slow_tenth_prints_a_line_each_minute(clock, capsys):
    with bar() as show:
        for done in range(10):
            clock.now = 20.0 * done
            show(Progress(done=done, total=1000, unit="step"))
    assert [line.split()[1].rstrip(",") for line in lines(capsys)] == ["3/1,000", "6/1,000", "9/1,000"]


def test_work_under_five_seconds_and_other_processes_print_nothing(clock, capsys):
    with bar() as show:
        for done in range(11):
            clock.now = 0.4 * done
            show(Progress(done=done, total=10, unit="step"))
    with bar(shown=False) as show:
        for done in range(11):
            clock.now = 10.0 + 10 * done
            show(Progress(done=done, total=10, unit="step"))
    assert lines(capsys) == []


def test_a_new_stage_starts_its_own_count(clock, capsys):
    with bar() as show:
        for _ in range(6):
            clock.now += 4
            show(Progress(done=0.9, total=1, unit="learning the tokenizer"))
        for k in range(6):
            clock.now += 4
            show(Progress(done=k / 10, total=1, unit="tokenizing"))
    printed = lines(capsys)
    assert all(line.startswith("tokenizing") for line in printed) and len(printed) == 5
    assert printed[0] == "tokenizing 10%, about 36 s left"


def test_a_rate_leaves_out_compilation_and_settles_within_ten_seconds(clock):
    """Thirty seconds of compilation before the first report, and a second one of eight seconds after it."""
    rate = Rate()
    clock.now = 30.0
    assert rate.update(10) is None
    clock.now = 31.0
    assert rate.update(20) == pytest.approx(10.0)
    clock.now = 39.0
    assert rate.update(30) < 3
    for second in range(1, 11):
        clock.now = 39.0 + second
        now = rate.update(30 + 10 * second)
    assert now == pytest.approx(10.0)


def test_time_left_is_the_reporters_own_where_it_has_one(clock):
    rate = Rate()
    assert rate.left(Progress(done=1, total=10, unit="step", seconds_left=7.0)) == 7.0
    clock.now = 2.0
    assert rate.left(Progress(done=2, total=10, unit="step")) == pytest.approx(16.0)
    assert rate.left(Progress(done=3, total=0, unit="step")) is None


def test_a_counter_adds_up(clock, capsys):
    with counter("fit", 4) as add:
        for _ in range(4):
            clock.now += 6
            add(1, "bootstrap")
    assert lines(capsys)[-1] == "fit 4/4  bootstrap, about 0 s left"


@pytest.mark.parametrize("columns", [60, 200])
def test_on_a_terminal_it_is_a_bar_with_the_time_left(columns):
    program = """
import time
from distill.system.progress import Progress, bar
with bar("starting") as show:
    time.sleep(0.3)
    for i in range(4):
        show(Progress(done=i, total=4, unit="step", text=f"loss {i}"))
        time.sleep(0.2)
"""
    ended = terminal.run([sys.executable, "-c", program], columns=columns)
    assert ended.returncode == 0 and "Traceback" not in ended.text, ended.text
    assert "starting" in ended.text and "step 3/4" in ended.text
    assert columns < 100 or ("loss 3" in ended.text and "left" in ended.text)


def test_a_dumb_terminal_gets_no_escape_codes():
    program = "from distill.system.progress import *\nwith bar() as show: show(Progress(done=1, total=2, unit='step'))"
    ended = terminal.run([sys.executable, "-c", program], env={"TERM": "dumb"})
    assert ended.returncode == 0 and "\x1b" not in ended.output
