"""A teacher in fewer bits: bfloat16, or int8 weights with a scale for each output channel.

A teacher is read and never trained, so its linear maps may be rounded once, when it is loaded. int8 is weight-only: the
largest weight of a channel becomes 127, the rest are rounded to the nearest step, and a map is brought back to the
compute dtype where it is used, a layer at a time. Embedding and head are bfloat16 under int8; gains and biases stay.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int8

from distill.model import sharding
from distill.model.transformer import Transformer

Precision = Literal["float32", "bfloat16", "int8"]

# The maps of a layer, and which of their dims (after the layer's) are summed over.
SUMMED = {"query": (1,), "key": (1,), "value": (1,), "out": (1, 2), "gate": (1,), "up": (1,), "down": (1,)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantisedWeight:
    """Weights as steps of a scale a channel; it stands in a Param where an array would."""

    steps: Int8[Array, "..."]
    scale: Float[Array, "..."]

    def __getitem__(self, _: Any) -> "QuantisedWeight":
        return self

    def astype(self, dtype: Any) -> Array:
        """The weights again; the product in float32, for bfloat16 has too few digits for a step and its scale."""
        return (self.steps.astype(jnp.float32) * self.scale).astype(dtype)


def cast(model: Transformer, precision: Precision) -> Transformer:
    """The model with its weights in another precision, on the same mesh; float32 is the model itself."""
    if precision == "float32":
        return model
    names = ["embed", *(["head"] if not model.config.tied else [])]
    blocks = jax.jit(lambda blocks: _each(blocks, precision))(model.blocks)
    return _with(model, blocks=blocks, **{name: _bfloat16(getattr(model, name)) for name in names})


def _each(blocks: Any, precision: Precision) -> Any:
    change = {name: _quantise(getattr(blocks, name), name) if precision == "int8" else _bfloat16(getattr(blocks, name))
              for name in SUMMED}  # fmt: skip
    return _with(blocks, **change)


def _bfloat16(param: nnx.Param) -> nnx.Param:
    return nnx.Param(param[...].astype(jnp.bfloat16))


def _quantise(param: nnx.Param, name: str) -> nnx.Param:
    weight = param[...].astype(jnp.float32)
    spec = P(None, *sharding.PARAM_SPECS[next(key for key in sharding.PARAM_SPECS if key.rsplit("_", 1)[0] == name)])
    most = jnp.max(jnp.abs(weight), axis=SUMMED[name], keepdims=True)
    scale = jnp.where(most > 0, most, 1.0) / 127
    steps = jnp.round(weight / scale).astype(jnp.int8)
    return nnx.Param(QuantisedWeight(jax.sharding.reshard(steps, spec), scale))


def _with(module: Any, **params: nnx.Param) -> Any:
    """The module with other Params; it is a tree, so a copy shares the rest."""
    leaves, structure = jax.tree.flatten(module)
    copy = jax.tree.unflatten(structure, leaves)
    for name, param in params.items():
        setattr(copy, name, param)
    return copy
