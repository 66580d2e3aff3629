"""Views of a split as rows of S + 1 tokens: plain windows, or windows cut into segments at document ends."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distill.data.split import Split
from distill.types import Batch


class Windows:
    """Windows of S + 1 tokens at stride S: every token but the first is predicted exactly once an epoch.

    Plain windows cross document ends. With `segments`, segment ids [B, S] number the documents of a row from 1,
    positions restart at each, and the first token of a document is not predicted from the one before.
    With `completions_only`, only tokens of completions have weight.
    """

    def __init__(self, split: Split, seq_len: int, segments: bool = False, completions_only: bool = False):
        self.split, self.seq_len, self.segments, self.completions_only = split, seq_len, segments, completions_only
        self.count = max(split.tokens - 1, 0) // seq_len
        self._ends = split.document_ends() if segments else None

    def predicted(self, ids: ArrayLike) -> NDArray[np.int64]:
        """How many tokens each window predicts [n], before weights."""
        return np.full(np.shape(ids), self.seq_len, np.int64)

    def read(self, ids: ArrayLike) -> Batch:
        """The windows of these ids as a batch of numpy arrays: tokens int32 [B, S+1], weight float32 [B, S]."""
        starts = np.asarray(ids, np.int64) * self.seq_len
        tokens = self.split.read(starts, self.seq_len + 1).astype(np.int32)
        weight = np.ones((len(starts), self.seq_len), np.float32)
        if self.completions_only:
            weight *= self.split.read_mask(starts, self.seq_len + 1)[:, 1:]
        if self._ends is None:
            return Batch(tokens=tokens, weight=weight)  # type: ignore[arg-type]
        begins = self._document_begins(starts)
        weight *= ~begins[:, 1:]
        segment, position = number(begins[:, :-1])
        return Batch(tokens=tokens, weight=weight, segment=segment, position=position)  # type: ignore[arg-type]

    def _document_begins(self, starts: NDArray[np.int64]) -> NDArray[np.bool_]:
        """True where a document begins, except at a window's own first token [B, S+1]."""
        begins = np.zeros((len(starts), self.seq_len + 1), bool)
        first = np.searchsorted(self._ends, starts, "right")
        last = np.searchsorted(self._ends, starts + self.seq_len, "right")
        counts = last - first
        row = np.repeat(np.arange(len(starts)), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        column = self._ends[first[row] + within].astype(np.int64) - starts[row]
        begins[row, column] = True
        return begins


def number(begins: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Segment ids from 1 and positions from 0, both [B, S], from the places where segments begin."""
    segment = np.cumsum(begins, axis=1, dtype=np.int32) + np.int32(1)
    place = np.arange(begins.shape[1], dtype=np.int32)
    position = place - np.maximum.accumulate(np.where(begins, place, np.int32(0)), axis=1)
    return segment, position.astype(np.int32)
