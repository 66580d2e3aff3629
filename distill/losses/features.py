"""Feature losses: a student's hidden states, through a learned projection, against its teacher's (Romero et al. 2014).

Layers are compared in pairs (student's, teacher's) of residual streams, which may differ in width and depth. Both
states are first scaled to a root mean square of 1 over their width, as every layer's input is, so no scale is needed:

    mse       the mean over the teacher's width of (W h_S - h_T)^2: 1 is what a projection to zero costs
    cosine    1 - cos(W h_S, h_T)

Each is one number per token, the mean over the pairs. Under muP a projection is an ordinary linear map: its initial
scale is 1 / sqrt(D_S) and its rate is base_width / D_S times the learning rate. Both losses are means over the
teacher's width, so their derivative by a coordinate of the student's state falls with width like that of its logits.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PRNGKeyArray

from distill.model import sharding

EPS = 1e-6
# Projections in use and their outputs: split over tensor along the teacher's width.
_USED = P(None, None, "tensor")
_STATES = P(None, sharding.BATCH, None, "tensor")


class Projector(nnx.Module):
    """One linear map per pair of layers, trained with the student but not part of it: not exported, not in N."""

    def __init__(self, pairs: int, width: int, teacher_width: int, key: PRNGKeyArray):
        values = jax.random.truncated_normal(key, -3, 3, (pairs, width, teacher_width), jnp.float32)
        stored = P(None, *sharding.PARAM_SPECS["project_de"])
        self.project = nnx.Param(jax.sharding.reshard(values / math.sqrt(width), stored))


def fan_in(projector: Projector) -> dict[str, int]:
    """The number of inputs of the projections, like transformer.fan_in."""
    return {"project_de": projector.project.shape[1]}


def distance(
    kind: Literal["mse", "cosine"],
    projector: Projector,
    student: tuple[Float[Array, "B S D"], ...],
    teacher: tuple[Float[Array, "B S E"], ...],
) -> Float[Array, "B S"]:
    """The loss L_F of every token: the mean over the pairs. The teacher is not differentiated."""
    x = jnp.stack([_unit(state) for state in student])
    y = lax.stop_gradient(jnp.stack([_unit(state) for state in teacher]))
    exact = jnp.promote_types(x.dtype, jnp.float32)
    y = jax.sharding.reshard(y.astype(exact), _STATES)
    weight = jax.sharding.reshard(projector.project[...].astype(x.dtype), _USED)
    z = jnp.einsum("kbsd,kde->kbse", x, weight, preferred_element_type=exact, out_sharding=_STATES)
    if kind == "mse":
        each = jnp.mean(jnp.square(z - y), axis=-1)
    else:
        norms = jnp.sum(jnp.square(z), axis=-1) * jnp.sum(jnp.square(y), axis=-1)
        each = 1 - jnp.sum(z * y, axis=-1) * lax.rsqrt(norms + EPS)
    return jnp.mean(each, axis=0)


def _unit(x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
    """x divided by its root mean square, in x's dtype."""
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (y * lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + EPS)).astype(x.dtype)
