"""Low-rank adapters of a model's linear maps (LoRA, Hu et al. 2106.09685): y = x W + (alpha / r) (x A) B.

A model whose config has model.lora.rank > 0 carries the adapters of all its layers in `blocks.lora`; they alone are
trained. The map itself is used as it is, so that a step computes no gradient of W: a third of its FLOPs are saved, and
the optimiser holds the moments of the adapters alone. B starts at zero, so an adapted model is at first the one that it
adapts (distill/model/adapted.py has whole models). Letters of the shapes: distill/types.py; I inputs, O outputs, r the
rank; heads and their width are one dim.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PRNGKeyArray

from distill.config import LoraConfig, ModelConfig, counts
from distill.model import layers, sharding

# The specs of A and B by map: whether the map's inputs, or its outputs, are split over tensor.
_WIDE_OUT, _WIDE_IN = ("lora_a_dr", "lora_b_rf"), ("lora_a_fr", "lora_b_rd")
ROLES = {
    "query": _WIDE_OUT, "key": _WIDE_OUT, "value": _WIDE_OUT, "out": _WIDE_IN,
    "gate": _WIDE_OUT, "up": _WIDE_OUT, "down": _WIDE_IN,
}  # fmt: skip


def adapted_maps(config: ModelConfig) -> tuple[str, ...]:
    """The maps of a layer that have adapters, in the order of ROLES; none without a rank."""
    if not config.lora.rank:
        return ()
    return tuple(name for name in ROLES if name in config.lora.maps and name in config.linear_maps)


class Adapters(nnx.Module):
    """The adapters of one layer: for each map NAME the Params NAME_a [I, r] and NAME_b [r, O]."""

    def __init__(self, config: ModelConfig, key: PRNGKeyArray):
        rank = config.lora.rank
        for name, one in zip(adapted_maps(config), jax.random.split(key, len(ROLES))):
            inputs, outputs = counts.map_sizes(config)[name]
            bound = 1 / math.sqrt(inputs)  # as PEFT draws it (kaiming_uniform with a = sqrt(5))
            drawn = jax.random.uniform(one, (inputs, rank), jnp.float32, -bound, bound)
            a, b = (sharding.PARAM_SPECS[role] for role in ROLES[name])
            setattr(self, f"{name}_a", nnx.Param(jax.sharding.reshard(drawn, a)))
            setattr(self, f"{name}_b", nnx.Param(jax.sharding.reshard(jnp.zeros((rank, outputs), jnp.float32), b)))

    def pair(self, name: str) -> tuple[Float[Array, "*L I r"], Float[Array, "*L r O"]]:
        """A and B of a map; with all layers in front where the module is that of all layers."""
        return getattr(self, f"{name}_a")[...], getattr(self, f"{name}_b")[...]

    def __call__(self, config: LoraConfig, name: str, x: Float[Array, "B S I"], place: P) -> Float[Array, "B S O"]:
        """(alpha / r) (x A) B, sharded as `place`, in x's dtype."""
        a, b = (array.astype(x.dtype) for array in self.pair(name))
        inner = layers.linear(x, a, P(place[0], place[1], None))
        return layers.linear(inner, b, place) * jnp.asarray(config.scale, x.dtype)
