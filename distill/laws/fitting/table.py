"""Tables of runs: files, folders, dicts and data frames in, columns of float64 or text out.

    laws.load_table("wandb.csv", columns={"N": "n_params"}, scale={"D": 1e9}, loss_unit="bits")

files.py reads files, columns.py knows the names of columns, expressions.py selects rows by a rule, checks.py refuses
what cannot be a table of runs, and rows.py selects the rows that a law is fitted to.
"""

import dataclasses
import functools
import hashlib
import html
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypedDict, Unpack, cast

import numpy as np

from distill.config import nearest
from distill.laws.fitting import columns as naming
from distill.laws.fitting import expressions, files
from distill.laws.fitting.checks import DUPLICATES, LOSS_UNITS
from distill.laws.fitting.numerals import is_empty, number
from distill.laws.forms.law import LawError

SHIPPED = files.SHIPPED
shipped = files.shipped
_PLAIN = re.compile(r"[\w./-]+")  # what a rule reads without quotes
_SHOWN = 8  # rows of a table in a notebook


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Table:
    """Columns by name (float64 with nan for empty cells, or text), the file's row numbers, and its sha256.

    `named` maps names that the user gave to the file's columns; both name the same cells in `columns`. `notes` say what
    was done to the rows and how their numbers were read. `duplicates` ("error", "mean", "keep"), `best_of` (names of
    columns) and `flops` ("6ND" or "F") say how a fit uses the rows; `loss_unit` is the unit that the user stated, "" if
    nats were assumed. The cells are in nats in either case.
    """

    columns: Mapping[str, np.ndarray]
    lines: np.ndarray
    source: str = "table"
    digest: str = ""
    named: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    loss_unit: str = ""
    duplicates: str = "error"
    best_of: tuple[str, ...] = ()
    flops: str = "6ND"

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, name: str) -> np.ndarray:
        """The column of a name. Raises LawError with the nearest name."""
        if name not in self.columns:
            known = ", ".join(self.columns)
            raise LawError(f"{self.source}: no column {name!r}; it has {known}.{nearest(name, self.columns)}")
        return self.columns[name]

    def __repr__(self) -> str:
        return f"Table({self.source}: {len(self)} rows; {', '.join(self.columns)})"

    def _repr_html_(self) -> str:
        """The first rows, for a notebook."""
        names, shown = list(self.columns), min(len(self), _SHOWN)
        cell = lambda value: html.escape(f"{value:.6g}" if isinstance(value, float) else str(value))
        head = "".join(f"<th>{html.escape(name)}</th>" for name in ("row", *names))
        body = "".join(
            f"<tr><th>{self.lines[i]}</th>{''.join(f'<td>{cell(self.columns[n][i].item())}</td>' for n in names)}</tr>"
            for i in range(shown)
        )
        more = f"; the first {shown}" if shown < len(self) else ""
        caption = html.escape(f"{self.source}: {len(self)} rows, {len(names)} columns{more}")
        return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def column(self, name: str) -> np.ndarray:
        """The cells of a column, by the table's name or by the law's (N, D, L, ...). Raises LawError."""
        if name not in self.columns and name in naming.ALIASES and naming.candidates(self, name):
            name = naming.find(self, name)
        return self[name]

    def numbers(self, name: str) -> np.ndarray:
        """A column as float64. Raises LawError with the rows whose cells are not finite numbers."""
        cells = column = self[name]
        if column.dtype.kind != "f":
            column = np.array([number(cell) for cell in column])
        bad = ~np.isfinite(column)
        self.refuse(bad, name, "a finite number", self._without(bad, name, cells))
        return column

    def _without(self, bad: np.ndarray, name: str, cells: np.ndarray) -> str:
        """How to leave rows out whose cells of a column are empty, or all of one text, as the row of a sum has."""
        shown = self.named.get(name, name)
        quoted = lambda text: text if _PLAIN.fullmatch(text) else f'"{text}"'
        texts = {str(cell).strip() for cell in cells[bad].tolist()}
        if all(is_empty(text) for text in texts):
            rule = f"has({quoted(shown)})"
        elif len(texts) == 1 and '"' not in (text := texts.pop()) and np.isnan(number(text)):
            rule = f"{quoted(shown)} != {quoted(text)}"
        else:
            return ""
        return f"; to leave such rows out (a total, a run that crashed): --rows='{rule}'" if "'" not in rule else ""

    def refuse(self, bad: np.ndarray, name: str, wanted: str, advice: str = "") -> None:
        """Raises LawError that names the first few rows where `bad` holds, with `advice` at its end."""
        if bad.any():
            where = np.flatnonzero(bad)
            cells = self.column(name)
            rows = ", ".join(f"{self.label(i)} ({cells[i]})" for i in where[:5])
            more = f" and {len(where) - 5} more" if len(where) > 5 else ""
            shown = self.named.get(name, name)
            raise LawError(f"{self.source}: column {shown!r} in row {rows}{more}; wanted {wanted}{advice}.")

    def label(self, row: int) -> str:
        """The number of a row in its file, and its run's folder if it comes from one."""
        folder = self.columns.get("folder")
        return f"{self.lines[row]}" + (f" of {folder[row]}" if folder is not None else "")

    def labels(self) -> list[str]:
        """The label of every row, with the run's name if the table has one."""
        run = next((self.columns[name] for name in naming.RUN if name in self.columns), None)
        named = [f", run {name}" if name else "" for name in run.astype(str)] if run is not None else [""] * len(self)
        return [self.label(i) + named[i] for i in range(len(self))]

    def where(self, rows: np.ndarray | str) -> "Table":
        """The rows of a mask, of indices, or of a rule such as 'L_S > 2.3 and N_S < 1e9' (see expressions)."""
        if isinstance(rows, str):
            rows = self.matching(rows)
        return dataclasses.replace(self, columns={k: v[rows] for k, v in self.columns.items()}, lines=self.lines[rows])

    def matching(self, rule: str) -> np.ndarray:
        """The mask of a rule, [rows]. Raises LawError."""
        return expressions.matching(rule, self)

    def with_column(self, name: str, values: np.ndarray) -> "Table":
        """The table with other cells in a column."""
        return dataclasses.replace(self, columns={**self.columns, name: values})

    def with_notes(self, *notes: str) -> "Table":
        """The table with these notes added, without repetition."""
        return dataclasses.replace(self, notes=(*self.notes, *(note for note in notes if note not in self.notes)))


class DataFrame(Protocol):
    """The part of a data frame (pandas, polars) that is read: its columns' names, and a column by its name."""

    @property
    def columns(self) -> Iterable[str]: ...

    def __getitem__(self, name: str, /) -> Iterable[object]: ...


Columns: TypeAlias = Mapping[str, Iterable[object]]
Runs: TypeAlias = Table | str | os.PathLike | Columns | Sequence[Mapping[str, object]] | DataFrame  # see as_table


class Reading(TypedDict, total=False):
    """How the cells of a table are read: the options of `as_table`, which explains them."""

    scale: Mapping[str, float] | None
    loss_unit: str
    duplicates: str
    best_of: Sequence[str]
    flops: str


def load_table(path: str | os.PathLike, columns: Mapping[str, str] | None = None, **reading: Unpack[Reading]) -> Table:
    """Reads a table of runs: a shipped one ("apple", "micro"), a file, or a folder or a glob of run folders.

    `columns` maps the law's names to the file's: {"N": "params", "D": "tokens"}. Further options are those of
    `as_table`. Raises LawError.
    """
    source = str(path)
    cells = files.read(source)
    table = make_table(cells.names, cells.rows, source, cells.digest, lines=cells.lines)
    return as_table(table.with_notes(*cells.notes), columns, **reading)


def as_table(
    runs: Runs,
    columns: Mapping[str, str] | None = None,
    *,
    scale: Mapping[str, float] | None = None,
    loss_unit: str = "",
    duplicates: str = "",
    best_of: Sequence[str] = (),
    flops: str = "",
) -> Table:
    """The Table of a Table, a path, a dict of columns, or a data frame (pandas, polars), read with these options.

    scale: factors of columns by name, {"N": 1e6}. loss_unit: "nats", "bits" or "perplexity" per token, converted to
    nats. duplicates: "error", "mean" (runs of equal inputs become one with their mean loss) or "keep". best_of: fit the
    run of lowest loss for each combination of these columns. flops: the definition of C if it replaces N or D, "6ND" or
    "F" for 3 F(N) D (Appendix H). Raises LawError.
    """
    if isinstance(runs, str | os.PathLike):
        table = load_table(runs)
    else:
        table = runs if isinstance(runs, Table) else _from_frame(runs)
    for name, value, allowed in (
        ("loss_unit", loss_unit, LOSS_UNITS),
        ("duplicates", duplicates, DUPLICATES),
        ("flops", flops, naming.RULES),
    ):
        if value and value not in allowed:
            raise LawError(f"{name}={value!r}: wanted one of {', '.join(allowed)}.{nearest(value, allowed)}")
    renamed = {want: table[have] for want, have in (columns or {}).items()}
    table = dataclasses.replace(
        table,
        columns={**table.columns, **renamed},
        named={**table.named, **(columns or {})},
        loss_unit=loss_unit or table.loss_unit,
        duplicates=duplicates or table.duplicates,
        best_of=tuple(best_of) or table.best_of,
        flops=flops or table.flops,
    )
    for name, factor in (scale or {}).items():
        if not (np.isfinite(factor) and factor > 0):
            raise LawError(f"scale of {name}: got {factor!r}, wanted a positive number such as 1e6.")
        column = name if name in table.columns else naming.find(table, name)
        note = f"{table.named.get(column, column)} times {factor:g}"
        table = _converted(table, column, functools.partial(operator.mul, factor)).with_notes(note)
    if loss_unit in ("bits", "perplexity"):
        to_nats: Callable[[float], float] = (lambda v: v * np.log(2)) if loss_unit == "bits" else _log
        losses = naming.loss_columns(table)
        for column in losses:
            table = _converted(table, column, to_nats)
        table = table.with_notes(f"{', '.join(losses) or 'no column'} converted from {loss_unit} to nats per token")
    return table


def make_table(
    names: Sequence[str],
    rows: Sequence[Sequence[object]],
    source: str = "table",
    digest: str = "",
    lines: Sequence[int] | None = None,
) -> Table:
    """A table from rows of cells; `lines` are their numbers in the file."""
    if not rows:
        raise LawError(f"{source}: no rows; wanted one row a finished run.")
    return Table(
        {name: _column([row[i] for row in rows]) for i, name in enumerate(names)},
        np.asarray(lines if lines is not None else range(1, len(rows) + 1)),
        source,
        digest or hashlib.sha256(repr((names, rows)).encode()).hexdigest(),
    )


def from_arrays(source: str = "table", **columns: Iterable[object]) -> Table:
    """A table from arrays of equal length."""
    return _from_columns(columns, source)


def _from_columns(columns: Columns, source: str) -> Table:
    cells = {str(name): [_plain(cell) for cell in column] for name, column in columns.items()}
    lengths = {name: len(column) for name, column in cells.items()}
    if len(set(lengths.values())) > 1:
        got = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise LawError(f"{source}: columns of different lengths ({got}); wanted one cell a run in each.")
    return make_table(list(cells), list(zip(*cells.values())), source)


def _from_frame(runs: Columns | Sequence[Mapping[str, object]] | DataFrame) -> Table:
    """Cells from a dict of columns, a list of dicts, or an object with `columns` that is indexed by their names."""
    if isinstance(runs, Mapping):
        return _from_columns(runs, "table")
    if isinstance(runs, list | tuple) and runs and all(isinstance(run, Mapping) for run in runs):
        names = list(dict.fromkeys(name for run in runs for name in run))
        return _from_columns({name: [run.get(name) for run in runs] for name in names}, "table")
    if hasattr(runs, "columns") and hasattr(runs, "__getitem__"):
        frame = cast(DataFrame, runs)
        return _from_columns({name: list(frame[name]) for name in frame.columns}, "table")
    raise LawError(f"runs: got {type(runs).__name__}; wanted a table, a path, a dict of columns, or a data frame.")


def _plain(cell: object) -> object:
    """A numpy scalar as a Python scalar."""
    return cell.item() if isinstance(cell, np.generic) else cell


def _column(cells: Sequence[object]) -> np.ndarray:
    """float64 if every filled cell is a plain number, else text."""
    values = [_plain_number(cell) for cell in cells]
    if any(value == value for value in values) and not any(
        value != value and not is_empty(cell) for value, cell in zip(values, cells)
    ):
        return np.array(values, np.float64)
    return np.array(["" if cell is None else str(cell) for cell in cells])


def _plain_number(cell: Any) -> float:
    """Parses a number without a suffix: 1.3B often names a model, so it stays text until a law reads it."""
    if isinstance(cell, bool):
        return float("nan")
    try:
        return float(cell)
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def _log(value: float) -> float:
    return float(np.log(value)) if value > 0 else float("nan")


def _converted(table: Table, column: str, change: Callable[[float], float]) -> Table:
    """A column with its numbers converted; cells that are not numbers (crashed runs) stay unchanged."""
    numbers = [number(cell) for cell in table[column]]
    cells = [change(value) if value == value else cell for value, cell in zip(numbers, table[column].tolist())]
    values = _column(cells)
    pairs = [pair for pair in table.named.items() if column in pair]  # under both names of a column that the user named
    same = {column, *(name for pair in pairs for name in pair)}
    return dataclasses.replace(table, columns={**table.columns, **dict.fromkeys(same, values)})
