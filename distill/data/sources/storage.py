"""Reads local and remote files: globs, compression, and gs:// through etils.epath."""

import contextlib
import glob
import gzip
import hashlib
import importlib
import io
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, Any, Protocol

from distill.errors import DataError
from distill.system import cloud

FORMATS = (".txt", ".jsonl", ".parquet", ".arrow")
COMPRESSIONS = (".gz", ".xz", ".zst")
_PROBE = 64 << 10
_PIECE = 128 << 10
# Memory limit for xz: the largest preset needs 65 MiB; the header of an untrusted file may request 4 GiB.
_XZ_MEMORY = 80 << 20


def expand(patterns: tuple[str, ...]) -> list[str]:
    """The files that the globs match, sorted and without duplicates; a local folder means its text files, recursively.

    Raises DataError for a pattern that matches nothing.
    """
    matched: set[str] = set()
    for pattern in patterns:
        if not cloud.remote(pattern) and Path(pattern).is_dir():
            inside = [path for path in Path(pattern).rglob("*") if path.is_file()]
            shown = [str(p) for p in inside if not any(part[0] == "." for part in p.relative_to(pattern).parts)]
            # What `datasets` computed lies beside its data.
            shown = [path for path in shown if not (Path(path).name.startswith("cache-") and path.endswith(".arrow"))]
            files = [path for path in shown if path.removesuffix(_compression(path)).endswith(FORMATS)]
            if not files:
                raise DataError(f"data.files: the folder {pattern!r} holds no {', '.join(FORMATS)} file")
        else:
            paths = _glob_remote(pattern) if cloud.remote(pattern) else glob.glob(pattern, recursive=True)
            files = [path for path in paths if cloud.remote(path) or Path(path).is_file()]
            if not files:
                raise DataError(f"data.files: {pattern!r} matches no file")
        matched.update(files)
    return sorted(matched)


def _compression(path: str) -> str:
    return next((suffix for suffix in COMPRESSIONS if path.endswith(suffix)), "")


def _glob_remote(pattern: str) -> list[str]:
    fixed, _, rest = pattern.partition("*")
    if not rest and not pattern.endswith("*"):
        return [pattern]
    folder = fixed.rpartition("/")[0]
    return [str(path) for path in cloud.at(folder).glob(pattern[len(folder) + 1 :])]


def size(path: str) -> int:
    """Size of a file as stored, in bytes."""
    stat = cloud.at(path).stat()
    return stat.length if cloud.remote(path) else stat.st_size


@contextlib.contextmanager
def open_bytes(path: str) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Opens the decompressed byte stream of a file, and the file as stored, whose position gives the progress."""
    with cloud.at(path).open("rb") as raw:
        if path.endswith(".zst"):
            zstandard = optional("zstandard", "zstandard", path)
            try:
                yield io.BufferedReader(_Frames(lambda: zstandard.ZstdDecompressor().decompressobj(), raw)), raw
            except zstandard.ZstdError as error:
                raise DataError(f"{path}: the file is cut off or not what its name says ({error})") from None
        elif path.endswith(".xz"):
            yield io.BufferedReader(_Frames(lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY), raw)), raw
        elif path.endswith(".gz"):
            with gzip.open(raw, "rb") as stream:
                yield stream, raw
        else:
            yield raw, raw


class _Decompressor(Protocol):
    """Decompresses one frame; only the xz version can bound its output."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = ...) -> bytes: ...


class _Frames(io.RawIOBase):
    """Reads consecutive zstd frames or xz streams. Raises EOFError where the last one is truncated."""

    def __init__(self, make: Callable[[], _Decompressor], raw: IO[bytes]):
        self._make, self._raw = make, raw
        self._frame: _Decompressor | None = None
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if self._frame is not None and not self._frame.eof and not getattr(self._frame, "needs_input", True):
                self._ready = self._frame.decompress(b"", _PIECE)  # xz: more output of the same input
                continue
            if self._frame is not None and self._frame.eof:
                piece, self._frame = self._frame.unused_data or self._raw.read(_PIECE), None
                while piece and not (data := piece.lstrip(b"\0")):  # xz allows zeros between streams
                    piece = self._raw.read(_PIECE)
                data = data if piece else b""
            else:
                data = self._raw.read(_PIECE)
            if not data:
                if self._frame is not None:
                    raise EOFError("compressed data ended before the end of its last frame")
                return 0
            if self._frame is None:
                self._frame = self._make()
            # xz can bound its output, zstd cannot.
            bound = (_PIECE,) if hasattr(self._frame, "needs_input") else ()
            self._ready = self._frame.decompress(data, *bound)
        n = min(len(buffer), len(self._ready))
        buffer[:n], self._ready = self._ready[:n], self._ready[n:]
        return n


def optional(module: str, package: str, path: str) -> ModuleType:
    """Imports a module that only some files need. Raises DataError that names the package if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise DataError(f"{path}: reading this needs the package {package}; `pip install {package}`") from None


def probe(path: str, size: int) -> str:
    """sha256 of the first and last 64 KiB of a file, which for a small file is all of it."""
    with cloud.at(path).open("rb") as file:
        head = file.read(_PROBE)
        if size > 2 * _PROBE:
            file.seek(size - _PROBE)
        return hashlib.sha256(head + file.read(_PROBE)).hexdigest()


def common_root(paths: list[str]) -> str:
    """The folder that contains all paths: paths relative to it do not change when a corpus is moved."""
    first, last = min(paths), max(paths)
    same = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))
    return first[: first.rfind("/", 0, same) + 1]
