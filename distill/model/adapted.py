"""Models with adapters (distill/model/lora.py): the part that is trained, and the model when adapters are merged."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PyTree

from distill.config import LoraConfig, ModelConfig
from distill.model import lora
from distill.model.transformer import Transformer


def trained(model: Transformer) -> PyTree:
    """The part of a model that training changes: its adapters where it has any, else all of it."""
    return model.blocks.lora if model.config.lora.rank else model


def with_trained(model: Transformer, part: PyTree) -> Transformer:
    """The model with another such part; the arrays of the rest are shared."""
    if not model.config.lora.rank:
        return part
    copy = _copy(model)
    copy.blocks.lora = part
    return copy


def plain(config: ModelConfig) -> ModelConfig:
    """The config of the model that is adapted, and of what it becomes when adapters are merged."""
    return dataclasses.replace(config, lora=LoraConfig())


def delta(model: Transformer, name: str) -> Float[Array, "L I O"]:
    """What the adapters of a map add to its weights: (alpha / r) A B for every layer, in float32."""
    a, b = model.blocks.lora.pair(name)
    return model.config.lora.scale * jnp.einsum(
        "lir,lro->lio", a, b, precision="highest", out_sharding=P(None, *_tensor_only(name))
    )


def _tensor_only(name: str) -> tuple[str | None, str | None]:
    return (None, "tensor") if lora.ROLES[name][0] == "lora_a_dr" else ("tensor", None)


@jax.jit
def merged(model: Transformer) -> Transformer:
    """The model without adapters that computes the same: W + (alpha / r) A B; a model without adapters as it is."""
    if not model.config.lora.rank:
        return model
    copy = _copy(model)
    for name in lora.adapted_maps(model.config):
        weight = getattr(model.blocks, name)[...]
        place = jax.typeof(weight).sharding.spec
        change = jax.sharding.reshard(delta(model, name), P(None, *[None] * 2)).reshape(weight.shape)
        setattr(copy.blocks, name, nnx.Param(weight.astype(jnp.float32) + jax.sharding.reshard(change, place)))
    return with_config(copy, plain(model.config))


def with_config(model: Transformer, config: ModelConfig) -> Transformer:
    """A copy of the model under another config of the same shapes; without a rank there, without its adapters."""
    copy = _copy(model)
    copy.config = copy.blocks.config = config
    if not config.lora.rank and hasattr(copy.blocks, "lora"):
        del copy.blocks.lora
    return copy


def adapt(adapted: Transformer, weights: Transformer) -> Transformer:
    """`weights`, a model of the plain config, with the adapters of `adapted` and in its dtypes.

    As it is where `adapted` has none.
    """
    if not adapted.config.lora.rank:
        return with_config(weights, adapted.config)
    copy = with_config(weights, plain(weights.config))
    copy.blocks.lora = adapted.blocks.lora
    copy.config = copy.blocks.config = adapted.config
    leaves = [leaf.astype(like.dtype) for leaf, like in zip(jax.tree.leaves(copy), jax.tree.leaves(adapted))]
    return jax.tree.unflatten(jax.tree.structure(adapted), leaves)


def _copy(model: Transformer) -> Transformer:
    leaves, structure = jax.tree.flatten(model)
    return jax.tree.unflatten(structure, leaves)
