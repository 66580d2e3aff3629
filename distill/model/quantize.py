"""A teacher's weights in bfloat16, or in int8 or float8 with a scale for each output channel.

A teacher is never trained, so its linear maps may be rounded once, when it is loaded. int8 is weight-only: the largest
weight of a channel becomes 127, the others are rounded to the nearest step, and each layer's maps are converted to the
compute dtype when they are used. int8_products and float8_products multiply the steps themselves, by activations that
are rounded likewise (distill/model/products.py). Embedding and head are then bfloat16; gains and biases are unchanged.
"""

import dataclasses
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from distill.config import ModelConfig
from distill.model import products, sharding
from distill.model.products import Kind, Quantised
from distill.model.transformer import Block, Transformer

Precision = Literal["float32", "bfloat16", "int8", "int8_products", "float8_products"]
Module = TypeVar("Module", bound=nnx.Module)

# The linear maps of a layer, and which of their dims (including the layer axis) are summed over.
SUMMED = {"query": (1,), "key": (1,), "value": (1,), "out": (1, 2), "gate": (1,), "up": (1,), "down": (1,)}
SUMMED_EXPERTS = {"expert_gate": (2,), "expert_up": (2,), "expert_down": (2,)}  # in their place; the router stays


def cast(model: Transformer, precision: Precision) -> Transformer:
    """The model with its weights in another precision, on the same mesh; float32 returns the model unchanged."""
    if precision == "float32":
        return model
    names = ["embed", *(["head"] if not model.config.tied else [])]
    blocks = jax.jit(lambda blocks: _cast_maps(blocks, precision))(model.blocks)
    return _with(model, blocks=blocks, **{name: _bfloat16(getattr(model, name)) for name in names})


def unrounded(model: Transformer) -> Transformer:
    """The model with plain products, in whatever its own maps multiply (config.products)."""
    config = dataclasses.replace(model.config, products="full")
    return _with(model, config=config, blocks=_with(model.blocks, config=config))


def _cast_maps(blocks: Block, precision: Precision) -> Block:
    maps = {name: getattr(blocks, name) for name in SUMMED | SUMMED_EXPERTS if hasattr(blocks, name)}
    if precision == "bfloat16":
        return _with(blocks, **{name: _bfloat16(param) for name, param in maps.items()})
    kind: Kind = "float8" if precision == "float8_products" else "int8"
    multiplied = precision != "int8"
    return _with(blocks, **{name: _quantise(param, name, kind, multiplied) for name, param in maps.items()})


def _bfloat16(param: nnx.Param) -> nnx.Param:
    return nnx.Param(param[...].astype(jnp.bfloat16))


def _quantise(param: nnx.Param, name: str, kind: Kind, multiplied: bool) -> nnx.Param:
    spec = P(None, *sharding.PARAM_SPECS[next(key for key in sharding.PARAM_SPECS if key.rsplit("_", 1)[0] == name)])
    weight = products.quantise(param[...], (SUMMED | SUMMED_EXPERTS)[name], kind)
    steps = jax.sharding.reshard(weight.steps, spec)
    return nnx.Param(Quantised(steps, weight.scale, multiplied and name in SUMMED))  # experts multiply weights


def _with(module: Module, **params: nnx.Param | nnx.Module | ModelConfig) -> Module:
    """A copy of the module with some Params, or its config, replaced; the others are shared."""
    leaves, structure = jax.tree.flatten(module)
    copy = jax.tree.unflatten(structure, leaves)
    for name, param in params.items():
        setattr(copy, name, param)
    return copy
