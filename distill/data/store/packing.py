"""Packs whole documents into rows by best-fit decreasing."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distill.data.store.split import Split
from distill.data.store.windows import combine, number
from distill.types import Batch


def best_fit(lengths: NDArray[np.integer], capacity: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Packs items of these lengths (each <= capacity) into few rows of `capacity`.

    Takes the longest first, and puts each into the row with the least sufficient room. Returns (order, starts): row r
    holds the items order[starts[r]:starts[r+1]]. O(n) memory and time; finding that row is one shift of a bit set.
    """
    rows: list[list[int]] = []
    room: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows by their remaining room
    open_rooms = 0  # bit r is set if a row has room r
    for item in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[item])
        fitting = open_rooms >> length
        if fitting:
            left = length + (fitting & -fitting).bit_length() - 1
            row = room[left].pop()
            if not room[left]:
                open_rooms ^= 1 << left
            rows[row].append(item)
        else:
            left, row = capacity, len(rows)
            rows.append([item])
        left -= length
        if left:
            room[left].append(row)
            open_rooms |= 1 << left
    order = np.array([item for row in rows for item in row], np.int64)
    return order, np.cumsum([0] + [len(row) for row in rows])


class PackedDocuments:
    """Rows of S + 1 tokens that hold whole documents, padded at the end; longer documents are cut at stride S.

    Segments and positions are those of `Windows`; padding has segment 0 and weight 0. Creating the view computes the
    packing (about 1 us per document), which is the same on every host.
    """

    def __init__(self, split: Split, seq_len: int, completions_only: bool = False):
        self.split, self.seq_len, self.completions_only = split, seq_len, completions_only
        ends = split.document_ends().astype(np.int64)
        begins = np.concatenate([[0], ends[:-1]])
        self._begin, self._length = _cut(begins, ends, seq_len)
        self._order, self._starts = best_fit(self._length, seq_len + 1)
        self.count = len(self._starts) - 1
        self._predicted = np.concatenate([[0], np.cumsum(self._length[self._order] - 1)])

    def predicted(self, ids: ArrayLike) -> NDArray[np.int64]:
        """How many tokens each row predicts [n], before completion weights: all but the first of each piece."""
        ids = np.asarray(ids, np.int64)
        return self._predicted[self._starts[ids + 1]] - self._predicted[self._starts[ids]]

    def pieces(self, i: int) -> list[tuple[int, int]]:
        """The spans of row i, which stand in it one after another: each one's first token of the split, its length."""
        order = self._order[self._starts[i] : self._starts[i + 1]]
        return list(zip(self._begin[order].tolist(), self._length[order].tolist()))

    def read(self, ids: ArrayLike) -> Batch:
        """The rows with these ids as a batch of NumPy arrays."""
        ids = np.asarray(ids, np.int64)
        shape = (len(ids), self.seq_len + 1)
        tokens, inside = np.zeros(shape, np.int32), np.zeros(shape, bool)
        begins, trained = np.zeros(shape, bool), np.ones(shape, bool)
        for row, i in enumerate(ids.tolist()):
            at = 0
            for start, length in self.pieces(i):
                tokens[row, at : at + length] = self.split.read_span(start, start + length)
                if self.completions_only:
                    trained[row, at : at + length] = self.split.read_span(start, start + length, "mask")
                begins[row, at] = at > 0
                inside[row, at : at + length] = True
                at += length
            begins[row, at:] = True  # each padding token is its own segment
        segment, position = number(begins[:, :-1])
        segment = np.where(inside[:, :-1], segment, 0)
        weight = (inside & trained & ~begins)[:, 1:].astype(np.float32)
        return combine(tokens, weight, segment, position)


def _cut(begins: NDArray, ends: NDArray, seq_len: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pieces of at most seq_len + 1 tokens that overlap by one, so that each token but the first is predicted once."""
    pieces = np.maximum(-(-(ends - begins - 1) // seq_len), 1)
    document = np.repeat(np.arange(len(ends)), pieces)
    within = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begin = begins[document] + within * seq_len
    length = np.minimum(ends[document] - begin, seq_len + 1)
    return begin[length > 1], length[length > 1]  # a single token predicts nothing
