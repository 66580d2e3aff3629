"""A sweep: one config, some fields that take several values, and a run for every combination."""

import csv
import dataclasses
import io
import itertools
import json
import re
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from distill import config as configs
from distill import data
from distill.config import ConfigError, ExperimentConfig, counts, tree
from distill.laws import from_arrays
from distill.records import runs
from distill.study import scheduler, workers
from distill.study.matrix import Planned
from distill.system import files, process
from distill.system.numbers import duration
from distill.training import inputs

BACKENDS = ("local", "slurm", "print")
_SPACES: dict[str, Callable[..., np.ndarray]] = {"linspace": np.linspace, "logspace": np.geomspace}
_LAUNCH = Path(__file__).resolve().parents[2] / "launch"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
    """Fields that change together: `rows` holds their values, as texts, one row a choice."""

    fields: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def axis(line: str) -> Axis:
    """One axis from 'FIELD=VALUES', or several fields in step: 'FIELD=VALUES;FIELD=VALUES'.

    VALUES is a comma-separated list of values, of range(start,stop[,step]) as Python's, and of linspace(from,to,n) and
    logspace(from,to,n): n values from one to the other, evenly apart or by equal factors. Raises ConfigError.
    """
    columns = {}
    for part in line.split(";"):
        field, separator, text = part.strip().partition("=")
        if not separator or not text:
            raise ConfigError(f"sweep: got {part!r}, wanted FIELD=VALUES, such as model.n_layers=2,4,6")
        if field in columns:
            raise ConfigError(f"sweep: {field} stands twice in {line!r}")
        columns[field] = [value for item in re.split(r",(?![^()]*\))", text) for value in _values(field, item.strip())]
    lengths = {field: len(values) for field, values in columns.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{field} {n}" for field, n in lengths.items())
        raise ConfigError(f"sweep: fields that change together need as many values each; got {found}")
    return Axis(fields=tuple(columns), rows=tuple(zip(*columns.values())))


def _values(field: str, item: str) -> list[str]:
    """The texts that an item of a list stands for, each of the field's own type."""
    call = re.fullmatch(r"(range|linspace|logspace)\((.*)\)", item)
    if not call:
        tree.parse(ExperimentConfig, field, item)
        return [item]
    name, arguments = call[1], call[2].split(",")
    try:
        if name == "range":
            return [str(n) for n in range(*(tree.parse_count(text.strip()) for text in arguments))]
        low, high = (_number(text.strip()) for text in arguments[:2])
        (count,) = (tree.parse_count(text.strip()) for text in arguments[2:])
        found = _SPACES[name](low, high, count).tolist()
    except (TypeError, ValueError) as error:
        shape = "range(start,stop[,step])" if name == "range" else f"{name}(from,to,n)"
        raise ConfigError(f"sweep: {field}: cannot read {item!r} ({error}); wanted {shape}") from None
    return [_text(field, value) for value in found]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float(tree.parse_count(text))


def _text(field: str, value: float) -> str:
    """A number as the field takes it: whole where it is, or where only whole ones will do."""
    text = str(round(value)) if np.isclose(value, round(value), rtol=1e-12, atol=0) else f"{value:.6g}"
    try:
        tree.parse(ExperimentConfig, field, text)
    except ConfigError:
        text = str(round(value))
        tree.parse(ExperimentConfig, field, text)
    return text


def expand(config: ExperimentConfig, axes: Sequence[Axis], workdir: Path, where: str = "") -> list[Planned]:
    """Every combination once, the last axis fastest; `where` is a rule over N, D, C (FLOPs) and the swept fields.

    Raises ConfigError where a value is impossible, naming the combination.
    """
    fields = [field for each in axes for field in each.fields]
    if repeated := [field for field in fields if fields.count(field) > 1]:
        raise ConfigError(f"sweep: {repeated[0]} is swept twice")
    short = {field: field.rpartition(".")[2].rstrip("_") for field in fields}
    if len(set(short.values())) < len(fields):
        short = {field: field for field in fields}
    found: dict[str, Planned] = {}
    stores: dict[Any, Any] = {}
    for rows in itertools.product(*(each.rows for each in axes)):
        texts = [text for row in rows for text in row]
        name = " ".join(f"{short[field]}={text}" for field, text in zip(fields, texts)) or "as it is"
        run = config
        try:
            for field, text in zip(fields, texts):
                run = tree.replace(run, field, tree.parse(ExperimentConfig, field, text))
            store = stores.get(run.data) or data.open_store(run.data, run.data.cache or workdir / "data")
            stores[run.data] = store
            run = inputs.resolve(run, store).config
        except ConfigError as error:
            raise ConfigError(f"sweep: {name}: {error}") from None
        planned = Planned(
            name=name,
            config=run,
            run=configs.fingerprint(run),
            trunk=configs.trunk_fingerprint(run),
            stage=0,
            settings=tuple(zip(fields, texts)),
        )
        found.setdefault(planned.run, planned)
    tasks = list(found.values())
    if where and tasks:
        columns: dict[str, Any] = {"N": [], "D": [], "C": []}
        columns |= {short[field]: [] for field in fields}
        for task in tasks:
            columns["N"].append(float(counts.non_embedding(task.config.model)))
            columns["D"].append(float(counts.training_tokens(task.config)))
            columns["C"].append(task.flops)
            for field, text in task.settings:
                value = tree.parse(ExperimentConfig, field, text)
                columns[short[field]].append(float(value) if type(value) in (int, float) else text)
        kept = from_arrays(**columns).matching(where)
        tasks = [task for task, keep in zip(tasks, kept) if keep]
    if not tasks:
        raise ConfigError(f"sweep: no combination is left by --where={where!r}")
    return tasks


def run(
    config: ExperimentConfig,
    axes: Sequence[Axis],
    workdir: str | Path,
    *,
    where: str = "",
    backend: str = "local",
    n_workers: int = 0,
    pack: int = 1,
    rate: float = 0.0,
    price: float = 0.0,
    source: str = "configs/train.py",
    overrides: Sequence[str] = (),
    slurm: str = "",
    dry_run: bool = False,
) -> int:
    """Runs what is left of a sweep and tabulates it: runs/, runs.csv, curves.csv and sweep.csv in `workdir`.

    A worker trains up to `pack` runs of one shape together. `rate` is what a worker does in FLOPs a second (0: as the
    finished runs did), `price` what it costs an hour.
    Returns 1 where runs failed, else 0; they are tried again by the same call.
    """
    console, workdir = Console(), Path(workdir).resolve()
    tasks = expand(config, axes, workdir, where)
    if dry_run:
        console.print(listing(tasks, workdir, rate, price, n_workers))
        return 0
    if backend != "local":
        left = [task for task in tasks if runs.load_record(workdir / "runs" / task.run / "result.json") is None]
        lines = [shlex.join(command(task, workdir, source, overrides)) for task in left]
        if backend == "print" or not lines:
            print("\n".join(lines))
            return 0
        path = workdir / "commands.txt"
        files.atomic_write(path, "\n".join(lines) + "\n")
        script = ["bash", str(_LAUNCH / "slurm.sh"), f"--array={path}", *shlex.split(slurm)]
        return subprocess.run(script).returncode
    with process.sole(workdir):
        note = {"command": shlex.join(overrides), "planned": {task.run: task.name for task in tasks}}
        files.atomic_write(workdir / "study.json", json.dumps(note, indent=1) + "\n")
        done = workers.collect(workdir, tasks)
        n = n_workers or len(process.cores())
        outcome = scheduler.run_all(tasks, done, workdir, n, lambda _: None, console, pack)
        table = _tabulate(tasks, workdir)
    if table:
        console.print(table)
    for name, line in outcome.failed.items():
        console.print(f"[red]failed[/] {name}: {line}; run the same command to try it again", highlight=False)
    return 1 if outcome.failed else 0


def command(task: Planned, workdir: Path, source: str, overrides: Sequence[str]) -> list[str]:
    """The launch.train of one run, with the folder in which the sweep will look for it."""
    given = [*overrides, *(f"--config.{field}={text}" for field, text in task.settings)]
    if not task.config.data.cache:
        given.append(f"--config.data.cache={workdir / 'data'}")
    return ["python", "-m", "launch.train", f"--config={source}", *given, f"--workdir={workdir / 'runs' / task.run}"]


def listing(tasks: Sequence[Planned], workdir: Path, rate: float, price: float, n_workers: int) -> Table:
    """What would run, how long a worker takes and what it costs; '-' where no rate is known."""
    known = runs.RunTable(workdir / "runs.csv").runs() if (workdir / "runs.csv").exists() else {}
    rate = rate or _rate(list(known.values()))
    left = [task for task in tasks if task.run not in known]
    total = sum(task.flops for task in left)
    seconds = total / rate / max(n_workers, 1) if rate else None
    title = f"{len(tasks)} runs, {len(tasks) - len(left)} of them finished; {total:.3g} FLOPs of training left"
    if seconds is not None:
        title += f", about {duration(seconds)} on {max(n_workers, 1)} workers of {rate:.3g} FLOPs/s"
        title += f", {seconds / 3600 * price * max(n_workers, 1):.2f} to pay" if price else ""
    table = Table(title=title, title_justify="left")
    for name in ("run", "fingerprint", "N", "D", "FLOPs", "time", *(("cost",) if price else ())):
        table.add_column(name, justify="left" if name in ("run", "fingerprint") else "right")
    for task in tasks:
        N, D = counts.non_embedding(task.config.model), counts.training_tokens(task.config)
        took = task.flops / rate if rate else None
        time = "finished" if task.run in known else "-" if took is None else duration(took)
        row = [task.name, task.run, f"{N:,d}", f"{D:,d}", f"{task.flops:.3g}", time]
        table.add_row(*row, *([f"{(took or 0) / 3600 * price:.2f}" if took else "-"] if price else []))
    return table


def _rate(records: Sequence[runs.RunRecord]) -> float:
    """FLOPs a second of the finished runs, by their start and end; 0 where there are none."""
    spans = [(np.datetime64(r.end[:19]) - np.datetime64(r.start[:19])) / np.timedelta64(1, "s") for r in records]
    rates = [r.flops_student / span for r, span in zip(records, spans) if span > 0]
    return float(np.median(rates)) if rates else 0.0


def _tabulate(tasks: Sequence[Planned], workdir: Path) -> Table | None:
    """The finished runs by their settings, lowest loss first, on screen and as sweep.csv."""
    records = runs.RunTable(workdir / "runs.csv").runs() if (workdir / "runs.csv").exists() else {}
    finished = sorted((t for t in tasks if t.run in records), key=lambda task: records[task.run].loss)
    if not finished:
        return None
    fields = [field for field, _ in tasks[0].settings]
    figures = ("N", "D", "loss", "loss_se", "L_T", "kl", "flops_student")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", *fields, *figures])
    table = Table(title=f"{len(finished)} of {len(tasks)} runs, lowest loss first", title_justify="left")
    for name in ("run", "N", "D", "loss"):
        table.add_column(name, justify="left" if name == "run" else "right")
    for task in finished:
        record = records[task.run]
        cells = [getattr(record, name) for name in figures]
        writer.writerow([task.run, *(value for _, value in task.settings), *("" if c is None else c for c in cells)])
        table.add_row(task.name, f"{record.N:,d}", f"{record.D:,d}", f"{record.loss:.4f} ± {record.loss_se:.4f}")
    files.atomic_write(workdir / "sweep.csv", text.getvalue())
    return table
