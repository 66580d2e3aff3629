"""Products of linear maps in int8 or float8: both operands become steps times a scale, and the steps are multiplied.

An activation has a scale for each token, a weight one for each output channel, so that no scale stands inside the sum
(LLM.int8(), Dettmers et al. 2208.07339, section 2.1, its vector-wise products without the outliers; float8: E4M3 of
2209.05433). TPUs multiply int8, H100s both, at twice the rate of bfloat16. A CPU does not: there the same steps are
multiplied as float32, which shows what they cost in quality, not what they gain in time.

Letters of the shapes: distill/types.py.
"""

import dataclasses
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from distill.model import sharding
from distill.model.attention_kernels import platform

Kind: TypeAlias = Literal["full", "int8", "float8"]  # full: plain products, which are none of this module
Axes: TypeAlias = tuple[int, ...]

# The type of the steps, and the largest of them.
STEPS = {"int8": (jnp.int8, 127.0), "float8": (jnp.float8_e4m3fn, 448.0)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantised:
    """Steps times a scale for each channel; takes the place of a weight in a Param.

    `multiplied` says whether a linear map multiplies the steps, or the weights that they stand for.
    """

    steps: Shaped[Array, "..."]
    scale: Float[Array, "..."]
    multiplied: bool = dataclasses.field(default=False, metadata={"static": True})

    def __getitem__(self, _: object) -> "Quantised":
        return self

    def astype(self, dtype: DTypeLike) -> Array:
        """The weights in `dtype`; steps times scale is computed in float32, because bfloat16 has too few digits."""
        return (self.steps.astype(jnp.float32) * self.scale).astype(dtype)


def gathered(weight: Quantised, name: str) -> Quantised:
    """A stored weight gathered over fsdp as a matrix (sharding.gather_for_use): its steps travel, a byte each."""
    scale, steps = weight.scale, sharding.gather_for_use(weight.steps, name)
    scale = lax.reshape(scale, (1, steps.shape[1]), out_sharding=P(None, _spec(steps)[1]))
    return Quantised(steps, scale, weight.multiplied)


def quantise(x: Float[Array, "..."], summed: Axes, kind: Kind, *, multiplied: bool = True) -> Quantised:
    """x with one scale for all entries along `summed`: the largest of them becomes the largest step."""
    dtype, largest = STEPS[kind]
    exact = x.astype(jnp.float32)
    most = jnp.max(jnp.abs(exact), axis=summed, keepdims=True)
    # What is next to nothing has a scale of one; NaN and inf stay in the scale, for a step cannot hold them.
    scale = jnp.where(most < 1e-30, 1.0, most) / largest
    steps = exact / scale
    return Quantised((jnp.round(steps) if kind == "int8" else steps).astype(dtype), scale, multiplied)


def dot(
    x: Float[Array, "B S ..."],
    w: Float[Array, "..."] | Quantised,
    summed: tuple[Axes, Axes],
    place: P,
    dtype: DTypeLike,
    kind: Kind,
) -> Float[Array, "B S ..."]:
    """The product of x and w over the dims `summed` of each, sharded as `place`, in `dtype`.

    x is summed over all dims after S. A w that is `Quantised` already is multiplied as it is, whatever `kind` says.
    """
    weight = w if isinstance(w, Quantised) else quantise(_plain(w), summed[1], kind)
    kind = "int8" if weight.steps.dtype == jnp.int8 else "float8"
    token = quantise(x, summed[0], kind)
    # Float8 is summed in float32 whatever comes out; int8 exactly.
    pair, exact = (token.steps, _plain(weight.steps)), jnp.int32 if kind == "int8" else dtype
    if platform() == "cpu":
        pair, exact = (pair[0].astype(jnp.float32), pair[1].astype(jnp.float32)), jnp.float32
    sums = lax.dot_general(*pair, (summed, ((), ())), preferred_element_type=exact, out_sharding=place)
    # The scales, laid out beside the sums: [B S 1 ...] and [1 1 O ...].
    kept = [i for i in range(weight.scale.ndim) if i not in summed[1]]
    ones, channels = (1,) * len(kept), tuple(weight.scale.shape[i] for i in kept)
    none = (None,) * len(kept)
    held = _spec(weight.scale)
    of_token = lax.reshape(token.scale, (*x.shape[:2], *ones), out_sharding=P(*_spec(token.scale)[:2], *none))
    of_channel = lax.reshape(weight.scale, (1, 1, *channels), out_sharding=P(None, None, *(held[i] for i in kept)))
    of_token = jax.sharding.reshard(of_token, P(*place[:2], *none))
    of_channel = jax.sharding.reshard(of_channel, P(None, None, *place[2:]))
    return (sums.astype(jnp.float32) * of_token * of_channel).astype(dtype)


def _spec(x: Array) -> P:
    """How a value is sharded, without the marks of how its gradient is summed."""
    return P(*jax.typeof(x).sharding.spec.partitions)


def _plain(w: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """A gathered weight without the mark of how its gradient is summed, which steps do not have."""
    return jax.sharding.reshard(w, _spec(w)) if jax.typeof(w).sharding.spec.reduced else w
