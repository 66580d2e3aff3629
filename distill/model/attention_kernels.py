"""Attention kernels that never write the scores to memory: Splash on a TPU, cuDNN's on an NVIDIA GPU, one interface.

These are JAX's kernels (jax.experimental.pallas.ops.tpu.splash_attention, jax.nn.dot_product_attention), run on each
device of the mesh separately, since attention mixes neither rows nor heads. On another device, Splash is interpreted
and cuDNN's call is computed by XLA: slow, but with the same numbers, for tests.
"""

import functools
from typing import TYPE_CHECKING, Literal, TypeAlias

import jax
from jax import lax
from jaxtyping import Array, Float, Int

from distill.config import ConfigError, ModelConfig, chips
from distill.model import sharding

if TYPE_CHECKING:
    from jax.experimental.pallas.ops.tpu.splash_attention import BlockSizes

Kernel: TypeAlias = Literal["xla", "splash", "cudnn"]

MIN_BLOCK = 128  # positions in one block of the TPU's kernel
MAX_BLOCK = 1024  # a length that this does not divide uses smaller blocks
MAX_COMPUTED = 512  # keys of a block that are multiplied at a time
MAX_HEAD = 512  # bytes of a head's row, beyond which blocks of 1024 do not fit the memory beside a TPU's units
_NO_SINKS = "the kernel is given no sinks (model.attention_sinks)"


def platform() -> str:
    """tpu, gpu or cpu: the platform of the current mesh, '' of an abstract mesh without devices."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return {"cuda": "gpu"}.get(device.platform, device.platform) if device else ""


def device_kind() -> str:
    """What JAX calls the devices of the current mesh; '' of an abstract mesh without devices."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind if device else ""


def automatic(config: ModelConfig, length: int, platform: str, kind: str) -> tuple[Kernel, str]:
    """What attention='auto' is on devices of this platform and kind, and why it is not the platform's kernel ('').

    'splash' on a TPU; 'cudnn' on the GPUs of distill/config/chips.py; else, and where they do not fit, 'xla'.
    """
    if config.attention_sinks and platform in ("tpu", "gpu"):
        return "xla", _NO_SINKS
    if platform == "tpu":
        reason = "" if length % MIN_BLOCK == 0 else f"Splash takes multiples of {MIN_BLOCK} positions, not {length}"
        return ("xla", reason) if reason else ("splash", "")
    if platform != "gpu":
        return "xla", ""
    known = chips.recognise(kind)
    if known is None or not known.node:
        return "xla", f"cuDNN's kernel was not considered for a {kind}; ask for it by model.attention='cudnn'"
    if length % 2:
        return "xla", f"cuDNN takes an even number of positions, not {length}"
    return ("xla", reason) if (reason := _no_cudnn(config)) else ("cudnn", "")


def described(config: ModelConfig, length: int, platform: str, kind: str, shared: int = 1) -> str:
    """'cudnn (auto)', or 'xla (auto): ' and why; '' where the config names its attention, and on a CPU.

    `shared`: how many devices hold each sequence (distill/model/ring.py).
    """
    if shared > 1:
        splash = config.attention != "xla" and automatic(config, length // shared // 2, platform, kind)[0] == "splash"
        return f"{'splash' if splash else 'xla'}, keys go round the {shared} devices of a sequence"
    if config.attention != "auto" or platform == "cpu":
        return ""
    kernel, reason = automatic(config, length, platform, kind)
    return f"{kernel} (auto): {reason}" if reason else f"{kernel} (auto)"


def _no_cudnn(config: ModelConfig) -> str:
    """Why cuDNN's kernel does not take a model; '' if it does."""
    if config.attention_cap:
        return f"cuDNN has no cap of scores, got {config.attention_cap}"
    if config.dtype != "float32" and config.head_dim % 8 == 0 and config.head_dim <= 128:
        return ""
    return (
        f"cuDNN takes bfloat16 and heads of at most 128, a multiple of 8; got dtype={config.dtype!r} and heads of "
        f"{config.head_dim}"
    )


def chosen(config: ModelConfig, length: int) -> str:
    """The implementation for S = `length` keys on the current mesh: 'xla' (distill/model/layers.py), 'splash', 'cudnn'.

    'auto' is what `automatic` says. Raises ConfigError if the config's kernel does not support this model.
    """
    if config.attention == "auto":
        return automatic(config, length, platform(), device_kind())[0]
    if config.attention in ("splash", "cudnn") and config.attention_sinks:
        raise ConfigError(f"model.attention={config.attention!r}: {_NO_SINKS}; use 'xla'")
    if config.attention == "splash" and length % MIN_BLOCK:
        raise ConfigError(f"model.attention='splash' takes multiples of {MIN_BLOCK} positions, got {length}; use 'xla'")
    if config.attention == "cudnn" and (reason := _no_cudnn(config)):
        raise ConfigError(f"model.attention='cudnn': {reason}; use 'xla'")
    return config.attention


def attention(
    kind: str,
    window: int,
    cap: float,
    q: Float[Array, "B S H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    segment: Int[Array, "B S"] | None,
) -> Float[Array, "B S H K"]:
    """softmax(q k') v over the keys up to a query's position, in its segment and within `window` (0: no limit).

    q is already scaled. Softmax is in float32. Scores become cap tanh(score / cap), unless cap is 0.
    """
    local = functools.partial(_splash, window, cap) if kind == "splash" else functools.partial(_cudnn, window)
    heads, ids = sharding.ACT_BSHK, sharding.TOKENS_BS
    given = (q, k, v) if segment is None else (q, k, v, jax.sharding.reshard(segment, ids))
    specs = (heads, heads, heads, ids)[: len(given)]
    return jax.shard_map(local, in_specs=specs, out_specs=heads, check_vma=False)(*given)


def splash_blocks(length: int, window: int, row: int) -> tuple[int, int]:
    """Splash's blocks for heads whose rows have `row` bytes: their positions, and keys multiplied at a time.

    Found by the cycles of its compiled kernels (docs/results/speed.md): blocks of 1024 have the fewest on every chip.
    They are no longer than a window asks for, since scores outside it are computed too.
    """
    most = MAX_BLOCK if row <= MAX_HEAD else MAX_COMPUTED
    if window:
        most = min(most, max(MAX_COMPUTED, window))
    sizes = (1024, 512, 256, MIN_BLOCK)
    size = next(size for size in sizes if size <= most and length % size == 0)
    return size, min(size, MAX_COMPUTED)


def block_sizes(length: int, window: int, row: int) -> "BlockSizes":
    """`splash_blocks` as the library takes them."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    size, computed = splash_blocks(length, window, row)
    return splash.BlockSizes(
        block_q=size, block_kv=size, block_kv_compute=computed,
        block_q_dkv=size, block_kv_dkv=size, block_kv_dkv_compute=computed, block_q_dq=size, block_kv_dq=size,
    )  # fmt: skip


def _splash(
    window: int,
    cap: float,
    q: Float[Array, "B S H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    segment: Int[Array, "B S"] | None = None,
) -> Float[Array, "B S H K"]:
    """The rows and heads of one device."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    length, heads, width = q.shape[1:]
    blocks = block_sizes(length, window, width * q.dtype.itemsize)
    square = (length, length)
    mask = splash.LocalMask(square, (window - 1, 0), 0) if window else splash.CausalMask(square)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads), block_sizes=blocks, head_shards=1, q_seq_shards=1,
        interpret=platform() != "tpu", attn_logits_soft_cap=cap or None,
    )  # fmt: skip
    q, k, v = (lax.transpose(x, (0, 2, 1, 3)) for x in (q, k, v))
    if segment is None:
        out = jax.vmap(kernel)(q, k, v)
    else:
        out = jax.vmap(lambda q, k, v, ids: kernel(q, k, v, splash.SegmentIds(q=ids, kv=ids)))(q, k, v, segment)
    return lax.transpose(out, (0, 2, 1, 3)).astype(q.dtype)


def _cudnn(
    window: int,
    q: Float[Array, "B S H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    segment: Int[Array, "B S"] | None = None,
) -> Float[Array, "B S H K"]:
    """The rows and heads of one device. Segments become a mask [B, 1, S, S], the only array of that size written."""
    same = None if segment is None else segment[:, None, :, None] == segment[:, None, None, :]
    return jax.nn.dot_product_attention(
        q, k, v, mask=same, scale=1.0, is_causal=True, local_window_size=(window - 1, 0) if window else None,
        implementation="cudnn" if platform() == "gpu" else "xla",
    )  # fmt: skip
