"""The norms of a model: RMSNorm, or LayerNorm with norm_kind='layer', and where blocks have them."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from distill.config import ModelConfig
from distill.model import sharding

# The norms of a block's two parts, by config.norms: before them, after them, or both.
_BEFORE, _AFTER = ("attention_norm", "feed_norm"), ("attention_post_norm", "feed_post_norm")
BLOCK_NORMS = {"pre": _BEFORE, "post": _AFTER, "sandwich": _BEFORE + _AFTER}


def constant(name: str, shape: tuple[int, ...], value: float) -> nnx.Param:
    return nnx.Param(jax.sharding.reshard(jnp.full(shape, value, jnp.float32), sharding.PARAM_SPECS[name]))


def add_norm(module: nnx.Module, name: str, config: ModelConfig) -> None:
    """Gives a module the gain, and with norm_kind='layer' the bias, of a norm over D."""
    setattr(module, name, constant("gain_d", (config.d_model,), 1.0))
    if config.norm_kind == "layer":
        setattr(module, f"{name}_bias", constant("gain_d", (config.d_model,), 0.0))


def normalise(module: nnx.Module, name: str, x: Float[Array, "B S D"], config: ModelConfig) -> Float[Array, "B S D"]:
    """x under the norm of this name of a module."""
    gain = getattr(module, name)[...]
    if config.norm_kind == "layer":
        return layer_norm(x, gain, getattr(module, f"{name}_bias")[...], config.norm_eps)
    return rms_norm(x, gain, config.norm_eps)


def rms_norm(x: Float[Array, "*B D"], gain: Float[Array, "*D"], eps: float) -> Float[Array, "*B D"]:
    """x divided by its root mean square over as many last axes as the gain has, times the gain.

    Computed in float32, returned in x's dtype.
    """
    y = x.astype(jnp.float32)
    y = y * lax.rsqrt(jnp.mean(y * y, axis=tuple(range(-gain.ndim, 0)), keepdims=True) + eps)
    return (y * gain.reshape((1,) * (x.ndim - gain.ndim) + gain.shape)).astype(x.dtype)


def layer_norm(
    x: Float[Array, "*B D"], gain: Float[Array, " D"], bias: Float[Array, " D"], eps: float
) -> Float[Array, "*B D"]:
    """x minus its mean, divided by its standard deviation, times a gain, plus a bias; in float32 as `rms_norm`."""
    y = x.astype(jnp.float32)
    y = rms_norm(y - jnp.mean(y, axis=-1, keepdims=True), gain, eps)
    return (y + bias.reshape((1,) * (x.ndim - 1) + bias.shape)).astype(x.dtype)
