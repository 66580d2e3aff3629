"""A student initialised from another model's weights: all of them, some layers, or slices of its width.

A slice keeps the leading parts: the first channels, feed-forward units and key-value heads, and the first query heads
of each key-value head. A linear map that loses inputs is scaled by sqrt(old / new), so that its outputs keep their
variance. A slice is not always a better start than random weights: compare the two.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree
from numpy.typing import NDArray

from distill.config import ConfigError, InitConfig, ModelConfig
from distill.model.transformer import Transformer, fan_in, parameter_name

# Dims of each parameter's array, by the letters of distill/types.py, and those that a linear map sums over.
_DIMS = {
    "embed": "vd", "head": "vd", "last_norm": "d", "attention_norm": "d", "feed_norm": "d", "query_norm": "k",
    "key_norm": "k", "query": "dhk", "key": "dgk", "value": "dgk", "query_bias": "hk", "key_bias": "gk",
    "value_bias": "gk", "out": "hkd", "out_bias": "d", "gate": "df", "up": "df", "down": "fd",
}  # fmt: skip
# Settings of the forward pass that source and student must share: no slice can change them.
_FORWARD = (
    *("qk_norm", "qkv_bias", "out_bias", "scaled_embedding", "window", "norm_eps", "head_dim"),
    *("rope_base", "rope_scaling", "rope_factor", "rope_low", "rope_high", "rope_context"),
)


def check(config: InitConfig, student: ModelConfig, source: ModelConfig) -> None:
    """Raises ConfigError, naming the field, if a model of `student` cannot start from weights of `source`."""

    def refuse(name: str, want: str) -> None:
        raise ConfigError(
            f"config.model.{name}={getattr(student, name)!r}, but the model in {config.source} that config.init begins "
            f"with has {getattr(source, name)!r}; wanted {want}"
        )

    for name in _FORWARD:
        if name == "scaled_embedding" and not (student.tied or source.tied):
            continue
        if name.startswith("rope_") and name != "rope_base" and student.rope_scaling == source.rope_scaling == "none":
            continue
        if getattr(student, name) != getattr(source, name):
            refuse(name, "the same")
    if student.tied and not source.tied:
        refuse("tied", "false: its embedding and head are two tables")
    by_text = () if config.tokens == "text" else ("vocab_size",)
    for name in ("d_model", "ff_dim", "n_heads", "kv_heads", *by_text):
        if getattr(student, name) > getattr(source, name):
            refuse(name, "as many or fewer")
        if name != "vocab_size" and config.width == "same" and getattr(student, name) != getattr(source, name):
            refuse(name, "the same, or config.init.width='slice' to take the leading part")
    if student.n_layers > source.n_layers:
        refuse("n_layers", "as many or fewer")
    if student.n_heads // student.kv_heads > source.n_heads // source.kv_heads:
        refuse("n_heads", "as many or fewer query heads for a key-value head")


def layers(config: InitConfig, student: int, source: int) -> list[int]:
    """The source's layers that become the student's: evenly spaced with 'every', the first ones with 'first'."""
    return [i * source // student if config.layers == "every" else i for i in range(student)]


def warm_start(
    config: InitConfig, model: ModelConfig, source: Transformer, rows: NDArray[np.int64] | None = None, seed: int = 0
) -> Transformer:
    """The parameters of a model of config `model`, from those of `source`, on the current mesh.

    rows: for each token the source's row in embedding and head, or -1 for one that is drawn by `seed` [at most V];
    None: rows by number. Raises ConfigError if the shapes do not allow it.
    """
    check(config, model, source.config)
    chosen = np.array(layers(config, model.n_layers, source.config.n_layers))
    old, new = fan_in(source.config), fan_in(model)
    scale = {key.rsplit("_", 1)[0]: math.sqrt(old[key] / new[key]) for key in old.keys() & new.keys()}
    place = jax.eval_shape(lambda key: Transformer(model, key), jax.random.key(0))
    arrays = dict(_named(source))

    def one(name: str, like: PyTree) -> Array:
        stacked, short = name.startswith("blocks."), name.removeprefix("blocks.")
        array = jax.sharding.reshard(arrays.get(name, arrays["embed"]), jax.P())
        if stacked:
            array = array[chosen]
        for axis, letter in enumerate(_DIMS[short], start=stacked):
            if letter == "v" and rows is not None:
                array = _by_token(array, rows, model.vocab_size, seed)
            else:
                array = _slice(array, axis, letter, model, source.config)
        # The embedding is a table, so it is not scaled, even if it is also a tied head.
        array = array * (1.0 if short == "embed" or name not in arrays else scale.get(short, 1.0))
        return jax.sharding.reshard(array.astype(jnp.float32), like.sharding.spec)

    params = [one(name, like) for name, like in _named(place)]
    return jax.tree.unflatten(jax.tree.structure(place), params)


def _by_token(array: Float[Array, "W D"], rows: NDArray[np.int64], size: int, seed: int) -> Float[Array, "V D"]:
    """The rows of a table by token [V, D]; those of -1, and of padding, have the mean and spread of the others."""
    rows = np.concatenate([rows, np.full(size - len(rows), -1)])
    carried = array[rows[rows >= 0]]
    drawn = jax.random.normal(jax.random.key(seed), (size, array.shape[1]), array.dtype)
    drawn = jnp.mean(carried, axis=0)[None] + jnp.std(carried, axis=0)[None] * drawn
    return jnp.where((rows >= 0)[:, None], array[np.maximum(rows, 0)], drawn)


def _slice(array: Array, axis: int, letter: str, student: ModelConfig, source: ModelConfig) -> Array:
    """The leading part of an axis; of query heads, the first ones of each kept key-value head."""
    size = {
        "v": student.vocab_size,
        "d": student.d_model,
        "f": student.ff_dim,
        "k": student.head_dim,
        "g": student.kv_heads,
    }
    if letter != "h":
        return jax.lax.slice_in_dim(array, 0, size[letter], axis=axis)
    old, new = source.n_heads // source.kv_heads, student.n_heads // student.kv_heads
    heads = np.array([group * old + i for group in range(student.kv_heads) for i in range(new)])
    return jnp.take(array, heads, axis=axis)


def _named(model: PyTree) -> list[tuple[str, PyTree]]:
    """All parameters by name."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(model)
    return [(parameter_name(path), leaf) for path, leaf in leaves]
