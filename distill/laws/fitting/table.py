"""Tables of runs: CSV, JSONL or parquet in, columns of float64 out, and every bad cell named by its row.

A law names its inputs and output; `rows_of` finds their columns (a few other names are understood, see ALIASES),
checks them, and gives the solver its rows. What cannot be a table of runs is refused here: missing columns, cells that
are not positive numbers, N in millions, the same run twice.
"""

import csv
import dataclasses
import hashlib
import io
import operator
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from distill.config import nearest
from distill.laws.fitting.solver import Rows
from distill.laws.forms.law import Law, LawError
from distill.laws.forms.parameters import FitSetting
from distill.system.files import loads

SHIPPED = ("apple", "micro")
ALIASES = {
    "N_S": ("N_S", "N"),
    "D_S": ("D_S", "D_S_nominal", "D"),
    "L_S": ("L_S", "loss", "L"),
    "L": ("L", "loss"),
    "U": ("U", "D_unique"),
}
_OPERATORS = {"<=": operator.le, ">=": operator.ge, "==": operator.eq, "!=": operator.ne}
_OPERATORS |= {"<": operator.lt, ">": operator.gt}
_ABSENT = ("", "nan", "none", "null")


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Columns by name (float64, nan where a cell is empty, or text), the file's row numbers, and its sha256."""

    columns: Mapping[str, np.ndarray]
    lines: np.ndarray
    source: str = "table"
    digest: str = ""

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, name: str) -> np.ndarray:
        """The column of a name. Raises LawError with the nearest one."""
        if name not in self.columns:
            known = ", ".join(self.columns)
            raise LawError(f"{self.source}: no column {name!r}; it has {known}.{nearest(name, self.columns)}")
        return self.columns[name]

    def numbers(self, name: str) -> np.ndarray:
        """A column as float64. Raises LawError with the rows whose cells are not finite numbers."""
        column = self[name]
        if column.dtype.kind != "f":
            column = np.array([_number(cell) for cell in column])
        self.refuse(~np.isfinite(column), name, "a finite number")
        return column

    def refuse(self, bad: np.ndarray, name: str, wanted: str) -> None:
        """Raises LawError that names the first few rows where `bad` holds."""
        if bad.any():
            where = np.flatnonzero(bad)
            rows = ", ".join(f"{self.lines[i]} ({self[name][i]})" for i in where[:5])
            more = f" and {len(where) - 5} more" if len(where) > 5 else ""
            raise LawError(f"{self.source}: column {name!r} in row {rows}{more}; wanted {wanted}.")

    def where(self, rows: np.ndarray | str) -> "Table":
        """The rows of a mask, of indices, or of a rule such as 'L_S > 2.3 and N_S < 1e9'."""
        if isinstance(rows, str):
            rows = self.matching(rows)
        return dataclasses.replace(self, columns={k: v[rows] for k, v in self.columns.items()}, lines=self.lines[rows])

    def matching(self, rule: str) -> np.ndarray:
        """The mask of a rule: comparisons of a column with a number or a text, joined by 'and'."""
        mask = np.ones(len(self), bool)
        for part in re.split(r"\band\b", rule):
            # Cut, then looked at: one pattern for all of it takes the square of a long line's length.
            name, sign, text = (
                word.strip() for word in (re.split("(<=|>=|==|!=|<|>)", part, maxsplit=1) + ["", ""])[:3]
            )
            if not re.fullmatch(r"[A-Za-z_][\w. ]*", name) or not re.fullmatch(r"\S+", text):
                raise LawError(
                    f"rule {rule!r}: cannot read {part.strip()!r}; wanted such as 'L_S <= 2.3 and N_S > 1e9'."
                )
            name = next((alias for alias in ALIASES.get(name, (name,)) if alias in self.columns), name)
            value = _number(text)
            column = self[name].astype(str) if np.isnan(value) else self.numbers(name)
            mask &= _OPERATORS[sign](column, text.strip("'\"") if np.isnan(value) else value)
        return mask


def load_table(path: str | os.PathLike, columns: Mapping[str, str] | None = None) -> Table:
    """Reads a table of runs: the name of one that ships ("apple", "micro"), or a .csv, .jsonl or .parquet file.

    `columns` maps the law's names to the file's: {"N": "params", "D": "tokens"}. Raises LawError.
    """
    source, place = str(path), shipped(str(path)) if str(path) in SHIPPED else Path(path)
    try:
        content = place.read_bytes()
    except OSError as error:
        hint = nearest(source, SHIPPED)
        raise LawError(f"{source}: cannot be read ({error.strerror}); wanted a table of runs.{hint}") from error
    suffix = place.suffix.lower()
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if suffix not in readers:
        raise LawError(f"{source}: a table of runs is a .csv, .jsonl or .parquet file, got {suffix or 'no suffix'!r}.")
    names, rows, lines = readers[suffix](content, source)
    return make_table(names, rows, source, hashlib.sha256(content).hexdigest(), columns, lines)


def shipped(name: str) -> Path:
    """Where a table that ships with the package lies: "apple", the paper's runs, or "micro", our own."""
    return Path(str(resources.files("distill.laws"))) / "tables" / f"{name}.csv"


def make_table(
    names: Sequence[str],
    rows: Sequence[Sequence[Any]],
    source: str = "table",
    digest: str = "",
    columns: Mapping[str, str] | None = None,
    lines: Sequence[int] | None = None,
) -> Table:
    """A table from rows of cells; `lines` are their numbers in the file."""
    if not rows:
        raise LawError(f"{source}: no rows; wanted one row a finished run.")
    table = Table(
        {name: _column([row[i] for row in rows]) for i, name in enumerate(names)},
        np.asarray(lines if lines is not None else range(1, len(rows) + 1)),
        source,
        digest or hashlib.sha256(repr((names, rows)).encode()).hexdigest(),
    )
    renamed = {want: table[have] for want, have in (columns or {}).items()}
    kept = {k: v for k, v in table.columns.items() if k not in (columns or {}).values()}
    return dataclasses.replace(table, columns=kept | renamed)


def from_arrays(source: str = "table", **columns: Any) -> Table:
    """A table from arrays of equal length."""
    names = list(columns)
    return make_table(names, list(zip(*(np.asarray(columns[name]).tolist() for name in names))), source)


_Cells = tuple[list[str], list[list[Any]], list[int]]  # names, rows, the rows' numbers in the file


def _read_csv(content: bytes, source: str) -> _Cells:
    try:
        lines = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise LawError(f"{source}: not a CSV file in UTF-8 ({error}).") from error
    if not lines:
        raise LawError(f"{source}: empty; wanted a header line and one line a run.")
    names = [name.strip() for name in lines[0]]
    for number, row in enumerate(lines[1:], 2):
        if row and len(row) != len(names):
            raise LawError(f"{source}: row {number} has {len(row)} cells, the header has {len(names)}.")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise LawError(f"{source}: column {twice!r} appears twice in the header.")
    filled = [(number, row) for number, row in enumerate(lines[1:], 2) if row]
    return names, [row for _, row in filled], [number for number, _ in filled]


def _read_jsonl(content: bytes, source: str) -> _Cells:
    objects, lines = [], []
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        try:
            entry = loads(line) if line.strip() else None
        except ValueError as error:
            raise LawError(f"{source}: row {number} is not JSON ({error}).") from error
        if entry is not None and not isinstance(entry, dict):
            raise LawError(f"{source}: row {number} is {type(entry).__name__}, wanted an object per line.")
        if entry is not None:
            objects.append(entry)
            lines.append(number)
    names = list(dict.fromkeys(name for entry in objects for name in entry))
    return names, [[entry.get(name, "") for name in names] for entry in objects], lines


def _read_parquet(content: bytes, source: str) -> _Cells:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise LawError(f"{source}: parquet needs pyarrow (pip install pyarrow), or save the table as CSV.") from error
    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
        rows = [list(row) for row in zip(*(column.to_pylist() for column in table.columns))]
        names = table.column_names
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise LawError(f"{source}: not a whole parquet file ({' '.join(str(error).split()):.200}).") from error
    return names, rows, list(range(1, len(rows) + 1))


def _number(cell: Any) -> float:
    if isinstance(cell, bool):
        return float("nan")
    try:
        return float(cell)
    except (TypeError, ValueError):
        return float("nan")


def _column(cells: Sequence[Any]) -> np.ndarray:
    """float64 where every filled cell is a number, else text."""
    filled = [cell for cell in cells if cell is not None and str(cell).strip().lower() not in _ABSENT]
    values = np.array([_number(cell) for cell in filled])
    if len(filled) and not np.isnan(values).any():
        return np.array([_number(cell) for cell in cells], np.float64)
    return np.array(["" if cell is None else str(cell) for cell in cells])


def find(table: Table, name: str) -> str:
    """The table's column for a law's input or output. Raises LawError."""
    names = ALIASES.get(name, (name,))
    for alias in names:
        if alias in table.columns:
            return alias
    close = nearest(name, table.columns) or nearest(name.lower(), table.columns)
    raise LawError(
        f"{table.source}: no column for {name} (looked for {', '.join(names)}); it has {', '.join(table.columns)}."
        f"{close} Name it with columns: {name}=ITS_NAME."
    )


def select(form: type[Law], table: Table) -> Table:
    """The runs that a form describes, where the table says which are supervised and which distilled."""
    kinds = table.columns.get("kind")
    if kinds is None or not set(kinds.tolist()) & {"supervised", "distillation"}:
        return table
    kind = "distillation" if "L_T" in form.inputs else "supervised"
    if not (kinds == kind).any():
        raise LawError(f"{table.source}: no row of kind {kind!r}, which the form {form.name} needs.")
    return table.where(kinds == kind)


def rows_of(form: type[Law], table: Table, given: Mapping[str, Law] | None = None, units: bool = True) -> Rows:
    """The checked inputs and target of a form. Raises LawError; `units=False` accepts unusual magnitudes."""
    names = {name: find(table, name) for name in (*form.inputs, form.output)}
    arrays = {name: table.numbers(column) for name, column in names.items()}
    for name, column in names.items():
        table.refuse(arrays[name] <= 0, column, "a positive number")
    _refuse_duplicates(table, list(names.values()))
    if units:
        _refuse_units(table, names, arrays)
    target = arrays[form.output]
    centre = {name: float(np.log(arrays[name]).mean()) for name in form.inputs}
    return Rows(
        inputs=tuple(arrays[name] for name in form.inputs),
        target=target,
        setting=FitSetting(centre, float(np.exp(np.log(target).mean())), float(target.min())),
        given=given or {},
    )


def _refuse_duplicates(table: Table, used: Sequence[str]) -> None:
    """Refuses one run listed twice: the same `run`, or rows equal in every column of the table."""
    keys = ["run"] if "run" in table.columns else list(table.columns)
    seen: dict[tuple, int] = {}
    for line, key in zip(table.lines, zip(*(table.columns[name].tolist() for name in keys))):
        if key in seen:
            raise LawError(f"{table.source}: rows {seen[key]} and {line} are the same run twice; keep one of them.")
        seen[key] = int(line)


def _refuse_units(table: Table, names: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> None:
    """Refuses magnitudes that are no counts of parameters and tokens, or no loss in nats per token."""
    model = next((n for n in ("N", "N_S") if n in arrays), None)
    data = next((n for n in ("D", "D_S") if n in arrays), None)
    advice = "Convert the column, or accept it as it is with units=asis."
    if model and data:
        ratio = float(np.median(arrays[data] / arrays[model]))
        if not 1e-4 < ratio < 1e6:
            what = f"{names[model]} in millions or billions" if ratio >= 1 else f"{names[data]} in millions or billions"
            raise LawError(f"{table.source}: the median run has {ratio:.2g} tokens per parameter: is {what}? {advice}")
    for name in (model, data):
        if name and np.median(arrays[name]) < 100:
            low, high = arrays[name].min(), arrays[name].max()
            raise LawError(
                f"{table.source}: column {names[name]!r} runs from {low:g} to {high:g}; wanted a plain count, "
                f"not millions or billions. {advice}"
            )
    for name in names:
        if name.startswith("L") and not 0.01 < np.median(arrays[name]) < 30:
            raise LawError(
                f"{table.source}: the median of column {names[name]!r} is {np.median(arrays[name]):g}; wanted a "
                f"cross-entropy in nats per token. {advice}"
            )
