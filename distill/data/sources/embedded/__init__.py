"""The corpus that ships with the package: the State of the Union addresses, 1900-2021 (see PROVENANCE.md).

Whole documents are assigned to splits in order of year: every tenth to validation, the others alternately to teacher
and student. Alternating, instead of dividing by year, keeps the two training splits alike.
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
    """The shipped corpus as a TextSource."""

    shards = [FILE]
    explicit: tuple[str, ...] = SPLITS
    masked = False
    share = 0.0

    def describe(self) -> dict[str, object]:
        return {"source": "embedded", "sha256": fingerprint()}

    def read(self, shard: int, skip: int = 0) -> Iterator[Document]:
        # Validation comes first, so that a duplicate is dropped from the training splits and not from validation.
        ordered = sorted(addresses(), key=lambda a: a.split != "validation")
        for i, address in enumerate(ordered[skip:], skip + 1):
            self.share = i / len(ordered)
            yield Document((Part(address.text),), split=address.split)
