"""A sweep: one config, some fields with several values, and a run for every combination."""

import contextlib
import csv
import dataclasses
import io
import itertools
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from distill import config as configs
from distill import data
from distill.config import ConfigError, DataConfig, ExperimentConfig, counts, tree
from distill.laws import from_arrays
from distill.records import runs
from distill.records.study_table import StudyTable
from distill.study import driver, forecast, matrix, slurm
from distill.study.execute import execute, print_failures
from distill.study.matrix import PlannedRun
from distill.study.run import shared_folder
from distill.study.tables import finished
from distill.system import files, process
from distill.system.numbers import duration
from distill.training import inputs

BACKENDS = ("local", "slurm", "ray", "gke", "print")
_SPACES: dict[str, Callable[..., np.ndarray]] = {"linspace": np.linspace, "logspace": np.geomspace}


Settings = tuple[tuple[str, str], ...]  # (field, value) of every swept field


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
    """Fields that change together: `rows` holds their values, as texts, one row per choice."""

    fields: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def axis(line: str) -> Axis:
    """One axis from 'FIELD=VALUES', or several fields in step: 'FIELD=VALUES;FIELD=VALUES'.

    VALUES is a comma-separated list of values, of range(start,stop[,step]) as in Python, and of linspace(from,to,n) and
    logspace(from,to,n): n values from one to the other with equal differences or equal ratios. Raises ConfigError.
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
        counted = ", ".join(f"{field} {n}" for field, n in lengths.items())
        raise ConfigError(f"sweep: fields that change together need equally many values; got {counted}")
    return Axis(fields=tuple(columns), rows=tuple(zip(*columns.values())))


def _values(field: str, item: str) -> list[str]:
    """The texts that an item of a list expands to, each valid for the field's type."""
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
        values = _SPACES[name](low, high, count).tolist()
    except (TypeError, ValueError) as error:
        wanted = "range(start,stop[,step])" if name == "range" else f"{name}(from,to,n)"
        raise ConfigError(f"sweep: {field}: cannot read {item!r} ({error}); wanted {wanted}") from None
    return [_text(field, value) for value in values]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float(tree.parse_count(text))


def _text(field: str, value: float) -> str:
    """A number as text for the field: an integer if it is whole, or if the field needs one."""
    text = str(round(value)) if np.isclose(value, round(value), rtol=1e-12, atol=0) else f"{value:.6g}"
    try:
        tree.parse(ExperimentConfig, field, text)
    except ConfigError:
        text = str(round(value))
        tree.parse(ExperimentConfig, field, text)
    return text


def expand(
    config: ExperimentConfig,
    axes: Sequence[Axis],
    workdir: Path,
    where: str = "",
    places: Sequence[str] = (),
    preview: bool = False,
) -> list[PlannedRun]:
    """Every combination once, the last axis fastest; `where` is a rule over N, D, C (FLOPs) and the swept fields.

    `places` are lines as those of study.places, by N of the run; a teacher from elsewhere does not count.
    Builds the token stores that are missing; with `preview` in a temporary folder, so that nothing is left. Raises
    ConfigError for an impossible value, naming the combination, and if no combination is left.
    """
    names = _short_names([field for each in axes for field in each.fields])
    combined: list[tuple[str, Settings, inputs.ResolvedRun]] = []
    for rows in itertools.product(*(each.rows for each in axes)):
        settings = tuple(zip(names, (text for row in rows for text in row)))
        name = " ".join(f"{names[field]}={text}" for field, text in settings) or "as it is"
        with _named(name):
            run = config
            for field, text in settings:
                run = tree.replace(run, field, tree.parse(ExperimentConfig, field, text))
            combined.append((name, settings, inputs.resolve(run)))
    planned: dict[str, PlannedRun] = {}
    texts: dict[DataConfig, DataConfig] = {}  # only now, so that a sweep that is refused leaves nothing
    for name, settings, resolved in combined:
        with _named(name):
            given = resolved.config.data
            texts[given] = texts.get(given) or _identified(resolved, workdir, preview)
        run = dataclasses.replace(resolved.config, data=texts[given])
        fingerprint, trunk = configs.fingerprint(run), configs.trunk_fingerprint(run)
        task = PlannedRun(name=name, config=run, run=fingerprint, trunk=trunk, stage=0, settings=settings)
        planned.setdefault(fingerprint, task)
    tasks = _matching(list(planned.values()), names, where) if where else list(planned.values())
    if not tasks:
        raise ConfigError(f"sweep: no combination is left by --where={where!r}")
    return matrix.placed(places, tasks)


def _identified(run: inputs.ResolvedRun, workdir: Path, preview: bool) -> DataConfig:
    """The text of a run, known by its content."""
    if preview:
        with inputs.preview(run, workdir) as (seen, _):
            return seen.config.data
    text = run.config.data
    return text.identified(data.open_store(text, text.cache or workdir / "data").fingerprint)


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors of a combination say which."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"sweep: {name}: {error}") from None


def _short_names(fields: list[str]) -> dict[str, str]:
    """The last part of every swept field, without a trailing underscore, or the whole field if two would be equal."""
    if repeated := [field for field in fields if fields.count(field) > 1]:
        raise ConfigError(f"sweep: {repeated[0]} is swept twice")
    short = {field: field.rpartition(".")[2].rstrip("_") for field in fields}
    return short if len(set(short.values())) == len(fields) else {field: field for field in fields}


def _matching(tasks: list[PlannedRun], names: dict[str, str], where: str) -> list[PlannedRun]:
    """The tasks that meet a rule such as 'N < 1e6 and learning_rate > 0.01'."""
    if not tasks:
        return []
    columns: dict[str, list[float | str]] = {name: [] for name in ("N", "D", "C", *names.values())}
    for task in tasks:
        columns["N"].append(float(counts.non_embedding(task.config.model)))
        columns["D"].append(float(counts.training_tokens(task.config)))
        columns["C"].append(task.flops)
        for field, text in task.settings:
            value = tree.parse(ExperimentConfig, field, text)
            columns[names[field]].append(float(value) if type(value) in (int, float) else text)
    return [task for task, keep in zip(tasks, from_arrays(**columns).matching(where)) if keep]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Options of a sweep.

    where: a rule over N, D, C (FLOPs) and the swept fields that a combination must meet. places: lines as those of
    study.places. n_workers: processes (0: one per core). pack: runs of one shape that a worker trains together. rate:
    FLOPs per second of a worker, for the listing (0: that of the finished runs). price: of one worker-hour, in any
    currency. source, overrides: the config file and the flags of the config, for the printed commands.
    """

    where: str = ""
    backend: str = "local"  # one of BACKENDS; those of clusters are for sweep_elsewhere
    places: tuple[str, ...] = ()
    n_workers: int = 0
    pack: int = 1
    rate: float = 0.0
    price: float = 0.0
    source: str = "configs/train.py"
    overrides: tuple[str, ...] = ()
    dry_run: bool = False


def run(
    config: ExperimentConfig, axes: Sequence[Axis], workdir: str | Path, options: SweepOptions = SweepOptions()
) -> int:
    """Runs the remaining runs of a sweep and tabulates it: runs/, runs.csv, curves.csv and sweep.csv in `workdir`.

    On this machine, or as printed commands, or as a list (`dry_run`, for every backend). Returns 1 if runs failed, else
    0; the same call retries them. Raises ConfigError for an impossible value, or a run for several hosts.
    """
    console, workdir = Console(), shared_folder(workdir)
    if options.backend == "print" and options.places:
        raise ConfigError("--place: a printed command runs where it is typed; leave it out, or choose another backend")
    tasks = expand(config, axes, workdir, options.where, options.places, preview=options.dry_run)
    if options.dry_run:
        console.print(listing(tasks, workdir, options))
        if options.backend not in ("local", "print"):
            console.print(forecast.jobs(tasks), highlight=False)
        return 0
    if options.backend == "print":
        return _print_commands(tasks, workdir, options)
    matrix.refuse_several_hosts(tasks)
    slurm.refuse_beside_jobs(workdir)
    with process.folder_lock(workdir):
        driver.refuse_beside(workdir)
        outcome = execute(
            tasks,
            workdir,
            console,
            note={"command": shlex.join(options.overrides)},
            n_workers=options.n_workers or len(process.cores()),
            pack=options.pack,
        )
        show(tasks, workdir, console)
    return print_failures(outcome, console)


def show(tasks: Sequence[PlannedRun], workdir: Path, console: Console) -> None:
    """Writes sweep.csv and prints the finished runs, lowest loss first."""
    if table := _tabulate(tasks, workdir):
        console.print(table)


def _print_commands(tasks: Sequence[PlannedRun], workdir: Path, options: SweepOptions) -> int:
    """Prints a command for each remaining run."""
    left = [task for task in tasks if finished(workdir, task) is None]
    print("\n".join(shlex.join(command(task, workdir, options)) for task in left))
    return 0


def command(task: PlannedRun, workdir: Path, options: SweepOptions) -> list[str]:
    """The launch.train command of one run, with the folder in which the sweep will look for it."""
    folder = workdir / "runs" / task.run
    flags = [*options.overrides, *(f"--config.{field}={text}" for field, text in task.settings)]
    if not task.config.data.cache:
        flags.append(f"--config.data.cache={workdir / 'data'}")
    return ["python", "-m", "launch.train", f"--config={options.source}", *flags, f"--workdir={folder}"]


def listing(tasks: Sequence[PlannedRun], workdir: Path, options: SweepOptions) -> Table:
    """The runs that would start, their time on one worker and their cost; '-' if no rate is known."""
    table_of_runs = StudyTable.read(workdir / "runs.csv")
    known, price, n_workers = table_of_runs.by_fingerprint, options.price, max(options.n_workers, 1)
    rate = options.rate or _rate(table_of_runs.runs)
    left = [task for task in tasks if task.run not in known]
    total = sum(task.flops for task in left)
    title = f"{len(tasks)} runs, {len(tasks) - len(left)} of them finished; {total:.3g} FLOPs of training left"
    if rate:
        seconds = total / rate / n_workers
        title += f", about {duration(seconds)} on {n_workers} workers of {rate:.3g} FLOPs/s"
        title += f", {seconds / 3600 * price * n_workers:.2f} to pay" if price else ""
    table = Table(title=title, title_justify="left")
    for name in ("run", "fingerprint", "N", "D", "FLOPs", "time", *(("cost",) if price else ())):
        table.add_column(name, justify="left" if name in ("run", "fingerprint") else "right", overflow="fold")
    for task in tasks:
        N, D = counts.non_embedding(task.config.model), counts.training_tokens(task.config)
        took = task.flops / rate if rate else None
        time = "finished" if task.run in known else "-" if took is None else duration(took)
        row = [task.name, task.run, f"{N:,d}", f"{D:,d}", f"{task.flops:.3g}", time]
        table.add_row(*row, *([f"{(took or 0) / 3600 * price:.2f}" if took else "-"] if price else []))
    return table


def _rate(records: Sequence[runs.RunRecord]) -> float:
    """FLOPs per second of the finished runs, from their start and end; 0 if there are none."""
    spans = [(np.datetime64(r.end[:19]) - np.datetime64(r.start[:19])) / np.timedelta64(1, "s") for r in records]
    rates = [r.flops_student / span for r, span in zip(records, spans) if span > 0]
    return float(np.median(rates)) if rates else 0.0


def _tabulate(tasks: Sequence[PlannedRun], workdir: Path) -> Table | None:
    """Prints the finished runs by their settings, lowest loss first, and writes sweep.csv."""
    records = StudyTable.read(workdir / "runs.csv").by_fingerprint
    ended = sorted((t for t in tasks if t.run in records), key=lambda task: records[task.run].loss)
    if not ended:
        return None
    fields = [field for field, _ in tasks[0].settings]
    figures = ("N", "D", "loss", "loss_se", "L_T", "kl", "flops_student")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", *fields, *figures])
    table = Table(title=f"{len(ended)} of {len(tasks)} runs, lowest loss first", title_justify="left")
    for name in ("run", "N", "D", "loss"):
        table.add_column(name, justify="left" if name == "run" else "right")
    for task in ended:
        record = records[task.run]
        cells = [getattr(record, name) for name in figures]
        writer.writerow([task.run, *(value for _, value in task.settings), *("" if c is None else c for c in cells)])
        table.add_row(task.name, f"{record.N:,d}", f"{record.D:,d}", f"{record.loss:.4f} ± {record.loss_se:.4f}")
    files.atomic_write(workdir / "sweep.csv", text.getvalue())
    return table
