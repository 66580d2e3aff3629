"""Rows per hour of a study, beside the same rows run one after the other on all cores.

    python -m launch.bench study [--rounds=3] [--seeds=1] [--peers=process,commands]

The rows: three sizes on four budgets, alone and as students of one teacher (25 a seed, of the corpus that ships).
`study` is launch.study: workers pinned to a core each, trunks that serve several budgets. Its peers use all cores and
train each row from its first step: `commands` runs launch.train for every row; `process` is a single process that
keeps what it has compiled, the token store and the teacher's signals from row to row. All run once before they are
timed, so compilation is cached; then they alternate, each in fresh processes and a fresh folder. Time runs from the
first run's start to the last one's end: the study's laws and report come after.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from distill.config import ExperimentConfig, StudyExperimentConfig, build, to_text
from distill.config.flags import Parser
from distill.records.runs import RunTable
from distill.study import matrix

_MODEL = {"d_head": 16, "d_ff_multiple": 16, "tied": False, "unroll": 2}
_STUDY = {
    "models": ("p = 16x2", "c = 32x2", "r = 48x2"),
    "teachers": ("r @ 500K",),
    "supervised": ("p c r @ 125K 250K 500K 1M",),
    "distilled": ("r@500K > p c r @ 125K 250K 500K 1M",),
    "resamples": 16,
}
_PEERS = ("process", "commands")


def _config(seeds: int) -> StudyExperimentConfig:
    study = _STUDY | {"seeds": tuple(range(seeds))}
    return build(StudyExperimentConfig, {"model": _MODEL, "teacher": {"signal": "memory"}, "study": study})


def process(workdir: Path, seeds: int) -> None:
    """Trains every row from its first step, in this process, and writes runs.csv."""
    from distill.study import workers
    from distill.system import process as runtime
    from distill.training import inputs, loop

    runtime.use_fast_cpu_compilation()
    runtime.cache_compilations()
    config = _config(seeds)
    store, teachers = inputs.open_store(config, workdir), {}
    for task in matrix.expand(config, workdir):
        teacher = task.config.teacher.run
        if teacher and teacher not in teachers:
            teachers[teacher] = workers.open_teacher(task.config, store)
        folder = workdir / "runs" / task.run
        record = loop.train(task.config, folder, store=store, teacher=teachers.get(teacher))
        RunTable(workdir / "runs.csv").append([record])


def commands(workdir: Path, seeds: int) -> None:
    """Runs launch.train for every row, and writes runs.csv of the results."""
    from distill.records.runs import load_record
    from distill.training import inputs

    config = _config(seeds)
    inputs.open_store(config, workdir)
    shared = (f"--config.data.cache={workdir / 'data'}",)
    plain = set(to_text(build(ExperimentConfig, {})).splitlines())
    for task in matrix.expand(config, workdir):
        changed = [line.partition(" = ") for line in to_text(task.config).splitlines() if line not in plain]
        flags = [f"--config.{name}={json.loads(text)}" for name, _, text in changed]
        folder = workdir / "runs" / task.run
        command = [sys.executable, "-m", "launch.train", "--config=configs/base.py", *flags, *shared]
        subprocess.run([*command, f"--workdir={folder}"], check=True)
        record = load_record(folder / "result.json")
        assert record is not None
        RunTable(workdir / "runs.csv").append([record])


def study(workdir: Path, seeds: int) -> None:
    """Runs the study itself."""
    from distill.study import run as study

    study.run(_config(seeds), workdir)


def _seconds(route: str, seeds: int) -> tuple[float, int]:
    """Seconds from the first run's start to the last one's end, in fresh processes, and the number of rows."""
    with tempfile.TemporaryDirectory() as folder:
        code = f"import pathlib; from distill.bench import study; study.{route}(pathlib.Path({folder!r}), {seeds})"
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        rows = RunTable(Path(folder) / "runs.csv").load()
        assert len(rows) == len(matrix.expand(_config(seeds), Path(folder))), f"{route}: a run has failed"
        first, last = min(row.start for row in rows), max(row.end for row in rows)
        return (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds(), len(rows)


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench study", __doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--peers", default=",".join(_PEERS))
    flags = parser.parse_args(argv)
    if flags.rounds < 1 or flags.seeds < 1:
        parser.error("--rounds and --seeds are 1 or more")
    peers = [name for name in flags.peers.split(",") if name]
    if unknown := [name for name in peers if name not in _PEERS]:
        parser.error(f"--peers: got {unknown[0]!r}, wanted some of {', '.join(_PEERS)}")
    routes = ["study", *peers]
    took: dict[str, list[float]] = {route: [] for route in routes}
    for turn in range(flags.rounds + 1):
        for route in routes if turn % 2 == 0 else routes[::-1]:
            seconds, rows = _seconds(route, flags.seeds)
            note = "" if turn else "  (not counted: it compiles)"
            print(f"{route:<8} {rows} rows in {seconds:6.1f} s, {3600 * rows / seconds:7.0f} an hour{note}", flush=True)
            if turn:
                took[route].append(seconds)
    for peer in peers:
        ratios = [b / a for a, b in zip(took["study"], took[peer])]
        spread = f"[{min(ratios):.2f}, {max(ratios):.2f}]"
        print(f"study / {peer}: {statistics.median(ratios):.2f} times the rows an hour {spread}")
    print(f"load {os.getloadavg()[0]:.1f}")
    return 0
