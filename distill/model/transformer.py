"""The paper's decoder-only transformer (section 4): pre-norm RMSNorm, RoPE, QK-norm, SwiGLU, MHA or GQA.

Modules are plain pytrees of Params with a static frozen config: jit, grad, vmap and scan take them as they are.
Layers are stacked, so one compiled body serves every depth. Letters of the shapes: distill/types.py; the
sharding of each array: distill/model/sharding.py.
"""

import functools
import math
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P
from jax.tree_util import KeyPath
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from distill.config import ModelConfig
from distill.model import attention_kernels, experts, head_maps, layers, lora, positions, products, sharding, units
from distill.model import ring as rings
from distill.model.experts import RouterLosses
from distill.model.norms import BLOCK_NORMS as BLOCK_NORMS
from distill.model.norms import add_norm, constant, normalise
from distill.model.norms import rms_norm as rms_norm
from distill.model.positions import Rope, rotate
from distill.model.products import Kind as ProductKind
from distill.model.products import Quantised
from distill.model.scales import fan_in as fan_in
from distill.model.stack import PRODUCT, scan, with_remat
from distill.types import LOG_ZERO

Queries: TypeAlias = Float[Array, "B S H K"]
Keys: TypeAlias = Float[Array, "B T G K"]
Mask: TypeAlias = Bool[Array, "#B 1 1 S T"]  # True where a query may see a key


def _normal(key: PRNGKeyArray, name: str, shape: tuple[int, ...], std: float) -> nnx.Param:
    values = std * jax.random.truncated_normal(key, -3, 3, shape, jnp.float32)
    return nnx.Param(jax.sharding.reshard(values, sharding.PARAM_SPECS[name]))


def _gather_sequence(x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
    """Gathers all positions on every device of the tensor axis, as a block's products need them."""
    return jax.sharding.reshard(x, sharding.ACT_BSD)


def _product(
    x: Float[Array, "B S I"], w: Float[Array, "I O"] | Quantised, place: P, kind: ProductKind
) -> Float[Array, "B S O"]:
    """A linear map whose result remat='dots' keeps: policies of jax.checkpoint see names, not inside a custom_vjp."""
    return checkpoint_name(layers.linear(x, w, place, None, kind), PRODUCT)


class Block(nnx.Module):
    """One layer: x + attention(norm(x)), then x + feed-forward(norm(x)); config.norms says where the norms stand."""

    def __init__(self, config: ModelConfig, key: PRNGKeyArray):
        d, h, g, k = config.d_model, config.n_heads, config.kv_heads, config.head_dim
        std = {name: 1 / math.sqrt(n) for name, n in fan_in(config).items()}
        keys = jax.random.split(key, 7)
        self.config = config
        for name in BLOCK_NORMS[config.norms]:
            add_norm(self, name, config)
        self.query = _normal(keys[0], "query_dhk", (d, h, k), std["query_dhk"])
        self.key = _normal(keys[1], "key_dgk", (d, g, k), std["key_dgk"])
        self.value = _normal(keys[2], "value_dgk", (d, g, k), std["value_dgk"])
        self.out = _normal(keys[3], "out_hkd", (h, k, d), std["out_hkd"])
        if config.qk_norm:
            whole = config.qk_norm_width == "all"
            self.query_norm = constant("bias_hk", (h, k), 1.0) if whole else constant("gain_k", (k,), 1.0)
            self.key_norm = constant("bias_hk", (g, k), 1.0) if whole else constant("gain_k", (k,), 1.0)
        if config.qkv_bias:
            self.query_bias = constant("bias_hk", (h, k), 0.0)
            self.key_bias = constant("bias_hk", (g, k), 0.0)
            self.value_bias = constant("bias_hk", (g, k), 0.0)
        if config.out_bias:
            self.out_bias = constant("out_bias_d", (d,), 0.0)
        if config.attention_sinks:
            self.sink = constant("sink_h", (h,), 0.0)
        if config.experts:
            self._add_experts([keys[4], keys[5], keys[6]], std)
        else:
            self._add_mlp([keys[4], keys[5], keys[6]], std)
        if lora.adapted_maps(config):
            self.lora = lora.Adapters(config, jax.random.fold_in(key, 1))

    def _add_mlp(self, keys: list[PRNGKeyArray], std: dict[str, float]) -> None:
        c, d, f = self.config, self.config.d_model, self.config.ff_dim
        if c.gated:
            self.gate = _normal(keys[0], "gate_df", (d, f), std["gate_df"])
        self.up = _normal(keys[1], "up_df", (d, f), std["up_df"])
        self.down = _normal(keys[2], "down_fd", (f, d), std["down_fd"])
        if c.feed_bias:
            if c.gated:
                self.gate_bias = constant("feed_bias_f", (f,), 0.0)
            self.up_bias = constant("feed_bias_f", (f,), 0.0)
            self.down_bias = constant("out_bias_d", (d,), 0.0)

    def _add_experts(self, keys: list[PRNGKeyArray], std: dict[str, float]) -> None:
        x, d, f = self.config.experts, self.config.d_model, self.config.expert_dim
        self.router = _normal(jax.random.fold_in(keys[0], 1), "router_dx", (d, x), std["router_dx"])
        for key, name, shape in zip(keys, ("gate_xdf", "up_xdf", "down_xfd"), ((x, d, f), (x, d, f), (x, f, d))):
            role = f"expert_{name}"
            setattr(self, role.rsplit("_", 1)[0], _normal(key, role, shape, std[role]))
        if self.config.feed_bias:
            self.router_bias = constant("router_bias_x", (x,), 0.0)
            self.expert_gate_bias = constant("expert_bias_xf", (x, f), 0.0)
            self.expert_up_bias = constant("expert_bias_xf", (x, f), 0.0)
            self.expert_down_bias = constant("expert_bias_xd", (x, d), 0.0)

    def _use(self, param: nnx.Param, name: str) -> Float[Array, "..."]:
        """The parameter in the compute dtype, gathered over fsdp; a linear map as a matrix."""
        return sharding.gather_for_use(param[...].astype(self.config.dtype), name)

    def _map(self, kind: str, name: str) -> Float[Array, "I O"] | Quantised:
        """The matrix of a linear map for `_product`: `_use`, or a teacher's steps where they are what is multiplied."""
        weight = getattr(self, kind)[...]
        if isinstance(weight, Quantised) and weight.multiplied:
            return products.gathered(weight, name)
        return self._use(getattr(self, kind), name)

    def _adapt(self, y: Float[Array, "B S O"], x: Float[Array, "B S I"], kind: str, place: P) -> Float[Array, "B S O"]:
        """The result y of a linear map of x, with the share of its adapter."""
        return y + self.lora(self.config.lora, kind, x, place) if kind in lora.adapted_maps(self.config) else y

    def _heads(self, x: Float[Array, "B S D"], kind: str, name: str) -> Float[Array, "B S H K"]:
        weight = self._map(kind, name)
        width = self.config.head_dim
        if head_maps.preferred() and kind not in lora.adapted_maps(self.config):
            heads = checkpoint_name(head_maps.into(x, weight, width, self.config.products), PRODUCT)
        else:
            heads = self._adapt(_product(x, weight, sharding.ACT_BSF, self.config.products), x, kind, sharding.ACT_BSF)
            heads = lax.reshape(heads, (*x.shape[:2], heads.shape[2] // width, width), out_sharding=sharding.ACT_BSHK)
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
        """The attention output over T keys, projected: `merge` of `read`."""
        return self.merge(self.read(q, k, v, mask, causal), place)

    def read(self, q: Queries, k: Keys, v: Keys, mask: Mask, causal: bool = False) -> Float[Array, "B S G R K"]:
        """What each query head reads of T keys, R heads for each of the G key-value heads; softmax in float32.

        `causal` asserts that the mask hides every key after its query.
        """
        c = self.config
        q = jnp.swapaxes(self._scaled(q), 1, 2)
        # Query heads are grouped by their key-value head: [B, G, H/G, S, K].
        grouped = P(sharding.BATCH, "tensor", None, None, None)
        shape = (q.shape[0], c.kv_heads, c.n_heads // c.kv_heads, *q.shape[2:])
        q = lax.reshape(q, shape, out_sharding=grouped)
        bias, sink = jnp.where(mask, 0.0, LOG_ZERO), None
        if c.attention_sinks:
            sink = lax.reshape(self.sink[...], shape[1:3], out_sharding=P("tensor", None))

        def read(
            q: layers.Query, k: layers.Key, v: layers.Key, bias: layers.Bias, sink: layers.Sink | None
        ) -> layers.Query:
            return layers.attention(q, k, v, bias, causal, c.attention_cap, sink)

        read_again = jax.checkpoint(read) if c.remat == "attention" else read
        heads = read_again(q, jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), bias, sink)
        return jnp.moveaxis(heads, 3, 1)

    def merge(self, heads: Float[Array, "B S ..."], place: P) -> Float[Array, "B S D"]:
        """The output projection of all heads."""
        c = self.config
        weight = self._map("out", "out_hkd")
        if head_maps.preferred() and "out" not in lora.adapted_maps(c):
            whole = lax.reshape(heads, (*heads.shape[:2], c.n_heads, c.head_dim), out_sharding=sharding.ACT_BSHK)
            x = checkpoint_name(head_maps.out_of(whole, weight, place, c.products), PRODUCT)
        else:
            heads = lax.reshape(heads, (*heads.shape[:2], c.n_heads * c.head_dim), out_sharding=sharding.ACT_BSF)
            x = self._adapt(_product(heads, weight, place, c.products), heads, "out", place)
        return x + self._use(self.out_bias, "out_bias_d")[None, None] if c.out_bias else x

    def _scaled(self, q: Queries) -> Queries:
        """Queries whose products with keys are the scores."""
        c = self.config
        return q * c.attention_scale if c.attention_scale else q / math.sqrt(c.head_dim)

    def attention(
        self,
        x: Float[Array, "B S D"],
        rope: Rope,
        mask: Array | None,
        place: P = sharding.ACT_BSD,
        number: Int[Array, ""] | None = None,
        spans: int = 1,
    ) -> Float[Array, "B S D"]:
        """Causal self-attention, under an `attention_mask`; `number` is the layer's kind where there are several."""
        (q, k, v), c = self.project(x, rope), self.config
        if spans > 1:
            return self.merge(rings.attention(c, spans // 2, self._scaled(q), k, v, mask), place)
        kernel = attention_kernels.chosen(c, x.shape[1])
        if kernel == "xla":
            assert mask is not None
            return self.attend(q, k, v, mask, causal=True, place=place)
        windows = [kind.window for kind in positions.kinds(c)]
        each = [functools.partial(attention_kernels.attention, kernel, w, c.attention_cap) for w in windows]
        arrays = (self._scaled(q), k, v, mask)
        return self.merge(each[0](*arrays) if number is None else lax.switch(number, each, *arrays), place)

    def mlp(self, x: Float[Array, "B S D"], place: P = sharding.ACT_BSD) -> Float[Array, "B S D"]:
        """SwiGLU, down(silu(gate(x)) * up(x)), or another activation; without a gate, down(activation(up(x)))."""
        return self.lower(self.units(x), place)

    def units(self, x: Float[Array, "B S D"]) -> Float[Array, "B S F"]:
        """The units of the feed-forward, silu(gate(x)) * up(x) in the paper's model."""
        c = self.config
        if not c.gated:
            return units.ACTIVATIONS[c.activation](self._feed(x, "up"))
        return units.gated(c.activation)(self._feed(x, "gate"), self._feed(x, "up"))

    def lower(self, units: Float[Array, "B S F"], place: P = sharding.ACT_BSD) -> Float[Array, "B S D"]:
        """The map from the units of the feed-forward back to the residual stream."""
        y = layers.linear(units, self._map("down", "down_fd"), place, None, self.config.products)
        y = self._adapt(y, units, "down", place)
        return y + self._use(self.down_bias, "out_bias_d")[None, None] if self.config.feed_bias else y

    def feed(
        self, x: Float[Array, "B S D"], place: P = sharding.ACT_BSD, weight: Float[Array, "B S"] | None = None
    ) -> tuple[Float[Array, "B S D"], RouterLosses]:
        """The feed-forward, `mlp` or experts, and with the tokens' weights its router's losses, if it has one."""
        c = self.config
        if not c.experts:
            return self.mlp(x, place), {}
        bias = self.router_bias[...] if c.feed_bias else None
        routes = experts.route(c, x, sharding.gather_for_use(self.router[...], "router_dx"), bias)
        of = lambda part: [getattr(self, f"expert_{n}{part}")[...].astype(c.dtype) for n in ("gate", "up", "down")]
        gate, up, down = of("")
        biases = experts.Biases(*of("_bias")) if c.feed_bias else None
        kept = functools.partial(checkpoint_name, name=PRODUCT)
        y = experts.feed_forward(x, routes, gate, up, down, units.gated(c.activation), place, kept, biases=biases)
        return y, {} if weight is None else experts.losses(c, routes, weight)

    def _feed(self, x: Float[Array, "B S D"], name: str) -> Float[Array, "B S F"]:
        y = _product(x, self._map(name, f"{name}_df"), sharding.ACT_BSF, self.config.products)
        y = self._adapt(y, x, name, sharding.ACT_BSF)
        return y + self._use(getattr(self, f"{name}_bias"), "feed_bias_f")[None, None] if self.config.feed_bias else y

    def norm(self, name: str, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """x under the norm of this name, and x itself where blocks have no norm there (BLOCK_NORMS)."""
        return normalise(self, name, x, self.config) if name in BLOCK_NORMS[self.config.norms] else x

    def __call__(
        self,
        x: Float[Array, "B S D"],
        rope: Rope,
        mask: Array | None,
        number: Int[Array, ""] | None = None,
        weight: Float[Array, "B S"] | None = None,
        spans: int = 1,
    ) -> tuple[Float[Array, "B S D"], RouterLosses]:
        place = sharding.residual(self.config, x.shape[1])
        y = self.attention(_gather_sequence(self.norm("attention_norm", x)), rope, mask, place, number, spans)
        x = x + self.norm("attention_post_norm", y)
        y, router = self.feed(_gather_sequence(self.norm("feed_norm", x)), place, weight)
        return x + self.norm("feed_post_norm", y), router


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
        add_norm(self, "last_norm", config)
        if not config.tied:
            self.head = _normal(head, "head_vd", shape, 1 / math.sqrt(config.d_model))

    def hidden(
        self,
        tokens: Int[Array, "B S"],
        segment: Int[Array, "B S"] | None = None,
        position: Int[Array, "B S"] | None = None,
        spans: int = 1,
    ) -> Float[Array, "B S D"]:
        """The last hidden states, normalised. With `segment`, attention stays within equal segment ids.

        With `spans`, rows are spans of sequences at these positions, which devices share (distill/data/spans.py).
        """
        return self.states((), tokens, segment, position, spans)[0]

    def states(
        self,
        layers: tuple[int, ...],
        tokens: Int[Array, "B S"],
        segment: Int[Array, "B S"] | None = None,
        position: Int[Array, "B S"] | None = None,
        spans: int = 1,
    ) -> tuple[Float[Array, "B S D"], tuple[Float[Array, "B S D"], ...]]:
        """`hidden`, and the residual stream after each of `layers`, of which 0 is the embedding."""
        return self.routed_states(layers, tokens, segment, position, spans)[:2]

    def routed_states(
        self,
        layers: tuple[int, ...],
        tokens: Int[Array, "B S"],
        segment: Int[Array, "B S"] | None = None,
        position: Int[Array, "B S"] | None = None,
        spans: int = 1,
        weight: Float[Array, "B S"] | None = None,
    ) -> tuple[Float[Array, "B S D"], tuple[Float[Array, "B S D"], ...], RouterLosses]:
        """`states`, and with the tokens' weights the losses of the routers of each, the mean over layers."""
        c = self.config
        length = tokens.shape[1]
        x = jax.sharding.reshard(self.embed_tokens(tokens), sharding.residual(c, length))
        position = jnp.arange(length)[None] if position is None else position
        rope = positions.rope_tables(position, c, length * spans)
        masked = spans == 1 and attention_kernels.chosen(c, length) == "xla"
        mask = positions.attention_mask(c, length, segment) if masked else segment

        def body(carry: PyTree, numbered: PyTree) -> tuple[PyTree, None]:
            (x, kept, router), (number, kind, block) = carry, numbered
            seen = positions.of_layer(kind, mask) if masked else mask
            x, found = block(x, positions.of_layer(kind, rope), seen, kind, weight, spans)
            router = {name: router[name] + value / c.n_layers for name, value in found.items()}
            return (x, tuple(jnp.where(number == layer, x, old) for layer, old in zip(layers, kept)), router), None

        numbered = jnp.arange(1, c.n_layers + 1) if layers else None, positions.numbers(c), self.blocks
        router = {} if weight is None or not c.experts else experts.no_losses(weight)
        (x, kept, router), _ = scan(
            with_remat(body, c), (x, (x,) * len(layers), router), numbered, c.n_layers, c.unroll
        )
        return _gather_sequence(self.normalise(x)), tuple(_gather_sequence(old) for old in kept), router

    def normalise(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """The residual stream under the last norm."""
        return normalise(self, "last_norm", x, self.config)

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
        logits = layers.capped(layers.linear(hidden, weight.T, sharding.LOGITS_BSV, jnp.float32), c.logit_cap)
        if c.tokens == c.vocab_size:
            return logits
        column = lax.broadcasted_iota(jnp.int32, (1, 1, c.vocab_size), 2, out_sharding=P(None, None, "tensor"))
        return jnp.where(column < c.tokens, logits, LOG_ZERO)

    def __call__(
        self,
        tokens: Int[Array, "B S"],
        segment: Int[Array, "B S"] | None = None,
        position: Int[Array, "B S"] | None = None,
        spans: int = 1,
    ) -> Float[Array, "B S V"]:
        """The logits of every position (`logits` of `hidden`)."""
        return self.logits(self.hidden(tokens, segment, position, spans))


def parameter_name(path: KeyPath) -> str:
    """'blocks.query', from a parameter's path in the model's tree."""
    return ".".join(key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)).removesuffix(".value")
