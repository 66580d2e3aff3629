"""TensorFlow Datasets as a source, by random access to array_record files, without importing TensorFlow."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from distill.config.data import TfdsConfig
from distill.data.documents import Document
from distill.data.sources.columns import Columns
from distill.errors import DataError

_BATCH = 256
_REASONS = {
    "parquet": "TFDS 4.9.10 silently loses rows of parquet shards with more than 100 examples while its split info "
    "reports them all",
    "tfrecord": "reading it needs TensorFlow",
}


class _Rows(Protocol):
    """The examples of a split, by number."""

    def __len__(self) -> int: ...

    def __getitems__(self, numbers: list[int]) -> Sequence[Mapping[str, object]]: ...


class _Builder(Protocol):
    """The part of a TFDS builder that is used here; TFDS's own types need TensorFlow."""

    info: Any
    data_dir: str

    def as_data_source(self, split: str) -> _Rows: ...

    def download_and_prepare(self) -> None: ...


class Tfds:
    """The documents of a TFDS dataset; the validation split, if named, comes first."""

    def __init__(self, config: TfdsConfig, columns: Columns):
        self._columns = columns
        self._builder = _prepared(config)
        names = [name for name in (config.validation, config.train) if name]
        self._splits = [(name, "validation" if name == config.validation else "") for name in names]
        self.shards = [f"{self._builder.info.full_name} {name}" for name in names]
        self.explicit: tuple[str, ...] = ("validation",) if config.validation else ()
        self.masked = columns.masked
        self._sources = [_open(self._builder, name) for name in names]
        for name in names:
            columns.check(list(self._builder.info.features), f"TFDS {self._builder.info.full_name} {name}")
        self.share = 0.0

    def describe(self) -> dict[str, object]:
        splits = {name: self._builder.info.splits[name].num_examples for name, _ in self._splits}
        return {"source": "tfds", "dataset": self._builder.info.full_name, "splits": splits}

    def read(self, shard: int, skip: int = 0) -> Iterator[Document]:
        source, split = self._sources[shard], self._splits[shard][1]
        for start in range(skip, len(source), _BATCH):
            records = source.__getitems__(list(range(start, min(start + _BATCH, len(source)))))
            before, total = sum(map(len, self._sources[:shard])), sum(map(len, self._sources))
            self.share = (before + start + len(records)) / total
            for i, record in enumerate(records, start):
                where = f"TFDS {self.shards[shard]}, example {i}"
                yield self._columns.document(_row(record), where)._replace(split=split)


def _prepared(config: TfdsConfig) -> _Builder:
    """The builder; prepares its data if they are missing. Raises DataError for formats other than array_record."""
    tfds = importlib.import_module("tensorflow_datasets")
    if not config.name and not config.data_dir:
        raise DataError("data.tfds: neither name nor data_dir is set; wanted e.g. data.tfds.name='c4/en'")
    try:
        if config.name:
            builder = tfds.builder(config.name, data_dir=config.data_dir or None)
        else:
            builder = tfds.builder_from_directory(config.data_dir)
        if not _is_prepared(builder):
            builder = tfds.builder(config.name, data_dir=config.data_dir or None, file_format="array_record")
    except tfds.core.registered.DatasetNotFoundError:
        raise DataError(f"data.tfds.name: TFDS knows no dataset {config.name!r}; is its module imported?") from None
    except (FileNotFoundError, ValueError) as error:
        raise DataError(f"data.tfds: cannot open {config.name or config.data_dir!r} ({str(error):.300})") from None
    got = builder.info.file_format.value if builder.info.file_format else "array_record"
    if got != "array_record":
        raise DataError(
            f"TFDS {builder.info.full_name} in {builder.data_dir} is stored as {got}, wanted array_record: "
            f"{_REASONS.get(got, 'it has no random access')}. Build it again with file_format='array_record'"
        )
    if not _is_prepared(builder):
        builder.download_and_prepare()
    for name, info in builder.info.splits.items():
        # The length of a data source also comes from the info, so the records of the files are counted.
        rows = sum(_records(str(path)) for path in info.filepaths)
        if not rows == len(builder.as_data_source(name)) == info.num_examples:
            raise DataError(
                f"TFDS {builder.info.full_name}: split {name!r} holds {rows} records, its info says "
                f"{info.num_examples}; delete {builder.data_dir} and build it again"
            )
    return builder


def _records(path: str) -> int:
    reader = importlib.import_module("array_record.python.array_record_module").ArrayRecordReader(path)
    try:
        return reader.num_records()
    finally:
        reader.close()


def _is_prepared(builder: _Builder) -> bool:
    return bool(builder.info.splits)


def _open(builder: _Builder, name: str) -> _Rows:
    try:
        return builder.as_data_source(name)
    except (KeyError, ValueError) as error:
        known = ", ".join(builder.info.splits)
        raise DataError(f"TFDS {builder.info.full_name}: there is no split {name!r}, only {known} ({error})") from None


def _row(record: Mapping[str, object]) -> dict[str, object]:
    return {key: _columns_to_rows(_plain(item)) for key, item in record.items()}


def _plain(value: object) -> object:
    """Converts NumPy values and bytes to JSON types. TFDS returns a sequence of objects as an object of sequences."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value] if value.ndim else _plain(value.item())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return _row(value)
    return value


def _columns_to_rows(value: object) -> object:
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        return [dict(zip(value, row)) for row in zip(*value.values())]
    return value
