"""Converts text to token ids and back, and counts the bytes of text that each token represents."""

import hashlib
import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distill.data.documents import Encoding, Part

_HASHED = re.compile(r"-\d+-[0-9a-f]{8}$")


class Tokenizer(Protocol):
    """The tokenizer interface that a store uses.

    `encode` returns one int32 array per part, each a text of its own. `encode_whole` encodes the parts of a document as
    one text. Both recognise special tokens only where a template wrote them. The builder ends each document with
    `end_of_text` (-1: with no token). `name` ends in digits of the hash where the kind alone does
    not identify the tokenizer, so that equal names mean equal tokens. `byte_lengths[id]` is the number of UTF-8 bytes
    of text that the token represents, 0 for special tokens: losses in nats per byte compare across tokenizers.
    """

    name: str
    hash: str
    vocab_size: int
    end_of_text: int
    byte_lengths: NDArray[np.int64]
    spec: tuple[str, ...]  # (kind, path, option), with which `load` recreates it in another process

    def encode(self, parts: Sequence[Part]) -> list[NDArray[np.int32]]: ...

    def encode_whole(self, documents: Sequence[Sequence[Part]]) -> list[Encoding]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class ByteTokenizer:
    """UTF-8 bytes. Byte 0 ends a document, because text never contains it here."""

    name = "bytes"
    hash = hashlib.sha256(b"distill: UTF-8 bytes, 0 ends a document").hexdigest()
    vocab_size = 256
    end_of_text = 0

    def __init__(self) -> None:
        self.spec: tuple[str, ...] = ("bytes", "", "")
        self.byte_lengths = np.ones(256, np.int64)
        self.byte_lengths[0] = 0

    def encode(self, parts: Sequence[Part]) -> list[NDArray[np.int32]]:
        return [np.frombuffer(part.text.encode("utf-8"), np.uint8).astype(np.int32) for part in parts]

    def encode_whole(self, documents: Sequence[Sequence[Part]]) -> list[Encoding]:
        return [self._whole("".join(part.text for part in parts)) for parts in documents]

    def _whole(self, text: str) -> Encoding:
        ids = np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)
        first = np.cumsum(ids & 0xC0 != 0x80) - 1  # a character's first byte is not of the form 10xxxxxx
        return Encoding(ids, np.stack([first, first + 1], axis=1), np.zeros(len(ids), bool))

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i).decode("utf-8", "replace")


class SymbolTokenizer:
    """The identity, for generated languages: text is decimal symbols, separated by blanks."""

    end_of_text = -1

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size
        self.name = f"symbols-{vocab_size}"
        self.hash = hashlib.sha256(f"distill: {self.name}".encode()).hexdigest()
        self.spec: tuple[str, ...] = ("symbols", "", str(vocab_size))
        # One 'byte' per symbol, so that bits per byte are bits per symbol.
        self.byte_lengths = np.ones(vocab_size, np.int64)

    def encode(self, parts: Sequence[Part]) -> list[NDArray[np.int32]]:
        return [np.array(part.text.split(), np.int32) for part in parts]

    def encode_whole(self, documents: Sequence[Sequence[Part]]) -> list[Encoding]:
        return [self._whole("".join(part.text for part in parts)) for parts in documents]

    def _whole(self, text: str) -> Encoding:
        found = list(re.finditer(r"\S+", text))
        spans = np.array([match.span() for match in found], np.int64).reshape(-1, 2)
        return Encoding(np.array([match[0] for match in found], np.int32), spans, np.zeros(len(found), bool))

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


def same_tokens(one: str, other: str) -> bool:
    """Whether two tokenizer names mean equal tokens: equal names, or equal sizes and hashes with any folder."""
    return one == other or bool(_HASHED.search(one)) and _HASHED.findall(one) == _HASHED.findall(other)


def say_tokens(name: str) -> str:
    """A tokenizer's tokens, for a message; a model without a tokenizer that can be read has no name for them."""
    return f"{name!r} tokens" if name else "tokens of an unknown tokenizer (it has no tokenizer.json that can be read)"


def load(spec: tuple[str, ...]) -> Tokenizer:
    """The tokenizer of a spec (kind, path, option). Raises DataError where its file cannot be read."""
    kind, path, option = spec
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "symbols":
        return SymbolTokenizer(int(option))
    if kind == "sentencepiece":
        from distill.data.tokenizers.sentencepiece import SentencePieceTokenizer

        return SentencePieceTokenizer(path)
    from distill.data.tokenizers.subword import SubwordTokenizer

    return SubwordTokenizer(path, option)
