"""Text to token ids and back, and how many bytes of text each token stands for."""

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distill.data.documents import Part


class Tokenizer(Protocol):
    """What a store asks of a tokenizer.

    `encode` gives one int32 array a text, without special tokens; `end_of_text` (or -1 for none) is appended by the
    builder. `byte_lengths[id]` is the number of UTF-8 bytes of text that the token stands for, 0 for special ones:
    losses in nats divided by these bytes compare across tokenizers.
    """

    name: str
    hash: str
    vocab_size: int
    end_of_text: int
    byte_lengths: NDArray[np.int64]
    spec: tuple[str, str]  # (kind, path): loads it again in another process

    def encode(self, parts: Sequence[Part]) -> list[NDArray[np.int32]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class ByteTokenizer:
    """UTF-8 bytes. Byte 0, which no text here holds, ends a document."""

    name = "bytes"
    hash = hashlib.sha256(b"distill: UTF-8 bytes, 0 ends a document").hexdigest()
    vocab_size = 256
    end_of_text = 0
    spec = ("bytes", "")

    def __init__(self) -> None:
        self.byte_lengths = np.ones(256, np.int64)
        self.byte_lengths[0] = 0

    def encode(self, parts: Sequence[Part]) -> list[NDArray[np.int32]]:
        return [np.frombuffer(part.text.encode("utf-8"), np.uint8).astype(np.int32) for part in parts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i).decode("utf-8", "replace")


def load(spec: tuple[str, str]) -> Tokenizer:
    """The tokenizer of a spec."""
    return ByteTokenizer()
