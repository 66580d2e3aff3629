"""A teacher's weights in bfloat16, or in int8 with a scale for each output channel.

A teacher is never trained, so its linear maps may be rounded once, when it is loaded. int8 is weight-only: the largest
weight of a channel becomes 127, the others are rounded to the nearest step, and each layer's maps are converted to the
compute dtype when they are used. Under int8, embedding and head are bfloat16; gains and biases are unchanged.
"""

import dataclasses
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int8

from distill.model import sharding
from distill.model.transformer import Block, Transformer

Precision = Literal["float32", "bfloat16", "int8"]
Module = TypeVar("Module", bound=nnx.Module)

# The linear maps of a layer, and which of their dims (including the layer axis) are summed over.
SUMMED = {"query": (1,), "key": (1,), "value": (1,), "out": (1, 2), "gate": (1,), "up": (1,), "down": (1,)}
SUMMED_EXPERTS = {"expert_gate": (2,), "expert_up": (2,), "expert_down": (2,)}  # in their place; the router stays


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantisedWeight:
    """Weights as integer multiples of one scale per channel; replaces the array in a Param."""

    steps: Int8[Array, "..."]
    scale: Float[Array, "..."]

    def __getitem__(self, _: object) -> "QuantisedWeight":
        return self

    def astype(self, dtype: DTypeLike) -> Array:
        """The weights in `dtype`; steps times scale is computed in float32, because bfloat16 has too few digits."""
        return (self.steps.astype(jnp.float32) * self.scale).astype(dtype)


def cast(model: Transformer, precision: Precision) -> Transformer:
    """The model with its weights in another precision, on the same mesh; float32 returns the model unchanged."""
    if precision == "float32":
        return model
    names = ["embed", *(["head"] if not model.config.tied else [])]
    blocks = jax.jit(lambda blocks: _cast_maps(blocks, precision))(model.blocks)
    return _with(model, blocks=blocks, **{name: _bfloat16(getattr(model, name)) for name in names})


def _cast_maps(blocks: Block, precision: Precision) -> Block:
    change = {name: _quantise(getattr(blocks, name), name) if precision == "int8" else _bfloat16(getattr(blocks, name))
              for name in SUMMED | SUMMED_EXPERTS if hasattr(blocks, name)}  # fmt: skip
    return _with(blocks, **change)


def _bfloat16(param: nnx.Param) -> nnx.Param:
    return nnx.Param(param[...].astype(jnp.bfloat16))


def _quantise(param: nnx.Param, name: str) -> nnx.Param:
    weight = param[...].astype(jnp.float32)
    spec = P(None, *sharding.PARAM_SPECS[next(key for key in sharding.PARAM_SPECS if key.rsplit("_", 1)[0] == name)])
    most = jnp.max(jnp.abs(weight), axis=(SUMMED | SUMMED_EXPERTS)[name], keepdims=True)
    scale = jnp.where(most > 0, most, 1.0) / 127
    steps = jnp.round(weight / scale).astype(jnp.int8)
    return nnx.Param(QuantisedWeight(jax.sharding.reshard(steps, spec), scale))


def _with(module: Module, **params: nnx.Param) -> Module:
    """A copy of the module with some Params replaced; the others are shared."""
    leaves, structure = jax.tree.flatten(module)
    copy = jax.tree.unflatten(structure, leaves)
    for name, param in params.items():
        setattr(copy, name, param)
    return copy
