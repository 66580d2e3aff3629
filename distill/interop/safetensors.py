"""safetensors files: a JSON header, checked before anything is allocated, and raw tensors, read by rows.

The format is that of huggingface/safetensors: 8 bytes of length, the header, the concatenated tensors. Implemented
here for bfloat16, and because a reader must not allocate what a header claims, nor a writer hold the whole model.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from distill.errors import InteropError
from distill.system.files import atomic_file, loads

DTYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
# All or some rows of a tensor. bfloat16 is one of its dtypes, though NumPy does not class it as floating.
Tensor = NDArray[np.floating]

_BYTES: dict[str, Any] = {"U8": np.uint8}  # of packed_experts alone, by the end of their name
_PIECE = 1 << 24
_LONGEST_HEAD = 100_000_000  # bytes; the limit of the format's own library


@dataclasses.dataclass(frozen=True)
class Entry:
    """The position of a tensor in its file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


def read_head(file: Path) -> dict[str, Entry]:
    """The tensors of one file. Raises InteropError, naming the tensor, where the header does not match the file."""
    try:
        size = file.stat().st_size
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(_LONGEST_HEAD, size - 8):
                raise InteropError(
                    f"{file}: the head claims {length:,} bytes and the file has {size:,}; it is cut off, or of "
                    "another format"
                )
            head = loads(stream.read(length))
    except FileNotFoundError:
        raise InteropError(f"{file}: there is no such file") from None
    except OSError as error:
        raise InteropError(f"{file}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InteropError(f"{file}: the head is not JSON ({error!s:.100}); it is no safetensors file") from None
    if not isinstance(head, dict):
        raise InteropError(f"{file}: the head is {type(head).__name__}, wanted an object of tensors")
    head.pop("__metadata__", None)
    return {name: _entry(file, name, item, 8 + length, size) for name, item in head.items()}


def _entry(file: Path, name: str, item: Any, begin: int, size: int) -> Entry:
    try:
        dtype, shape, (start, stop) = item["dtype"], tuple(item["shape"]), item["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, start, stop))
    except (TypeError, KeyError, ValueError):
        whole = False
    if not whole:
        raise InteropError(f"{file}: tensor {name!r} is described as {item!r:.100}, wanted dtype, shape, data_offsets")
    known = DTYPES | (_BYTES if name.endswith(("_blocks", "_scales")) else {})
    if not isinstance(dtype, str) or dtype not in known:
        raise InteropError(f"{file}: tensor {name!r} has dtype {dtype!r:.60}, wanted one of {', '.join(DTYPES)}")
    wanted = math.prod(shape) * np.dtype(known[dtype]).itemsize
    if stop - start != wanted:
        raise InteropError(
            f"{file}: tensor {name!r} has {stop - start:,} bytes, but {list(shape)} of {dtype} are {wanted:,}"
        )
    if begin + stop > size:
        raise InteropError(
            f"{file}: the file is cut off: tensor {name!r} ends at byte {begin + stop:,} of {size:,}; copy it again"
        )
    return Entry(file, dtype, shape, begin + start)


def read_rows(entry: Entry, start: int, stop: int) -> Tensor:
    """Rows start to stop of a tensor in their stored dtype; reads no other bytes of it."""
    dtype = np.dtype((DTYPES | _BYTES)[entry.dtype])
    shape = (stop - start, *entry.shape[1:])
    row = math.prod(entry.shape[1:])
    with open(entry.file, "rb") as stream:
        stream.seek(entry.offset + start * row * dtype.itemsize)
        values = np.fromfile(stream, dtype, math.prod(shape))
    if values.size != math.prod(shape):
        raise InteropError(f"{entry.file}: the file ended while rows {start} to {stop} of a tensor were read")
    return values.reshape(shape)


def pieces(entry: Entry) -> Iterator[bytes]:
    """Yields a tensor's stored bytes in pieces of some megabytes."""
    width = np.dtype((DTYPES | _BYTES)[entry.dtype]).itemsize
    return read_bytes(entry.file, entry.offset, math.prod(entry.shape) * width)


def read_bytes(file: Path, offset: int, size: int) -> Iterator[bytes]:
    """Yields `size` bytes of a file from `offset` on, in pieces. Raises InteropError where the file ends before."""
    with open(file, "rb") as stream:
        stream.seek(offset)
        while size:
            piece = stream.read(min(size, _PIECE))
            if not piece:
                raise InteropError(f"{file}: the file ended while a tensor was read")
            size -= len(piece)
            yield piece


def write(
    file: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str, read: Callable[[str], Tensor]
) -> Iterable[int]:
    """Writes the tensors one by one, so that only one is in memory; yields the number of bytes of each.

    The file appears under its name once complete.
    """
    width, at, head = np.dtype(DTYPES[dtype]).itemsize, 0, {}
    for name, shape in shapes.items():
        size = math.prod(shape) * width
        head[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **head}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_file(file) as temporary, open(temporary, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            values = read(name)
            if values.shape != shape:
                raise InteropError(f"{file}: tensor {name!r} has shape {list(values.shape)}, wanted {list(shape)}")
            np.ascontiguousarray(values, DTYPES[dtype]).tofile(stream)
            yield math.prod(shape) * width
