"""Documents as sources yield them, before they are tokenized and assigned to splits."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from distill.config.data import SplitConfig

SPLITS = ("teacher", "student", "validation")


class Part(NamedTuple):
    """A piece of a document. Plain text has one part; a chat, or a prompt with its completion, has several."""

    text: str
    trained: bool = True  # predicted when only completions are
    template: bool = False  # written by a template: only here are special tokens recognised


class Encoding(NamedTuple):
    """The tokens of one text, and the characters that each of them stands for."""

    ids: NDArray[np.int32]  # [tokens]
    spans: NDArray[np.int64]  # [tokens, 2]: the first character, and the one after the last
    control: NDArray[np.bool_]  # [tokens]: a special token that a template wrote


class Document(NamedTuple):
    """`parts` of text, or `ids` that need no tokenizer. A document with no parts was skipped."""

    parts: tuple[Part, ...] = ()
    ids: NDArray[np.integer] | None = None
    split: str = ""  # '': chosen by the hash of the text
    broken: bool = False  # contained bytes that are not UTF-8
    trained: NDArray[np.uint8] | None = None  # for `ids`: 1 for tokens of a completion

    @property
    def size(self) -> int:
        """Characters of text, or the number of ids."""
        return sum(len(part.text) for part in self.parts) + (0 if self.ids is None else len(self.ids))

    def digest(self) -> int:
        """The first 64 bits of the sha256 of the content, which assigns a split and finds duplicates."""
        content = self.ids.tobytes() if self.ids is not None else "".join(p.text for p in self.parts).encode("utf-8")
        return int.from_bytes(hashlib.sha256(content).digest()[:8], "little")


class TextSource(Protocol):
    """A source of documents in a fixed order.

    `read(shard, skip)` yields the documents of a shard from number `skip` on. Documents with a split of their own
    come before all others, and only for the splits in `explicit`. `describe` identifies the content; `share` is the
    fraction of the source that has been read, from 0 to 1.
    """

    shards: list[str]
    explicit: tuple[str, ...]
    masked: bool

    @property
    def share(self) -> float: ...

    def describe(self) -> dict[str, object]: ...

    def read(self, shard: int, skip: int = 0) -> Iterator[Document]: ...


def assign(digest: int, splits: SplitConfig) -> str:
    """The split of a document, from its digest alone: independent of other documents, of files and of their order."""
    u = digest / 2**64
    if u < splits.validation:
        return "validation"
    return "teacher" if u < splits.validation + (1 - splits.validation) * splits.teacher else "student"
