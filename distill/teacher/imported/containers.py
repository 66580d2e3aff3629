"""Files of records, whatever the records mean: JSON lines, parquet, and Arrow files of Hugging Face `datasets`.

Folders are searched. Nothing is unpickled: MaxText's ArrayRecord files and Megatron-LM's tar files hold pickles, which
are read as data.
"""

import glob
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from distill.data.sources import arrow, storage
from distill.errors import DataError, SignalError
from distill.system.files import loads
from distill.teacher.imported import megatron, plain_pickle
from distill.teacher.imported.dialects import Record
from distill.teacher.imported.distillkit import Codec
from distill.teacher.imported.rows import BadRow

CODEC = "compression_config.yaml"
_LINE, _SETTINGS = 1 << 28, 1 << 16  # bytes of a line of JSON, and of the codec's settings, at most
_NESTED = 8  # lists and objects inside each other, in the codec's settings
_RECORDS = 16  # of an ArrayRecord file that are in memory at once
_ROWS = 64  # of a table that are turned into records at once: a row may hold megabytes


def find(patterns: Sequence[str]) -> list[Path]:
    """The files of signals that paths, globs and folders name, sorted. Raises SignalError where there is none."""
    found: set[Path] = set()
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            inside = [
                p for p in path.rglob("*") if p.is_file() and not any(x[0] == "." for x in p.relative_to(path).parts)
            ]
            # `datasets` keeps what it computed in cache-*.arrow beside the data.
            files = [p for p in inside if _reader(p) and not p.name.startswith("cache-")]
            if not files:
                raise SignalError(f"{pattern}: the folder holds no {', '.join(_READERS)} file of signals")
        else:
            files = (
                [path] if path.is_file() else [Path(p) for p in glob.glob(pattern, recursive=True) if Path(p).is_file()]
            )
            if not files:
                raise SignalError(f"{pattern}: there is no such file; wanted files, globs or folders of signals")
            for file in files:
                if not _reader(file):
                    raise SignalError(f"{file}: got a file of an unknown kind, wanted {', '.join(_READERS)}")
        found.update(files)
    return sorted(found)


def read(path: Path, samples: Path | None = None) -> Iterator[tuple[int, Record]]:
    """The records of a file, each with its number from 1; `samples` are the tokens that Megatron-LM's shards lack.

    Raises SignalError where the file is damaged.
    """
    if path.suffix == megatron.SUFFIX:
        return megatron.read(path, samples)
    reader = _reader(path)
    assert reader is not None  # `find` chose the file
    return reader(path)


def codec_beside(path: Path) -> Codec | None:
    """DistillKit's settings beside a file; None where there are none. Raises SignalError where they are damaged."""
    file = path.parent / CODEC
    if not file.exists():
        return None
    yaml = storage.optional("yaml", "pyyaml", str(file))
    try:
        text = _bounded(file)
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):  # a few aliases name any number of values
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > _NESTED:
                raise BadRow("it repeats a part by an alias, or is nested deeply; wanted plain settings")
        settings = yaml.safe_load(text)
        if not isinstance(settings, dict):
            raise BadRow(f"got {type(settings).__name__}, wanted an object")
        return Codec.of(settings)
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise SignalError(f"{file}: is no config of DistillKit's codec ({' '.join(str(error).split()):.200})") from None


def _bounded(file: Path) -> str:
    with file.open("rb") as opened:
        content = opened.read(_SETTINGS + 1)
    if len(content) > _SETTINGS:
        raise BadRow(f"it has over {_SETTINGS:,} bytes")
    return content.decode("utf-8")


def _reader(path: Path) -> Callable[[Path], Iterator[tuple[int, Record]]] | None:
    name = path.name
    for suffix in storage.COMPRESSIONS:
        if name.endswith(f".jsonl{suffix}"):
            return _json_lines
    return _READERS.get(path.suffix)


def _json_lines(path: Path) -> Iterator[tuple[int, Record]]:
    with storage.open_bytes(str(path)) as (file, _):
        for number, line in enumerate(iter(lambda: file.readline(_LINE + 1), b""), 1):
            if len(line) > _LINE:  # a small compressed file may hold any number of blanks
                raise SignalError(f"{path}, line {number}: it has over {_LINE:,} bytes, wanted one sequence a line")
            if not line.strip():
                continue
            try:
                record = loads(line)
            except ValueError as error:
                raise SignalError(
                    f"{path}, line {number}: not a JSON object ({error}); the file may be cut off: remove the line or "
                    "write it again"
                ) from None
            if not isinstance(record, dict):
                raise SignalError(f"{path}, line {number}: got {type(record).__name__}, wanted a JSON object a line")
            yield number, record


def _parquet(path: Path) -> Iterator[tuple[int, Record]]:
    parquet = storage.optional("pyarrow.parquet", "pyarrow", str(path))
    library = storage.optional("pyarrow", "pyarrow", str(path))
    row = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=_ROWS):
            for record in batch.to_pylist():
                row += 1
                yield row, record
    except (library.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise SignalError(f"{path}: not a parquet file, or damaged after row {row} ({reason:.200})") from None


def _arrow(path: Path) -> Iterator[tuple[int, Record]]:
    with path.open("rb") as file:
        row = 0
        try:
            for batch in arrow.batches(file, str(path), _ROWS):
                for record in batch.to_pylist():
                    row += 1
                    yield row, record
        except DataError as error:
            raise SignalError(str(error)) from None


def _maxtext(path: Path) -> Iterator[tuple[int, Record]]:
    """The sequences in the batches of MaxText's save_top_k_teacher_logits, packed rows apart at their segments."""
    library = storage.optional("array_record.python.array_record_module", "array-record", str(path))
    try:
        reader = library.ArrayRecordReader(str(path))
        count = reader.num_records()
        parts = (reader.read(i, min(i + _RECORDS, count)) for i in range(0, count, _RECORDS))
        for number, content in enumerate(itertools.chain.from_iterable(parts), 1):
            try:
                for sequence in _sequences(plain_pickle.load(content)):
                    yield number, sequence
            except BadRow as error:
                raise SignalError(f"{path}, row {number}: {error}") from None
    except (RuntimeError, ValueError, OSError) as error:
        raise SignalError(
            f"{path}: not an ArrayRecord file, or damaged ({' '.join(str(error).split()):.200})"
        ) from None


def _sequences(batch: object) -> Iterator[Record]:
    """The sequences of a batch: tokens [B, S], top_k_logits and top_k_indices [B, S, K], and maybe segments [B, S]."""
    names = ("tokens", "top_k_indices", "top_k_logits")
    if not isinstance(batch, dict) or not all(isinstance(batch.get(name), np.ndarray) for name in names):
        raise BadRow(f"wanted a batch of the arrays {', '.join(names)}, as MaxText's save_top_k_teacher_logits writes")
    tokens = batch["tokens"]
    segments = batch.get("inputs_segmentation")
    segments = np.ones(tokens.shape, np.int64) if segments is None else np.asarray(segments)
    if tokens.ndim != 2 or any(batch[n].shape[:2] != tokens.shape for n in names) or segments.shape != tokens.shape:
        raise BadRow(f"tokens {tokens.shape} and logits {batch['top_k_logits'].shape} of different shapes")
    for row, segment in enumerate(segments):
        edges = np.flatnonzero(np.diff(segment.astype(np.int64), prepend=-1, append=-1))
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist()):
            if segment[start] > 0 and stop - start > 1:  # 0 is padding, and a single token predicts nothing
                yield {name: batch[name][row, start:stop] for name in names}


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, Record]]]] = {
    ".jsonl": _json_lines,
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".array_record": _maxtext,
    megatron.SUFFIX: lambda path: megatron.read(path, None),
}
