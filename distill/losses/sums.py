"""Weighted sums that merge exactly: a mean is taken once, at the very end, never of means."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sum:
    """A sum of weighted values and the sum of their weights."""

    value: Float[Array, "..."]
    weight: Float[Array, "..."]

    def __add__(self, other: "Sum") -> "Sum":
        return Sum(self.value + other.value, self.weight + other.weight)

    def mean(self) -> Any:
        """value / weight; zero where nothing was weighed."""
        return self.value / jnp.where(self.weight == 0, 1, self.weight)


def total(values: Float[Array, "B S"], weight: Float[Array, "B S"]) -> Sum:
    """Sums over every token; a value under zero weight never counts, not even when it is not finite."""
    return Sum(jnp.sum(jnp.where(weight == 0, 0, values * weight)), jnp.sum(weight))
