"""Updates that are not made: those of a loss or gradient that is not finite and, as an option, of a sudden spike."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Accepted updates before a spike can be told from what is usual, and the share of the newest in the running mean.
WARM = 20
NEWEST = 0.05


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Guard:
    """What has been usual so far: part of the state, so that a resumed run judges as one that was not stopped."""

    row: Int[Array, ""]  # rejected updates in a row, the last one included
    accepted: Int[Array, ""]
    norm: Float[Array, ""]  # running mean of the accepted gradients' norms


def fresh() -> Guard:
    """Nothing seen yet."""
    zero = jnp.zeros((), jnp.int32)
    return Guard(row=zero, accepted=zero, norm=jnp.zeros(()))


def judge(spike: float, guard: Guard, loss: Float[Array, ""], norm: Float[Array, ""]) -> tuple[Bool[Array, ""], Guard]:
    """Whether the update of this loss and gradient norm is made, and what is usual from now on.

    It is not where either is not finite or, with spike > 0 and after WARM updates, where the norm exceeds `spike`
    times the running mean of those before.
    """
    good = jnp.isfinite(loss) & jnp.isfinite(norm)
    if spike:
        good &= (guard.accepted < WARM) | (norm <= spike * guard.norm)
    share = jnp.maximum(NEWEST, 1 / (guard.accepted + 1))
    usual = guard.norm + share * (norm - guard.norm)
    judged = Guard(
        row=jnp.where(good, 0, guard.row + 1),
        accepted=guard.accepted + good,
        norm=jnp.where(good, usual, guard.norm),
    )
    return good, judged


def choose(good: Bool[Array, ""], new: Any, old: Any) -> Any:
    """Every array of `new` where the update is made, and of `old` where it is not."""
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
