"""Loads tensors from disk into the sharded layout, one at a time.

Each layer's tensor is read, cut, transferred, and written to its index of the stacked array on the devices. The host
therefore holds one tensor of the checkpoint and two parts of tensors (one in transfer, one being cut): less than the
tensor and one shard of the stacked array.
"""

import itertools
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

    `on_tensor` is called with the number of values of each loaded tensor.
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


_PIECE = 1 << 20  # values that are looked at together, in a core's cache


def finite(values: np.ndarray) -> bool:
    """Whether no value is NaN or inf.

    By the bits of the exponent: NumPy takes ten times as long for the extremes of bfloat16, which it does not know.
    """
    bits = np.dtype(f"uint{8 * values.dtype.itemsize}")
    unsigned = np.array(np.iinfo(bits).max >> 1, bits)
    infinite = np.array(np.inf, values.dtype).view(bits)
    flat = values.reshape(-1).view(bits)
    return all(np.max(flat[i : i + _PIECE] & unsigned, initial=0) < infinite for i in range(0, flat.size, _PIECE))


def _parameter(layout: Layout, leaf: jax.ShapeDtypeStruct, source: ModelSource, on_tensor: OnTensor) -> jax.Array:
    def read(name: str, shape: tuple[int, ...], spec: jax.P) -> jax.Array:
        def part(index: tuple[slice, ...]) -> Tensor:
            values = np.ascontiguousarray(layout.import_part(source.read(name, *layout.row_range(index)), index))
            if not finite(values):
                raise InteropError(f"{source.path}: tensor {name!r} holds values that are not finite (NaN or inf)")
            return values

        array = _assemble(shape, jax.NamedSharding(leaf.sharding.mesh, spec), part)
        on_tensor(int(np.prod(shape)))
        return array

    if not layout.stacked:
        return read(layout.name, leaf.shape, leaf.sharding.spec).astype(leaf.dtype)
    counts, shape = leaf.shape[: layout.stacked], leaf.shape[layout.stacked :]
    spec = tuple(leaf.sharding.spec)
    dims = (*spec[layout.stacked :], *[None] * (leaf.ndim - len(spec)))
    stacked = jnp.zeros(leaf.shape, leaf.dtype, out_sharding=leaf.sharding)
    for index in itertools.product(*map(range, counts)):
        part = read(layout.name.format(*index), shape, jax.P(*dims))
        # Waiting limits the transfers in flight to one tensor.
        stacked = jax.block_until_ready(_write(stacked, part, tuple(jnp.int32(i) for i in index)))
    return stacked


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
