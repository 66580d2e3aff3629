"""Packed signals: what comes out is what went in; probabilities, within their quantiser."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import SignalError
from distill.teacher.signals import codec
from distill.teacher.signals.codec import Ragged

PADDING = 2**23


def ragged(seed, size, most, vocab, *, symbols=0, rest=False, full=False):
    """A random window: some distinct ranks a token, rising."""
    rng = np.random.default_rng(seed)
    lengths = np.full(size, most) if full else rng.integers(0, most + 1, size)
    ranks = np.full((size, most), PADDING, np.int64)
    for row, length in enumerate(lengths):
        ranks[row, :length] = np.sort(rng.choice(vocab, length, replace=False))
    return Ragged(
        lengths,
        ranks,
        rng.integers(1, symbols, (size, most)) if symbols else None,
        rng.integers(0, 1024, size) if rest else None,
    )


def assert_same(got, want):
    inside = np.arange(want.ranks.shape[1]) < want.lengths[:, None]
    np.testing.assert_array_equal(got.lengths, want.lengths)
    np.testing.assert_array_equal(got.ranks[inside], want.ranks[inside])
    for name in ("symbols", "rest"):
        a, b = getattr(got, name), getattr(want, name)
        assert (a is None) == (b is None)
        if b is not None:
            np.testing.assert_array_equal(a[inside] if b.ndim == 2 else a, b[inside] if b.ndim == 2 else b)


@settings(deadline=None, max_examples=60, derandomize=True, database=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 20),
    st.integers(1, 40),
    st.sampled_from([40, 41, 300, 49_152, 2**20]),
    st.sampled_from([0, 2, 200, 5000]),
    st.booleans(),
    st.booleans(),
)
def test_a_window_comes_back(seed, size, most, vocab, symbols, rest, full):
    window = ragged(seed, size, most, vocab, symbols=symbols, rest=rest, full=full)
    assert_same(codec.unpack(codec.pack(window), size, most), window)


def test_more_places_than_needed_are_empty():
    """A store reads every record with the places of its widest one."""
    window = ragged(1, 9, 5, 100, symbols=50)
    got = codec.unpack(codec.pack(window), 9, 12)
    assert got.ranks.shape == (9, 12)
    assert_same(got._replace(ranks=got.ranks[:, :5], symbols=got.symbols[:, :5]), window)


def test_ends_of_the_vocabulary():
    window = Ragged(np.array([2, 1, 0]), np.array([[0, 2**22], [2**22, PADDING], [PADDING, PADDING]]))
    assert_same(codec.unpack(codec.pack(window), 3, 2), window)


@pytest.mark.parametrize("dtype", codec.DTYPES)
@pytest.mark.parametrize("shape", [(3, 5), (1, 1), (16, 576)])
def test_dense_values_come_back_bit_for_bit(dtype, shape):
    values = np.random.default_rng(0).standard_normal(shape).astype(codec.DTYPES[dtype])
    values.flat[0] = -np.inf
    got = codec.unpack_dense(codec.pack_dense(values), shape, values.dtype)
    assert got.dtype == values.dtype and got.tobytes() == values.tobytes()


def test_probabilities_and_the_tail_sum_to_one_and_are_near():
    rng = np.random.default_rng(0)
    log_p = np.sort(np.log(rng.dirichlet(np.full(500, 0.1), 64) + 1e-12))[:, ::-1]
    kept, rest = log_p[:, :40], np.log(np.exp(log_p[:, 40:]).sum(axis=1))
    symbols, tail = codec.quantise(kept), codec.quantise_rest(rest)
    got = codec.log_probs(symbols, tail).astype(np.float64)
    np.testing.assert_allclose(np.exp(got).sum(axis=1) + np.exp(-codec.REST_STEP * tail), 1, atol=2e-3)
    # Half a level of p^(1/3), and what normalising moves all of them by.
    np.testing.assert_allclose(np.exp(got / 3), np.exp(kept / 3), atol=1.5 / codec.LEVELS)
    assert (np.diff(symbols.astype(int), axis=1) <= 0).all(), "quantising keeps the order"


def test_no_tail_at_all():
    got = codec.log_probs(np.array([[160, 127]]), np.array([codec.REST_MOST]))
    assert np.exp(got.astype(np.float64)).sum() == pytest.approx(1, abs=1e-6)


def test_an_empty_place_takes_no_mass():
    one = codec.log_probs(np.array([[160, 100]]), np.array([30]))
    three = codec.log_probs(np.array([[160, 100, 0]]), np.array([30]))
    np.testing.assert_array_equal(one, three[:, :2])


def test_ids_cost_what_their_rarity_says():
    """Gaps of a mean of 384 hold 10 bits; ids that crowd at low ranks less."""
    rng = np.random.default_rng(0)
    even = np.sort(np.stack([rng.choice(49_152, 128, replace=False) for _ in range(256)]))
    crowded = np.sort(np.stack([rng.choice(49_152 // 16, 128, replace=False) for _ in range(256)]))
    sizes = [len(codec.pack(Ragged(np.full(256, 128), ranks))) / 256 for ranks in (even, crowded)]
    bound = 128 * (np.log2(49_152 / 128) + np.log2(np.e)) / 8
    assert bound < sizes[0] < 1.04 * bound and sizes[1] < sizes[0] - 60


def test_a_payload_of_something_else_is_named():
    payload = codec.pack(ragged(0, 8, 6, 100, symbols=50))
    for broken in (payload[:-1], payload + b"x", b"", payload[4:], b"\xff" * 40):
        with pytest.raises(SignalError, match="does not match the codec"):
            codec.unpack(broken, 8, 6)
    with pytest.raises(SignalError, match="does not match the codec"):
        codec.unpack(payload, 7, 6)
    with pytest.raises(SignalError, match="does not match the codec"):
        codec.unpack_dense(codec.pack_dense(np.zeros((2, 2), np.float32)), (2, 3), np.dtype(np.float32))
