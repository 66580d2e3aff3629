"""Sums over the columns of a tile of logits, added to those so far: the arithmetic of both implementations.

XLA's tiles are [n, v] and lie with their columns along axis 1 (chunks.py); those of the TPU's kernel are
[v / 128, n, 128] and are summed along axis 0, by whole registers (kernel.py).
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

Soften: TypeAlias = Callable[[Array], Array]  # x -> x / tau


class PartialSums(NamedTuple):
    """One device's partial sums of each token over the columns so far: exponentials relative to a running maximum.

    `expected` sums the exponentials (the teacher's in forward, the student's in reverse) times the quantity whose mean
    is the divergence. The teacher's sums have the suffix _t. The kernel has 128 of each, one for each lane.
    """

    peak: Float[Array, "*C n"]
    mass: Float[Array, "*C n"]  # at tau = 1
    mass_tau: Float[Array, "*C n"]
    id_logits: Float[Array, "*C n K"]
    peak_t: Float[Array, "*C n"]
    mass_t: Float[Array, "*C n"]
    expected: Float[Array, "*C n"]


def add(
    kind: str,
    soften: Soften | None,
    sums: PartialSums,
    z: Float[Array, "_ ..."],
    z_t: Float[Array, "_ ..."] | None,
    axis: int,
) -> PartialSums:
    """The sums with the logits of a tile, whose columns lie along `axis`, but for the logits of the ids.

    `soften` is None at a temperature of 1, where `mass_tau` is `mass`. z_t: the teacher's, if there is a divergence.
    """
    wide = lambda x: jnp.expand_dims(x, axis)
    cool = soften or (lambda x: x)
    peak, mass, mass_tau, id_logits, peak_t, mass_t, expected = sums
    top = jnp.maximum(peak, jnp.max(z, axis=axis))
    q, rescale = jnp.exp(z - wide(top)), jnp.exp(peak - top)
    mass = mass * rescale + jnp.sum(q, axis=axis)
    if soften is None:
        mass_tau = mass
    else:
        q, rescale = jnp.exp(cool(z - wide(top))), jnp.exp(cool(peak - top))
        mass_tau = mass_tau * rescale + jnp.sum(q, axis=axis)
    if z_t is not None:
        top_t = jnp.maximum(peak_t, jnp.max(z_t, axis=axis))
        p, rescale_t = jnp.exp(cool(z_t - wide(top_t))), jnp.exp(cool(peak_t - top_t))
        mass_t = mass_t * rescale_t + jnp.sum(p, axis=axis)
        if kind == "forward":
            expected = expected * rescale_t + jnp.sum(p * z, axis=axis)
        elif kind == "reverse":
            expected = expected * rescale + jnp.sum(q * (z - z_t), axis=axis)
        peak_t = top_t
    return PartialSums(top, mass, mass_tau, id_logits, peak_t, mass_t, expected)
