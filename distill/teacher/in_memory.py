"""A teacher's log-probabilities, computed once a window and kept in memory for every later epoch and student."""

import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from distill.model import sharding
from distill.model.transformer import Transformer
from distill.teacher.mixture import TeacherMixture
from distill.types import Batch, TeacherSignal

# Windows of one teacher forward: enough to fill a core, few enough to keep [B, S, V] small.
CHUNK = 16


@jax.jit
def _log_probs(teacher: Transformer | TeacherMixture, batch: Batch) -> jax.Array:
    logits = teacher(batch.inputs, segment=batch.segment, position=batch.position)
    return jax.nn.log_softmax(logits, axis=-1).astype(jnp.float16)


class InMemorySignals:
    """Log-probabilities (float16) by window id, filled as windows are asked for.

    float16 keeps a log-probability to three digits, far below the noise between seeds. `read_windows` is the loader's
    `read`; windows beyond `memory_gib` are computed anew each time.
    """

    def __init__(
        self,
        teacher: Transformer | TeacherMixture,
        read_windows: Callable[[Any], Batch],
        count: int,
        seq_len: int,
        memory_gib: float,
    ):
        self._teacher, self._read = teacher, read_windows
        vocab = teacher.config.vocab_size
        capacity = min(count, int(memory_gib * 2**30 / (2 * seq_len * vocab)))
        self._kept = np.empty((capacity, seq_len, vocab), np.float16)  # the system gives pages as they are written
        self._slot = np.full(count, -1, np.int64)
        self._used, self._lock = 0, threading.Lock()  # runs that train together read side by side

    def read(self, windows: NDArray[np.int64]) -> TeacherSignal:
        """The signal of these windows, [*windows.shape, S, V]."""
        flat = np.asarray(windows).reshape(-1)
        with self._lock:
            fresh = self._fill(flat)
        if fresh:
            found: Any = np.stack([fresh[int(i)] if int(i) in fresh else self._kept[self._slot[i]] for i in flat])
        else:
            found = self._kept[self._slot[flat]]
        return TeacherSignal(log_probs=found.reshape(*np.shape(windows), *found.shape[1:]))

    def _fill(self, flat: NDArray[np.int64]) -> dict[int, NDArray[np.float16]]:
        """Computes what is missing of these windows; returns those for which there is no room."""
        missing = np.unique(flat[self._slot[flat] < 0])
        fresh: dict[int, NDArray[np.float16]] = {}
        for start in range(0, len(missing), CHUNK):
            ids = missing[start : start + CHUNK]
            values = self._compute(ids)
            room = min(len(ids), len(self._kept) - self._used)
            self._kept[self._used : self._used + room] = values[:room]
            self._slot[ids[:room]] = np.arange(self._used, self._used + room)
            self._used += room
            fresh |= {int(i): value for i, value in zip(ids[room:], values[room:])}
        return fresh

    @property
    def bytes(self) -> int:
        """Memory that is really used: pages that nothing was written to are not there."""
        return self._used * int(np.prod(self._kept.shape[1:])) * self._kept.itemsize

    def _compute(self, ids: NDArray[np.int64]) -> NDArray[np.float16]:
        device_mesh = jax.sharding.get_mesh()
        size = CHUNK * device_mesh.shape["data"] * device_mesh.shape["fsdp"]
        batch = sharding.place(self._read(np.resize(ids, size)), device_mesh)
        return np.asarray(_log_probs(self._teacher, batch))[: len(ids)]
