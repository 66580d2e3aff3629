"""A random permutation of range(n) that is computed on demand, not stored.

Numbers below a * b, with a and b close to sqrt(n), are pairs (left, right). A keyed Feistel network adds to each
half in turn a pseudo-random function of the other, modulo its range, which permutes range(a * b). An image
outside range(n) is permuted again until it falls inside (cycle walking), which permutes range(n). Because
a * b - n < a, second rounds are rare, and a lookup needs O(1) memory for any n.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

ROUNDS = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def permute(index: ArrayLike, size: int, seed: int, epoch: ArrayLike = 0) -> NDArray[np.int64]:
    """The images of `index` (any shape, values in [0, size)) under the permutation named by (seed, epoch).

    `epoch` broadcasts against `index`: elements may be of different epochs.
    """
    index, epoch = np.broadcast_arrays(np.asarray(index, np.uint64), np.asarray(epoch, np.uint64))
    x = index.reshape(-1).copy()
    key = _mix(_mix(np.full(x.shape, seed % 2**64, np.uint64) + _GOLDEN) + epoch.reshape(-1) * _GOLDEN)
    a = math.isqrt(max(size - 1, 0)) + 1
    b = np.uint64(-(-size // a))
    walking = np.arange(x.size)
    while walking.size:
        x[walking] = _feistel(x[walking], key[walking], np.uint64(a), b)
        walking = walking[x[walking] >= size]
    return x.reshape(index.shape).astype(np.int64)


def _feistel(x: NDArray, key: NDArray, a: np.uint64, b: np.uint64) -> NDArray:
    """One round over range(a * b), elementwise."""
    left, right = np.divmod(x, b)
    for turn in range(ROUNDS):
        key = key + _GOLDEN
        if turn % 2:
            right = (right + _function(left, key)) % b
        else:
            left = (left + _function(right, key)) % a
    return left * b + right


def _function(half: NDArray, key: NDArray) -> NDArray:
    """32 pseudo-random bits of half and key."""
    x = (half + key) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
    return x >> np.uint64(32)


def _mix(x: NDArray) -> NDArray:
    """The finaliser of SplitMix64: every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
