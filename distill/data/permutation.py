"""A random permutation of range(n) that is computed where it is needed, not stored.

A keyed Feistel network permutes the smallest power of two >= n; an image outside range(n) is permuted again until it
falls inside (cycle walking), which is a permutation of range(n). The domain is less than 2n, so that the walk takes
under two rounds on average, and any single lookup costs O(1) memory whatever n is.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

ROUNDS = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: NDArray) -> NDArray:
    """The finaliser of SplitMix64: every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(index: ArrayLike, size: int, seed: int, epoch: ArrayLike = 0) -> NDArray[np.int64]:
    """The images of `index` (any shape, values in [0, size)) under the permutation named by (seed, epoch).

    `epoch` broadcasts against `index`: each element may come from another epoch.
    """
    index, epoch = np.broadcast_arrays(np.asarray(index, np.uint64), np.asarray(epoch, np.uint64))
    shape = index.shape
    x = index.reshape(-1).copy()
    key = _mix(_mix(np.full(x.shape, seed % 2**64, np.uint64) + _GOLDEN) + epoch.reshape(-1) * _GOLDEN)
    bits = max(2, (max(size, 1) - 1).bit_length())
    low = np.uint64(bits // 2)
    high_mask, low_mask = np.uint64((1 << (bits - bits // 2)) - 1), np.uint64((1 << (bits // 2)) - 1)
    walking = np.arange(x.size)
    while walking.size:
        high, rest, k = x[walking] >> low, x[walking] & low_mask, key[walking]
        for turn in range(ROUNDS):
            k = k + _GOLDEN
            if turn % 2:
                rest = (rest ^ _mix(high + k)) & low_mask
            else:
                high = (high ^ _mix(rest + k)) & high_mask
        x[walking] = (high << low) | rest
        walking = walking[x[walking] >= size]
    return x.reshape(shape).astype(np.int64)
