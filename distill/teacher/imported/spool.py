"""Imported rows on disk between reading the files and writing the store: plain arrays, one folder for each input file.

A folder appears when its file was read whole, so an interrupted import reads only what is left.

lengths  tokens of each row (u4)                 ids     tokens (u4)
counts   entries of each token (u2)              top     ids of entries (u4)
own      log-probability of the token itself (f4) values  log-probabilities of entries (f4)
trained  1 where a loss counts the token (u1)    part.json  counts, and what was measured
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from distill.errors import SignalError
from distill.system import files
from distill.teacher.imported.rows import BadRow, Row, check
from distill.types import LOG_ZERO

_ARRAYS = {
    "lengths": "<u4",
    "ids": "<u4",
    "counts": "<u2",
    "own": "<f4",
    "trained": "u1",
    "top": "<u4",
    "values": "<f4",
}
META = "part.json"


class PartMeta(TypedDict):
    """What is known of one file's rows."""

    rows: int
    tokens: int
    least: int  # entries of a token with a signal
    most: int
    always_own: bool
    sha256: str  # of all arrays
    hits: list[float]  # summed probability of the token itself, of the one before it and of the one after it
    compared: int  # ids whose text the teacher told
    equal: int  # of them, those that are the same text here


def write_part(
    folder: Path, where: str, rows: Iterable[tuple[int, Row]], texts: dict[int, str], vocab_size: int
) -> None:
    """Writes the rows of one file, numbered, as a folder that appears whole. `texts`: what ids decode to here.

    Raises SignalError, with file and row, for a row that holds no distributions over `vocab_size` tokens.
    """
    meta: PartMeta = {
        "rows": 0, "tokens": 0, "least": 1 << 16, "most": 0, "always_own": False, "sha256": "", "hits": [0.0, 0.0, 0.0],
        "compared": 0, "equal": 0,
    }  # fmt: skip
    digest = hashlib.sha256()
    with files.atomic_folder(folder) as temporary:
        with contextlib.ExitStack() as opened:
            handles = {name: opened.enter_context(open(temporary / name, "wb")) for name in _ARRAYS}
            for number, row in rows:
                try:
                    check(row, vocab_size)
                except BadRow as error:
                    raise SignalError(f"{where}, row {number}: {error}") from None
                for name, array in _arrays(row).items():
                    content = array.astype(_ARRAYS[name]).tobytes()
                    handles[name].write(content)
                    digest.update(content)
                _measure(meta, row, texts)
        meta["sha256"] = digest.hexdigest()
        (temporary / META).write_text(json.dumps(meta))


def _arrays(row: Row) -> dict[str, NDArray]:
    used = row.top_ids >= 0
    return {
        "lengths": np.array([len(row.ids)]),
        "ids": row.ids,
        "counts": used.sum(axis=1),
        "own": row.own,
        "trained": row.trained,
        "top": row.top_ids[used],
        "values": np.minimum(row.log_probs[used], 0),
    }


def _measure(meta: PartMeta, row: Row, texts: dict[int, str]) -> None:
    counts = (row.top_ids >= 0).sum(axis=1)
    given = counts[counts > 0]
    meta["rows"] += 1
    meta["tokens"] += len(row.ids)
    meta["always_own"] |= row.always_own
    if len(given):
        meta["least"] = min(meta["least"], int(given.min()))
        meta["most"] = max(meta["most"], int(given.max()))
    probabilities = np.where(row.top_ids >= 0, np.exp(row.log_probs), 0)
    for i, by in enumerate((0, -1, 1)):  # is position t about token t, or rather about t + 1 or t - 1?
        wanted = np.roll(row.ids, by)[1:-1, None]
        meta["hits"][i] += float(np.where(row.top_ids[1:-1] == wanted, probabilities[1:-1], 0).sum())
    for i, text in row.texts.items():
        if "\ufffd" not in text and "\ufffd" not in texts.get(i, "") and text.strip():
            meta["compared"] += 1
            meta["equal"] += text.strip() == texts.get(i, "").strip()


class Span(NamedTuple):
    """Consecutive tokens of a row: the entries of each, padded to K."""

    top_ids: NDArray[np.int64]  # [T, K]; -1: none
    log_probs: NDArray[np.float32]  # [T, K]; LOG_ZERO: none


class Part:
    """The rows of one finished folder, through memory maps."""

    def __init__(self, folder: Path):
        self.meta: PartMeta = json.loads((folder / META).read_text("utf-8"))
        self._maps = {name: _mapped(folder / name, dtype) for name, dtype in _ARRAYS.items()}
        self.ends = np.cumsum(self._maps["lengths"], dtype=np.int64)  # of each row, in tokens
        self._offsets = np.concatenate([[0], np.cumsum(self._maps["counts"], dtype=np.int64)])

    def tokens(self, start: int, stop: int) -> NDArray[np.int64]:
        return self._maps["ids"][start:stop].astype(np.int64)

    def own(self, start: int, stop: int) -> NDArray[np.float32]:
        """The log-probability of each token itself; NaN where it is not known."""
        return np.asarray(self._maps["own"][start:stop])

    def weighted(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Whether a loss can count each token: it has a signal, and the file does not exclude it."""
        return (self._maps["trained"][start:stop] > 0) & (self._maps["counts"][start:stop] > 0)

    def span(self, start: int, stop: int, k: int) -> Span:
        """The `k` likeliest entries of each token from `start` to `stop`."""
        counts = np.minimum(self._maps["counts"][start:stop].astype(np.int64), k)
        inside = np.arange(k) < counts[:, None]
        flat = (self._offsets[start:stop, None] + np.arange(k))[inside]
        top_ids, log_probs = np.full(inside.shape, -1, np.int64), np.full(inside.shape, LOG_ZERO, np.float32)
        top_ids[inside], log_probs[inside] = self._maps["top"][flat], self._maps["values"][flat]
        return Span(top_ids, log_probs)


def _mapped(path: Path, dtype: str) -> NDArray:
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)


class Spool:
    """All parts as one list of rows, in the order of the files."""

    def __init__(self, folders: list[Path]):
        self.parts = [Part(folder) for folder in folders]
        self._first = np.concatenate([[0], np.cumsum([part.meta["rows"] for part in self.parts])])

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def digest(self) -> str:
        """A hash of all rows."""
        return hashlib.sha256("".join(part.meta["sha256"] for part in self.parts).encode()).hexdigest()

    def place(self, row: int) -> tuple[Part, int, int]:
        """A row's part, and its first token and the one after its last there."""
        number = int(np.searchsorted(self._first, row, "right")) - 1
        part, i = self.parts[number], row - int(self._first[number])
        return part, int(part.ends[i - 1]) if i else 0, int(part.ends[i])

    def spans(self, k: int, size: int = 1 << 14) -> Iterator[Span]:
        """The entries of all tokens, some thousands at a time."""
        for part in self.parts:
            for start in range(0, part.meta["tokens"], size):
                yield part.span(start, min(start + size, part.meta["tokens"]), k)
