"""Maps sample i of a run to a window by a pure function, over one store or a mixture of several."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distill.data.permutation import permute

CYCLE = 1 << 12  # period of a mixture's proportions, in samples
# Keys of permutations that are no epoch's.
_TABLE, _CHOICE = 2**32, 2**33


class Order:
    """Draws windows from parts of the given sizes in proportion to weights; each epoch permutes a part anew.

    Sample i reads slot i mod CYCLE of a fixed shuffled table of parts. The table holds each part in proportion to its
    weight (largest remainder, so to 1/CYCLE of the exact share). The part's own counter selects its next window.
    Ids are numbered across the parts: part p begins at `offsets[p]`.

    With a `limit`, at most so many windows of each part are ever drawn: a random choice by `seed`, in which the choice
    of a smaller limit is contained. `counts` are the windows drawn from, `sizes` those that there are.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int, limit: int = 0):
        self.sizes = np.array(sizes, np.int64)
        self.counts = np.minimum(self.sizes, limit) if limit else self.sizes
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes)])
        self.seed = seed
        quotas = _largest_remainder(np.array(weights, float), CYCLE if len(sizes) > 1 else 1)
        table = np.repeat(np.arange(len(sizes)), quotas)
        self._part = table[permute(np.arange(len(table)), len(table), seed, _TABLE)]
        same = self._part[:, None] == np.arange(len(sizes))
        self._rank = (np.cumsum(same, axis=0) - 1)[np.arange(len(table)), self._part]
        self._quotas = quotas

    def ids(self, sample: NDArray[np.integer]) -> NDArray[np.int64]:
        """Window ids of these samples, in the shape of `sample`."""
        cycle, slot = np.divmod(np.asarray(sample, np.int64), len(self._part))
        part = self._part[slot]
        drawn = cycle * self._quotas[part] + self._rank[slot]
        windows = np.empty(part.shape, np.int64)
        for p, count in enumerate(self.counts):
            here = part == p
            epoch, index = np.divmod(drawn[here], count)
            windows[here] = self._chosen(p, permute(index, int(count), self.seed + p, epoch))
        return windows

    def _chosen(self, part: int, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ids of the windows of a part that are numbered `index` among those that are drawn from."""
        if self.counts[part] < self.sizes[part]:
            index = permute(index, int(self.sizes[part]), self.seed + part, _CHOICE)
        return self.offsets[part] + index

    def draws(self, samples: int) -> NDArray[np.int64]:
        """Number of the first `samples` samples that come from each part."""
        cycles, rest = divmod(samples, len(self._part))
        return cycles * self._quotas + np.bincount(self._part[:rest], minlength=len(self.counts))

    def distinct(self, samples: int) -> NDArray[np.int64]:
        """Ids that occur in the first `samples` samples."""
        ids = [
            self._chosen(p, permute(np.arange(min(drawn, count)), int(count), self.seed + p))
            for p, (drawn, count) in enumerate(zip(self.draws(samples), self.counts))
        ]
        return np.concatenate(ids)


def _largest_remainder(weights: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Integers >= 1 in proportion to weights, with sum `total`."""
    share = weights / weights.sum() * total
    whole = np.maximum(np.floor(share).astype(np.int64), 1)
    for i in np.argsort(whole - share, kind="stable")[: max(total - int(whole.sum()), 0)]:
        whole[i] += 1
    return whole
