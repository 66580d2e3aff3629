"""How far a study or a sweep is, in a few lines: finished, running, waiting, failed, and why. It only reads files."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from distill.config import teachers_of
from distill.system import process
from distill.system.files import loads
from distill.system.numbers import duration

State = Literal["finished", "failed", "running", "waiting"]
SILENT = 600.0  # seconds without a new line after which it is said: the run may wait for its next attempt
MOST = 3  # failures that are told


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    names: Mapping[str, str]  # run -> name
    teachers: Mapping[str, str]  # run -> the run, or the mixture of runs, that it needs


def lines(workdir: str | Path, now: float) -> list[str]:
    """The lines above the curves of a study; none for a folder without study.json."""
    folder = Path(workdir)
    plan = _plan(folder / "study.json")
    if plan is None:
        return []
    states = {run: _state(folder / "runs" / run) for run in plan.names}
    counted = Counter(states.values())
    order: tuple[State, ...] = ("finished", "running", "waiting", "failed")
    said = [f"{len(states)} runs: " + ", ".join(f"{counted[state]} {state}" for state in order)]
    running = [run for run, state in states.items() if state == "running"]
    if silent := sum(now - _touched(folder / "runs" / run) > SILENT for run in running):
        said.append(f"{silent} of those that run have written nothing for {duration(SILENT)}")
    failed = [run for run, state in states.items() if state == "failed"]
    for run in failed[:MOST]:
        said.append(f"failed {plan.names[run]}: {_last_line(folder / 'runs' / run / 'error.txt')}")
    if len(failed) > MOST:
        said.append(f"and {len(failed) - MOST} more have failed")
    waiting = [run for run in states if states[run] == "waiting" and run in plan.teachers]
    needed = Counter(teacher for run in waiting for teacher in teachers_of(plan.teachers[run]))
    for teacher, count in needed.items():
        if states.get(teacher) == "failed":
            said.append(f"{count} of those that wait need {plan.names[teacher]}, which failed")
    return said


def _plan(path: Path) -> _Plan | None:
    try:
        tree = loads(path.read_text("utf-8"))
        return _Plan(names=dict(tree["planned"]), teachers=dict(tree.get("teachers", {})))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # the folder of one run, or a file that the report will complain about


def _state(folder: Path) -> State:
    if (folder / "result.json").exists():
        return "finished"
    if (folder / "error.txt").exists() and _changed(folder / "error.txt") >= _touched(folder):
        return "failed"
    return "running" if (folder / "config.txt").exists() and process.gone_holder(folder) is None else "waiting"


def _touched(folder: Path) -> float:
    """When an attempt last began or wrote a line."""
    return max(_changed(folder / name) for name in ("config.txt", "metrics.jsonl", "lock"))


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _last_line(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace").strip().splitlines()[-1][:200]
    except (OSError, IndexError):
        return "no error.txt"
