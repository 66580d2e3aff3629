"""Reads files of runs as cells: .csv, .tsv, .xlsx, .json, .jsonl, .parquet, and folders of finished runs.

Accepts what W&B, MLflow, pandas and Excel write: byte order marks (UTF-8 and UTF-16), Excel's first line "sep=;",
commas, semicolons or tabs between cells, decimal commas, comment lines (#), empty trailing columns and rows, nested
JSON objects (names joined by dots). Nothing is unpickled or executed.
"""

import codecs
import csv
import dataclasses
import glob
import hashlib
import io
import re
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from distill.config import nearest
from distill.laws.fitting.numerals import is_empty, number
from distill.laws.forms.law import LawError
from distill.system.files import loads

SHIPPED = (
    "apple",
    "micro",
    "lambda",
    "chains",
    "chains-half",
    "ensembles",
    "repeats",
    "teachers",
    "signals",
    "entropy",
    "knee",
    "tuned",
    "tokenizers",
    "tokenizers-smollm2",
)
RUN = "result.json"  # the file of a finished run
RUNS = "runs.csv"  # the file of a study or a sweep
_DELIMITERS = (",", ";", "\t")
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?[kKmMbBtT]?")


@dataclasses.dataclass(frozen=True)
class Cells:
    """A table as read: names [columns], rows of cells, the rows' line numbers in the file, notes, the sha256."""

    names: Sequence[str]
    rows: Sequence[Sequence[Any]]
    lines: Sequence[int]
    notes: tuple[str, ...] = ()
    digest: str = ""


def read(source: str) -> Cells:
    """The cells of a shipped table, a file, the folder of a run, sweep or study, or a glob of them.

    Raises LawError.
    """
    if source in SHIPPED:
        return _read_file(shipped(source), source)
    path = Path(source)
    if path.is_dir():
        return _read_folders([path, *sorted(child for child in path.iterdir() if child.is_dir())], source)
    if any(mark in source for mark in "*?[") and not path.exists():
        matches = [Path(name) for name in sorted(glob.glob(source))]
        if not matches:
            raise LawError(f"{source}: no file or folder matches; wanted run folders such as 'runs/*'.")
        return _read_folders(matches, source)
    return _read_file(path, source)


def shipped(name: str) -> Path:
    """The path of a table shipped with the package: "apple", the paper's runs, or one of our own studies."""
    return Path(str(resources.files("distill.laws"))) / "tables" / f"{name}.csv"


def _read_file(path: Path, source: str) -> Cells:
    try:
        content = path.read_bytes()
    except OSError as error:
        hint = nearest(source, SHIPPED)
        raise LawError(f"{source}: cannot be read ({error.strerror}); wanted a table of runs.{hint}") from error
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise LawError(
            f"{source}: a table of runs is a {', '.join(READERS)} file or a folder of runs, got "
            f"{suffix or 'no suffix'!r}."
        )
    return dataclasses.replace(READERS[suffix](content, source), digest=hashlib.sha256(content).hexdigest())


def _text(content: bytes, source: str, kind: str) -> str:
    """Decodes UTF-8, or UTF-16 with its mark; LawError for anything else."""
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise LawError(f"{source}: not a {kind} file in UTF-8 ({error}); save it as UTF-8.") from error


def _read_csv(content: bytes, source: str, delimiter: str = "") -> Cells:
    text = _text(content, source, "CSV")
    first, _, rest = text.partition("\n")
    declared = re.fullmatch(r'"?sep=(.)"?[\s,;]*', first)  # Excel's line that declares the delimiter
    if declared:
        text, delimiter = rest, declared[1]
    delimiter = delimiter or _delimiter(text)
    try:
        records = list(csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter))
    except csv.Error as error:
        raise LawError(f"{source}: not a CSV file ({error}).") from error
    offset = 2 if declared else 1
    numbered = [(line, _trimmed(row)) for line, row in enumerate(records, offset)]
    comments = [row for _, row in numbered if row and _is_comment(row)]
    filled = [(line, row) for line, row in numbered if row and not _is_comment(row)]
    if not filled:
        raise LawError(f"{source}: empty; wanted a header line and one line a run.")
    names, body = filled[0][1], filled[1:]
    commented = [comments[-1][0].strip().removeprefix("#"), *comments[-1][1:]] if comments else []
    if len(commented) == len(names) > 1 and all(_is_number(cell) for cell in names):  # numpy.savetxt's format
        names, body = commented, filled
    names = _names([name.strip() for name in names], source)
    rows = []
    for line, row in body:
        whole = len(records[line - offset])  # with its trailing empty cells
        if len(row) > len(names) or whole < len(names):
            raise LawError(f"{source}: row {line} has {whole} cells, the header has {len(names)}.")
        rows.append([*row, *[""] * (len(names) - len(row))])
    if delimiter != ",":
        rows = _with_decimal_points(rows)
    return Cells(names, rows, [line for line, _ in body])


def _delimiter(text: str) -> str:
    """The most frequent of comma, semicolon and tab in the first line that is not a comment."""
    lines = (line for line in io.StringIO(text) if line.strip() and not line.startswith("#"))
    header = re.sub(r'"[^"]*"', "", next(lines, ""))
    return max(_DELIMITERS, key=header.count)


def _trimmed(row: list[str]) -> list[str]:
    """A row without its trailing empty cells."""
    while row and not row[-1].strip():
        row = row[:-1]
    return row


def _is_comment(row: list[str]) -> bool:
    """Whether a line is a comment: '# exported ...'. A column named '#' is not."""
    return row[0].lstrip().startswith("#") and not (row[0].strip() == "#" and len(row) > 1)


def _is_number(cell: str) -> bool:
    return number(cell) == number(cell)


def _with_decimal_points(rows: list[list[str]]) -> list[list[str]]:
    """Writes 2,31 as 2.31 in columns whose commas cannot all be thousands separators (as in 1,300)."""
    for column in range(len(rows[0]) if rows else 0):
        commas = [row[column].strip() for row in rows if "," in row[column]]
        decimal = all(_DECIMAL_COMMA.fullmatch(cell) for cell in commas)
        if commas and decimal and not all(re.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}", cell) for cell in commas):
            for row in rows:
                row[column] = row[column].replace(",", ".")
    return rows


def _names(names: list[str], source: str) -> list[str]:
    """The header's names; an unnamed column (pandas' index) gets its number."""
    names = [name or f"column {i}" for i, name in enumerate(names, 1)]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise LawError(f"{source}: column {twice!r} appears twice in the header.")
    return names


def _read_tsv(content: bytes, source: str) -> Cells:
    return _read_csv(content, source, "\t")


def _read_jsonl(content: bytes, source: str) -> Cells:
    objects, lines = [], []
    # Only "\n" ends a line: a JSON text may contain U+2028 and similar separators unescaped.
    for line, text in enumerate(_text(content, source, "JSON lines").split("\n"), 1):
        try:
            entry = loads(text) if text.strip() else None
        except ValueError as error:
            raise LawError(f"{source}: row {line} is not JSON ({error}).") from error
        if entry is not None and not isinstance(entry, dict):
            raise LawError(f"{source}: row {line} is {type(entry).__name__}, wanted an object per line.")
        if entry is not None:
            objects.append(entry)
            lines.append(line)
    return _from_objects(objects, lines)


def _read_json(content: bytes, source: str) -> Cells:
    """Reads a list of objects, or DataFrame.to_json's output with orient records, split, table, columns or list."""
    try:
        tree = loads(_text(content, source, "JSON"))
    except ValueError as error:
        raise LawError(f"{source}: not JSON ({error}).") from error
    wanted = "wanted a list of objects, one a run, or an object of columns"
    if isinstance(tree, dict) and isinstance(tree.get("data"), list):
        data, columns = tree["data"], tree.get("columns")
        if isinstance(columns, list) and all(isinstance(row, list) and len(row) == len(columns) for row in data):
            tree = [dict(zip(map(str, columns), row)) for row in data]
        else:
            tree = data
    if isinstance(tree, dict) and tree and all(isinstance(column, dict | list) for column in tree.values()):
        columns = [list(column.values()) if isinstance(column, dict) else column for column in tree.values()]
        if len({len(column) for column in columns}) > 1:
            raise LawError(f"{source}: its columns have {', '.join(str(len(c)) for c in columns)} cells; {wanted}.")
        tree = [dict(zip(tree, row)) for row in zip(*columns)]
    if not isinstance(tree, list) or not all(isinstance(entry, dict) for entry in tree):
        raise LawError(f"{source}: {wanted}.")
    return _from_objects(tree, range(1, len(tree) + 1))


def _from_objects(objects: Iterable[dict[str, object]], lines: Sequence[int]) -> Cells:
    flat = [dict(_leaves(entry)) for entry in objects]
    names = list(dict.fromkeys(name for entry in flat for name in entry))
    return Cells(names, [[entry.get(name, "") for name in names] for entry in flat], lines)


def _leaves(tree: dict[str, object], prefix: str = "", depth: int = 8) -> Iterable[tuple[str, object]]:
    """(name, cell) of an object; names of nested objects are joined with dots."""
    for name, value in tree.items():
        if isinstance(value, dict) and depth:
            yield from _leaves(value, f"{prefix}{name}.", depth - 1)
        else:
            plain = value if isinstance(value, int | float | str) else str(value)
            yield f"{prefix}{name}", "" if value is None else plain


def _read_parquet(content: bytes, source: str) -> Cells:
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
    return Cells(names, rows, range(1, len(rows) + 1))


def _read_xlsx(content: bytes, source: str) -> Cells:
    """The first sheet with cells; a formula counts as the value that Excel saved."""
    try:
        import openpyxl
    except ImportError as error:
        raise LawError(f"{source}: .xlsx needs openpyxl (pip install openpyxl), or save the table as CSV.") from error
    try:
        book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
        sheets = [(sheet.title, [list(row) for row in sheet.iter_rows(values_only=True)]) for sheet in book.worksheets]
    except Exception as error:  # openpyxl raises many kinds of errors for a damaged workbook
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise LawError(f"{source}: not a whole .xlsx workbook ({text:.200}).") from error
    full = [(title, rows) for title, rows in sheets if any(not is_empty(c) for r in rows for c in r)]
    if not full:
        raise LawError(f"{source}: empty; wanted a header line and one line a run.")
    title, records = full[0]
    numbered = [(line, row) for line, row in enumerate(records, 1) if any(not is_empty(cell) for cell in row)]
    (_, header), *body = numbered
    width = max(i for i, cell in enumerate(header, 1) if not is_empty(cell))
    names = _names(["" if cell is None else str(cell).strip() for cell in header[:width]], source)
    for line, row in body:
        if any(not is_empty(cell) for cell in row[width:]):
            raise LawError(f"{source}: row {line} has more cells than the header, which has {width}.")
    rows = [[*row[:width], *[None] * (width - len(row))] for _, row in body]
    notes = (f"read the sheet {title!r}, the first of {len(full)} with cells",) if len(full) > 1 else ()
    return Cells(names, rows, [line for line, _ in body], notes)


def _read_folders(places: Sequence[Path], source: str) -> Cells:
    """The rows of run folders, of the runs.csv of sweeps and studies, and of table files, each labelled by its path."""
    objects: list[dict[str, Any]] = []
    digest = hashlib.sha256()
    unfinished = []
    for place in places:
        record, table = place / RUN, place / RUNS
        if place.is_file() and place.suffix.lower() in READERS:
            table = place
        elif place.is_file():
            continue
        try:
            if record.is_file():
                content = record.read_bytes()
                entry = loads(content)
                if not isinstance(entry, dict):
                    raise ValueError(f"it holds {type(entry).__name__}, wanted an object")
                objects.append({"folder": str(place)} | {name.rstrip("_"): cell for name, cell in entry.items()})
            elif table.is_file():
                cells, content = _read_file(table, str(table)), table.read_bytes()
                objects += [{"folder": str(place)} | dict(zip(cells.names, row)) for row in cells.rows]
                if place == places[0] and place.is_dir() and str(place) == str(Path(source)):
                    digest.update(content)
                    break  # a study's folder: its table has the runs below it
            else:
                if (place / "config.txt").exists() or (place / "metrics.jsonl").exists():
                    unfinished.append(str(place))
                continue
        except ValueError as error:
            raise LawError(f"{record}: cannot be read as a finished run ({error}).") from error
        except OSError as error:
            raise LawError(f"{error.filename}: cannot be read ({error.strerror}).") from error
        digest.update(content)
    if not objects:
        raise LawError(f"{source}: no finished run ({RUN}) and no table ({RUNS}) in it; wanted folders of runs.")
    notes = (f"{len(unfinished)} unfinished left out: {', '.join(unfinished[:5])}",) if unfinished else ()
    cells = _from_objects(objects, range(1, len(objects) + 1))
    return dataclasses.replace(cells, notes=notes, digest=digest.hexdigest())


READERS: dict[str, Callable[[bytes, str], Cells]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".xlsx": _read_xlsx,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
