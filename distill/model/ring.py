"""Causal attention over sequences that several devices share: keys and values go round them (ring attention).

A sequence of S positions is cut into 2c spans of S / 2c, and device i of the c that share it holds two, spans i
('early') and 2c - 1 - i ('late'), so that all have the same work under a causal mask (distill/data/spans.py). Keys and
values travel from device to device (Liu et al. 2310.01889). At the turn in which device i sees those of device j,
three of the four products of spans are known without a mask: late queries see all early keys; early queries see no late
keys; and either early see early (j < i) or late see late (j > i). So a turn is two whole products of spans, on every
device, while the next keys travel. Partial results are merged by their logsumexp, exactly (Dao et al. 2205.14135).

Letters: n pairs of spans; L positions of one span; H query heads, G key-value heads, K head_dim, as everywhere.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from distill.config import ConfigError, ModelConfig
from distill.model import attention_kernels, positions, sharding
from distill.model.layers import capped
from distill.types import LOG_ZERO

QUERIES = 512  # computed at a time where there is no kernel, so that scores stay small

Ids: TypeAlias = Int[Array, "n L"] | None


class Keys(NamedTuple):
    """What travels: keys, values and their segments."""

    k: Float[Array, "n G L K"]
    v: Float[Array, "n G L K"]
    ids: Ids


class Rows(NamedTuple):
    """Queries with what the backward pass knows of them: outputs, logsumexp of their scores, and outputs' gradient."""

    q: Float[Array, "n H L K"]
    ids: Ids
    out: Float[Array, "n H L K"]
    lse: Float[Array, "n H L"]
    dout: Float[Array, "n H L K"]


Result: TypeAlias = tuple[Float[Array, "n H L K"], Float[Array, "n H L"]]
Sums: TypeAlias = tuple[Array, tuple[Array, Array]]  # gradients of queries, and of keys and values, in float32
Gradients: TypeAlias = tuple[Float[Array, "n H L K"], Float[Array, "n G L K"], Float[Array, "n G L K"]]


def check(config: ModelConfig) -> None:
    """Raises ConfigError for a model whose attention is not known over shared sequences."""
    windows = [kind.window for kind in positions.kinds(config) if kind.window]
    what = f"layers with a window (model.window={windows[0]})" if windows else ""
    what = what or ("attention sinks (model.attention_sinks)" if config.attention_sinks else "")
    what = what or ("cuDNN's attention (model.attention='cudnn')" if config.attention == "cudnn" else "")
    if what:
        raise ConfigError(f"config.mesh.context: a sequence that devices share is not known to {what}; set it to 1")


def attention(
    config: ModelConfig,
    devices: int,
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L G K"],
    v: Float[Array, "B L G K"],
    segment: Int[Array, "B L"] | None,
) -> Float[Array, "B L H K"]:
    """softmax(q k') v over the whole sequence, of which `devices` neighbours along fsdp hold two rows each.

    q is already scaled; softmax is in float32. Splash where a TPU takes it, else our own products.
    """
    check(config)
    kernel = attention_kernels.chosen(config, q.shape[1])
    local = functools.partial(_local, "splash" if kernel == "splash" else "xla", devices, config.attention_cap)
    heads, ids = sharding.ACT_BSHK, sharding.TOKENS_BS
    given = (q, k, v) if segment is None else (q, k, v, jax.sharding.reshard(segment, ids))
    specs = (heads, heads, heads, ids)[: len(given)]
    return jax.shard_map(local, in_specs=specs, out_specs=heads, check_vma=False)(*given)


def _local(
    kernel: str,
    devices: int,
    cap: float,
    q: Float[Array, "n L H K"],
    k: Float[Array, "n L G K"],
    v: Float[Array, "n L G K"],
    segment: Ids = None,
) -> Float[Array, "n L H K"]:
    """The two spans of one device."""
    if q.shape[0] != 2:
        raise ConfigError(f"a device holds two spans of a shared sequence, got {q.shape[0]} rows")
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    return jnp.swapaxes(_ring(kernel, devices, cap, q, k, v, segment), 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _ring(
    kernel: str,
    devices: int,
    cap: float,
    q: Float[Array, "2 H L K"],
    k: Float[Array, "2 G L K"],
    v: Float[Array, "2 G L K"],
    ids: Ids,
) -> Float[Array, "2 H L K"]:
    return _ring_forward(kernel, devices, cap, q, k, v, ids)[0]


def _take(x: PyTree, row: int | Array) -> PyTree:
    """One of two spans, as a batch of one."""
    return jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, row, 1), x)


def _put(x: PyTree, row: int | Array, new: PyTree) -> PyTree:
    """Two spans with one of them new."""
    return jax.tree.map(lambda leaf, one: lax.dynamic_update_slice_in_dim(leaf, one, row, 0), x, new)


def _add(x: PyTree, row: int | Array, more: PyTree) -> PyTree:
    """Two spans with more added to one of them."""
    return _put(x, row, jax.tree.map(lambda one, new: one + new.astype(one.dtype), _take(x, row), more))


def _pass_on(x: PyTree, devices: int) -> PyTree:
    """To the next of the devices that share a sequence.

    XLA lets a permutation on a CPU wait beside another collective, until all its threads wait: there all is gathered.
    """
    size = lax.axis_size("fsdp")
    if attention_kernels.platform() == "cpu":
        me = lax.axis_index("fsdp")
        source = me - me % devices + (me - 1) % devices
        take = lambda leaf: lax.dynamic_index_in_dim(lax.all_gather(leaf, "fsdp"), source, keepdims=False)
        return jax.tree.map(take, x)
    turn = [(i, i - i % devices + (i + 1) % devices) for i in range(size)]
    return jax.tree.map(lambda leaf: lax.ppermute(leaf, "fsdp", turn), x)


def _merge(a: Result, b: Result) -> Result:
    """Attention over the keys of both."""
    top = jnp.maximum(a[1], b[1])
    weight_a, weight_b = jnp.exp(a[1] - top), jnp.exp(b[1] - top)
    total = weight_a + weight_b
    scale = lambda weight: (weight / total)[..., None]
    return scale(weight_a) * a[0] + scale(weight_b) * b[0], top + jnp.log(total)


def _ring_forward(
    kernel: str,
    devices: int,
    cap: float,
    q: Float[Array, "2 H L K"],
    k: Float[Array, "2 G L K"],
    v: Float[Array, "2 G L K"],
    ids: Ids,
) -> tuple[Float[Array, "2 H L K"], tuple[PyTree, ...]]:
    forward, me = _FORWARD[kernel], lax.axis_index("fsdp") % devices
    own, rows = Keys(k, v, ids), (q, ids)

    def seeing(result: Result, row: int | Array, keys: Keys, of: int | Array) -> Result:
        """With what the queries of one span see in all keys of one."""
        q, ids = _take(rows, row)
        return _put(result, row, _merge(_take(result, row), forward(cap, False, q, _take(keys, of), ids)))

    result = seeing(forward(cap, True, q, own, ids), 1, own, 0)

    def turn(carry: tuple[Keys, Result], number: Array) -> tuple[tuple[Keys, Result], None]:
        seen, result = carry
        later = _pass_on(seen, devices)  # it travels while these are multiplied
        chosen = jnp.where(number <= me, 0, 1)  # whether device me - number has earlier spans than this one
        return (later, seeing(seeing(result, 1, seen, 0), chosen, seen, chosen)), None

    if devices > 1:
        (_, result), _ = lax.scan(turn, (_pass_on(own, devices), result), jnp.arange(1, devices))
    out, lse = result[0].astype(q.dtype), result[1]
    return out, (q, k, v, ids, out, lse)


def _ring_backward(
    kernel: str, devices: int, cap: float, kept: tuple[PyTree, ...], dout: Float[Array, "2 H L K"]
) -> tuple[Float[Array, "2 H L K"], Float[Array, "2 G L K"], Float[Array, "2 G L K"], None]:
    q, k, v, ids, out, lse = kept
    backward, me = _BACKWARD[kernel], lax.axis_index("fsdp") % devices
    exact = jnp.promote_types(q.dtype, jnp.float32)
    own, rows = Keys(k, v, ids), Rows(q, ids, out, lse, dout)
    precise = lambda x: jax.tree.map(lambda leaf: leaf.astype(exact), x)

    def seeing(sums: Sums, row: int | Array, keys: Keys, of: int | Array) -> Sums:
        """With the gradients of one span's queries and of one span's keys, by each other."""
        dq, *dkv = backward(cap, False, _take(rows, row), _take(keys, of))
        return _add(sums[0], row, dq), _add(sums[1], of, tuple(dkv))

    dq, *dkv = precise(backward(cap, True, rows, own))
    dq, dkv = seeing((dq, tuple(dkv)), 1, own, 0)

    def turn(carry: tuple[Keys, PyTree, Array], number: Array) -> tuple[tuple[Keys, PyTree, Array], None]:
        seen, dkv, dq = carry
        later, chosen = _pass_on(seen, devices), jnp.where(number <= me, 0, 1)
        dq, dkv = seeing(seeing((dq, dkv), 1, seen, 0), chosen, seen, chosen)
        return (later, _pass_on(dkv, devices), dq), None

    if devices > 1:
        # The gradients of keys travel with them, one turn more than the keys: then they are home.
        start = _pass_on((own, dkv), devices)
        (_, dkv, dq), _ = lax.scan(turn, (*start, dq), jnp.arange(1, devices))
    return dq.astype(q.dtype), dkv[0].astype(k.dtype), dkv[1].astype(v.dtype), None


_ring.defvjp(_ring_forward, _ring_backward)


def _splash_kernel(q: Float[Array, "n H L K"], causal: bool, cap: float) -> PyTree:
    """Splash for one span's queries on one span's keys, which also returns the logsumexp."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    _, heads, length, width = q.shape
    mask = (splash.CausalMask if causal else splash.FullMask)((length, length))
    return splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads), head_shards=1, q_seq_shards=1, save_residuals=True,
        block_sizes=attention_kernels.block_sizes(length, 0, width * q.dtype.itemsize),
        interpret=attention_kernels.platform() != "tpu", attn_logits_soft_cap=cap or None,
    )  # fmt: skip


def _segments(q: Int[Array, "*n L"] | None, k: Int[Array, "*n L"] | None) -> PyTree:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    return None if q is None or k is None else splash.SegmentIds(q=q, kv=k)


def _splash_forward(cap: float, causal: bool, q: Float[Array, "n H L K"], keys: Keys, ids: Ids) -> Result:
    kernel = _splash_kernel(q, causal, cap)
    out, (lse,) = jax.vmap(kernel)(q, keys.k, keys.v, _segments(ids, keys.ids))
    return out.astype(jnp.float32), lse


def _splash_backward(cap: float, causal: bool, rows: Rows, keys: Keys) -> Gradients:
    """The gradients of one product of spans, whose probabilities are by the logsumexp over all keys.

    JAX differentiates Splash only with the logsumexp of its own keys, so its backward pass is called by its name
    within JAX (tests/model/test_ring.py holds it to our own products).
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as module

    kernel = _splash_kernel(rows.q, causal, cap)
    names = "mask_value", "is_mqa", "block_sizes", "residual_checkpoint_name", "mask_function"
    options = {name: kernel.kwargs[name] for name in (*names, "attn_logits_soft_cap", "interpret")}

    def one(rows: Rows, keys: Keys) -> tuple[Float[Array, "H L K"], Float[Array, "G L K"], Float[Array, "G L K"]]:
        ids = _segments(rows.ids, keys.ids)
        kept = rows.q, keys.k, keys.v, ids, None, rows.out, rows.lse, kernel.dq_mask_info, kernel.dkv_mask_info
        return module._splash_attention_bwd(save_residuals=False, res=kept, do=rows.dout, **options)[3:6]

    return jax.vmap(one)(rows, keys)


def _visible(causal: bool, start: Array, count: int, ids: Ids, keys: Keys) -> Array:
    """Which keys `count` queries from `start` on may see, [n or 1, 1, 1, count, L]."""
    length = keys.k.shape[2]
    position = start + jnp.arange(count)[:, None]
    seen = (position >= jnp.arange(length)[None] if causal else jnp.ones((count, length), bool))[None, None, None]
    if ids is None or keys.ids is None:
        return seen
    own = lax.dynamic_slice_in_dim(ids, start, count, axis=1)
    return seen & (own[:, None, None, :, None] == keys.ids[:, None, None, None, :])


def _in_blocks(block: Callable[[Array], PyTree], length: int) -> PyTree:
    """block(start) for blocks of queries one after the other, stacked."""
    return lax.map(block, jnp.arange(0, length, _count(length)))


def _count(length: int) -> int:
    return next(n for n in range(min(QUERIES, length), 0, -1) if length % n == 0)


def _grouped(x: Float[Array, "n H L ..."], groups: int) -> Float[Array, "n G R L ..."]:
    return x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])


def _joined(blocks: Float[Array, "blocks n G R b ..."]) -> Float[Array, "n H L ..."]:
    """The blocks of queries along their positions again, and all heads in one dimension."""
    x = jnp.moveaxis(blocks, 0, 3)
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3] * x.shape[4], *x.shape[5:])


def _scores(cap: float, q: Float[Array, "n G R b K"], k: Float[Array, "n G L K"], seen: Array) -> tuple[Array, Array]:
    """Scores under their cap and mask in float32 at least, and the slope of the cap."""
    exact = jnp.promote_types(q.dtype, jnp.float32)
    raw = jnp.einsum("ngrbk,nglk->ngrbl", q, k, preferred_element_type=exact)
    slope = 1 - jnp.square(jnp.tanh(raw / cap)) if cap else jnp.ones((), exact)
    return jnp.where(seen, capped(raw, cap), LOG_ZERO), slope


def _plain_forward(cap: float, causal: bool, q: Float[Array, "n H L K"], keys: Keys, ids: Ids) -> Result:
    grouped, length = _grouped(q, keys.k.shape[1]), q.shape[2]
    count = _count(length)

    def block(start: Array) -> tuple[Array, Array]:
        own = lax.dynamic_slice_in_dim(grouped, start, count, axis=3)
        scores, _ = _scores(cap, own, keys.k, _visible(causal, start, count, ids, keys))
        lse = jax.nn.logsumexp(scores, axis=-1)
        weights = jnp.exp(scores - lse[..., None]).astype(q.dtype)
        return jnp.einsum("ngrbl,nglk->ngrbk", weights, keys.v, preferred_element_type=scores.dtype), lse

    out, lse = _in_blocks(block, length)
    return _joined(out), _joined(lse)


def _plain_backward(cap: float, causal: bool, rows: Rows, keys: Keys) -> Gradients:
    groups, length = keys.k.shape[1], rows.q.shape[2]
    count, exact = _count(length), jnp.promote_types(rows.q.dtype, jnp.float32)
    rowsum = jnp.sum(rows.dout.astype(exact) * rows.out.astype(exact), axis=-1)
    split = tuple(_grouped(x, groups) for x in (rows.q, rows.dout, rows.lse, rowsum))
    product = functools.partial(jnp.einsum, preferred_element_type=exact)

    def block(sums: tuple[Array, Array], start: Array) -> tuple[tuple[Array, Array], Array]:
        q, dout, lse, rowsum = (lax.dynamic_slice_in_dim(x, start, count, axis=3) for x in split)
        scores, slope = _scores(cap, q, keys.k, _visible(causal, start, count, rows.ids, keys))
        weights = jnp.exp(scores - lse[..., None])
        dscores = weights * (product("ngrbk,nglk->ngrbl", dout, keys.v) - rowsum[..., None]) * slope
        dscores = dscores.astype(q.dtype)
        dk = sums[0] + product("ngrbl,ngrbk->nglk", dscores, q)
        dv = sums[1] + product("ngrbl,ngrbk->nglk", weights.astype(q.dtype), dout)
        return (dk, dv), product("ngrbl,nglk->ngrbk", dscores, keys.k)

    zero = jnp.zeros(keys.k.shape, exact), jnp.zeros(keys.v.shape, exact)
    (dk, dv), dq = lax.scan(block, zero, jnp.arange(0, length, count))
    return _joined(dq), dk, dv


_FORWARD = {"splash": _splash_forward, "xla": _plain_forward}
_BACKWARD = {"splash": _splash_backward, "xla": _plain_backward}
