"""Kills real processes at random moments, lets them go on, and compares what they leave with a run that was not killed.

A ChaosScenario is a command that continues where it was stopped, what to compare at its end, and what its files look
like while they are being written: half of the kills wait for such a file to appear, so that they fall into the writing.
"""

import contextlib
import dataclasses
import fnmatch
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from distill.config import DistillError
from distill.records.runs import CurveTable, RunRecord, RunTable, load_record

# Consecutive kills in one folder before its command may finish undisturbed.
ROW = 8
# Seconds that an undisturbed command may take to finish.
PATIENCE = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChaosScenario:
    """`command` has FOLDER replaced by the folder; `result` reads its output; `writing` are globs of its half-written
    files; `prepare` creates the command's inputs, once."""

    name: str
    command: tuple[str, ...]
    result: Callable[[Path], object]
    writing: tuple[str, ...] = ()
    prepare: Callable[[Path], None] = lambda _: None


class Lost(DistillError):
    """A killed command did not end with the result of the undisturbed one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kill:
    """One SIGKILL: its time after the start (seconds), and the half-written file that had just appeared, if any."""

    scenario: str
    after: float
    seen: str


def attack(scenario: ChaosScenario, kills: int, seed: int, folder: str | Path | None = None) -> Iterator[Kill]:
    """Kills the scenario's command `kills` times, ROW times per folder, and yields each kill.

    Raises Lost, naming the folder (which is kept), if the result differs from that of the run that was not killed.
    """
    chance = random.Random(f"{scenario.name} {seed}")
    root = Path(folder or tempfile.mkdtemp(prefix="chaos-"))
    inputs = root / "inputs"
    inputs.mkdir(parents=True, exist_ok=True)
    scenario.prepare(inputs)
    began = time.monotonic()
    _finish(scenario, inputs, root / "whole")
    duration = time.monotonic() - began
    wanted, left, round_ = scenario.result(root / "whole"), kills, 0
    while left:
        here, round_ = root / str(round_), round_ + 1
        row = min(left, ROW)
        for _ in range(row):
            kill = _kill(scenario, inputs, here, duration, chance)
            if kill is None:  # it finished before the kill
                break
            left -= 1
            yield kill
        _finish(scenario, inputs, here)
        result = scenario.result(here)
        if result != wanted:
            raise Lost(
                f"{here}: {scenario.name} ended otherwise than in {root / 'whole'}: {_difference(result, wanted)}"
            )
        shutil.rmtree(here)
    shutil.rmtree(root)


@contextlib.contextmanager
def _running(scenario: ChaosScenario, inputs: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Runs the scenario's command in its own process group, and kills it at the end if it is still running."""
    command = [part.replace("FOLDER", str(folder)).replace("INPUTS", str(inputs)) for part in scenario.command]
    with open(_log(folder), "ab") as log:
        process = subprocess.Popen(
            [sys.executable, *command], stdout=log, stderr=log, start_new_session=True, env=os.environ | {"CI": "true"}
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _log(folder: Path) -> Path:
    return folder.parent / "log.txt"


def _finish(scenario: ChaosScenario, inputs: Path, folder: Path) -> None:
    with _running(scenario, inputs, folder) as process:
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Lost(f"{folder}: {scenario.name} did not end within {PATIENCE} s") from None
    if code:
        tail = _log(folder).read_text("utf-8", "replace").strip().splitlines()[-3:]
        raise Lost(f"{folder}: {scenario.name} ended with code {code}: {' / '.join(tail)}")


def _kill(scenario: ChaosScenario, inputs: Path, folder: Path, duration: float, chance: random.Random) -> Kill | None:
    """Starts the command and kills it; None if it ended before."""
    aimed = bool(scenario.writing) and chance.random() < 0.5
    # After the longest wait, an aimed kill happens wherever the command then is.
    until, later = chance.uniform(0.0, 1.2 * duration), chance.uniform(0.0, 0.03)
    began, seen = time.monotonic(), ""
    with _running(scenario, inputs, folder) as process:
        while process.poll() is None and not seen:
            passed = time.monotonic() - began
            if aimed and passed > until / 2:
                seen = _half_written(folder.parent, scenario.writing)
            if (not aimed and passed > until) or passed > 2 * duration:
                break
            time.sleep(0.002)
        if seen:
            time.sleep(later)
        if process.poll() is not None:
            return None
    return Kill(scenario=scenario.name, after=round(time.monotonic() - began, 3), seen=seen)


def _half_written(root: Path, patterns: Sequence[str]) -> str:
    # Not rglob, which fails if a folder vanishes during the search.
    for here, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in ("inputs", "whole")]
        for name in (*folders, *files):
            if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
                return os.path.relpath(os.path.join(here, name), root)
    return ""


def _difference(found: object, wanted: object) -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
        return ", ".join(f"{key}: {found.get(key)!r}, wanted {wanted.get(key)!r}" for key in keys)[:500]
    return f"{found!r}, wanted {wanted!r}"[:500]


def run_result(workdir: Path) -> Mapping[str, object]:
    """The result of a training run: every array's hash, its record, and the sum of the losses of all its steps.

    Lines of metrics.jsonl average over steps, and their boundaries depend on the times of checkpoints; their sum over
    all steps does not, and a missing or repeated step changes it.
    """
    import jax
    import numpy as np

    from distill import config as configs
    from distill.model import sharding
    from distill.records import logger
    from distill.records.checkpoints import Checkpoints
    from distill.training import step

    config = configs.from_text(configs.ExperimentConfig, (workdir / "config.txt").read_text("utf-8"))
    result: dict[str, object] = {}
    with jax.set_mesh(sharding.make(config.mesh)), Checkpoints(workdir / "checkpoints") as checkpoints:
        stored = checkpoints.restore(config.steps, step.init_state(config).stored())
        for path, leaf in jax.tree_util.tree_flatten_with_path(stored)[0]:
            result[jax.tree_util.keystr(path)] = hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()[:12]
    record = load_record(workdir / "result.json")
    result |= _found(record) if record else {}
    lines, last, total = logger.read_metrics(workdir / "metrics.jsonl"), 0, 0.0
    for line in lines:
        total += line["ntp"] * (line["step"] - last)
        last = line["step"]
    return result | {"steps logged": last, "sum of losses": float(f"{total:.9g}")}


def _found(record: RunRecord) -> Mapping[str, object]:
    """What a run found, without when and where it did."""
    return {k: v for k, v in dataclasses.asdict(record).items() if k not in ("start", "end", "machine", "commit")}


def folder_result(folder: Path) -> dict[str, str]:
    """The hash of every file of a folder except its lock."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in files}


def append(path: Path, lines: Sequence[Mapping[str, object]]) -> None:
    """Adds JSON lines to a campaign's log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def table_result(workdir: Path) -> Mapping[str, object]:
    """The rows of a study's runs table, without when and where they were made, and how many points its curves have."""
    rows: dict[str, object] = {}
    for row in RunTable(workdir / "runs.csv").load():
        rows[f"{row.run} {len(rows) if row.run in rows else ''}".strip()] = _found(row)
    points = {(point.run, point.step) for point in CurveTable(workdir / "curves.csv").load()}
    return rows | {"runs with a curve": len({run for run, _ in points})}


def _text(inputs: Path) -> None:
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghij", k=chance.randrange(1, 9))) for _ in range(2000)]
    with open(inputs / "text.jsonl", "w", encoding="utf-8") as file:
        for _ in range(4000):
            file.write(json.dumps({"text": " ".join(chance.choices(words, k=150))}) + "\n")


def _teacher(inputs: Path) -> None:
    teacher = ChaosScenario(name="teacher", command=(*_TEACHER, "--workdir=FOLDER"), result=run_result)
    _finish(teacher, inputs, inputs / "teacher")


def signal_result(store: Path) -> Mapping[str, object]:
    """The hash of every file of a signal store, and of its manifest what does not say when and how it was made."""
    known = json.loads((store / "manifest.json").read_text("utf-8"))
    return folder_result(store) | {"manifest.json": {name: known[name] for name in ("recipe", "fidelity")}}


def completions(output: Path) -> Mapping[str, object]:
    """The completions in their order, and the files of the token store that was made of them."""
    lines = {str(i): line for i, line in enumerate((output / "completions.jsonl").read_text("utf-8").splitlines())}
    return lines | folder_result(output / "store")


_RUN = ("--config.loop.checkpoint_seconds=0.2", "--config.loop.steps_per_call=4", "--config.loop.log_steps=1")
_STUDY = (
    "--config.study.models=p = 16x1, q = 16x2", "--config.study.teachers=q @ 20K",
    "--config.study.distilled=q@20K > p @ 8K 16K", "--config.study.supervised=p @ 8K 16K",
    "--config.eval.tokens=2048", "--config.study.resamples=16",
)  # fmt: skip
_TEACHER = (
    "-m", "launch.train", "--config=configs/train.py:micro", "--config.data.split=teacher", "--config.tokens=20K",
    "--config.eval.tokens=2048",
)  # fmt: skip

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        ChaosScenario(
            name="train",
            command=("-m", "launch.train", "--config=configs/train.py:micro", "--workdir=FOLDER", "--config.tokens=60K",
                     "--config.eval.tokens=2048", *_RUN),
            result=run_result,
            writing=("*.orbax-checkpoint-tmp", ".result.json*", ".config.txt*"),
        ),
        ChaosScenario(
            name="study",
            command=("-m", "launch.study", "--config=configs/study.py:smoke", "--workdir=FOLDER", *_STUDY, *_RUN),
            result=table_result,
            writing=("*.orbax-checkpoint-tmp", ".result.json*", ".runs.csv*"),
        ),
        ChaosScenario(
            name="tokenize",
            command=("-m", "launch.tokenize", "--output=FOLDER", "INPUTS/text.jsonl"),
            result=folder_result,
            writing=("*.partial*", ".progress.json*", ".manifest.json*", "*.building*"),
            prepare=_text,
        ),
        ChaosScenario(
            name="cache",
            command=("-m", "launch.cache", "--config=configs/signals.py:topk", "--config.teacher.source=INPUTS/teacher",
                     "--config.tokens=100K", "--shard_tokens=4096", "--out=FOLDER"),
            result=signal_result,
            writing=("*.tmp*", ".*", "*.partial*"),
            prepare=_teacher,
        ),
        ChaosScenario(
            name="generate",
            command=("-m", "launch.generate", "--teacher=INPUTS/teacher", "--output=FOLDER", "--every=16",
                     "--prompts=96", "--batch_size=4", "--decode.new_tokens=32"),
            result=completions,
            writing=("*.tmp*", ".*", "*.partial*", "*.building*"),
            prepare=_teacher,
        ),
    )
}  # fmt: skip
