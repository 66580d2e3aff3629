"""Converts text to token ids and back, and counts the bytes of text that each token represents."""

import hashlib
import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distill.data.documents import Encoding, Part
from distill.data.tokenizers.around import NONE, Around
from distill.data.tokenizers.spec import END_OF_TEXT, Piece, Spec


class Tokenizer(Protocol):
    """The tokenizer interface that a store uses.

    `encode` returns one int32 array per part, each a text of its own. `encode_whole` encodes the parts of a document as
    one text. Both recognise special tokens only where a template wrote them. The builder puts `around` around the
    text of a document and ends it with `end_of_text` (-1: with no token). `name` ends in digits of the hash where the
    kind alone does not identify the tokenizer, so that equal names mean equal tokens. `byte_lengths[id]` is the number
    of UTF-8 bytes of text that the token represents, 0 for special tokens: losses in nats per byte compare across
    tokenizers. `rules` names how pieces become tokens ('': unknown): rules of one kind are equal or differ. `steps`
    names what is done to a text before ('': unknown): equal steps are the same, and others may be.
    """

    name: str
    hash: str
    vocab_size: int
    end_of_text: int
    byte_lengths: NDArray[np.int64]
    around: Around
    rules: str
    steps: str
    spec: Spec  # with which `load` recreates it in another process

    def encode(self, parts: Sequence[Part]) -> list[NDArray[np.int32]]: ...

    def encode_whole(self, documents: Sequence[Sequence[Part]]) -> list[Encoding]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def token(self, i: int) -> str: ...  # as the vocabulary writes it; '' for an unknown id

    def pieces(self) -> list[Piece]: ...


class ByteTokenizer:
    """UTF-8 bytes. Byte 0 ends a document, because text never contains it here."""

    name = "bytes"
    hash = hashlib.sha256(b"distill: UTF-8 bytes, 0 ends a document").hexdigest()
    vocab_size = 256
    end_of_text = 0
    around = Around()
    rules = steps = ""

    def __init__(self) -> None:
        self.spec = Spec("bytes", special=NONE)
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

    def token(self, i: int) -> str:
        return END_OF_TEXT if i == 0 else chr(i) if i < 128 else f"<0x{i:02X}>"

    def pieces(self) -> list[Piece]:
        return [Piece("special", END_OF_TEXT.encode()), *(Piece("text", bytes([i])) for i in range(1, 256))]


class SymbolTokenizer:
    """The identity, for generated languages: text is decimal symbols, separated by blanks."""

    end_of_text = -1
    around = Around()
    rules = steps = ""

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size
        self.name = f"symbols-{vocab_size}"
        self.hash = hashlib.sha256(f"distill: {self.name}".encode()).hexdigest()
        self.spec = Spec("symbols", option=str(vocab_size), special=NONE)
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

    def token(self, i: int) -> str:
        return str(i)

    def pieces(self) -> list[Piece]:
        return [Piece("text", str(i).encode()) for i in range(self.vocab_size)]


def load(spec: Spec) -> Tokenizer:
    """The tokenizer of a spec. Raises DataError where its file cannot be read."""
    if spec.kind == "bytes":
        return ByteTokenizer()
    if spec.kind == "symbols":
        return SymbolTokenizer(int(spec.option))
    if spec.kind == "sentencepiece":
        from distill.data.tokenizers.sentencepiece import SentencePieceTokenizer

        return SentencePieceTokenizer(spec.path, spec.special)
    from distill.data.tokenizers.subword import SubwordTokenizer

    return SubwordTokenizer(spec.path, spec.option, spec.special)
