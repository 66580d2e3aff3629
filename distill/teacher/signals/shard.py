"""One file of a signal store: self-describing records, an index, and digests that cover every byte.

    line       {"format", "shard", "store"} as JSON, ended by a newline
    records    window (i64), size (u32), most (u32), blake2b-128 (16 bytes), then `size` bytes of payload
    index      window (i64), offset (u64), size (u32), most (u32) of each record
    footer     offset of the index (u64), records (u64), blake2b-128 of line and index

A record's digest covers its window and its payload and is keyed by store and shard, so that swapped records or files
are detected like flipped bits. A shard grows under the name NAME.part; a killed writer leaves complete
records and at most one incomplete one, which the next writer truncates.
"""

import contextlib
import hashlib
import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from distill.errors import SignalError
from distill.system import files

FORMAT = 1
_RECORD = struct.Struct("<qII16s")
_FOOTER = struct.Struct("<QQ16s")
INDEX = np.dtype([("window", "<i8"), ("offset", "<u8"), ("size", "<u4"), ("most", "<u4")])
HOW = "the store is damaged: delete it and run launch.cache again"


class ShardEntry(TypedDict):
    """The manifest's entry of a finished shard."""

    file: str
    size: int  # bytes
    windows: int
    first: int  # the lowest window id
    payload: int  # bytes of all payloads
    most: int  # the largest number of entries of a token
    digest: str  # of the header line and the index


class Name(NamedTuple):
    """Identifies a shard: its store and its number."""

    store: str  # the digest of the store's recipe
    shard: int

    @property
    def file(self) -> str:
        return f"shard-{self.shard:06d}.signal"

    @property
    def line(self) -> bytes:
        return json.dumps({"format": FORMAT, "shard": self.shard, "store": self.store}).encode() + b"\n"

    def digest(self, *parts: bytes) -> bytes:
        """A digest of the parts, keyed by this name."""
        hasher = hashlib.blake2b(digest_size=16, key=f"{self.store[:32]}-{self.shard}".encode())
        for part in parts:
            hasher.update(part)
        return hasher.digest()


class ShardWriter:
    """Appends records to NAME.part, after the complete ones that an interrupted writer left there."""

    def __init__(self, folder: Path, name: Name):
        self.name, self.path = name, folder / f"{name.file}.part"
        self._index: list[tuple[int, int, int, int]] = []
        end = self._recover() if self.path.exists() else 0
        self._file = files.stay_open(self.path, "r+b" if end else "w+b")
        self._file.truncate(end)
        self._file.seek(end)
        if not end:
            self._file.write(name.line)

    @property
    def windows(self) -> list[int]:
        """The windows written so far."""
        return [entry[0] for entry in self._index]

    def _recover(self) -> int:
        """The end of the last complete record; 0 where not even the header line is complete."""
        content = self.path.read_bytes()
        if not content.startswith(self.name.line):
            return 0
        at = len(self.name.line)
        while at + _RECORD.size <= len(content):
            window, size, most, digest = _RECORD.unpack_from(content, at)
            payload = content[at + _RECORD.size : at + _RECORD.size + size]
            if len(payload) != size or digest != _record_digest(self.name, window, size, most, payload):
                break
            self._index.append((window, at, size, most))
            at += _RECORD.size + size
        return at

    def append(self, window: int, most: int, payload: bytes) -> None:
        """Appends one record; `most` is the largest number of entries of one of its tokens."""
        self._index.append((window, self._file.tell(), len(payload), most))
        digest = _record_digest(self.name, window, len(payload), most, payload)
        self._file.write(_RECORD.pack(window, len(payload), most, digest) + payload)

    def flush(self) -> None:
        """Passes all data to the operating system, which keeps them if this process dies."""
        self._file.flush()

    def finish(self) -> ShardEntry:
        """Writes the index, renames the file to its final name, and returns its entry of the manifest."""
        start = self._file.tell()
        index = np.array(self._index, INDEX).tobytes()
        digest = self.name.digest(self.name.line, index)
        self._file.write(index + _FOOTER.pack(start, len(self._index), digest))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self.path, self.path.with_name(self.name.file))
        return entry(self.path.with_name(self.name.file), self.name)[0]

    def close(self) -> None:
        self._file.close()


class Shard:
    """A finished shard: the index is read on opening, records on request."""

    def __init__(self, path: Path, name: Name):
        """`path` is a pathlib or epath path. Raises SignalError unless header line, index and footer are intact."""
        self.path, self.name = path, name
        try:
            with path.open("rb") as file:
                line = file.read(len(name.line))
                if line != name.line:
                    raise SignalError(f"{path}: begins with {line[:80]!r}, wanted {name.line!r}; {HOW}")
                end = file.seek(0, os.SEEK_END)
                file.seek(max(end - _FOOTER.size, 0))
                footer = file.read(_FOOTER.size)
                start, count, digest = _FOOTER.unpack(footer) if len(footer) == _FOOTER.size else (0, 0, b"")
                if start + count * INDEX.itemsize + _FOOTER.size != end:
                    raise SignalError(f"{path}: its {end} bytes do not end in an index; {HOW}")
                file.seek(start)
                content = file.read(count * INDEX.itemsize)
        except OSError as error:
            raise SignalError(f"{path}: cannot be read ({error.strerror or error}); {HOW}") from None
        if name.digest(line, content) != digest:
            raise SignalError(f"{path}: the index does not match its digest; {HOW}")
        self.digest, self.size = digest.hex(), end
        self.index: NDArray[np.void] = np.frombuffer(content, INDEX)  # [records]

    def spans(self, rows: Sequence[int]) -> list[tuple[Path, int, int]]:
        """(path, first byte, last byte + 1) of the records at these rows of the index."""
        offsets, sizes = (self.index[name][list(rows)].tolist() for name in ("offset", "size"))
        return [(self.path, start, start + _RECORD.size + size) for start, size in zip(offsets, sizes)]

    def read(self, rows: Sequence[int], contents: Sequence[bytes] | None = None) -> list[bytes]:
        """The payloads of the records at these rows of the index; `contents` are their bytes where already fetched.

        Raises SignalError for the first record that does not match its digest.
        """
        payloads = []
        try:
            with self.path.open("rb") if contents is None else contextlib.nullcontext() as file:
                for i, row in enumerate(rows):
                    window, offset, size, most = self.index[row].tolist()
                    if contents is not None:
                        content = contents[i]
                    elif file is not None:
                        file.seek(offset)
                        content = file.read(_RECORD.size + size)
                    digest = _record_digest(self.name, window, size, most, content[_RECORD.size :])
                    if content[: _RECORD.size] != _RECORD.pack(window, size, most, digest):
                        end = offset + _RECORD.size + size
                        raise SignalError(
                            f"{self.path}: the record of window {window} (bytes {offset}..{end}) does not match its "
                            f"digest; {HOW}"
                        )
                    payloads.append(content[_RECORD.size :])
        except OSError as error:
            raise SignalError(f"{self.path}: cannot be read ({error.strerror or error}); {HOW}") from None
        return payloads


def entry(path: Path, name: Name) -> tuple[ShardEntry, NDArray[np.int64]]:
    """The manifest's entry of a finished shard, and its windows [records]."""
    shard = Shard(path, name)
    windows = shard.index["window"]
    described: ShardEntry = {
        "file": name.file,
        "size": shard.size,
        "windows": len(windows),
        "first": int(windows[0]),
        "payload": int(shard.index["size"].sum()),
        "most": int(shard.index["most"].max()),
        "digest": shard.digest,
    }
    return described, windows


def _record_digest(name: Name, window: int, size: int, most: int, payload: bytes) -> bytes:
    return name.digest(struct.pack("<qII", window, size, most), payload)
