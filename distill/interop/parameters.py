"""Loads tensors from disk into the sharded layout, one at a time.

Each layer's tensor is read, cut, transferred, and written to its index of the stacked array on the devices. The host
therefore holds one tensor of the checkpoint and two parts of tensors (one in transfer, one being cut): less than the
tensor and one shard of the stacked array. On a CPU, whose devices' memory is the host's, layers are written straight
into the memory that the array then has: nothing to compile, and nothing held twice.
"""

import itertools
import math
import mmap
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from distill.config import ModelConfig
from distill.errors import InteropError
from distill.interop.layout import Layout, layouts
from distill.interop.safetensors import Tensor
from distill.interop.source import ModelSource
from distill.model.attention_kernels import platform
from distill.model.transformer import Transformer, parameter_name

OnTensor = Callable[[int], None]
Part = Callable[[tuple[slice, ...]], Tensor]  # the part of an array at these slices


def abstract(config: ModelConfig, dtype: str = "float32") -> Transformer:
    """The shapes and shardings of a model's parameters on the current mesh."""
    shapes = jax.eval_shape(lambda key: Transformer(config, key), jax.random.key(0))
    place = jax.sharding.get_mesh()
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, jnp.dtype(dtype), sharding=jax.NamedSharding(place, leaf.sharding.spec)
        ),
        shapes,
    )


def load(
    config: ModelConfig, source: ModelSource, dtype: str = "float32", on_tensor: OnTensor = lambda _: None
) -> Transformer:
    """Loads the parameters of a checked source on the current mesh, stored in `dtype`.

    `on_tensor` is called with the number of values of each tensor, or part of one, that was loaded.
    Raises InteropError, naming the tensor, for values that are not finite.
    """
    family = source.family
    table = layouts(config, family, family.folded(source.tree, config))
    leaves, structure = jax.tree_util.tree_flatten_with_path(abstract(config, dtype))
    return jax.tree.unflatten(
        structure, [_parameter(table[parameter_name(path)], leaf, source, on_tensor) for path, leaf in leaves]
    )


@jax.jit(donate_argnums=0)
def _write(stacked: jax.Array, part: jax.Array, index: tuple[jax.Array, ...]) -> jax.Array:
    part = lax.expand_dims(part.astype(stacked.dtype), range(len(index)))
    return lax.dynamic_update_slice(stacked, part, (*index, *[0] * (stacked.ndim - len(index))))


_PIECE = 1 << 16  # values that are looked at together, in a core's cache
_STRIP = 64  # columns that are written together


def finite(values: np.ndarray) -> bool:
    """Whether no value is NaN or inf.

    By the bits of the exponent: NumPy takes thirty times as long for the extremes of bfloat16, which it does not know.
    """
    bits = np.dtype(f"uint{8 * values.dtype.itemsize}")
    unsigned = np.array(np.iinfo(bits).max >> 1, bits)
    infinite = np.array(np.inf, values.dtype).view(bits)
    flat = values.reshape(-1).view(bits)
    return all(np.max(flat[i : i + _PIECE] & unsigned, initial=0) < infinite for i in range(0, flat.size, _PIECE))


def _parameter(layout: Layout, leaf: jax.ShapeDtypeStruct, source: ModelSource, on_tensor: OnTensor) -> jax.Array:
    def part(name: str, index: tuple[slice, ...]) -> Tensor:
        values = source.read(name, *layout.row_range(index))
        if not finite(values):
            raise InteropError(f"{source.path}: tensor {name!r} holds values that are not finite (NaN or inf)")
        return layout.import_part(values, index)

    def read(name: str, shape: tuple[int, ...], spec: jax.P) -> jax.Array:
        place = jax.NamedSharding(leaf.sharding.mesh, spec)
        array = _assemble(shape, place, lambda index: np.ascontiguousarray(part(name, index)))
        on_tensor(math.prod(shape))
        return array

    counts, shape = leaf.shape[: layout.stacked], leaf.shape[layout.stacked :]
    if platform() == "cpu":

        def layers(index: tuple[slice, ...]) -> Tensor:
            out = _memory(tuple(len(range(*s.indices(n))) for s, n in zip(index, leaf.shape)), leaf.dtype)
            chosen = [range(n)[piece] for piece, n in zip(index, counts)]
            for to, layer in zip(np.ndindex(*map(len, chosen)), itertools.product(*chosen)):
                _fill(out[to], part(layout.name.format(*layer), index[layout.stacked :]))
                on_tensor(out[to].size)
            return out

        return _assemble(leaf.shape, leaf.sharding, layers)
    if not layout.stacked:
        return read(layout.name, leaf.shape, leaf.sharding.spec).astype(leaf.dtype)
    spec = tuple(leaf.sharding.spec)
    dims = (*spec[layout.stacked :], *[None] * (leaf.ndim - len(spec)))
    stacked = jnp.zeros(leaf.shape, leaf.dtype, out_sharding=leaf.sharding)
    for index in itertools.product(*map(range, counts)):
        written = read(layout.name.format(*index), shape, jax.P(*dims))
        # Waiting limits the transfers in flight to one tensor.
        stacked = jax.block_until_ready(_write(stacked, written, tuple(jnp.int32(i) for i in index)))
    return stacked


def _memory(shape: tuple[int, ...], dtype: jnp.dtype) -> Tensor:
    """Memory that a CPU's array takes over as it is: JAX copies what does not begin at a multiple of 64 bytes.

    Not NumPy's, which asks for huge pages: where memory is in small pieces, the system takes five times as long.
    """
    return np.frombuffer(mmap.mmap(-1, max(1, math.prod(shape) * dtype.itemsize)), dtype, math.prod(shape)).reshape(
        shape
    )


def _fill(out: Tensor, values: Tensor) -> None:
    """out[...] = values, a strip at a time: a whole turned matrix falls out of a core's cache."""
    for i in range(0, max(out.shape[-1:], default=1), _STRIP):
        out[..., i : i + _STRIP] = values[..., i : i + _STRIP]


def _assemble(
    shape: tuple[int, ...], sharding: jax.NamedSharding, part: Callable[[tuple[slice, ...]], Tensor]
) -> jax.Array:
    """Assembles an array: reads each part once and sends it to every device of this process that holds it."""
    holders: dict[tuple[tuple[int, int, int], ...], list[jax.Device]] = {}
    indices: dict[tuple[tuple[int, int, int], ...], tuple[slice, ...]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        assert index is not None  # a NamedSharding gives every device a part
        key = tuple(piece.indices(size) for piece, size in zip(index, shape))
        holders.setdefault(key, []).append(device)
        indices[key] = index
    arrays = []
    for key, devices in holders.items():
        # JAX owns a part from here on: a shared buffer would be overwritten while JAX still reads it.
        value = part(indices[key])
        arrays += jax.block_until_ready([jax.device_put(value, device) for device in devices])
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)
