"""A student that begins with weights of another model: all of it, some of its layers, or slices of its width.

What is sliced keeps its leading parts: the first channels, feed-forward units and key-value heads, and of each of
these the first query heads. A linear map that loses inputs is scaled by sqrt(old / new), so that what comes out of it
starts at the variance that it had. Nothing here says that a slice is a good start: measure it against a random one.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill.config import ConfigError, InitConfig, ModelConfig
from distill.model.transformer import Transformer, fan_in, parameter_name

# Dims of each parameter's array, by the letters of distill/types.py, and those that a linear map sums over.
_DIMS = {
    "embed": "vd", "head": "vd", "last_norm": "d", "attention_norm": "d", "feed_norm": "d", "query_norm": "k",
    "key_norm": "k", "query": "dhk", "key": "dgk", "value": "dgk", "query_bias": "hk", "key_bias": "gk",
    "value_bias": "gk", "out": "hkd", "out_bias": "d", "gate": "df", "up": "df", "down": "fd",
}  # fmt: skip
# What a forward pass does with its weights, and what no slice can change.
_FORWARD = (
    *("qk_norm", "qkv_bias", "out_bias", "scaled_embedding", "window", "norm_eps", "head_dim"),
    *("rope_base", "rope_scaling", "rope_factor", "rope_low", "rope_high", "rope_context"),
)


def check(config: InitConfig, mine: ModelConfig, theirs: ModelConfig) -> None:
    """Raises ConfigError, naming the field, where a model of `mine` cannot begin with weights of `theirs`."""

    def refuse(name: str, want: str) -> None:
        raise ConfigError(
            f"config.model.{name}={getattr(mine, name)!r}, but the model in {config.source} that config.init begins "
            f"with has {getattr(theirs, name)!r}; wanted {want}"
        )

    for name in _FORWARD:
        if name == "scaled_embedding" and not (mine.tied or theirs.tied):
            continue
        if name.startswith("rope_") and name != "rope_base" and mine.rope_scaling == theirs.rope_scaling == "none":
            continue
        if getattr(mine, name) != getattr(theirs, name):
            refuse(name, "the same")
    if mine.tied and not theirs.tied:
        refuse("tied", "false: its embedding and head are two tables")
    for name in ("d_model", "ff_dim", "n_heads", "kv_heads", "vocab_size"):
        if getattr(mine, name) > getattr(theirs, name):
            refuse(name, "as many or fewer")
        if name != "vocab_size" and config.width == "same" and getattr(mine, name) != getattr(theirs, name):
            refuse(name, "the same, or config.init.width='slice' to take the leading part")
    if mine.n_layers > theirs.n_layers:
        refuse("n_layers", "as many or fewer")
    if mine.n_heads // mine.kv_heads > theirs.n_heads // theirs.kv_heads:
        refuse("n_heads", "as many or fewer query heads for a key-value head")


def layers(config: InitConfig, mine: int, theirs: int) -> list[int]:
    """Which layers of the source become the student's: 'every' spreads them evenly from the first, 'first' is that."""
    return [i * theirs // mine if config.layers == "every" else i for i in range(mine)]


def warm_start(config: InitConfig, model: ModelConfig, source: Transformer) -> Transformer:
    """The parameters of a model of `model`, from those of `source`, on the current mesh.

    Raises ConfigError where the shapes forbid it.
    """
    theirs = source.config
    check(config, model, theirs)
    chosen = np.array(layers(config, model.n_layers, theirs.n_layers))
    old, new = fan_in(theirs), fan_in(model)
    scale = {key.rsplit("_", 1)[0]: math.sqrt(old[key] / new[key]) for key in old.keys() & new.keys()}
    place = jax.eval_shape(lambda key: Transformer(model, key), jax.random.key(0))
    arrays = dict(_named(source))

    def one(name: str, like: Any) -> jax.Array:
        stacked, short = name.startswith("blocks."), name.removeprefix("blocks.")
        array = jax.sharding.reshard(arrays.get(name, arrays["embed"]), jax.P())
        if stacked:
            array = array[chosen]
        for axis, letter in enumerate(_DIMS[short], start=stacked):
            array = _slice(array, axis, letter, model, theirs)
        # A table is looked up, not summed over: neither the embedding nor a head that is it.
        array = array * (1.0 if short == "embed" or name not in arrays else scale.get(short, 1.0))
        return jax.sharding.reshard(array.astype(jnp.float32), like.sharding.spec)

    found = [one(name, like) for name, like in _named(place)]
    return jax.tree.unflatten(jax.tree.structure(place), found)


def _slice(array: jax.Array, axis: int, letter: str, mine: ModelConfig, theirs: ModelConfig) -> jax.Array:
    """The leading part of an axis; of query heads, the first that each of the first key-value heads serves."""
    size = {"v": mine.vocab_size, "d": mine.d_model, "f": mine.ff_dim, "k": mine.head_dim, "g": mine.kv_heads}
    if letter != "h":
        return jax.lax.slice_in_dim(array, 0, size[letter], axis=axis)
    old, new = theirs.n_heads // theirs.kv_heads, mine.n_heads // mine.kv_heads
    heads = np.array([group * old + i for group in range(mine.kv_heads) for i in range(new)])
    return jnp.take(array, heads, axis=axis)


def _named(model: Any) -> list[tuple[str, Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(model)
    return [(parameter_name(path), leaf) for path, leaf in leaves]
