"""A finished store of signals, read by window in any order; several processes may read one at once.

Opening looks at the manifest and at the names and sizes of the files. A shard's index is read when one of its windows
is first asked for; nothing is held open, and every record's digest is compared on every read.
"""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.config import ConfigError, ObjectiveConfig, TeacherConfig, tree
from distill.errors import SignalError
from distill.system import cloud
from distill.teacher.signals import codec, manifest
from distill.teacher.signals.shard import HOW, Name, Shard
from distill.teacher.signals.spec import GRAIN, SignalSpec
from distill.types import LOG_ZERO, HiddenStates, SparseSignal, TeacherSignal


class SignalStore:
    """The signals of a store; `read` gives what a student's batch carries."""

    def __init__(self, path: str | Path, objective: ObjectiveConfig | None = None, found: dict[str, Any] | None = None):
        """Raises SignalError where the store is not whole, or does not hold what the objective's target reads.

        `found` is its manifest while that is not yet written.
        """
        self.path, self._remote = cloud.at(str(path)), cloud.remote(path)
        self.manifest = manifest.read(self.path) if found is None else found
        recipe = self.manifest["recipe"]
        manifest.compare(path, recipe["codec"], codec.NUMBERS, "a codec of")
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
        self._ids: NDArray[Any] = np.frombuffer(order, "<u4").astype(np.int32)

    def _check_files(self, shards: list[dict[str, Any]]) -> None:
        """All files are there in their sizes. One listing, for a stat of each of 10,000 takes longer than the rest."""
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
    def head(self) -> NDArray[Any] | None:
        """The teacher's head [V, D] where hidden states are stored."""
        if self.signal.kind != "hidden":
            return None
        content, kept = self.read_file(manifest.HEAD), self.manifest["files"][manifest.HEAD]
        try:
            return np.frombuffer(content, codec.DTYPES[kept["dtype"]]).reshape(kept["shape"])
        except (KeyError, TypeError, ValueError) as error:
            raise SignalError(f"{self.path / manifest.HEAD}: is no head ({error!r:.100}); {HOW}") from None

    def read_file(self, name: str) -> bytes:
        """A file beside the shards. Raises SignalError unless its digest is the manifest's."""
        path = self.path / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise SignalError(f"{path}: cannot be read ({error.strerror or error}); {HOW}") from None
        if hashlib.sha256(content).hexdigest() != self.manifest["files"].get(name, {}).get("sha256"):
            raise SignalError(f"{path}: does not match its digest; {HOW}")
        return content

    def missing(self, windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of these windows that the store does not hold."""
        wanted = np.unique(windows)
        return wanted[~self._holds(wanted)]

    def _holds(self, wanted: NDArray[np.int64]) -> NDArray[np.bool_]:
        kept = self.manifest["recipe"]["windows"]
        if kept["count"] == kept["of"]:
            return (wanted >= 0) & (wanted < kept["of"])
        found = np.zeros(len(wanted), bool)
        shard_of = self._shard_of(wanted)
        for number in np.unique(shard_of):
            here = shard_of == number
            found[here] = np.isin(wanted[here], self._shard(int(number)).index["window"])
        return found

    def read(self, windows: NDArray[np.int64]) -> SparseSignal | HiddenStates | TeacherSignal:
        """The signal of these windows as NumPy arrays [*windows.shape, S, ...].

        Raises SignalError for a window that is not there, and for a record that is not as it was written.
        """
        shape, flat = np.shape(windows), np.asarray(windows, np.int64).reshape(-1)
        payloads: list[bytes] = [b""] * len(flat)
        shard_of = self._shard_of(flat)
        wanted: list[tuple[Shard, NDArray[np.int64], list[int]]] = []
        for number in np.unique(shard_of):
            shard, rows = self._shard(int(number)), np.flatnonzero(shard_of == number)
            kept = shard.index["window"]
            places = np.searchsorted(kept, flat[rows])
            absent = flat[rows][kept[np.minimum(places, len(kept) - 1)] != flat[rows]]
            if len(absent):
                raise SignalError(f"{self.path}: holds no signal of window {absent[0]}; {self.extent}")
            wanted.append((shard, rows, places.tolist()))
        # From a bucket, all records at once: one after the other they would wait for the network each.
        spans = [span for shard, _, records in wanted for span in shard.spans(records)] if self._remote else []
        try:
            contents = iter(cloud.ranges(spans))
        except OSError as error:
            raise SignalError(f"{self.path}: cannot be read ({error}); {HOW}") from None
        for shard, rows, records in wanted:
            given = [next(contents) for _ in records] if self._remote else None
            for row, payload in zip(rows, shard.read(records, given)):
                payloads[row] = payload
        if self.signal.sparse:
            return self._sparse(payloads, shape)
        width = self.manifest["recipe"]["teacher"]["d_model"] if self.signal.kind == "hidden" else self.vocab_size
        dtype = codec.DTYPES[self.signal.dtype if self.signal.kind == "hidden" else "float16"]
        dense: Any = np.stack([codec.unpack_dense(payload, (self.seq_len, width), dtype) for payload in payloads])
        dense = dense.reshape(*shape, *dense.shape[1:])
        return HiddenStates(hidden=dense) if self.signal.kind == "hidden" else TeacherSignal(log_probs=dense)

    def _sparse(self, payloads: list[bytes], shape: tuple[int, ...]) -> SparseSignal:
        ids: Any = np.empty((len(payloads), self.seq_len, self._most), np.int32)
        values: Any = np.empty(ids.shape, np.float32)
        for i, payload in enumerate(payloads):
            window = codec.unpack(payload, self.seq_len, self._most)
            ids[i] = self._ids.take(window.ranks, mode="clip")
            values[i] = self._log_probs(window)
        found = self.signal.select(ids, values, self._objective)
        ids, values = (x.reshape(*shape, *x.shape[1:]) for x in found)
        return SparseSignal(ids=ids, log_probs=values)

    def _log_probs(self, window: codec.Ragged) -> NDArray[np.float32]:
        empty = np.arange(self._most) >= window.lengths[:, None]
        if self.signal.kind == "argmax" or window.symbols is None:
            values = np.zeros(empty.shape, np.float32)
        elif self.signal.kind == "sampled":
            grain = 1 if self.signal.proposal == 1 else GRAIN
            values = np.log(np.maximum(window.symbols, 1) / np.float32(self.signal.draws * grain)).astype(np.float32)
        else:
            if window.rest is None:
                raise SignalError(f"{self.path}: a record of {self.signal.kind} without the mass of the rest; {HOW}")
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
        """Which windows it holds, and what to do about others, for an error."""
        kept = self.manifest["recipe"]["windows"]
        if kept["count"] == kept["of"]:
            return f"its data have {kept['of']} windows"
        return (
            f"it was made for the first {kept['samples']} windows in the order of data.seed={kept['seed']} "
            f"({kept['count']} of {kept['of']}); make one with more tokens, or with --windows=all"
        )

    def verify(self) -> None:
        """Reads every byte and compares every digest."""
        for name in self.manifest["files"]:
            self.read_file(name)
        for number in range(len(self._names)):
            shard = self._shard(number)
            self.read(np.asarray(shard.index["window"], np.int64))


def identify_stored(teacher: TeacherConfig) -> TeacherConfig:
    """The config with the teacher's run and the label of its signal, as the store's manifest has them.

    Raises DistillError where the config already names others.
    """
    if not teacher.store:
        raise ConfigError("config.teacher.store: got '', wanted the folder that launch.cache made (signal='stored')")
    recipe = manifest.read(cloud.at(teacher.store))["recipe"]
    label = tree.build(SignalSpec, recipe["signal"], f"{teacher.store}: signal").label
    dtype = recipe["teacher"].get("dtype", "float32")
    for name, held in (("run", recipe["teacher"]["run"]), ("stored", label), ("dtype", dtype)):
        given = getattr(teacher, name)
        if given not in ("", "float32", held):
            raise ConfigError(f"config.teacher.{name}={given!r}, but the store {teacher.store} holds {held!r}")
    return dataclasses.replace(teacher, run=recipe["teacher"]["run"], stored=label, dtype=dtype)
