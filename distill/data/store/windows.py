"""Views of a split as rows of S + 1 tokens: plain windows, or windows cut into segments at document ends."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distill.data.store.split import Split
from distill.types import Batch


class Windows:
    """Windows of S + 1 tokens at stride S: every token but the first is predicted exactly once an epoch.

    Plain windows cross document ends. With `segments`, segment ids [B, S] number the documents of a row from 1,
    positions restart at each, and the first token of a document is not predicted from the document before it.
    With `completions_only`, only tokens of completions have weight.
    """

    def __init__(self, split: Split, seq_len: int, segments: bool = False, completions_only: bool = False):
        self.split, self.seq_len, self.completions_only = split, seq_len, completions_only
        self.count = max(split.tokens - 1, 0) // seq_len
        self._ends: NDArray | None = split.document_ends() if segments else None

    def predicted(self, ids: ArrayLike) -> NDArray[np.int64]:
        """Number of tokens that each window predicts [n], before weights."""
        return np.full(np.shape(ids), self.seq_len, np.int64)

    def read(self, ids: ArrayLike) -> Batch:
        """The windows with these ids as a batch of NumPy arrays: tokens int32 [B, S+1], weight float32 [B, S]."""
        starts = np.asarray(ids, np.int64) * self.seq_len
        tokens = self.split.read(starts, self.seq_len + 1).astype(np.int32)
        # One number broadcast to an array: most batches give every token weight 1.
        weight: NDArray[np.float32] = np.broadcast_to(np.float32(1), (len(starts), self.seq_len))
        if self.completions_only:
            weight = self.split.read_mask(starts, self.seq_len + 1)[:, 1:].astype(np.float32)
        if self._ends is None:
            return combine(tokens, weight)
        begins = _document_begins(self._ends, starts, self.seq_len)
        return combine(tokens, weight * ~begins[:, 1:], *number(begins[:, :-1]))


def _document_begins(ends: NDArray, starts: NDArray[np.int64], seq_len: int) -> NDArray[np.bool_]:
    """True where a document begins, except at a window's own first token [B, S+1]."""
    begins = np.zeros((len(starts), seq_len + 1), bool)
    first = np.searchsorted(ends, starts, "right")
    counts = np.searchsorted(ends, starts + seq_len, "right") - first
    row = np.repeat(np.arange(len(starts)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    begins[row, ends[first[row] + within].astype(np.int64) - starts[row]] = True
    return begins


def number(begins: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Segment ids from 1 and positions from 0, both [B, S], from the positions where segments begin."""
    rows, length = begins.shape
    opens = begins.copy()
    opens[:, 0] = True
    starts = np.flatnonzero(opens)
    lengths = np.diff(starts, append=rows * length)
    first_of_row = np.searchsorted(starts, np.arange(rows) * length)
    ids = np.arange(1, len(starts) + 1) - first_of_row[starts // length]
    segment = np.repeat(ids.astype(np.int32), lengths)
    position = np.arange(rows * length, dtype=np.int32) - np.repeat(starts.astype(np.int32), lengths)
    return segment.reshape(begins.shape), position.reshape(begins.shape)


def combine(*arrays: Any) -> Batch:
    """A Batch of NumPy arrays in the order of its fields; the mesh transfers it to the devices later."""
    return Batch(*arrays)


def stack(parts: Sequence[tuple[NDArray[np.bool_], Batch]]) -> Batch:
    """Assembles one batch from several, each given with a mask of the rows that it fills."""
    if len(parts) == 1:
        return parts[0][1]
    size = len(parts[0][0])
    fields: dict[str, Any] = {}
    for name in ("tokens", "weight", "segment", "position"):
        values = [(rows, getattr(batch, name)) for rows, batch in parts]
        if values[0][1] is not None:
            whole = np.empty((size, *values[0][1].shape[1:]), values[0][1].dtype)
            for rows, value in values:
                whole[rows] = value
            fields[name] = whole
    return Batch(**fields)
