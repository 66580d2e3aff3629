"""The feed-forward of a mixture of experts: a router, the k experts of each token, and their weighted sum.

Every token reaches all of its experts: none has a capacity, and nothing is dropped. Copies of tokens are sorted by
expert, so that one product serves all copies of an expert: `jax.lax.ragged_dot` on a TPU or a GPU. On a CPU that
multiplies every copy by every expert (XLA's fallback), so there a loop over blocks of rows takes its place, whose
blocks belong to one expert each. Letters: distill/types.py; X experts, J experts of a token; T tokens of one device, N
rows: their copies, and what fills the last block of an expert.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from distill.config import ModelConfig
from distill.model import attention_kernels, layers, sharding
from distill.model.units import Units

Product: TypeAlias = Literal["ragged", "blocks"]
# Losses of the router, by name, of each token: 'balance' and 'router_z'; empty for a dense model.
RouterLosses: TypeAlias = dict[str, Float[Array, "B S"]]

LARGEST_BLOCK = 64  # rows of one product of the loop


class Biases(NamedTuple):
    """Those of the maps of all experts."""

    gate: Float[Array, "X F"]
    up: Float[Array, "X F"]
    down: Float[Array, "X D"]


class Routes(NamedTuple):
    """The experts of every token, and what their outputs are multiplied by."""

    chosen: Int[Array, "B S J"]
    share: Float[Array, "B S J"]
    logits: Float[Array, "B S X"]  # of the router


def route(
    config: ModelConfig, x: Float[Array, "B S D"], router: Float[Array, "D X"], bias: Float[Array, " X"] | None = None
) -> Routes:
    """The experts with the largest logits, in float32, and their softmax over all experts.

    With config.expert_norm the shares of a token are divided by their sum, which is a softmax over the chosen alone
    (Mixtral 2401.04088, section 2.1); without it they are not (OLMoE 2409.02060, Eq. 2). Of equal logits the first
    experts are chosen.
    """
    exact = jnp.promote_types(x.dtype, jnp.float32)
    logits = layers.linear(x.astype(exact), router.astype(exact), sharding.ACT_BSD)
    if bias is not None:
        logits += bias.astype(exact)[None, None]
    _, chosen = lax.top_k(lax.stop_gradient(logits), config.experts_per_token)
    # A masked sum: the gradient of a gather would be a scatter.
    probability = jax.nn.softmax(logits, axis=-1)
    share = jnp.sum(jnp.where(_one_hot(chosen, config.experts), probability[:, :, None], 0.0), axis=-1)
    if config.expert_norm:
        share = share / jnp.sum(share, axis=-1, keepdims=True)
    return Routes(chosen=chosen, share=share, logits=logits)


def _one_hot(chosen: Int[Array, "B S J"], experts: int) -> Bool[Array, "B S J X"]:
    return chosen[..., None] == jnp.arange(experts)[None, None, None]


def losses(config: ModelConfig, routes: Routes, weight: Float[Array, "B S"]) -> RouterLosses:
    """The router's two losses of every token; the mean over a row's tokens, by `weight`, is that of the papers.

    balance: X sum_i f_i P_i, with f_i the tokens of the row that expert i has, over all, and P_i its mean probability
    (Switch 2101.03961, Eq. 4; f sums to J as in OLMoE 2409.02060, Eq. 3, so that the least value is J). Each row counts
    for itself (as in DeepSeek-V3 2412.19437, Eq. 17): then neither microbatches nor devices change the loss.
    router_z: the squared logsumexp of the logits (ST-MoE 2202.08906, Eq. 5).
    """
    mine = jnp.sum(_one_hot(routes.chosen, config.experts), axis=2) * weight[..., None]
    whole = jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), jnp.finfo(weight.dtype).tiny)
    load = jnp.sum(mine, axis=1) / whole  # [B, X]
    probability = jax.nn.softmax(routes.logits, axis=-1)
    return {
        "balance": config.experts * jnp.sum(load[:, None] * probability, axis=-1),
        "router_z": jnp.square(jax.nn.logsumexp(routes.logits, axis=-1)),
    }


def no_losses(weight: Float[Array, "B S"]) -> RouterLosses:
    """Zeros, to which those of the layers are added."""
    zero = jnp.zeros(weight.shape, jnp.promote_types(weight.dtype, jnp.float32), out_sharding=sharding.TOKENS_BS)
    return {"balance": zero, "router_z": zero}


def feed_forward(
    x: Float[Array, "B S D"],
    routes: Routes,
    gate: Float[Array, "X D F"],
    up: Float[Array, "X D F"],
    down: Float[Array, "X F D"],
    units: Units,
    place: P = sharding.ACT_BSD,
    name: Callable[[Array], Array] = lambda y: y,
    product: Product | None = None,
    biases: Biases | None = None,
) -> Float[Array, "B S D"]:
    """sum_j share_j down_j(units(gate_j(x), up_j(x))) over the experts j of each token, sharded as `place`.

    The maps are as stored: each device gathers them over fsdp, and its part of F serves its rows of the batch. `name`
    marks what the first maps give (remat='dots'). product: None for that of the platform.
    """
    kind = product or ("blocks" if attention_kernels.platform() == "cpu" else "ragged")

    def local(x: Array, chosen: Array, share: Array, maps: tuple[Array, ...], added: tuple[Array, ...]) -> Array:
        gate, up, down = (_gathered(w, spec) for w, spec in zip(maps, specs))
        x = lax.pcast(x, "tensor", to="varying")  # each device of tensor has a part of every expert
        experts, (_, per_token) = gate.shape[0], chosen.shape[1:]
        tokens = x.reshape(-1, x.shape[-1])
        plan = _plan(chosen.reshape(-1, per_token), experts, kind)
        times = functools.partial(_ragged, plan.sizes) if kind == "ragged" else functools.partial(_blocks, plan.owner)
        rows = _dispatch(tokens, plan)
        first = [name(times(rows, gate)), name(times(rows, up))]
        if added:
            # A product with zeros and ones: the gradient of a gather would be a scatter.
            mine = (_owners(plan)[:, None] == jnp.arange(experts)[None]).astype(rows.dtype)
            first = [y + mine @ lax.pcast(b, sharding.BATCH, to="varying") for y, b in zip(first, added)]
        parts = _collect(times(units(*first), down), plan)
        summed = jnp.sum(parts * share.reshape(-1, per_token, 1), axis=1)
        summed = summed.astype(x.dtype).reshape(x.shape)
        if place[1] == "tensor":
            return lax.psum_scatter(summed, "tensor", scatter_dimension=1, tiled=True)
        return lax.psum(summed, "tensor")

    specs = tuple(sharding.PARAM_SPECS[f"expert_{kind}"] for kind in ("gate_xdf", "up_xdf", "down_xfd"))
    added = () if biases is None else (biases.gate, biases.up)
    places = *(sharding.ACT_BSD,) * 3, specs, (sharding.PARAM_SPECS["expert_bias_xf"],) * len(added)
    given = jax.tree.map(jax.sharding.reshard, (x, routes.chosen, routes.share, (gate, up, down), added), places)
    y = jax.shard_map(local, in_specs=places, out_specs=place)(*given)
    if biases is None:
        return y
    shares = jnp.sum(jnp.where(_one_hot(routes.chosen, gate.shape[0]), routes.share[..., None], 0.0), axis=2)
    return y + jax.sharding.reshard(layers.linear(shares.astype(x.dtype), biases.down, sharding.ACT_BSD), place)


def _gathered(weight: Float[Array, "X _ _"], spec: P) -> Float[Array, "X _ _"]:
    """A stored map gathered over fsdp; as `sharding.rows`, its gradient is scattered before pieces are summed."""
    weight = lax.pcast(weight, "data", to="varying")
    return lax.all_gather(weight, "fsdp", axis=spec.index("fsdp"), tiled=True)


class _Plan(NamedTuple):
    """Where the copies of tokens stand, sorted by expert, each expert's from the beginning of a block."""

    slot: Int[Array, "T J"]  # the row of each copy
    copy: Int[Array, " N"]  # the copy of each row, t J + j
    held: Bool[Array, " N"]  # whether a row is a copy; the others fill blocks
    sizes: Int[Array, " X"]  # copies of each expert
    owner: Int[Array, " M"]  # the expert of each block


def _owners(plan: _Plan) -> Int[Array, " N"]:
    """The expert of each row."""
    return jnp.repeat(plan.owner, plan.copy.shape[0] // plan.owner.shape[0])


def _plan(chosen: Int[Array, "T J"], experts: int, product: Product) -> _Plan:
    copies, flat = chosen.size, chosen.reshape(-1)
    block = 1 if product == "ragged" else min(LARGEST_BLOCK, 1 << max(copies // experts - 1, 0).bit_length())
    count = (copies + experts * (block - 1)) // block  # at most so many blocks, however tokens choose
    order = jnp.argsort(flat, stable=True)
    sizes = jnp.sum(flat[:, None] == jnp.arange(experts)[None], axis=0, dtype=jnp.int32)
    begin = jnp.cumsum(sizes) - sizes
    ends = jnp.cumsum(-(-sizes // block))
    first = jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:-1]]) * block
    slot = jnp.argsort(order) - begin[flat] + first[flat]
    owner = jnp.minimum(jnp.searchsorted(ends, jnp.arange(count), side="right"), experts - 1).astype(jnp.int32)
    of_row = jnp.repeat(owner, block)
    within = jnp.arange(count * block) - first[of_row]
    copy = order[jnp.clip(begin[of_row] + within, 0, copies - 1)]
    return _Plan(slot.reshape(chosen.shape), copy, within < sizes[of_row], sizes, owner)


@jax.custom_vjp
def _dispatch(tokens: Float[Array, "T D"], plan: _Plan) -> Float[Array, "N D"]:
    """The rows: of each the token of its copy. The gradient collects instead of scattering."""
    return tokens[plan.copy // plan.slot.shape[1]]


def _dispatch_forward(tokens: Float[Array, "T D"], plan: _Plan) -> tuple[Float[Array, "N D"], _Plan]:
    return _dispatch(tokens, plan), plan


def _dispatch_backward(plan: _Plan, drows: Float[Array, "N D"]) -> tuple[Float[Array, "T D"], None]:
    return jnp.sum(drows[plan.slot], axis=1), None


@jax.custom_vjp
def _collect(rows: Float[Array, "N D"], plan: _Plan) -> Float[Array, "T J D"]:
    """The copies of every token, from rows."""
    return rows[plan.slot]


def _collect_forward(rows: Float[Array, "N D"], plan: _Plan) -> tuple[Float[Array, "T J D"], _Plan]:
    return _collect(rows, plan), plan


def _collect_backward(plan: _Plan, dparts: Float[Array, "T J D"]) -> tuple[Float[Array, "N D"], None]:
    flat = dparts.reshape(-1, dparts.shape[-1])
    return jnp.where(plan.held[:, None], flat[plan.copy], 0), None


_dispatch.defvjp(_dispatch_forward, _dispatch_backward)
_collect.defvjp(_collect_forward, _collect_backward)


def _ragged(sizes: Int[Array, " X"], rows: Float[Array, "N I"], maps: Float[Array, "X I O"]) -> Float[Array, "N O"]:
    """Each row times the map of its expert, by the library's kernel."""
    return lax.ragged_dot(rows, maps, sizes)


def _blocks(owner: Int[Array, " M"], rows: Float[Array, "N I"], maps: Float[Array, "X I O"]) -> Float[Array, "N O"]:
    """Each row times the map of its block's expert, block by block."""
    return _blocks_product(rows, maps, owner)


@jax.custom_vjp
def _blocks_product(
    rows: Float[Array, "N I"], maps: Float[Array, "X I O"], owner: Int[Array, " M"]
) -> Float[Array, "N O"]:
    split = rows.reshape(owner.shape[0], -1, rows.shape[1])
    one = lambda _, item: (None, item[0] @ lax.dynamic_index_in_dim(maps, item[1], keepdims=False))
    return lax.scan(one, None, (split, owner))[1].reshape(rows.shape[0], maps.shape[2])


def _blocks_forward(
    rows: Float[Array, "N I"], maps: Float[Array, "X I O"], owner: Int[Array, " M"]
) -> tuple[Float[Array, "N O"], tuple[Array, Array, Array]]:
    return _blocks_product(rows, maps, owner), (rows, maps, owner)


def _blocks_backward(
    kept: tuple[Float[Array, "N I"], Float[Array, "X I O"], Int[Array, " M"]], dy: Float[Array, "N O"]
) -> tuple[Float[Array, "N I"], Float[Array, "X I O"], None]:
    rows, maps, owner = kept
    split = lambda x: x.reshape(owner.shape[0], -1, x.shape[1])

    def one(dmaps: Array, item: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        x, dy, expert = item
        old = lax.dynamic_index_in_dim(dmaps, expert, keepdims=False)
        new = old + jnp.matmul(x.T, dy, preferred_element_type=old.dtype)
        dmaps = lax.dynamic_update_index_in_dim(dmaps, new, expert, 0)
        return dmaps, dy @ lax.dynamic_index_in_dim(maps, expert, keepdims=False).T

    # zeros_like: inside a shard_map it is, as maps, another on each device.
    zero = jnp.zeros_like(maps, dtype=jnp.promote_types(maps.dtype, jnp.float32))
    dmaps, dx = lax.scan(one, zero, (split(rows), split(dy), owner))
    return dx.reshape(rows.shape), dmaps.astype(maps.dtype), None


_blocks_product.defvjp(_blocks_forward, _blocks_backward)
