import numpy as np
import pytest

from distill.data.order import CYCLE, Order
from distill.data.permutation import permute


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 65, 1000, 4097])
@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_is_a_permutation(size, seed):
    for epoch in (0, 1, 10**6):
        assert sorted(permute(np.arange(size), size, seed, epoch)) == list(range(size))


def test_any_element_is_found_alone_and_in_any_shape():
    whole = permute(np.arange(1000), 1000, 7)
    assert [int(permute(i, 1000, 7)) for i in (0, 17, 999)] == whole[[0, 17, 999]].tolist()
    np.testing.assert_array_equal(permute(np.arange(1000).reshape(10, 100), 1000, 7), whole.reshape(10, 100))


def test_epochs_and_seeds_give_other_orders():
    orders = {tuple(permute(np.arange(50), 50, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_epochs_may_differ_by_element():
    mixed = permute([3, 3], 100, 0, [0, 5])
    assert mixed.tolist() == [int(permute(3, 100, 0, 0)), int(permute(3, 100, 0, 5))]


def test_looks_uniform():
    """Over many keys each element lands everywhere equally often, and neighbours are uncorrelated (chi-square)."""
    size, seeds = 10, 20_000  # the epoch is as much a part of the key as the seed
    table = permute(np.arange(size)[None], size, 0, np.arange(seeds)[:, None])
    for place in range(size):
        counts = np.bincount(table[:, place], minlength=size)
        assert ((counts - seeds / size) ** 2 / (seeds / size)).sum() < 33.7  # 9 degrees of freedom, p = 1e-4
    big = permute(np.arange(100_000), 100_000, 3)
    assert abs(np.corrcoef(big[:-1], big[1:])[0, 1]) < 0.015


def test_huge_domains_cost_nothing():
    size = 10**13
    images = permute(np.arange(5), size, 0)
    assert len(set(images.tolist())) == 5 and images.min() >= 0 and images.max() < size


def test_one_part_goes_through_everything_each_epoch():
    order = Order([37], [1.0], seed=5)
    ids = order.ids(np.arange(37 * 3)).reshape(3, 37)
    assert all(sorted(epoch) == list(range(37)) for epoch in ids)
    assert len({tuple(epoch) for epoch in ids}) == 3


def test_mixture_holds_its_proportions_in_every_cycle():
    order = Order([1000, 50, 10], [0.5, 0.3, 0.2], seed=0)
    samples = np.arange(3 * CYCLE)
    part = np.searchsorted(order.offsets, order.ids(samples), "right") - 1
    for cycle in part.reshape(3, CYCLE):
        np.testing.assert_allclose(np.bincount(cycle) / CYCLE, [0.5, 0.3, 0.2], atol=1 / CYCLE)
    # Not in blocks: any 200 neighbours are a fair sample.
    shares = np.bincount(part[:200], minlength=3) / 200
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.2], atol=0.12)


def test_mixture_counts_draws_and_repeats_each_part_evenly():
    order = Order([1000, 50, 10], [0.5, 0.3, 0.2], seed=0)
    for samples in (1, 777, CYCLE, 2 * CYCLE + 123):
        ids = order.ids(np.arange(samples))
        part = np.searchsorted(order.offsets, ids, "right") - 1
        np.testing.assert_array_equal(order.draws(samples), np.bincount(part, minlength=3))
        assert set(order.distinct(samples).tolist()) == set(ids.tolist())
    times = np.bincount(ids[part == 2] - order.offsets[2])
    assert times.max() - times.min() <= 1
