"""The sequences of imported signals as the documents of a token store."""

import itertools
import math
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from distill.data.documents import Document
from distill.errors import SignalError
from distill.teacher.imported.spool import Spool

TRAIN: Final = "student"
VALIDATION: Final = "validation"


class SignalText:
    """A row is a document with the token ids that the teacher read; those without a signal have no weight.

    A share of the rows, chosen by their content, is held out for validation, one at least: equal rows stay together.
    Raises SignalError for a single row, or where all are equal.
    """

    explicit: tuple[str, ...] = (VALIDATION, TRAIN)

    def __init__(self, spool: Spool, validation: float):
        self._spool, self._read = spool, 0
        self.shards = [VALIDATION, TRAIN]
        digests = np.array([self._document(row, "").digest() for row in range(len(spool))], np.uint64)
        held = np.isin(digests, np.unique(digests)[: max(math.ceil(validation * len(np.unique(digests))), 1)])
        if held.all():
            raise SignalError(
                f"the files hold {len(spool)} rows, of which all different ones are held out for validation; wanted at "
                "least two different rows; give more files"
            )
        self.rows: dict[str, NDArray[np.int64]] = {VALIDATION: np.flatnonzero(held), TRAIN: np.flatnonzero(~held)}
        self.masked = not all(self._weighted(row)[1:].all() for row in range(len(spool)))

    @property
    def share(self) -> float:
        return self._read / max(len(self._spool), 1)

    def describe(self) -> dict[str, object]:
        return {"source": "signals", "content": self._spool.digest, "validation": len(self.rows[VALIDATION])}

    def read(self, shard: int, skip: int = 0) -> Iterator[Document]:
        split = self.shards[shard]
        for row in itertools.islice(self.rows[split].tolist(), skip, None):
            self._read += 1
            yield self._document(row, split)

    def _document(self, row: int, split: str) -> Document:
        part, start, stop = self._spool.place(row)
        return Document(ids=part.tokens(start, stop), trained=self._weighted(row).astype(np.uint8), split=split)

    def _weighted(self, row: int) -> NDArray[np.bool_]:
        part, start, stop = self._spool.place(row)
        return part.weighted(start, stop)
