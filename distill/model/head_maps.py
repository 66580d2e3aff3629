"""Linear maps into and out of heads as products of three dimensions, which a TPU takes without turning arrays.

As matrices, [B, S, H K] has to be laid out again as [B, S, H, K] between the map and the norm, the rotation and the
kernel of attention (docs/results/speed.md). The gradient of a weight stays a product of matrices: of three dimensions,
the TPU compiler does not scatter it over fsdp, it sums it whole on every device. Letters: distill/types.py.
"""

import functools

import jax
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from distill.model import attention_kernels, layers, products, sharding
from distill.model.products import Kind as ProductKind
from distill.model.products import Quantised


def preferred() -> bool:
    """Whether the current mesh's devices are better off with these than with `layers.linear`."""
    return attention_kernels.platform() == "tpu"


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def into(
    x: Float[Array, "B S D"], w: Float[Array, "D _"] | Quantised, width: int, kind: ProductKind = "full"
) -> Float[Array, "B S H K"]:
    """x w, in heads of `width` channels: `w` is a matrix [D, H K]; `kind` as in `layers.linear`."""
    if isinstance(w, Quantised):
        w = Quantised(_in(w.steps, width), _in(w.scale, width), w.multiplied)
        return products.dot(x, w, ((2,), (0,)), sharding.ACT_BSHK, x.dtype, kind)
    if kind != "full":
        return products.dot(x, _in(w, width), ((2,), (0,)), sharding.ACT_BSHK, x.dtype, kind)
    return lax.dot_general(x, _in(w, width), (((2,), (0,)), ((), ())), out_sharding=sharding.ACT_BSHK)


def _into_forward(
    x: Float[Array, "B S D"], w: Float[Array, "D _"], width: int, kind: ProductKind
) -> tuple[Float[Array, "B S H K"], tuple[Array, Array]]:
    return into(x, w, width, kind), (x, w)


def _into_backward(
    width: int, kind: ProductKind, kept: tuple[Float[Array, "B S D"], Float[Array, "D _"]], dy: Float[Array, "B S H K"]
) -> tuple[Float[Array, "B S D"], Float[Array, "D _"]]:
    x, w = kept
    dx = lax.dot_general(dy, _in(w, width), (((2, 3), (1, 2)), ((), ())), out_sharding=layers.spec_of(x))
    return dx, layers.weight_gradient(x, w, _matrix(dy))


into.defvjp(_into_forward, _into_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def out_of(
    x: Float[Array, "B S H K"], w: Float[Array, "_ D"] | Quantised, place: P, kind: ProductKind = "full"
) -> Float[Array, "B S D"]:
    """x w over all channels of all heads, sharded as `place`: `w` is a matrix [H K, D]; `kind` as in `linear`."""
    if isinstance(w, Quantised):
        w = Quantised(_out(w.steps, x.shape[3]), w.scale[None], w.multiplied)
        return products.dot(x, w, ((2, 3), (0, 1)), place, x.dtype, kind)
    if kind != "full":
        return products.dot(x, _out(w, x.shape[3]), ((2, 3), (0, 1)), place, x.dtype, kind)
    return lax.dot_general(x, _out(w, x.shape[3]), (((2, 3), (0, 1)), ((), ())), out_sharding=place)


def _out_of_forward(
    x: Float[Array, "B S H K"], w: Float[Array, "_ D"], place: P, kind: ProductKind
) -> tuple[Float[Array, "B S D"], tuple[Array, Array]]:
    return out_of(x, w, place, kind), (x, w)


def _out_of_backward(
    place: P, kind: ProductKind, kept: tuple[Float[Array, "B S H K"], Float[Array, "_ D"]], dy: Float[Array, "B S D"]
) -> tuple[Float[Array, "B S H K"], Float[Array, "_ D"]]:
    x, w = kept
    dy = layers.whole_sequence(dy, place)
    dx = lax.dot_general(dy, _out(w, x.shape[3]), (((2,), (2,)), ((), ())), out_sharding=layers.spec_of(x))
    return dx, layers.weight_gradient(_matrix(x), w, dy)


out_of.defvjp(_out_of_forward, _out_of_backward)


def _in(w: Float[Array, "D _"], width: int) -> Float[Array, "D H K"]:
    spec = layers.spec_of(w)
    place = P(*spec.partitions, None, reduced=spec.reduced)
    return lax.reshape(w, (w.shape[0], w.shape[1] // width, width), out_sharding=place)


def _out(w: Float[Array, "_ D"], width: int) -> Float[Array, "H K D"]:
    spec = layers.spec_of(w)
    place = P(spec.partitions[0], None, spec.partitions[1], reduced=spec.reduced)
    return lax.reshape(w, (w.shape[0] // width, width, w.shape[1]), out_sharding=place)


def _matrix(x: Float[Array, "B S H K"]) -> Float[Array, "B S _"]:
    return lax.reshape(x, (*x.shape[:2], x.shape[2] * x.shape[3]), out_sharding=sharding.ACT_BSF)
