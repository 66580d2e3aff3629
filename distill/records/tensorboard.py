"""Writes scalars as TensorBoard event files, beside metrics.jsonl.

Written by hand: a writer is forty lines, and the existing ones import torch (tensorboardX, if torch is installed) or
TensorFlow. A file is a sequence of records: length, its masked CRC-32C, an Event message, its masked CRC-32C
(TFRecord). Four fields of Event (tensorflow/core/util/event.proto) are used.
tests/records/test_tensorboard.py reads the files with TensorBoard's own reader.
"""

import functools
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

VERSION = "brain.Event:2"  # the first record of every file


class EventWriter:
    """Appends scalars to a new event file in `folder`; a resumed run opens a new file, as TensorBoard expects."""

    def __init__(self, folder: str | Path):
        Path(folder).mkdir(parents=True, exist_ok=True)
        # One process may open a folder twice within a second.
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._path = Path(folder) / name
        self._append(_event(time.time(), 0, {}, VERSION))

    def add(self, step: int, wall: float, scalars: Mapping[str, float]) -> None:
        """Appends the scalars of one step, at `wall` seconds since 1970."""
        self._append(_event(wall, step, scalars))

    def _append(self, message: bytes) -> None:
        length = struct.pack("<Q", len(message))
        with open(self._path, "ab") as file:  # at most one line a second: keeping the file open gains nothing
            file.write(length + _masked(length) + message + _masked(message))


def _event(wall: float, step: int, scalars: Mapping[str, float], version: str = "") -> bytes:
    """An Event message. Field numbers: wall_time 1, step 2, file_version 3, summary 5."""
    message = b"\x09" + struct.pack("<d", wall) + b"\x10" + _varint(step)
    if version:
        return message + _field(3, version.encode())
    # Field numbers: Summary.value 1, with tag 1 and simple_value 2.
    values = (
        _field(1, _field(1, name.encode()) + b"\x15" + struct.pack("<f", value)) for name, value in scalars.items()
    )
    return message + _field(5, b"".join(values))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


@functools.cache
def _table() -> tuple[int, ...]:
    """CRC-32C (Castagnoli, reflected polynomial 0x82F63B78) of every byte."""

    def one(value: int) -> int:
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        return value

    return tuple(map(one, range(256)))


def crc32c(content: bytes) -> int:
    """The checksum of RFC 3720."""
    table, crc = _table(), 0xFFFFFFFF
    for byte in content:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _masked(content: bytes) -> bytes:
    """A checksum as TFRecord stores it: rotated and shifted, because CRCs over embedded CRCs are unreliable."""
    crc = crc32c(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
