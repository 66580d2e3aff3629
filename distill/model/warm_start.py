"""A student initialised from another model's weights: all of them, some layers, or parts of its width.

A slice keeps the leading parts: the first channels, feed-forward units and key-value heads, and the first query heads
of each key-value head. A linear map that loses inputs is scaled by sqrt(old / new), so that its outputs keep their
variance. A slice is not always a better start than random weights: compare the two.

With a measure of importance (distill/model/importance.py) the parts, and the layers, that do most are kept instead.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree
from numpy.typing import NDArray

from distill.config import ConfigError, InitConfig, ModelConfig
from distill.model.importance import Importance
from distill.model.transformer import Transformer, fan_in, parameter_name

# Dims of each parameter's array, by the letters of distill/types.py, and those that a linear map sums over.
_DIMS = {
    "embed": "vd", "head": "vd", "last_norm": "d", "attention_norm": "d", "feed_norm": "d", "query_norm": "k",
    "key_norm": "k", "query": "dhk", "key": "dgk", "value": "dgk", "query_bias": "hk", "key_bias": "gk",
    "value_bias": "gk", "out": "hkd", "out_bias": "d", "gate": "df", "up": "df", "down": "fd",
    "attention_post_norm": "d", "feed_post_norm": "d", "last_norm_bias": "d", "attention_norm_bias": "d",
    "feed_norm_bias": "d", "attention_post_norm_bias": "d", "feed_post_norm_bias": "d",
    "gate_bias": "f", "up_bias": "f", "down_bias": "d", "router": "dx",
    "expert_gate": "xdf", "expert_up": "xdf", "expert_down": "xfd", "router_bias": "x", "expert_gate_bias": "xf",
    "expert_up_bias": "xf", "expert_down_bias": "xd", "sink": "h",
}  # fmt: skip
# Settings of the forward pass that source and student must share: no slice can change them.
_FORWARD = (
    *("qk_norm", "qkv_bias", "out_bias", "scaled_embedding", "window", "norm_eps", "head_dim"),
    *("rope_base", "rope_scaling", "rope_factor", "rope_low", "rope_high", "rope_context"),
    *("local_rope_base", "rotated", "rope_amplitude", "rope_truncate", "rope_short", "rope_long"),
    *("norms", "norm_kind", "qk_norm_width", "activation", "gated", "feed_bias"),
    *("attention_scale", "attention_cap", "logit_cap", "experts", "experts_per_token", "expert_norm"),
    "attention_sinks",
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
    for name in ("d_model", "expert_dim" if student.experts else "ff_dim", "n_heads", "kv_heads", *by_text):
        if getattr(student, name) > getattr(source, name):
            refuse(name, "as many or fewer")
        if name != "vocab_size" and config.width == "same" and getattr(student, name) != getattr(source, name):
            refuse(name, "the same, or config.init.width='slice' to take the leading part")
    if student.n_layers > source.n_layers:
        refuse("n_layers", "as many or fewer")
    if student.n_heads // student.kv_heads > source.n_heads // source.kv_heads:
        refuse("n_heads", "as many or fewer query heads for a key-value head")
    if needs_importance(config) and source.experts:
        raise ConfigError(
            f"config.init: importance is not measured of a mixture of experts, as in {config.source}; wanted "
            "layers='every' or 'first', and width='same' or 'slice'"
        )
    if needs_importance(config) and config.tokens != "same":
        raise ConfigError(
            f"config.init.tokens={config.tokens!r} with importance: it is measured on the run's text, which the source "
            "must read in its own tokens; wanted 'same'"
        )
    if config.layers == "influence":
        if source.global_layers or source.unrotated_layers:
            raise ConfigError(
                f"config.init.layers='influence': the layers of the model in {config.source} differ in their windows "
                "or positions, so that none can take another's place; wanted 'every' or 'first'"
            )
        return
    kept = layers(config, student.n_layers, source.n_layers)
    for name in ("global_layers", "unrotated_layers"):
        theirs = tuple(i for i, layer in enumerate(kept) if layer in getattr(source, name))
        if getattr(student, name) != theirs:
            raise ConfigError(
                f"config.model.{name}={getattr(student, name)}, but of the layers {kept} that config.init takes from "
                f"{config.source} those are {theirs}; wanted the same"
            )


def layers(config: InitConfig, student: int, source: int) -> list[int]:
    """The source's layers that become the student's: evenly spaced with 'every', the first ones with 'first'."""
    return [i * source // student if config.layers == "every" else i for i in range(student)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept:
    """The numbers, rising, of the source's parts that become the student's; l layers, each with its own parts."""

    layers: NDArray[np.int64]  # [l]
    channels: NDArray[np.int64]  # [d], of all layers
    units: NDArray[np.int64]  # [l, f]
    groups: NDArray[np.int64]  # [l, g]: key-value heads
    heads: NDArray[np.int64]  # [l, h]: query heads, as many of each kept group


def needs_importance(config: InitConfig) -> bool:
    """Whether a run measures what its source's parts do, on its own text."""
    return config.width == "importance" or config.layers == "influence"


def kept_parts(config: InitConfig, model: ModelConfig, source: ModelConfig, measured: Importance | None = None) -> Kept:
    """The leading parts, or those that are most important by `measured` where the config says so."""
    old, new = source.n_heads // source.kv_heads, model.n_heads // model.kv_heads
    chosen = np.array(layers(config, model.n_layers, source.n_layers))
    if config.layers == "influence":
        assert measured is not None
        chosen = _largest(np.asarray(measured.influence), model.n_layers)
    if config.width != "importance":
        leading = lambda size: np.tile(np.arange(size), (model.n_layers, 1))
        units = leading(model.expert_dim if model.experts else model.ff_dim)
        heads = np.array([group * old + i for group in range(model.kv_heads) for i in range(new)])
        return Kept(
            layers=chosen, channels=np.arange(model.d_model), units=units,
            groups=leading(model.kv_heads), heads=np.tile(heads, (model.n_layers, 1)),
        )  # fmt: skip
    assert measured is not None
    by_head = np.asarray(measured.heads)[chosen].reshape(model.n_layers, source.kv_heads, old)
    groups = _largest(by_head.sum(-1), model.kv_heads)
    within = _largest(np.take_along_axis(by_head, groups[:, :, None], axis=1), new)
    return Kept(
        layers=chosen, channels=_largest(np.asarray(measured.channels), model.d_model),
        units=_largest(np.asarray(measured.units)[chosen], model.ff_dim),
        groups=groups, heads=(groups[:, :, None] * old + within).reshape(model.n_layers, -1),
    )  # fmt: skip


def _largest(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The numbers, rising, of the `count` largest values of the last axis; of equal ones the first."""
    return np.sort(np.argsort(-values, axis=-1, kind="stable")[..., :count], axis=-1)


def warm_start(
    config: InitConfig,
    model: ModelConfig,
    source: Transformer,
    rows: NDArray[np.int64] | None = None,
    seed: int = 0,
    measured: Importance | None = None,
) -> Transformer:
    """The parameters of a model of config `model`, from those of `source`, on the current mesh.

    rows: for each token the source's row in embedding and head, or -1 for one that is drawn by `seed` [at most V];
    None: rows by number. measured: of `source`, where needs_importance. Raises ConfigError if the shapes do not allow
    it.
    """
    check(config, model, source.config)
    kept = kept_parts(config, model, source.config, measured)
    scale = _scales(config, model, source.config, kept, measured)
    place = jax.eval_shape(lambda key: Transformer(model, key), jax.random.key(0))
    arrays = dict(_named(source))

    def one(name: str, like: PyTree) -> Array:
        stacked, short = name.startswith("blocks."), name.removeprefix("blocks.")
        array = jax.sharding.reshard(arrays.get(name, arrays["embed"]), jax.P())
        if stacked:
            array = array[kept.layers]
        for axis, letter in enumerate(_dims(short, model), start=stacked):
            if letter == "v" and rows is not None:
                array = _by_token(array, rows, model.vocab_size, seed)
            else:
                array = _take(array, axis, letter, kept, model.vocab_size)
        # The embedding is a table, so it is not scaled, even if it is also a tied head.
        array = array * (1.0 if short == "embed" or name not in arrays else scale.get(short, 1.0))
        return jax.sharding.reshard(array.astype(jnp.float32), like.sharding.spec)

    params = [one(name, like) for name, like in _named(place)]
    return jax.tree.unflatten(jax.tree.structure(place), params)


def _dims(name: str, model: ModelConfig) -> str:
    """The dims of a parameter's array, without the layer."""
    if name in ("query_norm", "key_norm") and model.qk_norm_width == "all":
        return "hk" if name == "query_norm" else "gk"
    return _DIMS[name]


def _by_token(array: Float[Array, "W D"], rows: NDArray[np.int64], size: int, seed: int) -> Float[Array, "V D"]:
    """The rows of a table by token [V, D]; those of -1, and of padding, have the mean and spread of the others."""
    rows = np.concatenate([rows, np.full(size - len(rows), -1)])
    carried = array[rows[rows >= 0]]
    drawn = jax.random.normal(jax.random.key(seed), (size, array.shape[1]), array.dtype)
    drawn = jnp.mean(carried, axis=0)[None] + jnp.std(carried, axis=0)[None] * drawn
    return jnp.where((rows >= 0)[:, None], array[np.maximum(rows, 0)], drawn)


def _scales(
    config: InitConfig, model: ModelConfig, source: ModelConfig, kept: Kept, measured: Importance | None
) -> dict[str, float]:
    """What parameters are multiplied by.

    A leading slice of inputs is like a random one: maps are scaled by sqrt(old / new). Important inputs carry nearly
    all of the sum, so that maps stay. But the norms divide by the root mean square of the channels that are left, which
    is larger; their gains make it good, by the share of the squares that these channels have.
    """
    if config.width == "importance":
        assert measured is not None
        shares = np.asarray(measured.shares, np.float64)
        share = float(shares[kept.channels].sum() / shares.sum())
        return dict.fromkeys(
            ("attention_norm", "feed_norm", "last_norm"), math.sqrt(source.d_model / model.d_model * share)
        )
    old, new = fan_in(source), fan_in(model)
    return {key.rsplit("_", 1)[0]: math.sqrt(old[key] / new[key]) for key in old.keys() & new.keys()}


def _take(array: Array, axis: int, letter: str, kept: Kept, vocab: int) -> Array:
    """The kept parts along an axis: of all layers the same, or of each layer (the first axis) its own."""
    if letter in "kx":
        return array
    if letter == "v":
        return jax.lax.slice_in_dim(array, 0, vocab, axis=axis)
    if letter == "d":
        return jnp.take(array, kept.channels, axis=axis)
    numbers = {"f": kept.units, "g": kept.groups, "h": kept.heads}[letter]
    shape = (len(numbers), *(numbers.shape[1] if i == axis else 1 for i in range(1, array.ndim)))
    return jnp.take_along_axis(array, jnp.asarray(numbers.reshape(shape)), axis=axis)


def _named(model: PyTree) -> list[tuple[str, PyTree]]:
    """All parameters by name."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(model)
    return [(parameter_name(path), leaf) for path, leaf in leaves]
