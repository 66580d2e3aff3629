"""The fixed set of windows on which all losses of a run are measured."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distill.data.store.packing import PackedDocuments
from distill.data.store.windows import Windows, stack
from distill.types import Batch

View = Windows | PackedDocuments


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A fixed batch [n, S+1], the ids of its windows, and the bytes of text that its predicted tokens represent.

    bits per byte = (summed loss in nats) / (ln 2 * bytes). `exact_bytes`: the split's tokens represent its text to
    the byte. Where a tokenizer alters text, bytes are scaled by the split's ratio of text to tokens.
    """

    batch: Batch
    windows: NDArray[np.int64]
    bytes: float
    exact_bytes: bool

    @property
    def tokens(self) -> int:
        """Number of predicted tokens, without those of weight 0."""
        return int(np.count_nonzero(np.asarray(self.batch.weight)))


class Share(NamedTuple):
    """A view of one store's split, its share of the set, and the bytes that each token id represents."""

    view: View
    weight: float
    byte_lengths: NDArray[np.int64]


def evaluation_set(parts: Sequence[Share], n_tokens: int) -> Evaluation:
    """About n_tokens predicted tokens in windows evenly spaced over each part; the same for every call and host."""
    total = sum(part.weight for part in parts)
    windows, batches, exact, size, offset, row = [], [], True, 0.0, 0, 0
    for part in parts:
        wanted = round(n_tokens * part.weight / total) // part.view.seq_len
        n = min(max(wanted, 1), part.view.count)
        ids = np.arange(n, dtype=np.int64) * part.view.count // n
        batch, split = part.view.read(ids), part.view.split
        counted = part.byte_lengths[np.asarray(batch.labels)][np.asarray(batch.weight) > 0].sum()
        size += float(counted) * (split.text_bytes / max(split.token_bytes, 1))
        exact &= split.text_bytes == split.token_bytes
        windows.append(offset + ids)
        batches.append((np.arange(row, row + n), batch))
        offset += part.view.count
        row += n
    rows = np.arange(row)
    return Evaluation(
        batch=stack([(np.isin(rows, here), batch) for here, batch in batches]),
        windows=np.concatenate(windows),
        bytes=size,
        exact_bytes=exact,
    )
