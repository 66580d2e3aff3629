"""Sampling from a model, token by token, with a cache of keys and values: batched, and sharded like training."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jax.tree_util import KeyPath
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from distill.config import DecodeConfig as DecodeConfig
from distill.model import layers, sharding
from distill.model.positions import numbers, of_layer, rope_tables, visible
from distill.model.transformer import Block, Transformer
from distill.types import LOG_ZERO

_CACHE = P(None, *sharding.ACT_BSHK)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of every layer, [L, B, T, G, K], with room for T positions."""

    keys: Float[Array, "L B T G K"]
    values: Float[Array, "L B T G K"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Completions:
    """Prompts and their continuations: tokens [B, P + N]; weight [B, N] is 1 up to and with the stop token, then 0.

    After its stop token a sequence repeats it. log_probs [B, N] are the model's own (nats, at temperature 1, over the
    whole vocabulary) of the tokens that were drawn, 0 where weight is.
    """

    tokens: Int[Array, "B T"]
    weight: Float[Array, "B N"]
    log_probs: Float[Array, "B N"]


# A batch so far: tokens, weights and log-probabilities; and with them the next column, the last tokens, which
# sequences have stopped, and the cache.
Out = tuple[Int[Array, "B N"], Float[Array, "B N"], Float[Array, "B N"]]
Loop = tuple[Int[Array, ""], Int[Array, " B"], Bool[Array, " B"], Cache, Out]


def empty(model: Transformer, batch: int, length: int) -> Cache:
    """An empty cache, sharded like the heads in training."""
    c = model.config
    zeros = jnp.zeros((c.n_layers, batch, length, c.kv_heads, c.head_dim), c.dtype, out_sharding=_CACHE)
    return Cache(keys=zeros, values=zeros)


def extend(
    model: Transformer,
    tokens: Int[Array, "B S"],
    cache: Cache,
    start: Int[Array, ""] | int,
    skip: Int[Array, " B"] | None = None,
) -> tuple[Float[Array, "B S D"], Cache]:
    """The last hidden states of tokens that follow `start` cached positions, and the cache with their keys and values.

    The first `skip` columns of a row are padding: its sequence starts after them, at position 0.
    """
    c = model.config
    queries, columns = start + jnp.arange(tokens.shape[1]), jnp.arange(cache.keys.shape[2])
    kinds = numbers(c)
    position, mask = queries[None], visible(queries, columns, c)
    if skip is not None:
        position = jnp.maximum(position - skip[:, None], 0)
        mask = mask & (columns[None] >= skip[:, None])[:, None, None, None]
    rope = rope_tables(position, c, cache.keys.shape[2])

    def layer(
        x: Float[Array, "B S D"],
        item: tuple[Int[Array, ""] | None, Block, Float[Array, "B T G K"], Float[Array, "B T G K"]],
    ) -> tuple[Float[Array, "B S D"], tuple[Float[Array, "B T G K"], Float[Array, "B T G K"]]]:
        kind, block, keys, values = item
        q, k, v = block.project(block.norm("attention_norm", x), of_layer(kind, rope))
        keys = lax.dynamic_update_slice_in_dim(keys, k, start, axis=1)
        values = lax.dynamic_update_slice_in_dim(values, v, start, axis=1)
        x = x + block.norm("attention_post_norm", block.attend(q, keys, values, of_layer(kind, mask)))
        x = x + block.norm("feed_post_norm", block.feed(block.norm("feed_norm", x))[0])
        return x, (keys, values)

    items = kinds, model.blocks, cache.keys, cache.values
    x, (keys, values) = lax.scan(layer, model.embed_tokens(tokens), items)
    return model.normalise(x), Cache(keys=keys, values=values)


def draw(config: DecodeConfig, logits: Float[Array, "B V"], keys: Key[Array, " B"]) -> Int[Array, " B"]:
    """Samples one token for each sequence from whole rows of logits, each with its own key."""
    if config.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / config.temperature
    if config.top_k or config.top_p < 1:
        values, ids = lax.top_k(logits, min(config.top_k or logits.shape[-1], logits.shape[-1]))
        mass = jax.nn.softmax(values, axis=-1)
        values = jnp.where(jnp.cumsum(mass, axis=-1) - mass < config.top_p, values, LOG_ZERO)
        place = jax.vmap(jax.random.categorical)(keys, values)
        return _take(ids, place).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def last_logits(model: Transformer, hidden: Float[Array, "B D"]) -> Float[Array, "B V"]:
    """Whole rows of float32 logits, without padding columns."""
    c = model.config
    weight = jax.sharding.reshard(model.head_vd.astype(c.dtype), P("tensor", None))
    logits = jnp.einsum(
        "vd,bd->vb", weight, hidden, preferred_element_type=jnp.float32, out_sharding=P("tensor", sharding.BATCH)
    )
    return layers.capped(jax.sharding.reshard(logits.T, P(sharding.BATCH, None))[:, : c.tokens], c.logit_cap)


def _cast(model: Transformer) -> Transformer:
    """The weights in the compute dtype, cast once instead of at every token; what is used in float32 stays so."""

    def one(path: KeyPath, leaf: Array) -> Array:
        names = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
        exact = any(name.endswith(("norm", "router", "router_bias", "sink")) for name in names)
        return leaf if exact else leaf.astype(model.config.dtype)

    return jax.tree_util.tree_map_with_path(one, model)


def _take(rows: Shaped[Array, "B V"], column: Int[Array, " B"]) -> Shaped[Array, " B"]:
    """Selects one value of each row, by a masked sum: a gather from sharded rows has no known sharding."""
    here = column[:, None] == jnp.arange(rows.shape[-1])[None]
    return jnp.sum(jnp.where(here, rows, 0), axis=-1)


@functools.partial(jax.jit, static_argnums=0)
def generate(
    config: DecodeConfig,
    model: Transformer,
    prompts: Int[Array, "B P"],
    keys: Key[Array, " B"],
    lengths: Int[Array, " B"] | None = None,
) -> Completions:
    """Up to `config.new_tokens` tokens after each prompt, until all have stopped. Compiled once per config and shape.

    A prompt shorter than P is right-aligned in its row, and `lengths` gives its length. A sequence's draws depend only
    on its own key, not on the rest of the batch.
    """
    (batch, width), model = prompts.shape, _cast(model)
    row = P(sharding.BATCH)
    prompts = jax.sharding.reshard(prompts.astype(jnp.int32), sharding.TOKENS_BS)
    keys = jax.sharding.reshard(keys, row)
    skip = None if lengths is None else jax.sharding.reshard(width - lengths.astype(jnp.int32), row)
    stop = jnp.asarray(config.stop or (-1,), jnp.int32)

    def choose(hidden: Float[Array, "B S D"], i: Int[Array, ""] | int) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
        logits = last_logits(model, hidden[:, -1])
        token = jax.sharding.reshard(draw(config, logits, jax.vmap(jax.random.fold_in, (0, None))(keys, i)), row)
        return token, _take(logits, token) - jax.nn.logsumexp(logits, axis=-1)

    def write(
        i: Int[Array, ""] | int,
        token: Int[Array, " B"],
        log_prob: Float[Array, " B"],
        done: Bool[Array, " B"],
        out: Out,
    ) -> Out:
        put = lambda x, y: lax.dynamic_update_slice_in_dim(x, y[:, None], i, axis=1)
        return put(out[0], token), put(out[1], jnp.where(done, 0.0, 1.0)), put(out[2], jnp.where(done, 0.0, log_prob))

    def step(carry: Loop) -> Loop:
        i, last, done, cache, out = carry
        hidden, cache = extend(model, last[:, None], cache, width + i - 1, skip)
        token, log_prob = choose(hidden, i)
        token = jnp.where(done, last, token)
        out = write(i, token, log_prob, done, out)
        return i + 1, token, done | jnp.any(token[:, None] == stop[None], axis=-1), cache, out

    zeros = lambda dtype: jnp.zeros((batch, config.new_tokens), dtype, out_sharding=sharding.TOKENS_BS)
    hidden, cache = extend(model, prompts, empty(model, batch, width + config.new_tokens), 0, skip)
    token, log_prob = choose(hidden, 0)
    out = zeros(jnp.int32), zeros(jnp.float32), zeros(jnp.float32)
    out = write(0, token, log_prob, jnp.zeros_like(token, bool), out)
    carry = (jnp.ones((), jnp.int32), token, jnp.any(token[:, None] == stop[None], axis=-1), cache, out)
    going = lambda carry: (carry[0] < config.new_tokens) & ~jnp.all(carry[2])
    _, last, _, _, (tokens, weight, log_probs) = lax.while_loop(going, step, carry)
    tokens = jnp.where(weight > 0, tokens, last[:, None])
    return Completions(tokens=jnp.concatenate([prompts, tokens], axis=1), weight=weight, log_probs=log_probs)
