"""The units of a feed-forward: what a gate and a first map, or that map alone, become before the last map."""

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Units: TypeAlias = Callable[[Array, Array], Array]  # of the gate's output and the other map's

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": jax.nn.gelu,
}
CLIPPED_AT, STEEPNESS = 7.0, 1.702  # of gpt-oss


def clipped_swiglu(gate: Float[Array, "*N F"], up: Float[Array, "*N F"]) -> Float[Array, "*N F"]:
    """g sigmoid(1.702 g) (u + 1) with g = min(gate, 7) and u = up within 7 of zero (gpt-oss, 2508.10925)."""
    gate = jnp.minimum(gate, CLIPPED_AT)
    return gate * jax.nn.sigmoid(STEEPNESS * gate) * (jnp.clip(up, -CLIPPED_AT, CLIPPED_AT) + 1)


def gated(activation: str) -> Units:
    """activation(gate) up, SwiGLU in the paper's model; or `clipped_swiglu`.

    The backward pass keeps gate and up, and computes the rest again: elementwise, so memory costs more than time.
    """
    units = clipped_swiglu if activation == "clipped_swiglu" else lambda gate, up: ACTIVATIONS[activation](gate) * up
    return jax.checkpoint(units, prevent_cse=False)  # inside the scan over layers nothing is shared with the forward
