"""A teacher's log-probabilities, computed once per window and kept in memory for every later epoch and student."""

import threading
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from distill.errors import SignalError
from distill.model import sharding
from distill.teacher.observe import Teacher
from distill.types import Batch, TeacherSignal

# Windows of one forward pass of the teacher: enough to use a core fully, few enough to keep [B, S, V] small.
CHUNK = 16


@jax.jit
def _log_probs(teacher: Teacher, batch: Batch) -> jax.Array:
    logits = teacher(batch.inputs, segment=batch.segment, position=batch.position)
    return jax.nn.log_softmax(logits, axis=-1).astype(jnp.float16)


class InMemorySignals:
    """Log-probabilities (float16) by window id, computed when a window is first read.

    float16 keeps three digits of a log-probability, an error far below the noise between seeds. `read_windows` is the
    loader's `read`; windows that do not fit into `memory_gib` are computed again each time. Thread-safe.
    """

    def __init__(
        self,
        teacher: Teacher,
        read_windows: Callable[[NDArray[np.int64]], Batch],
        count: int,
        seq_len: int,
        memory_gib: float,
    ):
        self._teacher, self._read = teacher, read_windows
        vocab = teacher.config.vocab_size
        capacity = min(count, int(memory_gib * 2**30 / (2 * seq_len * vocab)))
        self._kept = np.empty((capacity, seq_len, vocab), np.float16)  # pages take memory once written
        self._slot = np.full(count, -1, np.int64)
        self._used, self._lock = 0, threading.Lock()  # runs that train together read in parallel

    def read(self, windows: NDArray[np.int64]) -> TeacherSignal:
        """The signal of these windows, [*windows.shape, S, V]."""
        flat = np.asarray(windows).reshape(-1)
        with self._lock:
            unkept = self._fill(flat)
        if unkept:
            log_probs = np.stack([unkept[int(i)] if int(i) in unkept else self._kept[self._slot[i]] for i in flat])
        else:
            log_probs = self._kept[self._slot[flat]]
        shape = *np.shape(windows), *log_probs.shape[1:]
        return TeacherSignal(log_probs=log_probs.reshape(shape))  # type: ignore[arg-type]  # NumPy until it is placed

    def _fill(self, flat: NDArray[np.int64]) -> dict[int, NDArray[np.float16]]:
        """Computes the missing ones of these windows; returns those for which there is no room."""
        missing = np.unique(flat[self._slot[flat] < 0])
        unkept: dict[int, NDArray[np.float16]] = {}
        for start in range(0, len(missing), CHUNK):
            ids = missing[start : start + CHUNK]
            values = self._compute(ids)
            # A token that is padding has probability 0, and the logarithm -inf.
            bad = np.isnan(values).any(axis=(1, 2))
            if bad.any():
                raise SignalError(f"window {ids[np.argmax(bad)]}: the teacher's output is not finite (NaN or inf)")
            room = min(len(ids), len(self._kept) - self._used)
            self._kept[self._used : self._used + room] = values[:room]
            self._slot[ids[:room]] = np.arange(self._used, self._used + room)
            self._used += room
            unkept |= {int(i): value for i, value in zip(ids[room:], values[room:])}
        return unkept

    @property
    def bytes(self) -> int:
        """Memory in use: pages that were never written take none."""
        return self._used * int(np.prod(self._kept.shape[1:])) * self._kept.itemsize

    def _compute(self, ids: NDArray[np.int64]) -> NDArray[np.float16]:
        device_mesh = jax.sharding.get_mesh()
        size = CHUNK * device_mesh.shape["data"] * device_mesh.shape["fsdp"]
        batch = sharding.place(self._read(np.resize(ids, size)), device_mesh)
        return np.asarray(_log_probs(self._teacher, batch))[: len(ids)]
