"""The loop over a model's stacked layers: how many in a turn, and what the backward pass computes again."""

import operator
from collections.abc import Callable
from typing import TypeAlias, TypeVar

import jax
from jax import lax
from jaxtyping import PyTree

from distill.config import ModelConfig
from distill.model import sharding

PRODUCT = "product"  # the name under which remat='dots' finds the results of linear maps
Carry = TypeVar("Carry")
Body: TypeAlias = Callable[[PyTree, PyTree], tuple[PyTree, None]]  # of a scan over layers


def scan(
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


def with_remat(body: Body, config: ModelConfig) -> Body:
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
