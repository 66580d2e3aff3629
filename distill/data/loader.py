"""Batches of a split in a seeded global order; the step is the only state."""

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distill.data.mixture import Mixture
from distill.data.order import Order
from distill.data.store.store import TokenStore
from distill.data.store.windows import stack
from distill.errors import DataError
from distill.types import Batch

T = TypeVar("T")
Step = TypeVar("Step")


class Loader:
    """`batch(step)` is a pure function of the step, so resuming needs no other state.

    Sample i = step * batch_size + row of a run is window permute(i mod n, n, seed, epoch = i div n) of the split's n
    windows: each epoch reads every window once, in a new order (for a mixture: per store; see `Order`). A process
    reads its contiguous slice of each global batch, so the global order is the same on any number of hosts.
    """

    def __init__(
        self,
        store: TokenStore | Mixture,
        *,
        split: str,
        batch_size: int,
        seq_len: int,
        seed: int = 0,
        process: tuple[int, int] = (0, 1),
        packing: str = "windows",
        completions_only: bool = False,
        unique: int = 0,
    ):
        """batch_size is the global batch size; `process` is (index of this process, number of processes).

        `unique` > 0 draws from at most so many tokens of each store of the split, a random choice of windows by `seed`.
        Raises DataError where the split or the sizes are invalid, or where `unique` is less than a batch.
        """
        process_index, process_count = process
        if batch_size % process_count:
            raise DataError(f"batch_size={batch_size} is not a multiple of the {process_count} processes that share it")
        self._views = store.views(split, seq_len, packing=packing, completions_only=completions_only)
        if unique and unique < batch_size * seq_len:
            raise DataError(
                f"data.unique={unique:,d}: wanted at least one batch, {batch_size * seq_len:,d} tokens, or 0 for all"
            )
        self._order = Order([view.count for view in self._views], store.weights, seed, limit=unique // seq_len)
        self.batch_size, self.seq_len, self.seed = batch_size, seq_len, seed
        share = batch_size // process_count
        self._rows = np.arange(process_index * share, (process_index + 1) * share)

    @property
    def window_count(self) -> int:
        """The number of windows of the split; `unique` does not change it, nor the ids."""
        return int(self._order.offsets[-1])

    def windows(self, step: int) -> NDArray[np.int64]:
        """Ids of this process's windows of a step [B]; the keys of signals stored by window."""
        return self._order.ids(step * self.batch_size + self._rows)

    def batch(self, step: int) -> Batch:
        """This process's rows of the global batch of a step, as NumPy arrays: tokens int32 [B, S+1]."""
        return self.read(self.windows(step))

    def batches(self, step: int, count: int) -> Batch:
        """Stacks the batches step..step+count-1: tokens [count, B, S+1]."""
        steps = np.arange(step, step + count)
        flat = self.read(self._order.ids((steps[:, None] * self.batch_size + self._rows).reshape(-1)))
        arrays = (flat.tokens, flat.weight, flat.segment, flat.position)
        return Batch(*(None if a is None else a.reshape(count, len(self._rows), -1) for a in arrays))  # type: ignore

    def read(self, ids: ArrayLike) -> Batch:
        """The windows with these ids, in this order."""
        ids = np.asarray(ids, np.int64)
        part = np.searchsorted(self._order.offsets, ids, "right") - 1
        read = [(part == p, ids[part == p] - self._order.offsets[p]) for p in np.unique(part)]
        return stack([(rows, self._views[part[rows][0]].read(local)) for rows, local in read])

    def epochs(self, steps: int) -> tuple[float, ...]:
        """Number of epochs that `steps` steps make, for each store that the loader reads."""
        return tuple((self._order.draws(steps * self.batch_size) / self._order.counts).tolist())

    def distinct(self, steps: int) -> NDArray[np.int64]:
        """Ids of the windows that the first `steps` steps read over all processes, in rising order."""
        return np.sort(self._order.distinct(steps * self.batch_size))

    def unique_tokens(self, steps: int) -> int:
        """Distinct predicted tokens in the first `steps` steps, over all processes: D_unique."""
        ids = self.distinct(steps)
        part = np.searchsorted(self._order.offsets, ids, "right") - 1
        return sum(
            int(view.predicted(ids[part == p] - self._order.offsets[p]).sum()) for p, view in enumerate(self._views)
        )


def prefetch(make: Callable[[Step], T], steps: Iterable[Step], depth: int = 2) -> Generator[T, None, None]:
    """Yields make(step) for each step. A thread computes up to `depth` ahead, so that reading and the transfer to
    devices overlap with training. Closing the iterator stops the thread; an error in `make` is raised here.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: tuple[T | None, BaseException | None]) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for step in steps:
                if stop.is_set():
                    return
                put((make(step), None))
            put((None, StopIteration()))
        except BaseException as error:  # any error is passed to the consumer
            put((None, error))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            value, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield value  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
