"""Many small fits at once: every fit of this package is a batch of problems that share their rows.

Starts, bootstrap resamples, folds, held-out rows and jackknives are the same problem with other row weights, so all of
them run through one compiled loop (newton.py), a few at a time on each core. Rows are differentiated in forward mode,
one direction per parameter, so any form that jax can trace works. Everything is float64 inside `jax.enable_x64`,
whatever the process's configuration.
"""

import concurrent.futures
import dataclasses
import os
import threading
from collections.abc import Callable, Mapping

import jax
import numpy as np

from distill.laws.fitting import newton
from distill.laws.fitting import objective as ob
from distill.laws.forms.law import Law
from distill.laws.forms.parameters import FitSetting

CERTIFIED = 1e-8  # of the objective: the largest predicted decrease of a solved search; one more run changes far more
_BLOCK = 32  # rows are padded at least to a multiple of it
_ALIKE = 1024  # rows up to which tables are padded further, so that those of similar size share a compiled program

Progress = Callable[[int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows that problems share: inputs are [n]; the target is [n], or [problems, n] if problems differ.

    `given` holds the laws inside the fitted one (Lsup), their leaves scalar or [problems]. A `pull` is a last row of
    another kind, for profiles: its residual is log(pull(xp, law)) minus the last target, and rho there is a square.
    Targets and weights then have n + 1 entries.
    """

    inputs: tuple[np.ndarray, ...]
    target: np.ndarray
    setting: FitSetting
    given: Mapping[str, Law] = dataclasses.field(default_factory=dict)
    pull: newton.Quantity | None = None

    def __len__(self) -> int:
        return int(self.target.shape[-1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solutions:
    """One entry a problem: coordinates [R, p], objective, decrement (decrease still predicted / objective), iterations.

    `converged` is the certificate: Newton's decrement, the gradient's norm in the metric of the curvature, is less than
    CERTIFIED times the objective (most end near 1e-14).
    """

    theta: np.ndarray
    objective: np.ndarray
    decrement: np.ndarray
    iterations: np.ndarray
    converged: np.ndarray

    def __len__(self) -> int:
        return len(self.objective)

    def take(self, index: np.ndarray) -> "Solutions":
        """The solutions of some problems."""
        return Solutions(**{f.name: getattr(self, f.name)[index] for f in dataclasses.fields(self)})

    def improved(self, index: np.ndarray, other: "Solutions") -> "Solutions":
        """These solutions, with those at `index` replaced where the other is lower, or equal and newly certified."""
        old = self.take(index)
        lower = other.objective < old.objective * (1 - 1e-9)
        as_low = other.converged & ~old.converged & (other.objective <= old.objective * (1 + 1e-9))
        merged = {}
        for field in dataclasses.fields(self):
            values = getattr(self, field.name).copy()
            values[index[lower | as_low]] = getattr(other, field.name)[lower | as_low]
            merged[field.name] = values
        return Solutions(**merged)


def slot_count(n: int, p: int) -> int:
    """Problems stepped at once: few enough that their slopes and the slopes' products stay in a core's cache."""
    if jax.default_backend() != "cpu":
        return 4096
    return int(2 ** np.clip(np.round(np.log2(3e5 / (max(n, 1) * p**2))), 2, 9))


def padded(n: int) -> int:
    """The rows with which a table of n is solved: 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, then multiples of 32.

    A study fits its laws again after every few runs, and a program takes far longer to compile than a small table to
    solve; of large tables every row costs.
    """
    step = _BLOCK
    while n <= _ALIKE and n > 4 * step:
        step *= 2
    return -(-n // step) * step


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Batch:
    """The problems of one call of `solve`, with padded rows; `slots` are stepped at once, `queue` is a queue's length.

    starts [R, p] lie inside the box; weights and target are [n] or [R, n]; the leaves of `given` scalar or [R].
    """

    problem: newton.SearchProblem
    starts: np.ndarray
    weights: np.ndarray
    target: np.ndarray
    given: dict[str, Law]
    width: float
    slots: int
    queue: int

    def entries(self, index: np.ndarray) -> newton.Queue:
        """The problems at `index` as a queue, padded with the last one."""
        Q = self.queue
        index = np.resize(index, Q)

        def each(array: np.ndarray | float, ndim: int) -> np.ndarray:
            array = np.asarray(array)
            whole = array[index] if array.ndim == ndim else np.broadcast_to(array, (Q, *array.shape))
            return whole.astype(np.float64)

        return newton.Queue(
            problem=index.astype(np.int32),
            theta=self.starts[index],
            width=np.full(Q, self.width),
            weights=each(self.weights, 2),
            target=each(self.target, 2),
            given=jax.tree_util.tree_map(lambda leaf: each(leaf, 1), self.given),
        )


def solve(
    form: newton.Form,
    rows: Rows,
    starts: np.ndarray,
    weights: np.ndarray,
    objective: ob.Objective,
    *,
    widen: float = 1.0,
    exact: bool = False,
    progress: Progress | None = None,
) -> Solutions:
    """Solves one problem per start: starts [R, p]; weights [n] or [R, n], of any dtype; objectives as they are summed.

    `widen` is the factor of the first delta (1 from a good start, 30 from a random one); `exact` puts the rows' own
    second derivatives into H, for problems that crawl without; `progress` gets the number of problems solved since
    its last call.
    """
    batch = _batch(form, rows, np.asarray(starts, np.float64), weights, objective, widen, exact)
    state = _run_queues(batch, progress)
    with np.errstate(invalid="ignore", over="ignore"):  # from searches that never saw a finite loss
        left = state["decrement"] * state["value"]
        solved = left <= CERTIFIED * state["value"] + newton.FLOOR * batch.weights.sum(-1)
    return Solutions(
        theta=state["theta"],
        objective=state["value"],
        decrement=state["decrement"],
        iterations=state["turn"].astype(int) - 1,
        converged=solved & (state["width"] <= batch.problem.delta) & (state["damping"] < 1e-2),
    )


def compile_ahead(form: newton.Form, rows: Rows, weights: np.ndarray, objective: ob.Objective) -> None:
    """Compiles the program with which `solve` will solve these rows, whatever the starts; solves nothing."""
    batch = _batch(form, rows, np.zeros((1, len(form.parameters()))), weights, objective, 1.0, False)
    queue = batch.entries(np.arange(1))
    with jax.enable_x64(True):
        newton.run(batch.problem, newton.idle(queue, batch.slots), queue, 0, True)


def _batch(
    form: newton.Form,
    rows: Rows,
    starts: np.ndarray,
    weights: np.ndarray,
    objective: ob.Objective,
    widen: float,
    exact: bool,
) -> _Batch:
    """Pads the rows and chooses how many problems are stepped at once."""
    padding = padded(len(rows)) - len(rows)
    slots = slot_count(len(rows) + padding, starts.shape[1])
    if exact:  # such problems are few, and take different numbers of iterations
        slots = max(slots // 8, 4)
    tail = 0 if rows.pull is None else 1
    low, high = (np.array(edge) for edge in zip(*(q.box for q in form.parameters().values())))
    delta = np.float64(min(objective.width, 1e6))
    problem = newton.SearchProblem(
        form=form,
        raw=objective.raw,
        pull=rows.pull,
        exact=exact,
        quantile=float(objective.quantile),
        inputs=tuple(np.concatenate([x, np.repeat(x[:1], padding)]) for x in rows.inputs),
        setting=FitSetting(
            {key: np.float64(value) for key, value in rows.setting.centre.items()}, np.float64(rows.setting.typical)
        ),
        low=low,
        high=high,
        delta=delta,
    )
    return _Batch(
        problem=problem,
        starts=np.clip(starts, low, high),
        weights=_padded(np.asarray(weights), padding, tail, 0),
        target=_padded(np.asarray(rows.target), padding, tail, 1.0),
        given=dict(rows.given),
        width=min(delta * widen, 1e6),
        slots=slots,
        queue=8 * slots if jax.default_backend() == "cpu" else slots,
    )


def _run_queues(batch: _Batch, progress: Progress | None) -> dict[str, np.ndarray]:
    """Solves a batch on all workers: newton.RESULTS (less the index) of every problem, in the order of the starts."""
    R, Q = len(batch.starts), batch.queue
    state = {name: np.zeros(R) for name in newton.RESULTS if name != "problem"} | {"theta": batch.starts.copy()}
    queues = iter([np.arange(R)[i : i + Q] for i in range(0, R, Q)])
    lock = threading.Lock()

    def following() -> np.ndarray | None:
        with lock:
            return next(queues, None)

    def work() -> None:
        """Takes queues until none is left; a slot that is active when its queue ends continues with the next one."""
        index, slots = following(), None
        while index is not None:
            queue, ahead = batch.entries(index), following()
            with jax.enable_x64(True):
                slots = newton.idle(queue, batch.slots) if slots is None else slots
                slots, results, count = newton.run(batch.problem, slots, queue, len(index), ahead is None)
            solved = {name: np.asarray(value)[: int(count)] for name, value in results.items()}
            with lock:
                for name, values in state.items():
                    values[solved["problem"]] = solved[name]
                if progress:
                    progress(int(count))
            index = ahead

    with concurrent.futures.ThreadPoolExecutor(_workers()) as pool:
        for ended in [pool.submit(work) for _ in range(_workers())]:
            ended.result()
    return state


def _padded(array: np.ndarray, count: int, tail: int, fill: float) -> np.ndarray:
    """The array with `count` padding rows inserted before its last `tail` rows."""
    end = array.shape[-1] - tail
    more = np.full((*array.shape[:-1], count), fill, array.dtype)
    return np.concatenate([array[..., :end], more, array[..., end:]], axis=-1)


def _workers() -> int:
    """The number of threads that run queues: one per core, since small problems do not use XLA's own threads."""
    return min(len(os.sched_getaffinity(0)), 16) if jax.default_backend() == "cpu" else 1
