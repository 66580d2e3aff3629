"""Damped Newton steps over a batch of small problems: the compiled half of the solver.

    minimise over theta   sum_i w_i rho_delta(log L(theta; x_i) - log y_i)

A step solves (H + lambda G) s = -g, where H is the curvature of rho over the rows (nonzero only within delta), and G
that of the reweighted least-squares bound, which is never smaller. At lambda = 0 it is Newton's step on the rows in
the square part of Huber's rho; at large lambda it is a short descent step. The rows' own second derivatives are
omitted at first: they enter with weights of at most delta and random signs, and cost p times as much. If few rows lie
within delta and the form has a flat direction, they dominate, and a search without them converges very slowly; such
problems are solved again with them (`exact`).

Narrow deltas have local minima between rows, so a search may start with a wider delta, which shrinks whenever the
current problem is nearly solved. The loop steps a few slots at a time; a slot whose problem is solved takes the next
one from a queue, so that a slow problem delays no other.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from distill.laws.fitting import objective as ob
from distill.laws.forms.arrays import Values
from distill.laws.forms.law import Law
from distill.laws.forms.parameters import FitSetting, Parameter

if TYPE_CHECKING:  # distill.laws needs only jax, numpy and scipy
    from jaxtyping import Bool, Float, Int

TOLERANCE = 1e-13  # of the predicted decrease, relative to the objective, at which a search ends
_NEARLY = 1e-3  # the same, to leave a wider delta
_SHRINK = 0.2  # of delta, from one stage to the next
_LONGEST = 2.0  # step in any coordinate, all of which are logs, logits or of order one
FLOOR = 1e-24  # the objective of an exact fit, per unit of weight: rounding
_LIMIT = 200  # iterations of one problem
RESULTS = ("problem", "theta", "value", "width", "damping", "decrement", "turn")  # fields kept of a solved problem

# Residuals [C, n] at a list of coordinates, [C] each; and gradient [C, p], H and G [C, p, p] of a damped Newton step.
Residual: TypeAlias = Callable[[list[jax.Array]], jax.Array]
System: TypeAlias = tuple[jax.Array, jax.Array, jax.Array]
Quantity: TypeAlias = Callable[[ModuleType, Law], Values]  # a positive number of a law, as a function of (xp, law)


class HasLoss(Protocol):
    """A law, or a pair of laws that are fitted jointly."""

    @property
    def loss(self) -> Callable[..., Values]:
        """(xp, *inputs) -> the predicted loss, nats per token."""


class Form(Protocol):
    """The interface of a form: a class of laws, or a pair of laws that are fitted jointly."""

    def parameters(self) -> dict[str, Parameter]:
        """The declared parameters, one a coordinate."""

    def unpack(
        self, xp: ModuleType, theta: Sequence[Values] | np.ndarray, setting: FitSetting, given: Mapping[str, Law]
    ) -> HasLoss:
        """The law (or pair) at the coordinates theta, one entry a parameter."""


# Shapes: C slots, Q entries of the queue, n rows (with padding and the pull), p parameters.
# The fields of both dataclasses are in the order in which jax sorts the keys of a dict.


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["inputs", "setting", "low", "high", "delta"],
    meta_fields=["form", "raw", "pull", "exact", "quantile"],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchProblem:
    """The shared parts of all problems of a batch: the form, the rows' inputs, the box, the objective.

    `raw`: residuals are of losses, not of their logarithms. `pull`: the quantity of a last row of another kind
    (solver.Rows). `exact`: H holds the rows' own second derivatives. `quantile`: the tilt of the objective. A pytree
    whose first five fields are static.
    """

    form: Form
    raw: bool
    pull: Quantity | None
    exact: bool
    quantile: float
    inputs: "tuple[Float[np.ndarray, 'n'], ...]"
    setting: FitSetting
    low: "Float[np.ndarray, 'p']"
    high: "Float[np.ndarray, 'p']"
    delta: float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Queue:
    """Problems waiting for a slot: index, start, first delta, weights and targets of rows, nested laws."""

    given: dict[str, Law]  # leaves [Q]
    problem: "Int[np.ndarray, 'Q']"
    target: "Float[np.ndarray, 'Q n']"
    theta: "Float[np.ndarray, 'Q p']"
    weights: "Float[np.ndarray, 'Q n']"
    width: "Float[np.ndarray, 'Q']"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Slots:
    """Active problems: the fields of Queue and the state of each search. `problem` is -1 in an idle slot."""

    G: "Float[jax.Array, 'C p p']"
    H: "Float[jax.Array, 'C p p']"
    damping: "Float[jax.Array, 'C']"
    decrement: "Float[jax.Array, 'C']"
    done: "Bool[jax.Array, 'C']"
    given: dict[str, Law]  # leaves [C]
    gradient: "Float[jax.Array, 'C p']"
    problem: "Int[jax.Array, 'C']"
    target: "Float[jax.Array, 'C n']"
    theta: "Float[jax.Array, 'C p']"
    turn: "Int[jax.Array, 'C']"
    value: "Float[jax.Array, 'C']"
    weights: "Float[jax.Array, 'C n']"
    width: "Float[jax.Array, 'C']"


class _Verdict(NamedTuple):
    """The decisions of a trial step, by slot: the first turn, the last stage, little predicted decrease, a lower
    value, the end of the search, the end of the stage."""

    first: "Bool[jax.Array, 'C']"
    final: "Bool[jax.Array, 'C']"
    small: "Bool[jax.Array, 'C']"
    better: "Bool[jax.Array, 'C']"
    done: "Bool[jax.Array, 'C']"
    over: "Bool[jax.Array, 'C']"


def residuals(
    problem: SearchProblem,
    theta: "list[Float[jax.Array, 'C']]",
    target: "Float[jax.Array, 'C n']",
    given: dict[str, Law],
) -> "Float[jax.Array, 'C n']":
    """Residuals at the coordinates theta, one array a coordinate; leaves of the given laws are [C, 1]."""
    law = problem.form.unpack(jnp, [coordinate[:, None] for coordinate in theta], problem.setting, given)
    loss = law.loss(jnp, *(x[None, :] for x in problem.inputs))
    predicted = jnp.asarray(loss) if problem.raw else jnp.log(loss)
    if problem.pull is not None and isinstance(law, Law):
        predicted = jnp.concatenate([predicted, jnp.log(problem.pull(jnp, law))], axis=-1)
    return predicted - target


def linearise(
    residual: Residual, theta: "Float[jax.Array, 'C p']"
) -> "tuple[Float[jax.Array, 'C n'], Float[jax.Array, 'C p n']]":
    """Residuals and their slopes at theta.

    One coordinate at a time, so that a slope costs only what depends on its coordinate (a fifth less than one
    linear map pushed along all directions).
    """
    at = list(theta.T)

    def along(k: int) -> jax.Array:
        return jax.jvp(lambda u: residual([*at[:k], u, *at[k + 1 :]]), (at[k],), (jnp.ones_like(at[k]),))[1]

    return residual(at), jnp.stack([along(k) for k in range(len(at))], axis=1)


def normal(
    weights: "Float[jax.Array, 'C n']",
    residual: "Float[jax.Array, 'C n']",
    slopes: "Float[jax.Array, 'C p n']",
    delta: "Float[jax.Array, '#C #n']",
) -> System:
    """Gradient, curvature H and its bound G."""
    gradient = jnp.einsum("cn,cpn->cp", weights * ob.psi(jnp, residual, delta), slopes)
    H = jnp.einsum("cn,cpn,cqn->cpq", weights * ob.curvature(jnp, residual, delta), slopes, slopes)
    G = jnp.einsum("cn,cpn,cqn->cpq", weights * ob.majorant(jnp, residual, delta), slopes, slopes)
    return gradient, H, G


def _step(
    gradient: "Float[jax.Array, 'C p']",
    H: "Float[jax.Array, 'C p p']",
    G: "Float[jax.Array, 'C p p']",
    damping: "Float[jax.Array, 'C']",
) -> "tuple[Float[jax.Array, 'C p'], Float[jax.Array, 'C']]":
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


def _pin(
    gradient: "Float[jax.Array, 'C p']",
    H: "Float[jax.Array, 'C p p']",
    G: "Float[jax.Array, 'C p p']",
    pinned: "Bool[jax.Array, 'C p']",
) -> System:
    """The same system without the coordinates that are pinned to a bound of their box."""
    free = ~pinned
    both = free[:, :, None] & free[:, None, :]
    unit = jnp.where(pinned[:, :, None], jnp.eye(H.shape[-1])[None], 0.0)
    return jnp.where(free, gradient, 0.0), jnp.where(both, H, unit), jnp.where(both, G, unit)


def bend(
    residual: Residual, theta: "Float[jax.Array, 'C p']", pulls: "Float[jax.Array, 'C n']"
) -> "Float[jax.Array, 'C p p']":
    """The rows' own second derivatives, each times its weight times psi, summed over rows."""
    gradient = jax.grad(lambda at: (pulls * residual(at.T)).sum())
    directions = jnp.broadcast_to(jnp.eye(theta.shape[1])[:, None, :], (theta.shape[1], *theta.shape))
    second = jax.vmap(lambda along: jax.jvp(gradient, (theta,), (along,))[1], out_axes=-1)(directions)
    return jnp.where(jnp.isfinite(second).all((-1, -2), keepdims=True), second, 0.0)


def idle(queue: Queue, count: int) -> Slots:
    """Slots [count] that hold no problem yet; the queue's first entries stand in for one."""
    slots = begin(jax.tree_util.tree_map(lambda array: jnp.asarray(array[:count]), queue))
    return dataclasses.replace(slots, problem=jnp.full(count, -1, jnp.int32), done=jnp.ones(count, bool))


def begin(queue: Queue) -> Slots:
    """The state in which the searches of a queue's problems begin."""
    count, p = queue.theta.shape
    identity = jnp.broadcast_to(jnp.eye(p)[None], (count, p, p))
    # An explicit dtype: an array of Python floats has a weak one, for which the program would be compiled again.
    each = functools.partial(jnp.full, count, dtype=queue.theta.dtype)
    return Slots(
        **{field.name: getattr(queue, field.name) for field in dataclasses.fields(queue)},
        value=each(jnp.inf),
        gradient=jnp.zeros_like(queue.theta),
        H=identity,
        G=identity,
        damping=each(1e-2),
        decrement=each(jnp.inf),
        done=jnp.zeros(count, bool),
        turn=jnp.zeros(count, jnp.int32),
    )


@jax.jit
def run(
    problem: SearchProblem, slots: Slots, queue: Queue, count: int, drain: bool
) -> tuple[Slots, dict[str, jax.Array], jax.Array]:
    """Steps the problems in the slots, and those of the queue's first `count` entries as slots become free.

    Returns the slots once the queue is empty (with `drain`, once they are idle too), the RESULTS of the problems that
    were solved, an entry each, and how many entries of them count.
    """

    def exchange(
        s: Slots, head: jax.Array, solved: jax.Array, results: dict[str, jax.Array]
    ) -> tuple[Slots, jax.Array, jax.Array, dict[str, jax.Array]]:
        """Records the results of finished slots and fills them from the queue."""
        full = s.done & (s.problem >= 0)
        place = jnp.where(full, solved + jnp.cumsum(full) - 1, len(results["problem"]))
        results = {key: results[key].at[place].set(getattr(s, key), mode="drop") for key in results}
        entry = head + jnp.cumsum(s.done) - 1
        taken = s.done & (entry < count)

        def take(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(taken.reshape((-1,) + (1,) * (old.ndim - 1)), new[jnp.minimum(entry, len(new) - 1)], old)

        s = jax.tree_util.tree_map(take, begin(queue), s)
        s = dataclasses.replace(s, problem=jnp.where(full & ~taken, -1, s.problem))
        return s, head + taken.sum(), solved + full.sum(), results

    def turn(carry: tuple) -> tuple:
        s, head, solved, results = carry
        s = _advance(problem, s)
        waiting = s.done & ((s.problem >= 0) | (head < count))
        return jax.lax.cond(waiting.any(), exchange, lambda *same: same, s, head, solved, results)

    def unfinished(carry: tuple) -> jax.Array:
        s, head, _, _ = carry
        return (head < count) | drain & (s.problem >= 0).any()

    room = len(queue.problem) + len(slots.problem)
    empty = {key: jnp.zeros((room, *getattr(slots, key).shape[1:]), getattr(slots, key).dtype) for key in RESULTS}
    slots, _, solved, results = jax.lax.while_loop(unfinished, turn, (slots, 0, 0, empty))
    return slots, results, jnp.asarray(solved)


def _advance(problem: SearchProblem, s: Slots) -> Slots:
    """One turn of every slot: a trial step, its value, and the resulting state."""
    weights, floor, rows = s.weights, FLOOR * s.weights.sum(-1), s.weights.shape[1]
    given = jax.tree_util.tree_map(lambda leaf: leaf[:, None], s.given)

    def residual_at(at: list[jax.Array]) -> jax.Array:
        return residuals(problem, at, s.target, given)

    def linearised(at: jax.Array) -> tuple[jax.Array, jax.Array]:
        return linearise(residual_at, at)

    def nothing(at: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros_like(weights), jnp.zeros((*at.shape, weights.shape[1]), at.dtype)

    def total(residual: jax.Array, width: jax.Array) -> jax.Array:
        return (_tilted(problem, weights, residual) * ob.rho(jnp, residual, _by_row(problem, width, rows))).sum(-1)

    trial, predicted, solvable = _propose(problem, s)
    # Some slot is active in all turns but the first: the branch keeps XLA from recomputing the slopes inside each of
    # their products, which took twice the time.
    residual, slopes = jax.lax.cond(~s.done.all(), linearised, nothing, trial)
    value = total(residual, s.width)
    verdict = _judge(problem, s, value, predicted, solvable, floor)
    width = jnp.where(verdict.over, jnp.maximum(problem.delta, s.width * _SHRINK), s.width)
    by_row, tilted = _by_row(problem, width, rows), _tilted(problem, weights, residual)
    gradient, H, G = normal(tilted, residual, slopes, by_row)
    if problem.exact:
        H += bend(residual_at, trial, tilted * ob.psi(jnp, residual, by_row))
    finite = jnp.isfinite(value) & jnp.isfinite(gradient).all(-1) & jnp.isfinite(G).all((-1, -2))
    sound = (verdict.better | (verdict.over & solvable)) & finite & ~s.done
    damping = _next_damping(s, (s.value - value) / jnp.maximum(predicted, 1e-300), sound, verdict)

    def pick(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(sound.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)

    held = s.done | verdict.first
    return dataclasses.replace(
        s,
        theta=pick(trial, s.theta),
        value=pick(total(residual, width), s.value),
        gradient=pick(gradient, s.gradient),
        H=pick(H, s.H),
        G=pick(G, s.G),
        width=pick(width, s.width),
        damping=jnp.where(verdict.done | verdict.first, s.damping, damping),
        decrement=jnp.where(held, s.decrement, predicted / jnp.maximum(s.value, floor)),
        done=verdict.done,
        turn=s.turn + ~s.done,
    )


def _tilted(
    problem: SearchProblem, weights: "Float[jax.Array, 'C n']", residual: "Float[jax.Array, 'C n']"
) -> "Float[jax.Array, 'C n']":
    """The weights, by the side of the law that each row lies on; a pull has no side."""
    if problem.quantile == 0.5:
        return weights
    tilted = weights * ob.side(jnp, residual, problem.quantile)
    return tilted if problem.pull is None else tilted.at[:, -1].set(weights[:, -1])


def _by_row(problem: SearchProblem, width: "Float[jax.Array, 'C']", rows: int) -> "Float[jax.Array, 'C #n']":
    """Delta by slot and row; infinite for a pull, whose rho is a square."""
    if problem.pull is None:
        return width[:, None]
    return jnp.where(jnp.arange(rows)[None] == rows - 1, jnp.inf, width[:, None])


def _propose(
    problem: SearchProblem, s: Slots
) -> "tuple[Float[jax.Array, 'C p'], Float[jax.Array, 'C'], Bool[jax.Array, 'C']]":
    """The trial coordinates, the decrease that the model predicts for them, and whether there is a step."""
    low, high = problem.low[None, :], problem.high[None, :]
    pinned = (s.theta <= low) & (s.gradient > 0) | (s.theta >= high) & (s.gradient < 0)
    step, predicted = _step(*_pin(s.gradient, s.H, s.G, pinned), s.damping)
    solvable = jnp.isfinite(step).all(-1)
    return jnp.where(solvable[:, None], jnp.clip(s.theta + step, low, high), s.theta), predicted, solvable


def _judge(
    problem: SearchProblem, s: Slots, value: jax.Array, predicted: jax.Array, solvable: jax.Array, floor: jax.Array
) -> _Verdict:
    """The decisions that a trial's value leads to; all arguments but the first are by slot."""
    first = s.turn == 0  # takes no step: it evaluates the start, so that the body is all there is to compile
    final = (s.width <= problem.delta) & ~first
    small = predicted <= TOLERANCE * s.value + floor
    better = solvable & (value < s.value)
    # In the last digits a step may predict a small decrease and change nothing.
    stalled = (predicted <= 100 * TOLERANCE * s.value) & ~better
    stopped = (small | stalled) & final & solvable & (s.damping < 1e-3)
    done = s.done | stopped | (s.damping >= 1e10) | (s.turn > _LIMIT)
    # A stage ends once its predicted decrease is small; the next one has a smaller delta.
    over = ~final & ~first & (better & (predicted <= _NEARLY * s.value) | small)
    return _Verdict(first, final, small, better, done, over)


def _next_damping(s: Slots, gain: jax.Array, sound: jax.Array, verdict: _Verdict) -> "Float[jax.Array, 'C']":
    """Less damping where the decrease was as predicted (`gain` is their ratio), more where the step is rejected."""
    eased = jnp.where(gain > 0.5, s.damping * 0.1, jnp.where(gain > 0.1, s.damping, s.damping * 3.0))
    damping = jnp.where(sound, eased, s.damping * 6.0)
    # A short damped step proves nothing: only an undamped step with no predicted decrease ends the search.
    damping = jnp.where(verdict.small & verdict.final, jnp.minimum(damping, 1e-8), damping)
    return jnp.clip(damping, 1e-12, 1e12)
