"""Weighted sums merge exactly, and what has no weight does not count."""

import jax
import jax.numpy as jnp
import numpy as np

from distill.losses.sums import WeightedSum, weighted_sum


def test_parts_merge_to_the_mean_of_the_whole_and_not_to_the_mean_of_means():
    values, weight = np.arange(12.0, dtype=np.float32).reshape(3, 4), np.array([[1.0, 0, 2, 1]] * 2 + [[9.0, 9, 9, 9]])
    parts = [weighted_sum(jnp.asarray(v[None]), jnp.asarray(w[None], jnp.float32)) for v, w in zip(values, weight)]
    merged = (parts[0] + parts[1] + parts[2]).mean()
    np.testing.assert_allclose(merged, np.average(values, weights=weight), rtol=1e-6)
    assert abs(merged - np.mean([part.mean() for part in parts])) > 0.5


def test_what_has_no_weight_never_counts_even_when_it_is_not_finite():
    values = jnp.array([[1.0, jnp.nan, jnp.inf, 3.0]])
    found = weighted_sum(values, jnp.array([[1.0, 0.0, 0.0, 1.0]]))
    assert (float(found.value), float(found.weight)) == (4.0, 2.0)
    gradient = jax.grad(lambda v: weighted_sum(v, jnp.array([[1.0, 0.0, 0.0, 2.0]])).value)(values)
    np.testing.assert_array_equal(gradient, [[1.0, 0.0, 0.0, 2.0]])


def test_the_mean_of_nothing_is_zero():
    assert float(WeightedSum(jnp.zeros(()), jnp.zeros(())).mean()) == 0


def test_sums_travel_through_jit_and_scan_as_pytrees():
    add = lambda s, v: (s + WeightedSum(v, jnp.ones(())), None)
    found, _ = jax.lax.scan(add, WeightedSum(jnp.zeros(()), jnp.zeros(())), jnp.arange(5.0))
    assert float(found.mean()) == 2.0
