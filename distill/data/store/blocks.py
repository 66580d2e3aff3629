"""Append-only binary files with one sha256 per block of 64 KiB, checked when the block is first read.

`NAME` holds the bytes and `NAME.sha256` 32 bytes per block (the last block may be short). The manifest holds the
sha256 of the hash file, so a small manifest covers every byte. Opening a store of any size reads only the
hashes: 10 MB for 20 GB.
"""

import contextlib
import hashlib
import os
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from distill.errors import DataError
from distill.system import files

BLOCK = 64 * 1024
DIGEST = 32


class BlockWriter:
    """Appends to a file and hashes it block by block; memory is bounded by one block."""

    def __init__(self, path: Path, size: int = 0):
        """Opens the file, truncated to `size` bytes: later bytes were written before a kill, but not committed."""
        self.path, self.size = path, size
        self._file = files.stay_open(path, "r+b" if size else "w+b")
        self._hashes = files.stay_open(hash_path(path), "r+b" if size else "w+b")
        self._file.truncate(size)
        self._hashes.truncate(size // BLOCK * DIGEST)
        self._file.seek(size // BLOCK * BLOCK)
        self._tail = bytearray(self._file.read())
        self._hashes.seek(0, os.SEEK_END)

    def append(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self.size += len(data)
        self._tail += data
        whole = len(self._tail) // BLOCK * BLOCK
        for start in range(0, whole, BLOCK):
            self._hashes.write(hashlib.sha256(memoryview(self._tail)[start : start + BLOCK]).digest())
        del self._tail[:whole]

    def flush(self, to_disk: bool = True) -> None:
        for file in (self._file, self._hashes):
            file.flush()
            if to_disk:
                os.fsync(file.fileno())

    def finish(self) -> dict[str, int | str]:
        """Hashes the last block, closes the files, and returns the manifest's entry of this file."""
        if self._tail:
            self._hashes.write(hashlib.sha256(self._tail).digest())
        self.flush()
        self.close()
        return {"size": self.size, "sha256": hashlib.sha256(hash_path(self.path).read_bytes()).hexdigest()}

    def close(self) -> None:
        self._file.close()
        self._hashes.close()


def hash_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


class BlockReader:
    """A memory map of a block file; every block is hashed and compared on its first read.

    Raises DataError (with the path and the byte range) when a length or a hash differs from the manifest's entry.
    """

    def __init__(self, path: Path, entry: dict, dtype: DTypeLike):
        self.path = path
        size, hashes = -1, b""
        with contextlib.suppress(OSError):  # missing, or an invalid file name
            size = path.stat().st_size
            hashes = hash_path(path).read_bytes()
        if size != entry["size"]:
            raise DataError(f"{path}: got {size} bytes, wanted {entry['size']} (manifest); rebuild the store")
        if hashlib.sha256(hashes).hexdigest() != entry["sha256"]:
            raise DataError(f"{hash_path(path)}: does not match the manifest; rebuild the store")
        # Blocks are hashed through this descriptor: reads cost less than page faults.
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        # An empty file cannot be mapped.
        self.array: NDArray = np.asarray(np.memmap(path, dtype, "r")) if size else np.zeros(0, dtype)
        self._hashes, self._size = hashes, size
        self._seen = np.zeros(-(-size // BLOCK), bool)
        self._all_seen = not len(self._seen)

    def check(self, first: ArrayLike, last: ArrayLike) -> None:
        """Checks the blocks that hold elements first..last (inclusive; arrays of equal length)."""
        if self._all_seen:
            return
        item = self.array.dtype.itemsize
        start, stop = np.asarray(first) * item // BLOCK, np.asarray(last) * item // BLOCK
        ends = np.unique(np.concatenate([start, stop]))
        for block in ends[~self._seen[ends]]:
            self._check_block(int(block))
        for a, b in zip(start[stop - start > 1], stop[stop - start > 1]):
            for block in range(int(a) + 1, int(b)):
                self._check_block(block)
        self._all_seen = bool(self._seen.all())

    def check_all(self) -> None:
        """Reads and checks the whole file."""
        for block in range(len(self._seen)):
            self._check_block(block)
        self._all_seen = True

    def _check_block(self, block: int) -> None:
        if self._seen[block]:
            return
        start, stop = block * BLOCK, min((block + 1) * BLOCK, self._size)
        content = os.pread(self._descriptor, stop - start, start)
        if hashlib.sha256(content).digest() != self._hashes[block * DIGEST : (block + 1) * DIGEST]:
            raise DataError(
                f"{self.path}: bytes {start}..{stop} do not match their sha256; the file is damaged: "
                "delete the store and build it again"
            )
        self._seen[block] = True
