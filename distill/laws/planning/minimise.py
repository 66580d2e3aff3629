"""Global minimisation over a box in one or two variables: a grid, its two best local minima, damped Newton in each.

Traceable, so that `jax.vmap` solves thousands of problems at once. It is made for the planner's objectives, which are
smooth in logarithms with valleys wider than the grid; run it in float64. Derivatives are fourth-order central
differences: the compiled loop contains the law twice, not seven times as with an autodiff Hessian, so it compiles
several times faster, and the planner's page can run the same arithmetic.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from distill.laws.forms.arrays import Floats

_STEPS = 4.0 ** -np.arange(14)  # candidate lengths of a Newton step, tried all at once
_ITERATIONS = 60
_FLAT = 1e-9  # curvature below which a direction counts as flat
_WIDTH = 0.01  # of the difference stencil; the variables are logarithms
_NEAR = 1e-3  # a Newton step shorter than this is always accepted: values no longer resolve it, slopes still do
_DONE = 1e-8  # the search ends after a step shorter than this


Cost: TypeAlias = Callable[[jax.Array], jax.Array]  # of a point [d], a scalar


_Hessian: TypeAlias = tuple[jax.Array, ...]  # (a,) in one variable, (a, b, c) of [[a, b], [b, c]] in two
_State: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, int]  # point, value, whether to continue, iterations


class Minimum(NamedTuple):
    """The best point [d] and its value, and the best point of another local minimum (infinite if there is none)."""

    z: jax.Array
    value: jax.Array
    second_z: jax.Array
    second_value: jax.Array


def minimise(value: Cost, axes: tuple[jax.Array, ...]) -> Minimum:
    """The minimum over the box that `axes` (one increasing grid per variable) span."""
    mesh = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1)
    points = mesh.reshape(-1, len(axes))
    values = jax.vmap(value)(points).reshape(mesh.shape[:-1])
    valleys = jnp.where(_is_valley(values), values, jnp.inf).reshape(-1)
    _, starts = jax.lax.top_k(-valleys, 2)
    low = jnp.stack([axis[0] for axis in axes])
    high = jnp.stack([axis[-1] for axis in axes])
    z, least = jax.vmap(lambda start: _descend(value, start, low, high))(points[starts])
    least = jnp.where(jnp.isfinite(valleys[starts]), least, jnp.inf)
    first = jnp.argmin(least)
    return Minimum(z[first], least[first], z[1 - first], least[1 - first])


def _is_valley(values: jax.Array) -> jax.Array:
    """Grid points with no lower neighbour along an axis or a diagonal (of equal points the first counts)."""
    padded = jnp.pad(values, 1, constant_values=jnp.inf)
    least = jnp.ones(values.shape, bool)
    offsets = jnp.stack(jnp.meshgrid(*[jnp.arange(3)] * values.ndim, indexing="ij"), -1).reshape(-1, values.ndim)
    middle = len(offsets) // 2
    for k, offset in enumerate(offsets):
        neighbour = jax.lax.dynamic_slice(padded, offset, values.shape)
        if k < middle:
            least &= values < neighbour
        elif k > middle:
            least &= values <= neighbour
    return least


def _stencil(d: int) -> Floats:
    """Offsets of the stencil: the centre, +-1 and +-2 along every axis, and the corners for the mixed term."""
    axes = [k * e for e in np.eye(d) for k in (-2, -1, 1, 2)]
    corners = [np.array(c) for c in ((1, 1), (1, -1), (-1, 1), (-1, -1))] if d == 2 else []
    return _WIDTH * np.array([np.zeros(d), *axes, *corners])


def _derivatives(values: jax.Array, d: int) -> tuple[jax.Array, _Hessian]:
    """Gradient [d] and the entries of the Hessian (a,) or (a, b, c) from the values on the stencil."""
    along = [values[1 + 4 * i : 5 + 4 * i] for i in range(d)]
    gradient = jnp.stack([(v[0] - 8 * v[1] + 8 * v[2] - v[3]) / (12 * _WIDTH) for v in along])
    bend = [(-v[0] + 16 * v[1] - 30 * values[0] + 16 * v[2] - v[3]) / (12 * _WIDTH**2) for v in along]
    if d == 1:
        return gradient, (bend[0],)
    mixed = values[-4] - values[-3] - values[-2] + values[-1]
    return gradient, (bend[0], mixed / (4 * _WIDTH**2), bend[1])


def _newton_direction(gradient: jax.Array, hessian: _Hessian) -> jax.Array:
    """-|H|^-1 g in one or two variables: H shifted until it is positive definite."""
    if len(hessian) == 1:
        return -gradient / (jnp.abs(hessian[0]) + _FLAT)
    a, b, c = hessian
    smallest = (a + c) / 2 - jnp.sqrt(((a - c) / 2) ** 2 + b**2)
    shift = jnp.where(smallest > _FLAT, 0.0, _FLAT - 2 * smallest)
    a, c = a + shift, c + shift
    return -jnp.stack([c * gradient[0] - b * gradient[1], a * gradient[1] - b * gradient[0]]) / (a * c - b * b)


def _hold(hessian: _Hessian, free: jax.Array) -> _Hessian:
    """The Hessian with the rows of held variables replaced by those of the identity."""
    if len(hessian) == 1:
        return (jnp.where(free[0], hessian[0], 1.0),)
    a, b, c = hessian
    return jnp.where(free[0], a, 1.0), jnp.where(free[0] & free[1], b, 0.0), jnp.where(free[1], c, 1.0)


def _descend(value: Cost, start: jax.Array, low: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Projected damped Newton: every iteration takes the best of 14 step lengths, until none improves the value."""
    d = start.shape[0]
    offsets = jnp.asarray(_stencil(d), start.dtype)
    lengths = jnp.asarray(_STEPS, start.dtype)[:, None]

    def improve(state: _State) -> _State:
        z, _, _, count = state
        around = jax.vmap(value)(z[None] + offsets)
        gradient, hessian = _derivatives(around, d)
        free = ~(((z <= low) & (gradient > 0)) | ((z >= high) & (gradient < 0)))
        direction = jnp.clip(_newton_direction(jnp.where(free, gradient, 0.0), _hold(hessian, free)), -2.0, 2.0)
        trials = jnp.clip(z[None] + lengths * direction[None], low[None], high[None])
        values = jax.vmap(value)(trials)
        best = jnp.nanargmin(values)
        better = values[best] < around[0]
        length = jnp.max(jnp.abs(direction))
        near = length < _NEAR
        chosen = jnp.where(near, trials[0], jnp.where(better, trials[best], z))
        least = jnp.where(near, values[0], jnp.where(better, values[best], around[0]))
        return chosen, least, (better | near) & (length > _DONE), count + 1

    def unfinished(state: _State) -> jax.Array:
        return state[2] & (state[3] < _ITERATIONS)

    z, least, _, _ = jax.lax.while_loop(unfinished, improve, (start, jnp.asarray(jnp.inf), jnp.array(True), 0))
    return z, least
