"""The order in which a TPU keeps arrays of heads."""

import jax.numpy as jnp
import pytest

from distill.model import layouts


@pytest.mark.parametrize(
    ("shape", "itemsize", "order"),
    [
        ((34, 136, 34, 128), 4, (0, 2, 1, 3)),  # {3,1,2,0} of 7.75B's queries on 256 v5e, in libtpu's program
        ((34, 34, 128, 136), 4, (0, 1, 3, 2)),  # {2,3,1,0}, of its output maps
        ((8, 256, 8, 128), 4, (0, 1, 2, 3)),  # nothing to gain
        ((40, 160, 40, 128), 2, (0, 2, 1, 3)),  # columns of 16 in bfloat16: 40 heads would be 48
        ((40, 160, 40, 128), 4, (0, 1, 2, 3)),
    ],
)
def test_heads_lie_in_the_order_with_the_least_padding(shape, itemsize, order):
    assert layouts.order(shape, itemsize) == order


def test_nothing_is_asked_for_but_of_a_tpu():
    state = {"query": jnp.ones((1, 2, 3, 4)), "step": jnp.zeros(())}
    assert layouts.compact(state) is state
