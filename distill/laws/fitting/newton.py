"""Damped Newton steps over a batch of small problems: the compiled half of the solver.

    minimise over theta   sum_i w_i rho_delta(log L(theta; x_i) - log y_i)

A step solves (H + lambda G) s = -g, where H holds the curvature of rho at the rows (only those within delta have
any), and G that of the reweighted least-squares bound, which is never smaller: at lambda = 0 the step is Newton's on
the rows that a Huber fit leaves in its square part, at large lambda a short, always descending one. The rows' own
second derivatives are left out at first: they enter with weights of at most delta and random signs, and cost p times
as much. Where few rows lie within delta and the form has a flat direction they decide, and a search without them
crawls; such problems are solved again with them (`exact`).

Narrow deltas have local minima between rows, so a search may begin with a wider delta, which shrinks whenever the
current problem is nearly solved. A loop steps a few slots at a time; a slot whose problem is solved takes the next one
from a queue, so that a stubborn problem holds nobody up.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from distill.laws.fitting import objective as ob
from distill.laws.forms.law import Law
from distill.laws.forms.parameters import Parameter, Setting

TOLERANCE = 1e-13  # of the predicted decrease, relative to the objective, at which a search ends
_NEARLY = 1e-3  # the same, to leave a wider delta
_SHRINK = 0.2  # of delta, from one stage to the next
_LONGEST = 2.0  # step in any coordinate, all of which are logs, logits or of order one
FLOOR = 1e-24  # the objective of an exact fit, per unit of weight: rounding
_LIMIT = 200  # iterations of one problem
FOUND = ("problem", "theta", "value", "width", "damping", "decrement", "turn")  # of a problem that is solved


class Form(Protocol):
    """What a search needs of a form: a class of laws, or the pair of two that are fitted jointly."""

    def parameters(self) -> dict[str, Parameter]:
        """The declared parameters, one a coordinate."""

    def unpack(self, xp: Any, theta: Any, setting: Setting, given: Mapping[str, Law]) -> Any:
        """What has a `loss` at the coordinates."""


def residuals(
    form: Form, raw: bool, pull: Any, theta: Any, inputs: Any, target: Any, given: Any, setting: Setting
) -> Any:
    """Residuals [C, n] at the coordinates theta, one array [C] each; inputs [n] and target [C, n]."""
    law = form.unpack(jnp, [coordinate[:, None] for coordinate in theta], setting, given)
    loss = law.loss(jnp, *(x[None, :] for x in inputs))
    predicted = loss if raw else jnp.log(loss)
    if pull is not None:
        predicted = jnp.concatenate([predicted, jnp.log(pull(jnp, law))], axis=-1)
    return predicted - target


def linearise(residual: Callable, theta: Any) -> tuple[Any, Any]:
    """Residuals [C, n] and their slopes [C, p, n] at theta [C, p].

    One coordinate at a time, so that a slope costs only what depends on its coordinate (a fifth less than one
    linear map pushed along all directions).
    """
    at = list(theta.T)

    def along(k: int) -> Any:
        return jax.jvp(lambda u: residual([*at[:k], u, *at[k + 1 :]]), (at[k],), (jnp.ones_like(at[k]),))[1]

    return residual(at), jnp.stack([along(k) for k in range(len(at))], axis=1)


def normal(weights: Any, residual: Any, slopes: Any, delta: Any) -> tuple[Any, Any, Any]:
    """Gradient [C, p], curvature H [C, p, p] and its bound G [C, p, p]."""
    gradient = jnp.einsum("cn,cpn->cp", weights * ob.psi(jnp, residual, delta), slopes)
    H = jnp.einsum("cn,cpn,cqn->cpq", weights * ob.curvature(jnp, residual, delta), slopes, slopes)
    G = jnp.einsum("cn,cpn,cqn->cpq", weights * ob.majorant(jnp, residual, delta), slopes, slopes)
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


def bend(residual: Callable, theta: Any, pulls: Any) -> Any:
    """The rows' own second derivatives, each times its pull (weight times psi), summed: [C, p, p]."""
    gradient = jax.grad(lambda at: (pulls * residual(at.T)).sum())
    directions = jnp.broadcast_to(jnp.eye(theta.shape[1])[:, None, :], (theta.shape[1], *theta.shape))
    second = jax.vmap(lambda along: jax.jvp(gradient, (theta,), (along,))[1], out_axes=-1)(directions)
    return jnp.where(jnp.isfinite(second).all((-1, -2), keepdims=True), second, 0.0)


def idle(queue: dict[str, Any], count: int) -> dict[str, Any]:
    """Slots [count] that hold no problem yet; the queue's first entries stand in for one."""
    slots = jax.tree_util.tree_map(lambda array: jnp.asarray(array[:count]), queue)
    return slots | fresh(slots["theta"]) | {"problem": jnp.full(count, -1, jnp.int32), "done": jnp.ones(count, bool)}


@functools.partial(jax.jit, static_argnames=("form", "raw", "pull", "exact"))
def run(form, raw, pull, exact, slots, queue, count, drain, inputs, setting, box, delta):
    """Steps the problems in the slots, and those of the queue's first `count` entries as slots come free.

    Returns the slots once the queue is empty (with `drain`, once they are idle too), what was found (FOUND, an entry a
    problem that was solved) and how many entries of it count.
    """
    setting = Setting(*setting)
    low, high = (edge[None, :] for edge in box)

    def by_row(width):
        if pull is None:
            return width[:, None]
        rows = slots["weights"].shape[1]
        return jnp.where(jnp.arange(rows)[None] == rows - 1, jnp.inf, width[:, None])

    def advance(s):
        weights, floor = s["weights"], FLOOR * s["weights"].sum(-1)
        given = jax.tree_util.tree_map(lambda leaf: leaf[:, None], s["given"])

        def residual_at(at):
            return residuals(form, raw, pull, at, inputs, s["target"], given, setting)

        def linearised(at):
            return linearise(residual_at, at)

        def nothing(at):
            return jnp.zeros_like(weights), jnp.zeros((*at.shape, weights.shape[1]), at.dtype)

        def total(residual, width):
            return (weights * ob.rho(jnp, residual, by_row(width))).sum(-1)

        first = s["turn"] == 0  # takes no step: it evaluates the start, so that the body is all there is to compile
        pinned = (s["theta"] <= low) & (s["gradient"] > 0) | (s["theta"] >= high) & (s["gradient"] < 0)
        step, predicted = _step(*_pin(s["gradient"], s["H"], s["G"], pinned), s["damping"])
        solvable = jnp.isfinite(step).all(-1)
        trial = jnp.where(solvable[:, None], jnp.clip(s["theta"] + step, low, high), s["theta"])
        # Some slot is at work in all turns but the first: a branch is what keeps XLA from working the slopes out again
        # inside each product of them, which took twice the time.
        residual, slopes = jax.lax.cond(~s["done"].all(), linearised, nothing, trial)
        value = total(residual, s["width"])
        gain = (s["value"] - value) / jnp.maximum(predicted, 1e-300)
        final = (s["width"] <= delta) & ~first
        small = predicted <= TOLERANCE * s["value"] + floor
        better = solvable & (value < s["value"])
        # At the last digits a step may promise a little and change nothing.
        stalled = (predicted <= 100 * TOLERANCE * s["value"]) & ~better
        stopped = (small | stalled) & final & solvable & (s["damping"] < 1e-3)
        done = s["done"] | stopped | (s["damping"] >= 1e10) | (s["turn"] > _LIMIT)
        # A stage is over once little is left to win in it; the next one is narrower.
        over = ~final & ~first & (better & (predicted <= _NEARLY * s["value"]) | small)
        width = jnp.where(over, jnp.maximum(delta, s["width"] * _SHRINK), s["width"])
        gradient, H, G = normal(weights, residual, slopes, by_row(width))
        if exact:
            H += bend(residual_at, trial, weights * ob.psi(jnp, residual, by_row(width)))
        finite = jnp.isfinite(value) & jnp.isfinite(gradient).all(-1) & jnp.isfinite(G).all((-1, -2))
        sound = (better | (over & solvable)) & finite & ~s["done"]
        eased = jnp.where(gain > 0.5, s["damping"] * 0.1, jnp.where(gain > 0.1, s["damping"], s["damping"] * 3.0))
        damping = jnp.where(sound, eased, s["damping"] * 6.0)
        # A short damped step proves nothing: only an undamped one that promises nothing ends the search.
        damping = jnp.where(small & final, jnp.minimum(damping, 1e-8), damping)

        def pick(new, old):
            return jnp.where(sound.reshape((-1,) + (1,) * (new.ndim - 1)), new, old)

        return s | dict(
            theta=pick(trial, s["theta"]),
            value=pick(total(residual, width), s["value"]),
            gradient=pick(gradient, s["gradient"]),
            H=pick(H, s["H"]),
            G=pick(G, s["G"]),
            width=pick(width, s["width"]),
            damping=jnp.where(done | first, s["damping"], jnp.clip(damping, 1e-12, 1e12)),
            decrement=jnp.where(s["done"] | first, s["decrement"], predicted / jnp.maximum(s["value"], floor)),
            done=done,
            turn=s["turn"] + ~s["done"],
        )

    def exchange(s, head, solved, found):
        """Notes what the slots that are done have found, and gives them what the queue holds."""
        full = s["done"] & (s["problem"] >= 0)
        place = jnp.where(full, solved + jnp.cumsum(full) - 1, len(found["problem"]))
        found = {key: found[key].at[place].set(s[key], mode="drop") for key in found}
        entry = head + jnp.cumsum(s["done"]) - 1
        taken = s["done"] & (entry < count)

        def take(new, old):
            return jnp.where(taken.reshape((-1,) + (1,) * (old.ndim - 1)), new[jnp.minimum(entry, len(new) - 1)], old)

        begun = fresh(queue["theta"])
        s = {key: jax.tree_util.tree_map(take, (queue | begun)[key], s[key]) for key in s}
        s |= dict(problem=jnp.where(full & ~taken, -1, s["problem"]))
        return s, head + taken.sum(), solved + full.sum(), found

    def turn(carry):
        s, head, solved, found = carry
        s = advance(s)
        waiting = s["done"] & ((s["problem"] >= 0) | (head < count))
        return jax.lax.cond(waiting.any(), exchange, lambda *same: same, s, head, solved, found)

    def go_on(carry):
        s, head, _, _ = carry
        return (head < count) | drain & (s["problem"] >= 0).any()

    room = len(queue["problem"]) + len(slots["problem"])
    found = {key: jnp.zeros((room, *slots[key].shape[1:]), slots[key].dtype) for key in FOUND}
    slots, _, solved, found = jax.lax.while_loop(go_on, turn, (slots, 0, 0, found))
    return slots, found, solved


def fresh(theta: Any) -> dict[str, Any]:
    """The state in which a search at theta [C, p] begins, less what its problem brings."""
    count, p = theta.shape
    identity = jnp.broadcast_to(jnp.eye(p)[None], (count, p, p))
    # With a dtype: an array of Python's floats has a weak one, for which the same program is compiled once more.
    each = functools.partial(jnp.full, count, dtype=theta.dtype)
    state = {"value": each(jnp.inf), "gradient": jnp.zeros_like(theta), "H": identity, "G": identity}
    state |= {"damping": each(1e-2), "decrement": each(jnp.inf)}
    return state | {"done": jnp.zeros(count, bool), "turn": jnp.zeros(count, jnp.int32)}
