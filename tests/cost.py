"""What the tests cost: CI ends with the ten dearest tests and files, in seconds of processor time, children included.

Processor time, because two workers share the cores with whatever else runs. A fast test over LIMIT says why, as
`@pytest.mark.dear("reason")`; one that does not is named at the end.
"""

import os
from collections import Counter

import pytest

LIMIT = 30.0  # seconds of processor time
LINES = 10
BEGAN = pytest.StashKey[float]()


def spent() -> float:
    """Seconds of processor time of this process and of those that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    item.stash[BEGAN] = spent()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.when == "teardown":
        excused = any(item.get_closest_marker(name) for name in ("dear", "slow"))
        report.user_properties += [("cpu", spent() - item.stash[BEGAN]), ("excused", excused)]
    return report


def summary(costs: dict[str, float], excused: set[str]) -> list[str]:
    """The closing lines for tests of `costs` seconds each: the dearest, by test and by file, and who is not excused."""
    files: Counter[str] = Counter()
    for name, seconds in costs.items():
        files[name.partition("::")[0]] += seconds
    lines = [f"{sum(costs.values()) / 60:.0f} minutes of processor time in {len(costs)} tests; the dearest:"]
    lines += [f"{seconds:7.1f} s  {name}" for name, seconds in Counter(costs).most_common(LINES)]
    lines += ["and by file:", *(f"{seconds:7.1f} s  {name}" for name, seconds in files.most_common(LINES))]
    over = sorted(name for name, seconds in costs.items() if seconds > LIMIT and name not in excused)
    return lines + [f"over {LIMIT:.0f} s without a reason (pytest.mark.dear): {name}" for name in over]


def pytest_terminal_summary(terminalreporter):
    ended = [r for reports in terminalreporter.stats.values() for r in reports if getattr(r, "when", "") == "teardown"]
    known = {r.nodeid: dict(r.user_properties) for r in ended}
    costs = {name: found["cpu"] for name, found in known.items() if "cpu" in found}
    if len(costs) < 2:
        return
    terminalreporter.section("what the tests cost")
    for line in summary(costs, {name for name in costs if known[name]["excused"]}):
        terminalreporter.write_line(line)
