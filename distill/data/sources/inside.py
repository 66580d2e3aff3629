"""Cuts each document of a small source into contiguous blocks for the teacher, the student and validation.

Assigning whole documents to splits needs many documents: with one text file, two of three splits would be empty. Where
a source has fewer than `FEW` documents and a split would be empty, every document is cut in the proportions of
`data.splits`: the teacher's block first, then the student's, validation last.
"""

import itertools
from collections.abc import Iterator

from distill.config.data import SplitConfig
from distill.data.documents import SPLITS, Document, Part, TextSource, assign

FEW = 20  # documents
LEAST = 500  # characters of the smallest block; a text that is too short for it fails later


class SplitInside:
    """The documents of another source, cut into blocks that end at line ends where possible."""

    masked = False
    explicit: tuple[str, ...] = SPLITS

    def __init__(self, source: TextSource, splits: SplitConfig):
        self._source, self._splits, self._fractions = source, splits, _fractions(source, splits)
        self.shards = source.shards

    @property
    def share(self) -> float:
        return self._source.share

    def describe(self) -> dict[str, object]:
        inside = {"validation": self._splits.validation, "teacher": self._splits.teacher}
        return {**self._source.describe(), "inside": inside}

    def read(self, shard: int, skip: int = 0) -> Iterator[Document]:
        blocks = (block for document in self._source.read(shard) for block in _blocks(document, self._fractions))
        return itertools.islice(blocks, skip, None)


def needs_inner_split(source: TextSource, splits: SplitConfig) -> bool:
    """Whether the source has so few documents of plain text that a split with a positive share would be empty.

    Reads at most FEW documents.
    """
    if source.masked or set(source.explicit) == set(SPLITS):
        return False
    stream = (document for shard in range(len(source.shards)) for document in source.read(shard))
    documents = list(itertools.islice((d for d in stream if d.size and not d.split), FEW))
    if not documents or len(documents) == FEW or any(len(d.parts) != 1 for d in documents):
        return False
    fractions = {name: fraction for name, fraction in _fractions(source, splits).items() if fraction > 0}
    if sum(d.size for d in documents) * min(fractions.values()) < LEAST:
        return False
    return not set(fractions) <= {assign(d.digest(), splits) for d in documents}


def _fractions(source: TextSource, splits: SplitConfig) -> dict[str, float]:
    """The fraction of a document that each split gets, in the order of the blocks."""
    training = 1.0 if "validation" in source.explicit else 1 - splits.validation
    return {
        "teacher": training * splits.teacher,
        "student": training * (1 - splits.teacher),
        "validation": 1 - training,
    }


def _blocks(document: Document, fractions: dict[str, float]) -> list[Document]:
    """The document's blocks, validation first: a duplicate block is then dropped from the other splits."""
    if document.split or not document.parts:
        return [document]
    text, at, total = document.parts[0].text, 0, 0.0
    blocks = []
    for name, fraction in fractions.items():
        total += fraction
        end = len(text) if total > 1 - 1e-9 else _line_end(text, at, round(total * len(text)))
        blocks.append(Document((Part(text[at:end]),), split=name, broken=document.broken))
        at = end
    return [block for block in blocks[::-1] if block.size]


def _line_end(text: str, start: int, near: int) -> int:
    """The last line end before `near`; if there is none after `start`, the last blank; otherwise `near`."""
    for separator in ("\n", " "):
        end = text.rfind(separator, start, near)
        if end >= 0:
            return end + 1
    return near
