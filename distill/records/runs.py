"""The runs table: one row per finished run, appended atomically, in a CSV that a spreadsheet opens.

runs.csv holds RunRecords, curves.csv the losses during training. Appending takes a lock, cuts off a line that a killed
writer left torn, writes its own line in one call and syncs it. Standard library only.
"""

import csv
import dataclasses
import fcntl
import io
import itertools
import json
import math
import os
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from distill.config import DistillError, nearest, teachers_of
from distill.system.files import atomic_write, loads

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

R = TypeVar("R", bound="DataclassInstance")


_KEYS = {"keys": "columns"}  # metadata of a field that is a dict: its keys are columns of the table


class TableError(DistillError):
    """A runs table that cannot be read: which file, which row, what was wanted."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A finished run. Losses are validation cross-entropies in nats per token; None if not applicable.

    The defaults suit a published model: its size and tokenizer are known, its data and losses are not.
    """

    run: str  # the config's fingerprint
    kind: str  # supervised | distillation | generated: without a signal, on text that `teacher` wrote
    N: int  # non-embedding parameters (of the student, where there is a teacher)
    D: int = 0  # training tokens: every predicted position, those of weight zero included
    D_unique: int = 0
    loss: float = math.nan
    loss_se: float = math.nan  # standard error from the finite validation set
    L_T: float | None = None  # the teacher's loss on the same validation set
    teacher: str | None = None  # the teacher's run
    N_T: int | None = None
    D_T: int | None = None
    flops_student: float = 0.0  # 3 F(N) D
    flops_teacher: float = 0.0  # F(N_T) D: the teacher's forward passes on these tokens, or what writing them took
    lambda_: float | None = None
    tau: float | None = None
    seed: int = 0
    trunk: str  # runs of one trunk share their constant-rate part: the cluster of a bootstrap
    model: str  # width x layers
    tokenizer: str
    bits_per_byte: float = math.nan
    kl: float | None = None  # KL(teacher || student) on the validation set
    agreement: float | None = None  # share of tokens on which both name the same likeliest token
    ece: float = math.nan  # expected calibration error, 21 bins
    start: str = ""
    end: str = ""
    machine: str = ""
    commit: str = ""
    # Of mixtures of experts, whose N is what a token uses (distill/config/counts.py); None for dense models.
    N_total: int | None = None  # all non-embedding parameters
    N_T_total: int | None = None  # likewise of the teacher
    # On the tasks of eval.tasks, by 'task:metric': each is a column of runs.csv with that name.
    scores: dict[str, float] | None = dataclasses.field(default=None, hash=False, metadata=_KEYS)

    @property
    def teachers(self) -> tuple[str, ...]:
        """The runs that teach: one, or those of a mixture."""
        return teachers_of(self.teacher or "")


def later_fields(cls: type["DataclassInstance"]) -> set[str]:
    """The last fields of a record that may be None, up to the first that may not: tables of before lack them."""
    fields = itertools.takewhile(lambda field: field.default is None, reversed(dataclasses.fields(cls)))
    return {field.name for field in fields}


def as_columns(
    records: Sequence["DataclassInstance"], columns: Sequence[str] = ()
) -> tuple[list[str], list[list[Any]]]:
    """The names of the columns of records, `columns` first, and a row of values each; None where one has nothing.

    A column is a field without its trailing underscore, or a key of a field that is a dict.
    """
    rows = [_flat(record) for record in records]
    names = list(dict.fromkeys(itertools.chain(columns, *rows)))
    return names, [[row.get(name) for name in names] for row in rows]


def _flat(record: "DataclassInstance") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        found |= (value or {}) if field.metadata == _KEYS else {field.name.rstrip("_"): value}
    return found


def _cells(row: dict[str, Any], columns: Sequence[str]) -> list[Any]:
    """A row in the order of the columns; empty where it has nothing."""
    return ["" if row.get(name) is None else row[name] for name in columns]


class RecordTable(Generic[R]):
    """A CSV whose columns are the fields of a dataclass, without a field's trailing underscore.

    Where a field is a dict, columns whose name has a colon are its keys; they stand at the end.
    """

    def __init__(self, path: str | Path, cls: type[R]):
        self.path, self._cls = Path(path), cls
        hints = {name: typing.get_args(hint) or (hint,) for name, hint in typing.get_type_hints(cls).items()}
        self._open = next((field.name for field in dataclasses.fields(cls) if field.metadata == _KEYS), "")
        hints.pop(self._open, None)
        self.columns = [name.rstrip("_") for name in hints]
        # Field, column, type, whether a cell may be empty.
        self._cells = [(name, name.rstrip("_"), kinds[0], type(None) in kinds) for name, kinds in hints.items()]
        self._later = {name.rstrip("_") for name in later_fields(cls)}

    @contextmanager
    def _locked(self) -> Iterator[io.FileIO]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with open(self.path, "ab+", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                # Another writer may have put a table with more columns in its place meanwhile.
                if self.path.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)):
                    yield file
                    return

    def append(self, rows: Sequence[R]) -> None:
        """Adds all rows; if killed, it leaves at worst a torn last line that the next append removes."""
        with self._locked() as file:
            self._write(file, rows)

    def _write(self, file: io.FileIO, rows: Sequence[R]) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        file.seek(0)
        present = file.read()
        whole = present[: present.rfind(b"\n") + 1]
        if len(whole) < len(present):
            file.truncate(len(whole))
        header = next(csv.reader(io.StringIO(whole[: whole.find(b"\n") + 1].decode("utf-8", "replace"))), self.columns)
        values = [_flat(row) for row in rows]
        if any(row[name] is not None for row in values for name in row.keys() - set(header)):
            atomic_write(self.path, self._widened(whole, values))
            return
        if not whole:
            writer.writerow(self.columns)
        writer.writerows([_cells(row, header) for row in values])
        file.write(text.getvalue().encode())
        os.fsync(file.fileno())

    def _widened(self, whole: bytes, values: list[dict[str, Any]]) -> str:
        """The table with all of today's columns, and further rows."""
        before, *lines = list(csv.reader(io.StringIO(whole.decode("utf-8")))) or [[]]
        cells = [dict(zip(before, line)) for line in lines] + values
        columns = list(dict.fromkeys(itertools.chain(self.columns, before, *values)))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cells(row, columns) for row in cells])
        return text.getvalue()

    def load(self) -> list[R]:
        """All complete rows. Raises TableError for columns or cells that do not fit."""
        return self.parse(self.path.read_bytes()) if self.path.exists() else []

    def parse(self, content: bytes) -> list[R]:
        """All complete rows of this table's file content; an unterminated line is skipped. Raises TableError."""
        try:
            text = content.decode("utf-8")
            lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
        except (csv.Error, ValueError) as error:
            raise TableError(f"{self.path}: not a CSV file in UTF-8 ({error})") from None
        header = lines[0] if lines else self.columns
        for name in header:
            if name not in self.columns and not self._is_key(name):
                raise TableError(f"{self.path}: there is no column {name!r}.{nearest(name, self.columns)}")
        missing = [name for name in self.columns if name not in header and name not in self._later]
        if missing:
            raise TableError(f"{self.path}: column {missing[0]!r} is missing; got {', '.join(header)}")
        return [self._row(dict(zip(header, cells)), line) for line, cells in enumerate(lines[1:], 2)]

    def _is_key(self, column: str) -> bool:
        return bool(self._open) and ":" in column

    def _row(self, cells: dict[str, str], line: int) -> R:
        def value(kind: Callable[[str], Any], column: str) -> Any:
            try:
                return kind(cells.get(column, ""))
            except ValueError:
                raise TableError(
                    f"{self.path}, line {line}, column {column}: got {cells.get(column, '')!r}, wanted {kind.__name__}"
                ) from None

        values: dict[str, Any] = {}
        for name, column, kind, optional in self._cells:
            values[name] = None if optional and not cells.get(column) else value(kind, column)
        if keys := [column for column, text in cells.items() if self._is_key(column) and text]:
            values[self._open] = {column: value(float, column) for column in keys}
        return self._cls(**values)


class RunTable(RecordTable[RunRecord]):
    """runs.csv: any number of processes append to it; a run that it already has is not added again."""

    def __init__(self, path: str | Path):
        super().__init__(path, RunRecord)

    def add(self, record: RunRecord) -> None:
        """Adds a finished run once, even if several processes finish it at the same time."""
        with self._locked() as file:
            if record.run not in self.runs():
                self._write(file, [record])

    def runs(self) -> dict[str, RunRecord]:
        """The finished runs by fingerprint."""
        return {record.run: record for record in self.load()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """A training loss during the run: the mean over the steps since the previous point."""

    run: str
    step: int
    tokens: int
    flops: float
    loss: float


class CurveTable(RecordTable[CurvePoint]):
    """curves.csv: the training losses of all runs of a study."""

    def __init__(self, path: str | Path):
        super().__init__(path, CurvePoint)


def save_record(record: RunRecord, path: str | Path) -> None:
    """Writes result.json atomically: its presence means that the run is finished."""
    path = Path(path)
    values = dataclasses.asdict(record)
    if not all(math.isfinite(v) for v in values.values() if isinstance(v, float)):
        raise DistillError(f"{path}: the run ended with a loss that is not finite; lower optim.learning_rate")
    atomic_write(path, json.dumps(values, indent=1) + "\n")


def load_record(path: str | Path) -> RunRecord | None:
    """The finished run of a result.json, or None if there is none."""
    path = Path(path)
    if not path.exists():
        return None
    try:
        values = loads(path.read_text("utf-8"))
        later = later_fields(RunRecord)
        names = [field.name for field in dataclasses.fields(RunRecord) if field.name not in later]
        missing = [name for name in names if name not in values]
        if missing:
            raise ValueError(f"there is no {missing[0]!r}")
        return RunRecord(**values)
    except (ValueError, TypeError) as error:
        raise TableError(f"{path}: cannot be read as a finished run ({error}); delete it to run again") from None
