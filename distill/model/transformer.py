"""The paper's decoder-only transformer (section 4): pre-norm RMSNorm, RoPE, QK-norm, SwiGLU, MHA or GQA.

Modules are plain pytrees of Params with a static frozen config: jit, grad, vmap and scan take them as they are.
Layers are stacked, so one compiled body serves every depth. Letters of the shapes: distill/types.py; the
sharding of each array: distill/model/sharding.py.
"""

import math
import operator
from collections.abc import Callable
from typing import TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P
from jax.tree_util import KeyPath
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from distill.config import ModelConfig
from distill.model import attention_kernels, layers, sharding
from distill.types import LOG_ZERO

Rope: TypeAlias = tuple[Float[Array, "..."], Float[Array, "..."]]  # cos and sin, each [1 or B, S, 1, K/2]
Queries: TypeAlias = Float[Array, "B S H K"]
Keys: TypeAlias = Float[Array, "B T G K"]
Mask: TypeAlias = Bool[Array, "#B 1 1 S T"]  # True where a query may see a key
Carry = TypeVar("Carry")
Body: TypeAlias = Callable[[PyTree, PyTree], tuple[PyTree, None]]  # of a scan over layers

PRODUCT = "product"  # the name under which remat='dots' finds the results of linear maps


def fan_in(config: ModelConfig) -> dict[str, int]:
    """The number of inputs of every linear map, which sets its initial scale (1/sqrt) and its muP learning rate.

    An untied embedding is a table, not a linear map, and is omitted; a tied one counts as the head.
    """
    maps = dict.fromkeys(("query_dhk", "key_dgk", "value_dgk", "gate_df", "up_df"), config.d_model)
    maps |= {"out_hkd": config.n_heads * config.head_dim, "down_fd": config.ff_dim}
    return maps | {"embed_vd" if config.tied else "head_vd": config.d_model}


def _normal(key: PRNGKeyArray, name: str, shape: tuple[int, ...], std: float) -> nnx.Param:
    values = std * jax.random.truncated_normal(key, -3, 3, shape, jnp.float32)
    return nnx.Param(jax.sharding.reshard(values, sharding.PARAM_SPECS[name]))


def _constant(name: str, shape: tuple[int, ...], value: float) -> nnx.Param:
    return nnx.Param(jax.sharding.reshard(jnp.full(shape, value, jnp.float32), sharding.PARAM_SPECS[name]))


def rms_norm(x: Float[Array, "*B D"], gain: Float[Array, " D"], eps: float) -> Float[Array, "*B D"]:
    """x divided by its root mean square, times a gain; computed in float32, returned in x's dtype."""
    y = x.astype(jnp.float32)
    y = y * lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return (y * gain.reshape((1,) * (x.ndim - 1) + gain.shape)).astype(x.dtype)


def rope_frequencies(config: ModelConfig) -> Float[Array, " pairs"]:
    """Radians per position, base^(-2i/K), scaled by config.rope_scaling.

    linear divides all by the factor (Chen et al. 2306.15595). llama3 divides frequencies with fewer than rope_low turns
    within rope_context, keeps those with more than rope_high, and interpolates linearly in between (Llama 3.1).
    """
    half = config.head_dim // 2
    frequency = config.rope_base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if config.rope_scaling == "linear":
        return frequency / config.rope_factor
    if config.rope_scaling == "llama3":
        turns = config.rope_context * frequency / (2 * math.pi)
        kept = jnp.clip((turns - config.rope_low) / (config.rope_high - config.rope_low), 0.0, 1.0)
        return frequency * (kept + (1 - kept) / config.rope_factor)
    return frequency


def rope_tables(position: Int[Array, "*B S"], config: ModelConfig) -> Rope:
    """cos and sin, each [*B, S, 1, K/2], of the rotary angles position x frequency (Su et al. 2104.09864)."""
    frequency = rope_frequencies(config)
    angle = position[..., None].astype(jnp.float32) * frequency.reshape((1,) * position.ndim + frequency.shape)
    return jnp.cos(angle)[..., None, :], jnp.sin(angle)[..., None, :]


def visible(query: Int[Array, " S"], key: Int[Array, " T"], config: ModelConfig) -> Bool[Array, "S T"]:
    """Whether a query may attend to a key, by position in the row: keys up to its own, within the window."""
    distance = query[:, None] - key[None]
    return (distance >= 0) & (distance < config.window) if config.window else distance >= 0


def attention_mask(
    config: ModelConfig, length: int, segment: Int[Array, "B S"] | None
) -> Bool[Array, "_ 1 1 S S"] | Int[Array, "B S"] | None:
    """The keys that queries attend to: a mask [1 or B, 1, 1, S, S], or for a kernel the segments themselves."""
    if attention_kernels.chosen(config, length) != "xla":
        return segment
    mask = visible(jnp.arange(length), jnp.arange(length), config)[None, None, None]
    return mask if segment is None else mask & (segment[:, None, None, :, None] == segment[:, None, None, None, :])


def rotate(x: Float[Array, "B S H K"], cos: Float[Array, "..."], sin: Float[Array, "..."]) -> Float[Array, "B S H K"]:
    """Rotates the pairs (x[i], x[i + K/2]): the half-split layout of Llama-style checkpoints."""
    a, b = jnp.split(x, 2, axis=-1)
    cos, sin = cos.astype(x.dtype), sin.astype(x.dtype)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _gather_sequence(x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
    """Gathers all positions on every device of the tensor axis, as a block's products need them."""
    return jax.sharding.reshard(x, sharding.ACT_BSD)


def _product(x: Float[Array, "B S I"], w: Float[Array, "I O"], place: P) -> Float[Array, "B S O"]:
    """A linear map whose result remat='dots' keeps: policies of jax.checkpoint see names, not inside a custom_vjp."""
    return checkpoint_name(layers.linear(x, w, place), PRODUCT)


class Block(nnx.Module):
    """One layer: x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: ModelConfig, key: PRNGKeyArray):
        d, f, h, g, k = config.d_model, config.ff_dim, config.n_heads, config.kv_heads, config.head_dim
        std = {name: 1 / math.sqrt(n) for name, n in fan_in(config).items()}
        keys = jax.random.split(key, 7)
        self.config = config
        self.attention_norm = _constant("gain_d", (d,), 1.0)
        self.query = _normal(keys[0], "query_dhk", (d, h, k), std["query_dhk"])
        self.key = _normal(keys[1], "key_dgk", (d, g, k), std["key_dgk"])
        self.value = _normal(keys[2], "value_dgk", (d, g, k), std["value_dgk"])
        self.out = _normal(keys[3], "out_hkd", (h, k, d), std["out_hkd"])
        if config.qk_norm:
            self.query_norm = _constant("gain_k", (k,), 1.0)
            self.key_norm = _constant("gain_k", (k,), 1.0)
        if config.qkv_bias:
            self.query_bias = _constant("bias_hk", (h, k), 0.0)
            self.key_bias = _constant("bias_hk", (g, k), 0.0)
            self.value_bias = _constant("bias_hk", (g, k), 0.0)
        if config.out_bias:
            self.out_bias = _constant("out_bias_d", (d,), 0.0)
        self.feed_norm = _constant("gain_d", (d,), 1.0)
        self.gate = _normal(keys[4], "gate_df", (d, f), std["gate_df"])
        self.up = _normal(keys[5], "up_df", (d, f), std["up_df"])
        self.down = _normal(keys[6], "down_fd", (f, d), std["down_fd"])

    def _use(self, param: nnx.Param, name: str) -> Float[Array, "..."]:
        """The parameter in the compute dtype, gathered over fsdp; a linear map as a matrix."""
        return sharding.gather_for_use(param[...].astype(self.config.dtype), name)

    def _heads(self, x: Float[Array, "B S D"], kind: str, name: str) -> Float[Array, "B S H K"]:
        weight = self._use(getattr(self, kind), name)
        heads, width = _product(x, weight, sharding.ACT_BSF), self.config.head_dim
        heads = lax.reshape(heads, (*x.shape[:2], weight.shape[1] // width, width), out_sharding=sharding.ACT_BSHK)
        if self.config.qkv_bias:
            heads += self._use(getattr(self, f"{kind}_bias"), "bias_hk")[None, None]
        return heads

    def project(
        self, x: Float[Array, "B S D"], rope: Rope
    ) -> tuple[Float[Array, "B S H K"], Float[Array, "B S G K"], Float[Array, "B S G K"]]:
        """Queries and keys, rotated by their positions, and values."""
        c = self.config
        q = self._heads(x, "query", "query_dhk")
        k = self._heads(x, "key", "key_dgk")
        v = self._heads(x, "value", "value_dgk")
        if c.qk_norm:
            q = rms_norm(q, self.query_norm[...], c.norm_eps)
            k = rms_norm(k, self.key_norm[...], c.norm_eps)
        return rotate(q, *rope), rotate(k, *rope), v

    def attend(
        self, q: Queries, k: Keys, v: Keys, mask: Mask, causal: bool = False, place: P = sharding.ACT_BSD
    ) -> Float[Array, "B S D"]:
        """The attention output over T keys, projected; softmax in float32.

        `causal` asserts that the mask hides every key after its query.
        """
        c = self.config
        q = jnp.swapaxes(q / math.sqrt(c.head_dim), 1, 2)
        # Query heads are grouped by their key-value head: [B, G, H/G, S, K].
        grouped = P(sharding.BATCH, "tensor", None, None, None)
        shape = (q.shape[0], c.kv_heads, c.n_heads // c.kv_heads, *q.shape[2:])
        q = lax.reshape(q, shape, out_sharding=grouped)
        bias = jnp.where(mask, 0.0, LOG_ZERO)

        def read(q: layers.Query, k: layers.Key, v: layers.Key, bias: layers.Bias) -> layers.Query:
            return layers.attention(q, k, v, bias, causal)

        read_again = jax.checkpoint(read) if c.remat == "attention" else read
        heads = read_again(q, jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), bias)
        return self._merge(jnp.moveaxis(heads, 3, 1), place)

    def _merge(self, heads: Float[Array, "B S ..."], place: P) -> Float[Array, "B S D"]:
        """The output projection of all heads."""
        c = self.config
        heads = lax.reshape(heads, (*heads.shape[:2], c.n_heads * c.head_dim), out_sharding=sharding.ACT_BSF)
        x = _product(heads, self._use(self.out, "out_hkd"), place)
        return x + self._use(self.out_bias, "out_bias_d")[None, None] if c.out_bias else x

    def attention(
        self, x: Float[Array, "B S D"], rope: Rope, mask: Array | None, place: P = sharding.ACT_BSD
    ) -> Float[Array, "B S D"]:
        """Causal self-attention, under an `attention_mask`."""
        (q, k, v), c = self.project(x, rope), self.config
        kind = attention_kernels.chosen(c, x.shape[1])
        if kind == "xla":
            assert mask is not None
            return self.attend(q, k, v, mask, causal=True, place=place)
        return self._merge(attention_kernels.attention(kind, q / math.sqrt(c.head_dim), k, v, mask, c.window), place)

    def mlp(self, x: Float[Array, "B S D"], place: P = sharding.ACT_BSD) -> Float[Array, "B S D"]:
        """SwiGLU: down(silu(gate(x)) * up(x))."""
        gate = _product(x, self._use(self.gate, "gate_df"), sharding.ACT_BSF)
        up = _product(x, self._use(self.up, "up_df"), sharding.ACT_BSF)
        return layers.linear(jax.nn.silu(gate) * up, self._use(self.down, "down_fd"), place)

    def __call__(self, x: Float[Array, "B S D"], rope: Rope, mask: Array | None) -> Float[Array, "B S D"]:
        eps, place = self.config.norm_eps, sharding.residual(self.config, x.shape[1])
        x = x + self.attention(_gather_sequence(rms_norm(x, self.attention_norm[...], eps)), rope, mask, place)
        return x + self.mlp(_gather_sequence(rms_norm(x, self.feed_norm[...], eps)), place)


def _scan(
    body: Callable[[Carry, PyTree], tuple[Carry, None]], carry: Carry, layers: PyTree, count: int, unroll: int
) -> tuple[Carry, None]:
    """lax.scan over `count` layers, at most `unroll` of them in one iteration."""
    unroll = next(size for size in range(min(unroll, count), 0, -1) if count % size == 0)
    if unroll in (1, count):
        return lax.scan(body, carry, layers, unroll=unroll)

    # Grouped by hand: lax.scan(unroll=) cannot stack the residuals of gathered weights (jax 0.10).
    def turn(carry: Carry, group: PyTree) -> tuple[Carry, None]:
        for one in range(unroll):
            carry, _ = body(carry, jax.tree.map(operator.itemgetter(one), group))
        return carry, None

    return lax.scan(turn, carry, jax.tree.map(lambda leaf: leaf.reshape(-1, unroll, *leaf.shape[1:]), layers))


def _remat(body: Body, config: ModelConfig) -> Body:
    """The body of the scan over layers with what its backward pass computes again (config.remat)."""
    match config.remat:
        case "full":
            return jax.checkpoint(body)
        case "dots":
            return jax.checkpoint(body, policy=jax.checkpoint_policies.save_only_these_names(PRODUCT))
        case "offload":
            policy = jax.checkpoint_policies.save_and_offload_only_these_names(
                names_which_can_be_saved=[],
                names_which_can_be_offloaded=[PRODUCT],
                offload_src="device",
                offload_dst="pinned_host",
            )
            return jax.checkpoint(body, policy=policy)
    if jax.sharding.get_abstract_mesh().shape["fsdp"] > 1:
        return jax.checkpoint(body, policy=sharding.save_all_but_gathered, prevent_cse=False)
    return body


class Transformer(nnx.Module):
    """Embedding, L stacked blocks, a last norm, and a head: the embedding's weights (tied) or its own."""

    def __init__(self, config: ModelConfig, key: PRNGKeyArray):
        embed, blocks, head = jax.random.split(key, 3)
        shape = (config.vocab_size, config.d_model)
        self.config = config
        # A tied embedding is initialised at the head's scale and multiplied by sqrt(D) at lookup, so that the residual
        # stream starts at unit variance in both cases (unless scaled_embedding is off).
        self.embed = _normal(embed, "embed_vd", shape, 1 / math.sqrt(config.d_model) if config.tied else 1.0)
        self.blocks = jax.vmap(lambda k: Block(config, k))(jax.random.split(blocks, config.n_layers))
        self.last_norm = _constant("gain_d", (config.d_model,), 1.0)
        if not config.tied:
            self.head = _normal(head, "head_vd", shape, 1 / math.sqrt(config.d_model))

    def hidden(
        self,
        tokens: Int[Array, "B S"],
        segment: Int[Array, "B S"] | None = None,
        position: Int[Array, "B S"] | None = None,
    ) -> Float[Array, "B S D"]:
        """The last hidden states, normalised. With `segment`, attention stays within equal segment ids."""
        return self.states((), tokens, segment, position)[0]

    def states(
        self,
        layers: tuple[int, ...],
        tokens: Int[Array, "B S"],
        segment: Int[Array, "B S"] | None = None,
        position: Int[Array, "B S"] | None = None,
    ) -> tuple[Float[Array, "B S D"], tuple[Float[Array, "B S D"], ...]]:
        """`hidden`, and the residual stream after each of `layers`, of which 0 is the embedding."""
        c = self.config
        length = tokens.shape[1]
        x = jax.sharding.reshard(self.embed_tokens(tokens), sharding.residual(c, length))
        rope = rope_tables(jnp.arange(length)[None] if position is None else position, c)
        mask = attention_mask(c, length, segment)

        def body(carry: PyTree, numbered: PyTree) -> tuple[PyTree, None]:
            (x, kept), (number, block) = carry, numbered
            x = block(x, rope, mask)
            return (x, tuple(jnp.where(number == layer, x, old) for layer, old in zip(layers, kept))), None

        numbered = jnp.arange(1, c.n_layers + 1) if layers else None, self.blocks
        (x, kept), _ = _scan(_remat(body, c), (x, (x,) * len(layers)), numbered, c.n_layers, c.unroll)
        return _gather_sequence(rms_norm(x, self.last_norm[...], c.norm_eps)), tuple(
            _gather_sequence(old) for old in kept
        )

    def embed_tokens(self, tokens: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        """The embeddings of tokens, at the scale of the residual stream."""
        c = self.config
        x = jax.sharding.reshard(sharding.rows(self.embed[...].astype(c.dtype), tokens), sharding.ACT_BSD)
        if c.tied and c.scaled_embedding:
            x = x * math.sqrt(c.d_model)
        return x

    @property
    def head_vd(self) -> Float[Array, "V D"]:
        """The head's stored weights; the embedding's if they are tied."""
        return (self.embed if self.config.tied else self.head)[...]

    def logits(self, hidden: Float[Array, "B S D"]) -> Float[Array, "B S V"]:
        """Float32 logits over the vocabulary, which stays split over tensor; padding columns are LOG_ZERO."""
        c = self.config
        weight = sharding.gather_for_use(self.head_vd.astype(c.dtype), "head_vd")
        logits = layers.linear(hidden, weight.T, sharding.LOGITS_BSV, jnp.float32)
        if c.tokens == c.vocab_size:
            return logits
        column = lax.broadcasted_iota(jnp.int32, (1, 1, c.vocab_size), 2, out_sharding=P(None, None, "tensor"))
        return jnp.where(column < c.tokens, logits, LOG_ZERO)

    def __call__(
        self,
        tokens: Int[Array, "B S"],
        segment: Int[Array, "B S"] | None = None,
        position: Int[Array, "B S"] | None = None,
    ) -> Float[Array, "B S V"]:
        """The logits of every position (`logits` of `hidden`)."""
        return self.logits(self.hidden(tokens, segment, position))


def parameter_name(path: KeyPath) -> str:
    """'blocks.query', from a parameter's path in the model's tree."""
    return ".".join(key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)).removesuffix(".value")
