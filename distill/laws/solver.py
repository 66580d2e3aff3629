"""Many small fits at once: damped Newton steps over a batch of problems that share their rows.

Every fit of this package (starts, bootstrap resamples, folds, held-out rows, jackknives) is the same problem with
other row weights, so all of them run through one compiled function in chunks:

    minimise over theta   sum_i w_i rho_delta(log L(theta; x_i) - log y_i)

A step solves (H + lambda G) s = -g, where H holds the curvature of rho at the rows (only those within delta have
any), and G that of the reweighted least-squares bound, which is never smaller: at lambda = 0 the step is Newton's on
the rows that a Huber fit leaves in its square part, at large lambda a short, always descending one. The rows' own
second derivatives are left out at first: they enter with weights of at most delta and random signs, and cost p times
as much. Where few rows lie within delta and the form has a flat direction they decide, and a search without them
crawls; such problems are solved again with them (`exact`).
Rows are differentiated forward, one direction a parameter, so any form traceable by jax will do.

Narrow deltas have local minima between rows, so a cold start begins with a delta wider by the factor `widen`, which
shrinks whenever the current problem is nearly solved. Chunks stop after a few iterations and are packed again with
the problems that still run, so that one stubborn problem holds nobody up. All is float64 inside `jax.enable_x64`,
whatever the process's configuration.
"""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from distill.laws import objective as ob
from distill.laws.law import Law
from distill.laws.parameters import Parameter, Setting

TOLERANCE = 1e-13  # of the predicted decrease, relative to the objective, at which a search ends
CERTIFIED = 1e-8  # the same, at which a solution counts as solved: far below what one run more would change
_NEARLY = 1e-3  # the same, to leave a wider delta
_SHRINK = 0.2  # of delta, from one stage to the next
_LONGEST = 2.0  # step in any coordinate, all of which are logs, logits or of order one
_ROUND = 10  # iterations between two packings
_BLOCK = 32  # rows are padded to a multiple of it, so that tables of similar size share a compiled program
_LIMIT = 200  # iterations of one problem

Progress = Callable[[int], None]


class Form(Protocol):
    """What a search needs of a form: a class of laws, or the pair of two that are fitted jointly."""

    def parameters(self) -> dict[str, Parameter]:
        """The declared parameters, one a coordinate."""

    def unpack(self, xp: Any, theta: Any, setting: Setting, given: Mapping[str, Law]) -> Any:
        """What has a `loss` at the coordinates."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows that problems share: inputs are [n]; the target is [n], or [problems, n] where problems differ.

    `given` holds the laws inside the fitted one (Lsup), their leaves scalar or [problems]. A `pull` is a last row of
    another kind, for profiles: its residual is log(pull(xp, law)) minus the last target, and rho there is a square.
    Targets and weights then have n + 1 entries.
    """

    inputs: tuple[np.ndarray, ...]
    target: np.ndarray
    setting: Setting
    given: Mapping[str, Law] = dataclasses.field(default_factory=dict)
    pull: Callable[[Any, Law], Any] | None = None

    def __len__(self) -> int:
        return int(self.target.shape[-1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solutions:
    """One entry a problem: coordinates [R, p], objective, decrement (decrease still predicted / objective), iterations.

    `converged` is the certificate: Newton's decrement, the gradient's norm in the metric of the curvature, promises
    less than CERTIFIED of the objective (most end near 1e-14).
    """

    theta: np.ndarray
    objective: np.ndarray
    decrement: np.ndarray
    iterations: np.ndarray
    converged: np.ndarray

    def __len__(self) -> int:
        return len(self.objective)

    def take(self, index: Any) -> "Solutions":
        """The solutions of some problems."""
        return Solutions(**{f.name: getattr(self, f.name)[index] for f in dataclasses.fields(self)})

    def improved(self, index: np.ndarray, other: "Solutions") -> "Solutions":
        """These with those at `index` replaced where another is lower, or as low and certified where they are not."""
        old = self.take(index)
        lower = other.objective < old.objective * (1 - 1e-9)
        as_low = other.converged & ~old.converged & (other.objective <= old.objective * (1 + 1e-9))
        merged = {}
        for field in dataclasses.fields(self):
            values = getattr(self, field.name).copy()
            values[index[lower | as_low]] = getattr(other, field.name)[lower | as_low]
            merged[field.name] = values
        return Solutions(**merged)


def residuals(
    form: Form, raw: bool, pull: Any, theta: Any, inputs: Any, target: Any, given: Any, setting: Setting
) -> Any:
    """Residuals [C, n] at coordinates theta [C, p]; inputs [n] and target [C, n]."""
    law = form.unpack(jnp, list(theta.T[:, :, None]), setting, given)
    loss = law.loss(jnp, *(x[None, :] for x in inputs))
    predicted = loss if raw else jnp.log(loss)
    if pull is not None:
        predicted = jnp.concatenate([predicted, jnp.log(pull(jnp, law))], axis=-1)
    return predicted - target


def _linearise(residual: Callable, theta: Any) -> tuple[Any, Any]:
    """Residuals [C, n] and their slopes [p, C, n]."""
    value, push = jax.linearize(residual, theta)
    directions = jnp.broadcast_to(jnp.eye(theta.shape[1])[:, None, :], (theta.shape[1], *theta.shape))
    return value, jax.vmap(push)(directions)


def _normal(weights: Any, residual: Any, slopes: Any, delta: Any) -> tuple[Any, Any, Any]:
    """Gradient [C, p], curvature H [C, p, p] and its bound G [C, p, p]."""
    gradient = jnp.einsum("cn,pcn->cp", weights * ob.psi(jnp, residual, delta), slopes)
    H = jnp.einsum("cn,pcn,qcn->cpq", weights * ob.curvature(jnp, residual, delta), slopes, slopes)
    G = jnp.einsum("cn,pcn,qcn->cpq", weights * ob.majorant(jnp, residual, delta), slopes, slopes)
    return gradient, H, G


def _step(gradient: Any, H: Any, G: Any, damping: Any) -> tuple[Any, Any]:
    """The damped step [C, p] and the decrease that its quadratic model predicts [C]; nan where unsolvable."""
    scale = jnp.sqrt(jnp.maximum(jnp.diagonal(G, axis1=-2, axis2=-1), 1e-300))
    ridge = (1e-13 + 1e-3 * damping)[:, None, None] * jnp.eye(H.shape[-1])[None]
    matrix = (H + damping[:, None, None] * G) / (scale[:, :, None] * scale[:, None, :]) + ridge
    factor = jnp.linalg.cholesky(matrix)
    solve_lower = functools.partial(jax.lax.linalg.triangular_solve, factor, left_side=True, lower=True)
    half = solve_lower((-gradient / scale)[..., None])
    step = solve_lower(half, transpose_a=True)[..., 0] / scale
    short = jnp.minimum(1.0, _LONGEST / jnp.maximum(jnp.abs(step).max(-1), 1e-300))
    return step * short[:, None], 0.5 * (half[..., 0] ** 2).sum(-1)


def _pin(gradient: Any, H: Any, G: Any, pinned: Any) -> tuple[Any, Any, Any]:
    """The same system with the coordinates that rest on their box taken out."""
    free = ~pinned
    both = free[:, :, None] & free[:, None, :]
    unit = jnp.where(pinned[:, :, None], jnp.eye(H.shape[-1])[None], 0.0)
    return jnp.where(free, gradient, 0.0), jnp.where(both, H, unit), jnp.where(both, G, unit)


def _bend(residual: Callable, theta: Any, pulls: Any) -> Any:
    """The rows' own second derivatives, each times its pull (weight times psi), summed: [C, p, p]."""
    gradient = jax.grad(lambda at: (pulls * residual(at)).sum())
    directions = jnp.broadcast_to(jnp.eye(theta.shape[1])[:, None, :], (theta.shape[1], *theta.shape))
    second = jax.vmap(lambda along: jax.jvp(gradient, (theta,), (along,))[1], out_axes=-1)(directions)
    return jnp.where(jnp.isfinite(second).all((-1, -2), keepdims=True), second, 0.0)


@functools.partial(jax.jit, static_argnames=("form", "raw", "pull", "exact"))
def _run_chunk(
    form, raw, pull, exact, theta, width, damping, weights, inputs, target, given, setting, box, delta, limit
):
    """Up to `limit` iterations of one chunk; everything [C, ...]. Returns the state that a next call takes up."""
    given = jax.tree_util.tree_map(lambda leaf: jnp.reshape(leaf, (-1, 1)), given)
    setting = Setting(*setting)
    low, high = (edge[None, :] for edge in box)
    weights = weights.astype(theta.dtype)
    floor = 1e-24 * weights.sum(-1)

    def residual_at(at):
        return residuals(form, raw, pull, at, inputs, target, given, setting)

    def by_row(width):
        if pull is None:
            return width[:, None]
        return jnp.where(jnp.arange(weights.shape[1])[None] == weights.shape[1] - 1, jnp.inf, width[:, None])

    def total(residual, width):
        return (weights * ob.rho(jnp, residual, by_row(width))).sum(-1)

    def advance(s):
        first = s["turn"] == 0
        pinned = (s["theta"] <= low) & (s["gradient"] > 0) | (s["theta"] >= high) & (s["gradient"] < 0)
        step, predicted = _step(*_pin(s["gradient"], s["H"], s["G"], pinned), s["damping"])
        solvable = jnp.isfinite(step).all(-1)
        trial = jnp.where(solvable[:, None], jnp.clip(s["theta"] + step, low, high), s["theta"])
        residual, slopes = _linearise(residual_at, trial)
        value = total(residual, s["width"])
        gain = (s["value"] - value) / jnp.maximum(predicted, 1e-300)
        final = (s["width"] <= delta) & ~first
        small = predicted <= TOLERANCE * s["value"] + floor
        better = solvable & (value < s["value"])
        # At the last digits a step may promise a little and change nothing.
        stalled = (predicted <= 100 * TOLERANCE * s["value"]) & ~better
        done = s["done"] | final & solvable & (small | stalled) & (s["damping"] < 1e-3) | (s["damping"] >= 1e10)
        # A stage is over once little is left to win in it; the next one is narrower.
        over = ~final & ~first & (better & (predicted <= _NEARLY * s["value"]) | small)
        width = jnp.where(over, jnp.maximum(delta, s["width"] * _SHRINK), s["width"])
        gradient, H, G = _normal(weights, residual, slopes, by_row(width))
        if exact:
            H += _bend(residual_at, trial, weights * ob.psi(jnp, residual, by_row(width)))
        finite = jnp.isfinite(value) & jnp.isfinite(gradient).all(-1) & jnp.isfinite(G).all((-1, -2))
        sound = (better | (over & solvable)) & finite & ~s["done"]
        eased = jnp.where(gain > 0.5, s["damping"] * 0.1, jnp.where(gain > 0.1, s["damping"], s["damping"] * 3.0))
        damping = jnp.where(sound, eased, s["damping"] * 6.0)
        # A short damped step proves nothing: only an undamped one that promises nothing ends the search.
        damping = jnp.where(small & final, jnp.minimum(damping, 1e-8), damping)

        def pick(new, old):
            return jnp.where(sound.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)

        return dict(
            theta=pick(trial, s["theta"]),
            value=pick(total(residual, width), s["value"]),
            gradient=pick(gradient, s["gradient"]),
            H=pick(H, s["H"]),
            G=pick(G, s["G"]),
            width=pick(width, s["width"]),
            damping=jnp.where(done | first, s["damping"], jnp.clip(damping, 1e-12, 1e12)),
            decrement=jnp.where(s["done"] | first, s["decrement"], predicted / jnp.maximum(s["value"], floor)),
            done=done,
            iterations=s["iterations"] + ~(s["done"] | first),
            turn=s["turn"] + 1,
        )

    # The first turn takes no step: it evaluates the start, so that the loop's body is compiled once and nothing else.
    count, p = theta.shape
    identity = jnp.broadcast_to(jnp.eye(p)[None], (count, p, p))
    state = dict(theta=theta, value=jnp.full(count, jnp.inf), gradient=jnp.zeros_like(theta), H=identity, G=identity)
    state |= dict(width=width, damping=damping, decrement=jnp.full(count, jnp.inf), done=jnp.zeros(count, bool))
    state |= dict(iterations=jnp.zeros(count, jnp.int32), turn=jnp.int32(0))
    s = jax.lax.while_loop(lambda s: (~s["done"]).any() & (s["turn"] <= limit), advance, state)
    solved = s["decrement"] * s["value"] <= CERTIFIED * s["value"] + floor
    converged = (s["width"] <= delta) & (s["damping"] < 1e-2) & solved
    keep = ("theta", "width", "damping", "value", "decrement", "iterations", "done")
    return {key: s[key] for key in keep} | {"converged": converged}


def chunk_size(n: int, p: int) -> int:
    """Problems a chunk: few enough that the products of slopes, n rows by p**2 pairs, stay in a core's cache.

    A small chunk also waits less for its slowest problem; the constant is where measured times are least.
    """
    if jax.default_backend() != "cpu":
        return 4096
    return int(2 ** np.clip(np.round(np.log2(3e5 / (max(n, 1) * p**2))), 2, 9))


def solve(
    form: Form,
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
    second derivatives into H, for problems that crawl without; `progress` is told of the problems finished since it
    was last told.
    """
    starts = np.asarray(starts, np.float64)
    R, p = starts.shape
    padding = -len(rows) % _BLOCK
    C = chunk_size(len(rows) + padding, p)
    if exact:  # such problems are few, and each goes its own way
        C = max(C // 8, 4)
    inputs = tuple(np.concatenate([x, np.repeat(x[:1], padding)]) for x in rows.inputs)
    tail = 0 if rows.pull is None else 1
    target, weights = (_padded(np.asarray(x), padding, tail, fill) for x, fill in ((rows.target, 1.0), (weights, 0)))
    delta = np.float64(min(objective.width, 1e6))
    first = min(delta * widen, 1e6)
    setting = ({key: np.float64(value) for key, value in rows.setting.centre.items()}, np.float64(rows.setting.typical))
    box = tuple(np.array(edge) for edge in zip(*(q.box for q in form.parameters().values())))
    state = {
        "theta": np.clip(starts, *box),
        "width": np.full(R, first),
        "damping": np.full(R, 1e-2),
        "value": np.full(R, np.inf),
        "decrement": np.full(R, np.inf),
        "iterations": np.zeros(R, np.int64),
        "done": np.zeros(R, bool),
        "converged": np.zeros(R, bool),
    }

    def share(array: Any, index: np.ndarray, ndim: int) -> np.ndarray:
        """One entry a problem: of an array that holds one each, or of one that all problems share."""
        array = np.asarray(array)
        whole = array[index] if array.ndim == ndim else np.broadcast_to(array, (len(index), *array.shape))
        return whole.astype(np.float64)

    def run(index: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        padded = np.resize(index, C)
        with jax.enable_x64(True):
            out = _run_chunk(
                form,
                objective.raw,
                rows.pull,
                exact,
                state["theta"][padded],
                state["width"][padded],
                state["damping"][padded],
                share(weights, padded, 2),
                inputs,
                share(target, padded, 2),
                jax.tree_util.tree_map(lambda leaf: share(leaf, padded, 1), dict(rows.given)),
                setting,
                box,
                delta,
                np.int32(_ROUND),
            )
        return index, {key: np.asarray(value)[: len(index)] for key, value in out.items()}

    pending = np.arange(R)
    with concurrent.futures.ThreadPoolExecutor(_workers()) as pool:
        for _ in range(_LIMIT // _ROUND):
            chunks = [pending[i : i + C] for i in range(0, len(pending), C)]
            for index, out in pool.map(run, chunks) if len(chunks) > 1 else map(run, chunks):
                for key, value in out.items():
                    state[key][index] = value + state[key][index] if key == "iterations" else value
                if progress:
                    progress(int(out["done"].sum()))
            pending = np.flatnonzero(~state["done"])
            if not len(pending):
                break
    if progress:
        progress(len(pending))
    return Solutions(
        theta=state["theta"],
        objective=state["value"],
        decrement=state["decrement"],
        iterations=state["iterations"],
        converged=state["converged"],
    )


def _padded(array: np.ndarray, count: int, tail: int, fill: float) -> np.ndarray:
    """The array with `count` more rows before its last `tail` ones."""
    end = array.shape[-1] - tail
    more = np.full((*array.shape[:-1], count), fill, array.dtype)
    return np.concatenate([array[..., :end], more, array[..., end:]], axis=-1)


def _workers() -> int:
    """Threads that run chunks: one a core, for small problems leave XLA's own threads nothing to share out."""
    return min(len(os.sched_getaffinity(0)), 16) if jax.default_backend() == "cpu" else 1
