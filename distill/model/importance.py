"""How much each part of a model does on a text, by which a smaller student keeps the parts that do most.

Minitron's measures (Muralidharan et al. 2407.14679, section 2.2): channels by the size of what the norms give, units of
the feed-forward and heads of attention by the size of their outputs, layers by their block influence, 1 - E cos(input,
output) (Men et al. 2403.03853, Eq. 1). One forward pass; no gradient.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PyTree

from distill.model import adapted, positions, sharding
from distill.model.transformer import Transformer
from distill.types import Batch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Importance:
    """Sums over the tokens of a text; they are compared with each other, so their scale does not matter."""

    channels: Float[Array, " D"]  # squares of a channel after the norms of all layers
    units: Float[Array, "L F"]  # squares of a unit of the feed-forward
    heads: Float[Array, "L H"]  # squares of a head's output
    influence: Float[Array, " L"]  # 1 - cosine of a layer's input and its output
    shares: Float[Array, " D"]  # a channel's share of the squares of a layer's input, over all layers

    def __add__(self, other: "Importance") -> "Importance":
        return jax.tree.map(jnp.add, self, other)


@jax.jit
def importance(model: Transformer, batch: Batch) -> Importance:
    """The sums over a batch's predicted tokens, in float32 and replicated on the mesh."""
    model = adapted.with_config(model, dataclasses.replace(model.config, attention="xla"))
    c, tokens = model.config, batch.inputs
    length = tokens.shape[1]
    position = jnp.arange(length)[None] if batch.position is None else batch.position
    rope = positions.rope_tables(position, c)
    mask = positions.attention_mask(c, length, batch.segment)
    counted = (batch.weight > 0).astype(jnp.float32)

    def total(values: Float[Array, "B S ..."]) -> Float[Array, "..."]:
        """The sum of squares over the counted tokens."""
        squares = jnp.square(values.astype(jnp.float32))
        summed = jnp.einsum("bs,bs...->...", counted, squares, out_sharding=P(*[None] * (values.ndim - 2)))
        return jax.sharding.reshard(summed, P(*[None] * summed.ndim))

    def body(carry: PyTree, numbered: PyTree) -> tuple[PyTree, PyTree]:
        (x, channels, shares), (kind, block) = carry, numbered
        before = block.norm("attention_norm", x)
        q, k, v = block.project(before, positions.of_layer(kind, rope))
        heads = block.read(q, k, v, positions.of_layer(kind, mask), causal=True)
        y = x + block.norm("attention_post_norm", block.merge(heads, sharding.ACT_BSD))
        between = block.norm("feed_norm", y)
        units = block.units(between)
        z = y + block.norm("feed_post_norm", block.lower(units, sharding.ACT_BSD))
        split = (*units.shape[:2], c.n_heads, c.head_dim)
        wide = jax.lax.reshape(heads, split, out_sharding=sharding.ACT_BSHK)
        found = total(units), total(wide).sum(-1), jnp.sum(counted * (1 - _cosine(x, z)))
        shares += total(x.astype(jnp.float32) / _norm(x)[..., None])
        return (z, channels + total(before) + total(between), shares), found

    zeros = jnp.zeros(c.d_model, jnp.float32)
    start = jax.sharding.reshard(model.embed_tokens(tokens), sharding.ACT_BSD), zeros, zeros
    (_, channels, shares), (units, heads, influence) = jax.lax.scan(body, start, (positions.numbers(c), model.blocks))
    return Importance(channels=channels, units=units, heads=heads, influence=influence, shares=shares)


def _cosine(x: Float[Array, "B S D"], y: Float[Array, "B S D"]) -> Float[Array, "B S"]:
    return jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32), axis=-1) / (_norm(x) * _norm(y))


def _norm(x: Float[Array, "B S D"]) -> Float[Array, "B S"]:
    """In float32; not zero, for the embedding of a token may be (padding is, in some models)."""
    return jnp.maximum(jnp.linalg.norm(x.astype(jnp.float32), axis=-1), 1e-12)
