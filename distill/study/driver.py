"""Starts units on an engine that knows no dependencies (Ray, Kubernetes), each when what it needs is done.

The driver holds nothing that matters: killed and started again, it reads from the folders of the runs what is finished.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from distill.config import ConfigError
from distill.study.units import Unit
from distill.system import preemption, process

FAILED = (
    1,
    2,
)  # exit codes of a part: a run failed, a mistake of the user's. Any other but 0 and 75: its host was lost
LOST = 137  # the exit code of a unit whose host is gone, as that of a process that was killed
MOST_LOSSES = 3  # of one unit; more often it is the unit that ends its hosts


class Engine(Protocol):
    """What places units on hosts."""

    def capacity(self) -> float:
        """Hosts that there are, busy ones included; math.inf where the engine queues, or makes hosts, itself."""
        ...

    def start(self, unit: Unit) -> None:
        """Starts a unit as soon as its hosts are free, on all of them at once."""
        ...

    def ended(self, seconds: float) -> list[tuple[str, int]]:
        """(name, exit code) of the units that have ended; waits at most so long for one."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """The names of the units that ended well, and why each other one did not."""

    succeeded: tuple[str, ...]
    failed: dict[str, str]


def lock(workdir: Path) -> contextlib.AbstractContextManager[None]:
    """The lock of the one driver of a folder; that of the folder itself is for the parts that write tables.

    Entering raises FolderLocked while another driver of the folder lives.
    """
    return process.folder_lock(workdir / "driver")


def refuse_beside(workdir: Path) -> None:
    """Raises FolderLocked while a driver of the folder lives: its hosts and this machine would train the same runs."""
    if (workdir / "driver" / "lock").exists():
        with lock(workdir):
            pass


def drive(
    units: Sequence[Unit], engine: Engine, on_turn: Callable[[list[str]], None] = lambda _: None, every: float = 1.0
) -> Outcome:
    """Runs units, in an order in which each comes after what it needs; returns when all have ended.

    Of the units that may start, that with the longest way to the end is first; while it waits for hosts no other
    overtakes it, so that many small units cannot starve one that needs many hosts. A unit whose host was lost, or that
    was asked to end, starts again. Raises ConfigError for a unit of more hosts than there are, and Preempted when this
    process is asked to stop.
    `on_turn` gets the lines of what has happened, after at most `every` seconds.
    """
    queue = _Queue(units)
    with preemption.catch_preemption() as flag:
        while queue.waiting or queue.running:
            if flag.signal:
                raise preemption.Preempted(f"{flag.signal}: run the same command again to continue")
            hosts = engine.capacity()
            for unit in queue.startable(hosts):
                queue.running[unit.name] = unit
                engine.start(unit)
            on_turn([queue.end(name, code) for name, code in engine.ended(every)])
    return Outcome(succeeded=tuple(queue.succeeded), failed=queue.failed)


class _Queue:
    """What waits, what runs, what has ended."""

    def __init__(self, units: Sequence[Unit]):
        self.waiting = sorted(units, key=_ways(units), reverse=True)
        self.running: dict[str, Unit] = {}
        self.succeeded: list[str] = []
        self.failed: dict[str, str] = {}
        self._losses: dict[str, int] = {}
        self._open = {key for unit in units for key in unit.keys}  # not ended
        self._bad: dict[str, str] = {}  # key -> the failed unit that had it

    def startable(self, hosts: float) -> list[Unit]:
        """The units to start now, which are taken from those that wait. Raises ConfigError."""
        free = hosts - sum(unit.place.hosts for unit in self.running.values())
        chosen: list[Unit] = []
        for unit in [unit for unit in self.waiting if not self._open & (unit.needs | unit.after)]:
            if bad := sorted(unit.needs & self._bad.keys()):
                self._give_up(unit, f"not run: it needs {self._bad[bad[0]]}, which failed")
                continue
            if unit.place.hosts > hosts:
                raise ConfigError(
                    f"config.study.places: {unit.name} needs {unit.place.hosts} hosts at once, and there are {hosts:g}"
                )
            if unit.place.hosts > free:
                break
            free -= unit.place.hosts
            chosen.append(unit)
        for unit in chosen:
            self.waiting.remove(unit)
        return chosen

    def end(self, name: str, code: int) -> str:
        """Notes the end of a unit; returns a line about it."""
        unit = self.running.pop(name)
        if code == 0:
            self._open -= unit.keys
            self.succeeded.append(name)
            return f"finished {name}"
        if code in FAILED:
            self._close(unit, f"it ended with {code}; see the error.txt of its runs")
            return f"failed {name}"
        if code != preemption.REQUEUE:
            self._losses[name] = self._losses.get(name, 0) + 1
        if self._losses.get(name, 0) > MOST_LOSSES:
            self._close(unit, f"its hosts were lost {self._losses[name]} times")
            return f"gave up {name}"
        self.waiting.insert(0, unit)
        return f"{name} ended with {code}: again"

    def _give_up(self, unit: Unit, why: str) -> None:
        self.waiting.remove(unit)
        self._close(unit, why)

    def _close(self, unit: Unit, why: str) -> None:
        self._open -= unit.keys
        self._bad |= dict.fromkeys(unit.keys, unit.name)
        self.failed[unit.name] = why


def _ways(units: Sequence[Unit]) -> Callable[[Unit], float]:
    """Estimated seconds from the start of a unit to the end of all that comes after it."""
    holder = {key: unit for unit in units for key in unit.keys}
    way = {unit.name: unit.seconds for unit in units}
    behind = dict.fromkeys(way, 0.0)
    for unit in reversed(units):
        way[unit.name] = unit.seconds + behind[unit.name]
        for name in {holder[key].name for key in unit.needs | unit.after if key in holder}:
            behind[name] = max(behind[name], way[unit.name])
    return lambda unit: way[unit.name]
