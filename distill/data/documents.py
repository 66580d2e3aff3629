"""A document on its way from a source to a split."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from distill.config.data import SplitConfig

SPLITS = ("teacher", "student", "validation")


class Part(NamedTuple):
    """A piece of a document. In plain text there is one; a chat or a prompt with its completion has several."""

    text: str
    trained: bool = True  # its tokens are predicted when only completions are
    template: bool = False  # written by a template: special tokens are recognised here and nowhere else


class Document(NamedTuple):
    """`parts` of text, or `ids` that need no tokenizer; no parts at all is a document that was skipped."""

    parts: tuple[Part, ...] = ()
    ids: NDArray[np.integer] | None = None
    split: str = ""  # '' is decided by the text's hash
    broken: bool = False  # held bytes that are not UTF-8
    trained: NDArray[np.uint8] | None = None  # of `ids`: 1 where they count as a completion

    @property
    def size(self) -> int:
        """Characters of text or number of ids, whichever there is."""
        return sum(len(part.text) for part in self.parts) + (0 if self.ids is None else len(self.ids))

    def digest(self) -> int:
        """The first 64 bits of the sha256 of the content: the document's identity for splits and duplicates."""
        content = self.ids.tobytes() if self.ids is not None else "".join(p.text for p in self.parts).encode("utf-8")
        return int.from_bytes(hashlib.sha256(content).digest()[:8], "little")


class TextSource(Protocol):
    """Where documents come from, in an order that never changes.

    `read(shard, skip)` yields the documents of a shard from number `skip` on. Documents that bring their own split
    come before all others, and only for splits named in `explicit`. `describe` is the identity of the content;
    `share` is how much of the source has been read, from 0 to 1.
    """

    shards: list[str]
    explicit: tuple[str, ...]
    masked: bool

    @property
    def share(self) -> float: ...

    def describe(self) -> dict[str, object]: ...

    def read(self, shard: int, skip: int = 0) -> Iterator[Document]: ...


def assign(digest: int, splits: SplitConfig) -> str:
    """The split of a document, from its digest alone: other documents, files and their order do not matter."""
    u = digest / 2**64
    if u < splits.validation:
        return "validation"
    return "teacher" if u < splits.validation + (1 - splits.validation) * splits.teacher else "student"
