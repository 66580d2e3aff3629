"""Batches of a split, in a seeded global order whose only state is the step."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distill.data.permutation import permute
from distill.data.store import DataError, TokenStore
from distill.types import Batch


class Loader:
    """`batch(step)` is a pure function of the step: resuming needs no other state.

    Sample i = step * batch_size + row of a run is window permute(i mod n, n, seed, epoch = i div n) of the split's n
    windows: every window once an epoch, in another order each epoch. A process takes its contiguous share of each
    global batch, so that the global order is the same on any number of hosts.
    """

    def __init__(
        self,
        store: TokenStore,
        *,
        split: str,
        batch_size: int,
        seq_len: int,
        seed: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        packing: str = "windows",
        completions_only: bool = False,
    ):
        """batch_size is the global one. Raises DataError where the split or the sizes do not fit."""
        if batch_size % process_count:
            raise DataError(f"batch_size={batch_size} is not a multiple of the {process_count} processes that share it")
        self._windows = store.windows(split, seq_len, packing=packing, completions_only=completions_only)
        self.batch_size, self.seq_len, self.seed = batch_size, seq_len, seed
        share = batch_size // process_count
        self._rows = np.arange(process_index * share, (process_index + 1) * share)

    @property
    def window_count(self) -> int:
        """The number of distinct windows: one epoch."""
        return self._windows.count

    def windows(self, step: int) -> NDArray[np.int64]:
        """Ids of this process's windows of a step [B]; the key of any signal kept by window."""
        return self._ids(step * self.batch_size + self._rows)

    def batch(self, step: int) -> Batch:
        """This process's rows of the global batch of a step, as NumPy arrays: tokens int32 [B, S+1]."""
        return self._windows.read(self.windows(step))

    def batches(self, step: int, count: int) -> Batch:
        """The batches step..step+count-1 stacked: tokens [count, B, S+1]."""
        steps = np.arange(step, step + count)
        flat = self._windows.read(self._ids((steps[:, None] * self.batch_size + self._rows).reshape(-1)))
        fields = {
            name: value.reshape(count, len(self._rows), -1)
            for name, value in vars(flat).items()
            if isinstance(value, np.ndarray)
        }
        return Batch(**fields)

    def read(self, ids: ArrayLike) -> Batch:
        """The windows of these ids, in this order."""
        return self._windows.read(ids)

    def epochs(self, steps: int) -> float:
        """How often `steps` steps go through the split."""
        return steps * self.batch_size / self.window_count

    def unique_tokens(self, steps: int) -> int:
        """Distinct predicted tokens in the first `steps` steps, over all processes: D_unique."""
        samples = min(steps * self.batch_size, self.window_count)
        return int(self._windows.predicted(self._ids(np.arange(samples))).sum())

    def _ids(self, sample: NDArray[np.integer]) -> NDArray[np.int64]:
        n = self.window_count
        return permute(sample % n, n, self.seed, sample // n)
