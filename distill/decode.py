"""Text from a model, token by token, with a cache of keys and values: batched, and sharded like training."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, PRNGKeyArray

from distill import mesh
from distill.errors import ConfigError
from distill.losses import NOTHING
from distill.model import Block, Transformer, rms_norm, rope_tables, visible

_CACHE = P(None, *mesh.ACT_BSHK)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """How tokens are drawn: temperature 0 is greedy; top_k 0 and top_p 1 leave the distribution whole.

    With both, the nucleus of `top_p` is taken among the `top_k`. A sequence ends at the first of its `stop` tokens.
    """

    new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[int, ...] = ()

    def __post_init__(self):
        wanted = {
            "new_tokens": (self.new_tokens >= 1, "at least 1"),
            "temperature": (self.temperature >= 0, "0 (greedy) or more"),
            "top_k": (self.top_k >= 0, "0 (all) or more"),
            "top_p": (0 < self.top_p <= 1, "a number above 0, at most 1"),
        }
        for name, (holds, text) in wanted.items():
            if not holds:
                raise ConfigError(f"decode.{name}: got {getattr(self, name)!r}, wanted {text}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of every layer, [L, B, T, G, K], with room for T positions."""

    keys: Float[Array, "L B T G K"]
    values: Float[Array, "L B T G K"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Completions:
    """Prompts and what followed: tokens [B, P + N]; weight [B, N] is 1 up to and with the stop token, then 0.

    After its stop token a sequence repeats it.
    """

    tokens: Int[Array, "B T"]
    weight: Float[Array, "B N"]


def empty(model: Transformer, batch: int, length: int) -> Cache:
    """A cache with nothing in it, split like the heads of training."""
    c = model.config
    zeros = jnp.zeros((c.n_layers, batch, length, c.kv_heads, c.head_dim), c.dtype, out_sharding=_CACHE)
    return Cache(keys=zeros, values=zeros)


def extend(
    model: Transformer, tokens: Int[Array, "B S"], cache: Cache, start: Any
) -> tuple[Float[Array, "B S D"], Cache]:
    """The last hidden states of tokens that follow `start` cached positions, and the cache with them in it."""
    c = model.config
    position = start + jnp.arange(tokens.shape[1])[None]
    rope = rope_tables(position, c)
    seen = visible(position[0], jnp.arange(cache.keys.shape[2]), c)

    def layer(x: Any, item: tuple[Block, Any, Any]) -> Any:
        block, keys, values = item
        q, k, v = block.project(rms_norm(x, block.attention_norm[...], c.norm_eps), rope)
        keys = lax.dynamic_update_slice_in_dim(keys, k, start, axis=1)
        values = lax.dynamic_update_slice_in_dim(values, v, start, axis=1)
        x = x + block.attend(q, keys, values, seen[None, None, None])
        return x + block.feed(rms_norm(x, block.feed_norm[...], c.norm_eps)), (keys, values)

    x, (keys, values) = lax.scan(layer, model.look_up(tokens), (model.blocks, cache.keys, cache.values))
    return rms_norm(x, model.last_norm[...], c.norm_eps), Cache(keys=keys, values=values)


def draw(config: DecodeConfig, logits: Float[Array, "B V"], key: PRNGKeyArray) -> Int[Array, " B"]:
    """One token a sequence, from whole rows of logits."""
    if config.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / config.temperature
    if config.top_k or config.top_p < 1:
        values, ids = lax.top_k(logits, min(config.top_k or logits.shape[-1], logits.shape[-1]))
        mass = jax.nn.softmax(values, axis=-1)
        values = jnp.where(jnp.cumsum(mass, axis=-1) - mass < config.top_p, values, NOTHING)
        place = jax.random.categorical(key, values, axis=-1)
        return jnp.take_along_axis(ids, place[:, None], axis=-1)[:, 0].astype(jnp.int32)
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def generate(config: DecodeConfig, model: Transformer, prompts: Int[Array, "B P"], key: PRNGKeyArray) -> Completions:
    """`config.new_tokens` tokens after each prompt; all prompts are as long. Compiled once a config and shape."""
    batch, length = prompts.shape
    prompts = jax.sharding.reshard(prompts.astype(jnp.int32), mesh.TOKENS_BS)
    stop = jnp.asarray(config.stop or (-1,), jnp.int32)

    def choose(hidden: Any, key: Any) -> Any:
        logits = jax.sharding.reshard(model.logits(hidden[:, -1:]), mesh.ACT_BSD)
        return jax.sharding.reshard(draw(config, logits[:, 0], key), P(mesh.BATCH))

    hidden, cache = extend(model, prompts, empty(model, batch, length + config.new_tokens), 0)
    keys = jax.random.split(key, config.new_tokens)
    first = choose(hidden, keys[0])

    def step(carry: Any, item: Any) -> Any:
        last, done, cache = carry
        i, key = item
        done = done | jnp.any(last[:, None] == stop[None], axis=-1)
        hidden, cache = extend(model, last[:, None], cache, length + i)
        token = jnp.where(done, last, choose(hidden, key))
        return (token, done, cache), (token, 1.0 - done)

    carry = (first, jnp.zeros_like(first, bool), cache)
    _, (rest, weight) = lax.scan(step, carry, (jnp.arange(config.new_tokens - 1), keys[1:]))
    place = lambda x: jax.sharding.reshard(x, mesh.TOKENS_BS)  # noqa: E731
    tokens = jnp.concatenate([prompts, place(first[:, None]), place(rest.T)], axis=1)
    weight = jnp.concatenate([jnp.ones((batch, 1), out_sharding=mesh.TOKENS_BS), place(weight.T)], axis=1)
    return Completions(tokens=tokens, weight=weight)
