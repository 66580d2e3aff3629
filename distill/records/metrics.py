"""A metrics.jsonl of any length as curves: means and extremes over stretches of lines, none of which stays in memory.

The file is cut into stretches of equal bytes, each of which becomes one point. In a long stretch the requested numbers
are searched in the text, which is several times as fast as parsing every line; if the search does not find one in
every line, the lines are parsed.
"""

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.errors import DistillError
from distill.system import process

AT = ("step", "tokens", "time")  # fields that a point takes from its last line
_MANY = 1 << 28  # bytes from which several processes read
_FEW = 4096  # bytes a point, up to which the lines are counted
_Point = tuple[int, dict[str, float], dict[str, tuple[float, float, float]]]


class MetricsError(DistillError):
    """A metrics log that cannot be read: which file, where, what was wanted."""


@dataclasses.dataclass(frozen=True, eq=False)
class MetricCurves:
    """Points [P] in the file's order: `lines` is the number of lines of each, `at` holds fields of the last of them.

    `mean`, `low` and `high` are over the finite values of a name in these lines, nan if there are none.
    """

    lines: NDArray[np.int64]
    at: Mapping[str, NDArray[np.float64]]
    mean: Mapping[str, NDArray[np.float64]]
    low: Mapping[str, NDArray[np.float64]]
    high: Mapping[str, NDArray[np.float64]]

    def __len__(self) -> int:
        return len(self.lines)


def read(path: str | Path, names: Sequence[str], points: int = 1000, workers: int = 0) -> MetricCurves:
    """The curves of some metrics, with one point per line if there are at most `points` lines.

    A torn last line is skipped; a missing file has no points. `workers` reads with that many processes (0: one per core
    if the file is large). Raises MetricsError for a line that is not a JSON object with a step.
    """
    path = Path(path)
    size = path.stat().st_size if path.exists() else 0
    cuts = _cuts(path, size, points) if size else [0]
    stretches = [(str(path), a, b, tuple(names)) for a, b in zip(cuts[:-1], cuts[1:])]
    count = workers or (len(os.sched_getaffinity(0)) if size >= _MANY else 1)
    if count > 1 and len(stretches) > 1:
        with ProcessPoolExecutor(count, mp_context=process.worker_context()) as pool:
            summaries = list(pool.map(_point, stretches, chunksize=max(len(stretches) // (8 * count), 1)))
    else:
        summaries = [_point(stretch) for stretch in stretches]
    part = lambda name, i: np.array([point[2][name][i] for point in summaries], np.float64)
    return MetricCurves(
        lines=np.array([point[0] for point in summaries], np.int64),
        at={name: np.array([point[1].get(name, np.nan) for point in summaries], np.float64) for name in AT},
        mean={name: part(name, 0) for name in names},
        low={name: part(name, 1) for name in names},
        high={name: part(name, 2) for name in names},
    )


def last(path: str | Path) -> dict[str, Any] | None:
    """The last complete line of a log, read from its end; None if there is none."""
    path = Path(path)
    size, length = path.stat().st_size if path.exists() else 0, 4096
    while size:
        begin = max(size - length, 0)
        text = _bytes(path, begin, size)
        end = text.rfind(b"\n")
        start = text.rfind(b"\n", 0, max(end, 0)) + 1
        if end >= 0 and (start or not begin):
            return _parse(path, begin + start, text[start:end])
        if not begin:
            return None
        length *= 4
    return None


def _cuts(path: Path, size: int, points: int) -> list[int]:
    """The offsets at which the stretches begin, each at the start of a line, and the end of the last complete line."""
    cuts = [0]
    with open(path, "rb") as file:
        if size <= points * _FEW:  # perhaps no more lines than points
            ends = [match.end() for match in re.finditer(b"\n", file.read(size))]
            each = max(-(-len(ends) // points), 1)
            return [*cuts, *ends[each - 1 : -1 : each], *ends[-1:]]
        for i in range(1, points):
            file.seek(max(size * i // points, cuts[-1]) - 1)
            file.readline()
            if cuts[-1] < file.tell() < size:
                cuts.append(file.tell())
    tail = _bytes(path, cuts[-1], size)
    whole = cuts[-1] + tail.rfind(b"\n") + 1
    return [*cuts, whole] if whole > cuts[-1] else cuts


def _bytes(path: Path, begin: int, end: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(begin)
        return file.read(end - begin)


def _point(stretch: tuple[str, int, int, tuple[str, ...]]) -> _Point:
    path, begin, end, names = stretch
    text = _bytes(Path(path), begin, end)
    count = text.count(b"\n")
    start = text.rfind(b"\n", 0, len(text) - 1) + 1
    at = _parse(path, begin + start, text[start:])
    searched = {name: _search(text, name, count) for name in names}
    values = {name: numbers for name, numbers in searched.items() if numbers is not None}
    if len(values) < len(names):
        parsed = list(lines(path, begin, text))
        values = {name: np.array([_number(line.get(name)) for line in parsed]) for name in names}
    return count, {name: _number(at.get(name)) for name in AT}, {name: _sum_up(values[name]) for name in names}


def _search(text: bytes, name: str, lines: int) -> NDArray[np.float64] | None:
    """The numbers that follow a name in the text, or None unless there is one in each of the lines."""
    numbers = re.findall(b'"%s": ([^,}\\s]*)' % re.escape(name.encode()), text)
    try:
        return np.fromiter(map(float, numbers), np.float64, lines) if len(numbers) == lines else None
    except ValueError:
        return None


def lines(path: str | Path, begin: int, text: bytes) -> Iterator[dict[str, Any]]:
    """The parsed lines of a text at byte `begin` of a log. Raises MetricsError for the first invalid one."""
    for line in text.splitlines(keepends=True):
        yield _parse(path, begin, line)
        begin += len(line)


def _parse(path: str | Path, at: int, line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
        if isinstance(entry, dict) and "step" in entry:
            return entry
    except (ValueError, RecursionError):
        pass
    raise MetricsError(f"{path}, byte {at}: got {line.strip()[:60]!r}, wanted a line of metrics with its step")


def _number(value: object) -> float:
    # Converted through text, as in _search: an integer beyond a float's range becomes infinite, not an error.
    return float(repr(value)) if type(value) in (int, float) else float("nan")


def _sum_up(values: NDArray[np.float64]) -> tuple[float, float, float]:
    good = values[np.isfinite(values)]
    return (float(good.mean()), float(good.min()), float(good.max())) if len(good) else (float("nan"),) * 3
