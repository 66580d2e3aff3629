"""Reads a finished store of signals by window, in any order; several processes may read one at once.

Opening checks the manifest and the names and sizes of the files. A shard's index is read when one of its windows is
first requested; no file is held open, and every record's digest is checked on every read.
"""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import cast

import jax
import numpy as np
from numpy.typing import NDArray

from distill.config import ConfigError, ObjectiveConfig, TeacherConfig, tree
from distill.errors import SignalError
from distill.model.quantize import Precision
from distill.system import cloud
from distill.teacher.signals import codec, manifest
from distill.teacher.signals.manifest import SignalManifest
from distill.teacher.signals.shard import HOW, Name, Shard, ShardEntry
from distill.teacher.signals.spec import GRAIN, SignalSpec
from distill.types import LOG_ZERO, ChunkSignal, HiddenStates, SparseSignal, StoredCells, StoredSignal, TeacherSignal


class SignalStore:
    """An open store of signals; `read` returns the signals of a student's batch."""

    def __init__(
        self, path: str | Path, objective: ObjectiveConfig | None = None, unwritten: SignalManifest | None = None
    ):
        """Raises SignalError where the store is damaged, or lacks what the objective's target reads.

        `unwritten` is the manifest of a store in preparation, before it is written.
        """
        self.path, self._remote = cloud.at(str(path)), cloud.remote(path)
        self.manifest: SignalManifest = manifest.read(self.path) if unwritten is None else unwritten
        recipe = self.manifest["recipe"]
        manifest.compare(path, recipe["codec"], codec.CONSTANTS, "a codec of")
        self.signal: SignalSpec = tree.build(SignalSpec, recipe["signal"], f"{path}: signal")
        self.seq_len, self.vocab_size = int(recipe["data"]["seq_len"]), int(recipe["teacher"]["vocab_size"])
        if objective is not None:
            self.signal.check_serves(objective, str(path))
        self._objective = objective
        shards = self.manifest["shards"]
        self._check_files(shards)
        digest = manifest.digest(recipe)
        self._names = [Name(digest, i) for i in range(len(shards))]
        self._firsts = np.array([shard["first"] for shard in shards], np.int64)
        self._most = max(shard["most"] for shard in shards)
        self._open: dict[int, Shard] = {}
        order = self.read_file(manifest.ORDER) if self.signal.sparse else b""
        self._ids: NDArray[np.int32] = np.frombuffer(order, "<u4").astype(np.int32)  # id of each rank

    def _check_files(self, shards: list[ShardEntry]) -> None:
        """Checks that every shard exists with its size, by one listing: 10,000 stat calls take longer than all else."""
        if isinstance(self.path, Path):
            with os.scandir(self.path) as entries:
                sizes = {item.name: item.stat().st_size for item in entries}
        else:
            sizes = {item.name: -1 for item in self.path.iterdir()}
        for shard in shards:
            size = sizes.get(shard["file"])
            if size is None:
                raise SignalError(f"{self.path / shard['file']}: is missing; {HOW}")
            if size not in (-1, shard["size"]):
                raise SignalError(f"{self.path / shard['file']}: got {size} bytes, wanted {shard['size']}; {HOW}")

    @property
    def head(self) -> NDArray[np.floating] | None:
        """The teacher's head [V, D] where hidden states are stored, else None."""
        if self.signal.kind != "hidden":
            return None
        content, described = self.read_file(manifest.HEAD), self.manifest["files"][manifest.HEAD]
        try:
            return np.frombuffer(content, codec.DTYPES[described["dtype"]]).reshape(described["shape"])
        except (KeyError, TypeError, ValueError) as error:
            raise SignalError(f"{self.path / manifest.HEAD}: is not a head ({error!r:.100}); {HOW}") from None

    def read_file(self, name: str) -> bytes:
        """The content of a file beside the shards. Raises SignalError unless its digest is the manifest's."""
        path = self.path / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise SignalError(f"{path}: cannot be read ({error.strerror or error}); {HOW}") from None
        described = self.manifest["files"].get(name)
        if described is None or hashlib.sha256(content).hexdigest() != described["sha256"]:
            raise SignalError(f"{path}: does not match its digest; {HOW}")
        return content

    def missing(self, windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The given windows that the store does not hold."""
        wanted = np.unique(windows)
        return wanted[~self._holds(wanted)]

    def _holds(self, wanted: NDArray[np.int64]) -> NDArray[np.bool_]:
        extent = self.manifest["recipe"]["windows"]
        if extent["count"] == extent["of"]:
            return (wanted >= 0) & (wanted < extent["of"])
        held = np.zeros(len(wanted), bool)
        shard_of = self._shard_of(wanted)
        for number in np.unique(shard_of):
            here = shard_of == number
            held[here] = np.isin(wanted[here], self._shard(int(number)).index["window"])
        return held

    @property
    def cells(self) -> NDArray[np.int32] | None:
        """The cell of each of the student's tokens, where cells are stored, else None."""
        return np.frombuffer(self.read_file(manifest.CELLS), "<i4") if self.signal.kind == "cells" else None

    def read(self, windows: NDArray[np.int64]) -> StoredSignal:
        """The signal of these windows as NumPy arrays [*windows.shape, S, ...].

        Raises SignalError for a window that is not stored, for a record that does not match its digest, and for one
        whose values are not finite.
        """
        shape, flat = np.shape(windows), np.asarray(windows, np.int64).reshape(-1)
        payloads = self._payloads(flat)
        if self.signal.sparse:
            return self._sparse(payloads, shape)
        if self.signal.crossing:
            return self._of_chunks(payloads, shape)
        width = self.manifest["recipe"]["teacher"]["d_model"] if self.signal.kind == "hidden" else self.vocab_size
        dtype = codec.DTYPES[self.signal.dtype if self.signal.kind == "hidden" else "float16"]
        dense = np.stack([codec.unpack_dense(payload, (self.seq_len, width), dtype) for payload in payloads])
        bad = ~np.isfinite(dense).all(axis=(1, 2)) if self.signal.kind == "hidden" else np.isnan(dense).any(axis=(1, 2))
        if bad.any():
            raise SignalError(f"{self.path}: window {flat[np.argmax(bad)]}: the stored values are not finite; {HOW}")
        array = _as_array(dense.reshape(*shape, *dense.shape[1:]))
        return HiddenStates(hidden=array) if self.signal.kind == "hidden" else TeacherSignal(log_probs=array)

    def _payloads(self, windows: NDArray[np.int64]) -> list[bytes]:
        """The checked payloads of the records of these windows [n], in their order."""
        payloads: list[bytes] = [b""] * len(windows)
        shard_of = self._shard_of(windows)
        parts: list[tuple[Shard, NDArray[np.int64], list[int]]] = []  # shard, rows of `payloads`, rows of its index
        for number in np.unique(shard_of):
            shard, rows = self._shard(int(number)), np.flatnonzero(shard_of == number)
            stored = shard.index["window"]
            index_rows = np.searchsorted(stored, windows[rows])
            absent = windows[rows][stored[np.minimum(index_rows, len(stored) - 1)] != windows[rows]]
            if len(absent):
                raise SignalError(f"{self.path}: holds no signal of window {absent[0]}; {self.extent}")
            parts.append((shard, rows, index_rows.tolist()))
        # All records are requested from a bucket at once: one by one, each would wait for the network.
        spans = [span for shard, _, records in parts for span in shard.spans(records)] if self._remote else []
        try:
            contents = iter(cloud.ranges(spans))
        except OSError as error:
            raise SignalError(f"{self.path}: cannot be read ({error}); {HOW}") from None
        for shard, rows, records in parts:
            fetched = [next(contents) for _ in records] if self._remote else None
            for row, payload in zip(rows, shard.read(records, fetched)):
                payloads[row] = payload
        return payloads

    def _sparse(self, payloads: list[bytes], shape: tuple[int, ...]) -> SparseSignal:
        ids = np.empty((len(payloads), self.seq_len, self._most), np.int32)
        values = np.empty(ids.shape, np.float32)
        for i, payload in enumerate(payloads):
            window = codec.unpack(payload, self.seq_len, self._most)
            ids[i] = self._ids.take(window.ranks, mode="clip")
            values[i] = self._log_probs(window)
        selected = self.signal.select(ids, values, self._objective)
        ids_k, log_probs = (_as_array(x.reshape(*shape, *x.shape[1:])) for x in selected)
        return SparseSignal(ids=ids_k, log_probs=log_probs)

    def _of_chunks(self, payloads: list[bytes], shape: tuple[int, ...]) -> ChunkSignal | StoredCells:
        size, count = (self.seq_len,), self.manifest["recipe"]["teacher"].get("cells", 0)
        parts = [codec.split(payload, 2) for payload in payloads]
        chunk = np.stack([codec.unpack_dense(first, size, np.dtype(np.int32)) for first, _ in parts])
        whole, dtype = (size, np.float32) if self.signal.kind == "chunks" else ((self.seq_len, count + 1), np.float16)
        values = np.stack([codec.unpack_dense(second, whole, np.dtype(dtype)) for _, second in parts])
        if chunk.min(initial=0) < 0 or chunk.max(initial=0) > self.seq_len or not np.isfinite(values).all():
            raise SignalError(f"{self.path}: a record of {self.signal.kind} holds impossible values; {HOW}")
        first, second = (_as_array(x.reshape(*shape, *x.shape[1:])) for x in (chunk, values))
        made = ChunkSignal if self.signal.kind == "chunks" else StoredCells
        return made(chunk=first, log_probs=second)

    def _log_probs(self, window: codec.Ragged) -> NDArray[np.float32]:
        empty = np.arange(self._most) >= window.lengths[:, None]
        if self.signal.kind == "argmax" or window.symbols is None:
            values = np.zeros(empty.shape, np.float32)
        elif self.signal.kind == "sampled":
            grain = 1 if self.signal.proposal == 1 else GRAIN
            values = np.log(np.maximum(window.symbols, 1) / np.float32(self.signal.draws * grain)).astype(np.float32)
        else:
            if window.rest is None:
                raise SignalError(f"{self.path}: a record of {self.signal.kind} lacks the mass of the tail; {HOW}")
            values = codec.log_probs(window.symbols, window.rest)
        return np.where(empty, np.float32(LOG_ZERO), values)

    def _shard_of(self, windows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.maximum(np.searchsorted(self._firsts, windows, "right") - 1, 0)

    def _shard(self, number: int) -> Shard:
        if number not in self._open:
            shard = Shard(self.path / self._names[number].file, self._names[number])
            if shard.digest != self.manifest["shards"][number]["digest"]:
                raise SignalError(f"{shard.path}: is not the shard that the manifest names; {HOW}")
            self._open[number] = shard
        return self._open[number]

    @property
    def extent(self) -> str:
        """Which windows the store holds and how to get others, for the end of an error message."""
        extent = self.manifest["recipe"]["windows"]
        if extent["count"] == extent["of"]:
            return f"its data have {extent['of']} windows"
        chosen = f" of data.unique={extent['unique']}" if extent.get("unique") else ""
        return (
            f"it was made for the first {extent['samples']} windows in the order of data.seed={extent['seed']}{chosen} "
            f"({extent['count']} of {extent['of']}); make one with more tokens, or with --windows=all"
        )

    def verify(self) -> None:
        """Reads every byte and checks every digest. Raises SignalError."""
        for name in self.manifest["files"]:
            self.read_file(name)
        for number in range(len(self._names)):
            shard = self._shard(number)
            self.read(np.asarray(shard.index["window"], np.int64))


def _as_array(array: NDArray[np.generic]) -> jax.Array:
    """Types a NumPy array as a JAX array: batches hold NumPy arrays until the mesh places them on devices."""
    return cast(jax.Array, array)


def identify_stored(teacher: TeacherConfig) -> TeacherConfig:
    """The config with the teacher's run, dtype and signal label filled in from the store's manifest.

    Raises DistillError where the config already names others.
    """
    if not teacher.store:
        raise ConfigError("config.teacher.store: got '', wanted the folder that launch.cache made (signal='stored')")
    recipe = manifest.read(cloud.at(teacher.store))["recipe"]
    label = tree.build(SignalSpec, recipe["signal"], f"{teacher.store}: signal").label
    dtype: Precision = recipe["teacher"].get("dtype", "float32")
    for name, held in (("run", recipe["teacher"]["run"]), ("stored", label), ("dtype", dtype)):
        given = getattr(teacher, name)
        if given not in ("", "float32", held):
            raise ConfigError(f"config.teacher.{name}={given!r}, but the store {teacher.store} holds {held!r}")
    return dataclasses.replace(teacher, run=recipe["teacher"]["run"], stored=label, dtype=dtype)
