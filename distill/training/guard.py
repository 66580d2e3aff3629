"""Rejects the updates of a loss or gradient that is not finite and, as an option, of a sudden spike in its norm."""

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Accepted updates before spikes are looked for, and the least weight of the newest norm in the running mean.
WARMUP_UPDATES = 20
NEWEST_WEIGHT = 0.05

Tree = TypeVar("Tree")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GradientGuard:
    """The recent history of updates. It is part of the train state, so that a resumed run decides as it would have."""

    consecutive_rejections: Int[Array, ""]  # up to and with the last update
    accepted: Int[Array, ""]
    norm: Float[Array, ""]  # running mean of the accepted gradients' norms

    def stored(self) -> dict[str, Array]:
        """What a checkpoint holds, under the names that checkpoints have always had."""
        return {"row": self.consecutive_rejections, "accepted": self.accepted, "norm": self.norm}

    @staticmethod
    def restored(items: dict[str, Array]) -> "GradientGuard":
        return GradientGuard(items["row"], items["accepted"], items["norm"])


def init() -> GradientGuard:
    """No update seen yet."""
    zero = jnp.zeros((), jnp.int32)
    return GradientGuard(consecutive_rejections=zero, accepted=zero, norm=jnp.zeros(()))


def accept(
    spike: float,
    guard: GradientGuard,
    loss: Float[Array, ""],
    norm: Float[Array, ""],
    param_norm: Float[Array, ""] | float = 0.0,
) -> tuple[Bool[Array, ""], GradientGuard]:
    """Whether to make the update of this loss and these norms of gradient and parameters, and the guard after it.

    An update is rejected where one of them is not finite or, with spike > 0 and after WARMUP_UPDATES, where the
    gradient's norm exceeds `spike` times the running mean of those before.
    """
    accepted = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(param_norm)
    if spike:
        accepted &= (guard.accepted < WARMUP_UPDATES) | (norm <= spike * guard.norm)
    weight = jnp.maximum(NEWEST_WEIGHT, 1 / (guard.accepted + 1))
    mean = guard.norm + weight * (norm - guard.norm)
    new = GradientGuard(
        consecutive_rejections=jnp.where(accepted, 0, guard.consecutive_rejections + 1),
        accepted=guard.accepted + accepted,
        norm=jnp.where(accepted, mean, guard.norm),
    )
    return accepted, new


def select(accepted: Bool[Array, ""], new: Tree, old: Tree) -> Tree:
    """Every array of `new` where the update is accepted, and of `old` where it is rejected."""
    return jax.tree.map(lambda a, b: jnp.where(accepted, a, b), new, old)
