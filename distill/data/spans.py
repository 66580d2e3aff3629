"""Batches whose sequences are shared by several devices: the rows of a batch become spans of sequences.

A sequence of S tokens for c devices is cut into 2c spans, in the order 0, 2c - 1, 1, 2c - 2, ...: of the rows in this
order each device takes two, an early and a late span, and so an equal share of the work of causal attention
(distill/model/ring.py). All else in a step is by token, and does not see the difference.
"""

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from distill.config import ConfigError
from distill.types import Batch


def order(devices: int) -> NDArray[np.int64]:
    """The spans of a sequence in the order of the rows: 0, 2c - 1, 1, 2c - 2, ..."""
    first = np.arange(devices)
    return np.stack([first, 2 * devices - 1 - first], axis=1).reshape(-1)


def length(seq_len: int, devices: int) -> int:
    """Tokens of a span. Raises ConfigError where spans of a sequence would differ."""
    if seq_len % (2 * devices):
        raise ConfigError(
            f"config.seq_len={seq_len} for config.mesh.context={devices}: a sequence is cut into {2 * devices} equal "
            f"spans; choose a multiple of {2 * devices} (and of {2 * devices * 128} for the TPU's kernel)"
        )
    return seq_len // (2 * devices)


def split(batch: Batch, devices: int, leading: int = 0) -> Batch:
    """A batch of arrays [..., B, S, ...], the batch on axis `leading`, as one of B 2c rows of S / 2c tokens each."""
    if devices == 1:
        return batch
    tokens = np.asarray(batch.tokens)
    seq_len = tokens.shape[leading + 1] - 1
    span, rows = length(seq_len, devices), order(devices)

    def cut(array: NDArray[np.generic]) -> NDArray[np.generic]:
        array = np.asarray(array)
        before, after = array.shape[: leading + 1], array.shape[leading + 2 :]
        pieces = array.reshape(*before, 2 * devices, span, *after)
        pieces = np.take(pieces, rows, axis=leading + 1)
        return pieces.reshape(*before[:-1], before[-1] * 2 * devices, span, *after)

    position: ArrayLike = np.broadcast_to(np.arange(seq_len, dtype=np.int32), tokens[..., 1:].shape)
    position = position if batch.position is None else np.asarray(batch.position)
    # A span's last token is the first of the next one.
    whole = np.concatenate([cut(tokens[..., :-1])[..., :1], cut(tokens[..., 1:])], axis=-1)
    weight, segment, position, signal = jax.tree.map(cut, (batch.weight, batch.segment, position, batch.signal))
    return Batch(whole, weight, segment, position, signal, 2 * devices)  # type: ignore[arg-type]
