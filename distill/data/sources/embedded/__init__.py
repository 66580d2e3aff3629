"""The corpus that ships with the package: the State of the Union addresses, 1900-2021 (see PROVENANCE.md).

Split by whole document, in order of year: every tenth is validation; the others go to the teacher and the student in
turn. By alternating, not by year, so that the two halves are alike.
"""

import hashlib
import json
import lzma
from collections.abc import Iterator
from importlib import resources
from typing import NamedTuple

from distill.data.documents import SPLITS, Document, Part

FILE = "sotu.jsonl.xz"


class Address(NamedTuple):
    name: str  # e.g. '1947_harry_s_truman_d'
    text: str
    split: str


def content() -> bytes:
    """The compressed corpus as shipped."""
    return resources.files(__name__).joinpath(FILE).read_bytes()


def fingerprint() -> str:
    return hashlib.sha256(content()).hexdigest()


def addresses() -> list[Address]:
    """All documents with their splits, in order of year."""
    speeches = []
    for i, line in enumerate(lzma.decompress(content()).decode("utf-8").rstrip("\n").split("\n")):
        record = json.loads(line)
        rest = i - i // 10  # documents before this one that are not validation
        split = "validation" if i % 10 == 9 else ("teacher", "student")[rest % 2]
        speeches.append(Address(record["name"], record["text"], split))
    return speeches


class Embedded:
    """The shipped corpus as a source."""

    shards = [FILE]
    explicit: tuple[str, ...] = SPLITS
    masked = False
    share = 0.0

    def describe(self) -> dict[str, object]:
        return {"source": "embedded", "sha256": fingerprint()}

    def read(self, shard: int, skip: int = 0) -> Iterator[Document]:
        # Validation first: a copy of one of its documents is then dropped from the training halves, not from it.
        ordered = sorted(addresses(), key=lambda a: a.split != "validation")
        for i, address in enumerate(ordered[skip:], skip + 1):
            self.share = i / len(ordered)
            yield Document((Part(address.text),), split=address.split)
