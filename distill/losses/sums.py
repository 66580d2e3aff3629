"""Weighted sums that merge exactly: one division by the total weight at the end, never a mean of means."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WeightedSum:
    """A sum of weighted values and the sum of their weights."""

    value: Float[Array, "..."]
    weight: Float[Array, "..."]

    def __add__(self, other: "WeightedSum") -> "WeightedSum":
        return WeightedSum(self.value + other.value, self.weight + other.weight)

    def mean(self) -> Float[Array, "..."]:
        """value / weight; zero where the weight is zero."""
        return self.value / jnp.where(self.weight == 0, 1, self.weight)


def weighted_sum(values: Float[Array, "B S"], weight: Float[Array, "B S"]) -> WeightedSum:
    """The sum over all tokens. A value of zero weight is ignored, even if it is not finite."""
    return WeightedSum(jnp.sum(jnp.where(weight == 0, 0, values * weight)), jnp.sum(weight))
