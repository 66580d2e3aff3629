"""Where a layer looks and how it turns its queries and keys: rotary angles, windows, and layers that differ in them.

Layers of one model may differ in their window, in their rotary base, and in whether they rotate at all. Distinct
settings are few, so their tables are made once for a forward pass and stacked, and a layer takes its own by number
inside the scan. Where all layers are alike nothing is stacked. Rotation of some channels only, and of none, are
frequencies of zero: the rotation itself knows no cases.
"""

import math
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from distill.config import ModelConfig
from distill.model import attention_kernels

# cos and sin, each [1 or B, S, 1, K/2]; with several kinds of layers, a leading axis of kinds.
Rope: TypeAlias = tuple[Float[Array, "..."], Float[Array, "..."]]


class Kind(NamedTuple):
    """What layers of one kind have in common: window (0: none), rotary base, its scaling, and whether they rotate."""

    window: int
    base: float
    scaled: bool
    rotated: bool


def layer_kinds(config: ModelConfig) -> tuple[Kind, ...]:
    """The kind of every layer."""

    def kind(layer: int) -> Kind:
        window = 0 if layer in config.global_layers else config.window
        local = bool(window and config.local_rope_base)
        base = config.local_rope_base if local else config.rope_base
        return Kind(window, base, scaled=not local, rotated=layer not in config.unrotated_layers)

    return tuple(map(kind, range(config.n_layers)))


def kinds(config: ModelConfig) -> tuple[Kind, ...]:
    """The distinct kinds of a model, in the order in which layers have them."""
    return tuple(dict.fromkeys(layer_kinds(config)))


def numbers(config: ModelConfig) -> Int[Array, " L"] | None:
    """The number of each layer's kind among `kinds`; None where all layers are alike."""
    found = kinds(config)
    return None if len(found) == 1 else jnp.array([found.index(kind) for kind in layer_kinds(config)])


def of_layer(number: Int[Array, ""] | None, stacked: PyTree) -> PyTree:
    """The part of `stacked` arrays that layers of this kind use; all of it where there is one kind (None)."""
    if number is None:
        return stacked
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, number, keepdims=False), stacked)


def _stack(parts: list[PyTree]) -> PyTree:
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)


def frequencies(config: ModelConfig, kind: Kind, length: int) -> Float[Array, " pairs"]:
    """Radians per position of each pair of a head's channels, in a text of `length` positions.

    base^(-2i/R) for the R rotated channels, scaled by config.rope_scaling; 0 for the others.
    """
    pairs = config.head_dim // 2
    if not kind.rotated:
        return jnp.zeros(pairs, jnp.float32)
    half, base = config.rotated // 2, kind.base
    if kind.scaled and config.rope_scaling == "dynamic":
        base = _dynamic_base(config, length)
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if kind.scaled:
        frequency = _scaled(frequency, config, length)
    return frequency if half == pairs else jnp.pad(frequency, (0, pairs - half))


def _dynamic_base(config: ModelConfig, length: int) -> float:
    """The base for texts longer than rope_context (dynamic NTK, Peng et al. 2309.00071, appendix B.1)."""
    stretch = config.rope_factor * max(length, config.rope_context) / config.rope_context - (config.rope_factor - 1)
    return config.rope_base * stretch ** (config.rotated / (config.rotated - 2))


def _scaled(frequency: Float[Array, " pairs"], config: ModelConfig, length: int) -> Float[Array, " pairs"]:
    """The frequencies of rotated pairs under config.rope_scaling.

    linear divides all by the factor (Chen et al. 2306.15595). llama3 divides frequencies with fewer than rope_low turns
    within rope_context, keeps those with more than rope_high, and interpolates linearly in between (Llama 3.1). yarn
    does so too, linearly in the number of the pair (Peng et al. 2309.00071, section 3.2). longrope divides each by its
    own number (Ding et al. 2402.13753).
    """
    match config.rope_scaling:
        case "linear":
            return frequency / config.rope_factor
        case "llama3":
            turns = config.rope_context * frequency / (2 * math.pi)
            kept = jnp.clip((turns - config.rope_low) / (config.rope_high - config.rope_low), 0.0, 1.0)
            return frequency * (kept + (1 - kept) / config.rope_factor)
        case "yarn":
            kept = 1 - _ramp(config)
            return frequency * (kept + (1 - kept) / config.rope_factor)
        case "longrope":
            divisors = config.rope_long if length > config.rope_context else config.rope_short
            return frequency / jnp.array(divisors, jnp.float32)
    return frequency


def _ramp(config: ModelConfig) -> Float[Array, " pairs"]:
    """From 0 for the pairs that yarn leaves alone to 1 for those that it divides by the whole factor."""
    channels, base = config.rotated, config.rope_base

    def pair(turns: float) -> float:
        """The pair that turns so often within rope_context."""
        return channels * math.log(config.rope_context / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = pair(config.rope_high), pair(config.rope_low)
    if config.rope_truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, channels - 1)
    return jnp.clip((jnp.arange(channels // 2, dtype=jnp.float32) - first) / max(last - first, 1e-3), 0.0, 1.0)


def rope_tables(position: Int[Array, "*B S"], config: ModelConfig, length: int | None = None) -> Rope:
    """cos and sin of the rotary angles position x frequency (Su et al. 2104.09864), for every kind of layer.

    length: positions of the whole text, by which longrope and dynamic scale; None: S.
    """
    size = length or position.shape[-1]
    return _stack([_table(position, config, kind, size) for kind in kinds(config)])


def _table(position: Int[Array, "*B S"], config: ModelConfig, kind: Kind, length: int) -> Rope:
    """cos and sin, each [*B, S, 1, K/2]."""
    frequency = frequencies(config, kind, length)
    angle = position[..., None].astype(jnp.float32) * frequency.reshape((1,) * position.ndim + frequency.shape)
    cos, sin = jnp.cos(angle)[..., None, :], jnp.sin(angle)[..., None, :]
    if config.rope_amplitude == 1 or not (kind.scaled and kind.rotated):
        return cos, sin
    turned = jnp.arange(frequency.size) < config.rotated // 2
    amplitude = jnp.where(turned, config.rope_amplitude, 1.0).reshape((1,) * (cos.ndim - 1) + frequency.shape)
    return cos * amplitude, sin * amplitude


def rotate(x: Float[Array, "B S H K"], cos: Float[Array, "..."], sin: Float[Array, "..."]) -> Float[Array, "B S H K"]:
    """Rotates the pairs (x[i], x[i + K/2]): the half-split layout of Llama-style checkpoints."""
    cos, sin = cos.astype(x.dtype), sin.astype(x.dtype)
    if attention_kernels.platform() == "tpu":
        return x * jnp.concatenate([cos, cos], axis=-1) + _turned(x) * jnp.concatenate([sin, sin], axis=-1)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _turned(x: Float[Array, "B S H K"]) -> Float[Array, "B S H K"]:
    """(-x[K/2:], x[:K/2]) as a product with a signed permutation: a TPU copies arrays to halve their last dimension."""
    eye = jnp.eye(x.shape[-1] // 2, dtype=x.dtype)
    turn = jnp.block([[jnp.zeros_like(eye), eye], [-eye, jnp.zeros_like(eye)]])
    # Exact: products with 0 and 1. In float32 a TPU would round x to bfloat16 first.
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    place = jax.typeof(x).sharding.spec
    return lax.dot_general(x, turn, (((3,), (0,)), ((), ())), precision=precision, out_sharding=place)


def visible(query: Int[Array, " S"], key: Int[Array, " T"], config: ModelConfig) -> Bool[Array, "... 1 1 1 S T"]:
    """Whether a query may attend to a key, by position in the row: keys up to its own, within the window.

    With several kinds of layers there is a leading axis of kinds.
    """
    distance = query[:, None] - key[None]
    masks = [(distance >= 0) & (distance < kind.window) if kind.window else distance >= 0 for kind in kinds(config)]
    return masks[0][None, None, None] if len(masks) == 1 else jnp.stack(masks)[:, None, None, None]


def attention_mask(config: ModelConfig, length: int, segment: Int[Array, "B S"] | None) -> Array | None:
    """The keys that queries attend to: masks [1 or B, 1, 1, S, S], or for a kernel the segments themselves [B, S].

    With several kinds of layers, masks have a leading axis of kinds.
    """
    if attention_kernels.chosen(config, length) != "xla":
        return segment
    mask = visible(jnp.arange(length), jnp.arange(length), config)
    return mask if segment is None else mask & (segment[:, None, None, :, None] == segment[:, None, None, None, :])
