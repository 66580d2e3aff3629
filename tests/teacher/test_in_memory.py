"""The signal kept in memory: the online teacher's word to float16, computed once a window, within its limit."""

import dataclasses

import jax
import numpy as np
import pytest

from distill.model import sharding
from distill.teacher import in_memory, observe
from distill.teacher.in_memory import CHUNK, InMemorySignals
from distill.training import step
from distill.types import Batch

COUNT, SEQ, VOCAB = 40, 16, 32
WINDOW = 2 * SEQ * VOCAB / 2**30  # GiB of one window's log-probabilities


@pytest.fixture
def teacher(tiny):
    return step.init_state(tiny).params


@pytest.fixture
def texts(make_batch):
    """Forty windows, and a reader that counts how often each was asked for."""
    batches = make_batch(1, batch=COUNT)
    whole = Batch(batches.tokens[0], batches.weight[0])
    read = np.zeros(COUNT, int)

    def reader(ids):
        np.add.at(read, np.unique(ids), 1)
        return jax.tree.map(lambda array: array[np.asarray(ids)], whole)

    return whole, reader, read


def online(teacher, whole):
    """The online teacher on all windows, in float32."""
    found = []
    for start in range(0, COUNT, 8):
        rows = jax.tree.map(lambda array: array[start : start + 8], whole)  # noqa: B023
        found.append(
            np.asarray(observe.teacher_signal(teacher, sharding.place(rows, jax.sharding.get_mesh())).log_probs)
        )
    return np.concatenate(found)


def test_it_says_what_the_online_teacher_says_to_half_precision(teacher, texts):
    whole, reader, _ = texts
    signal = InMemorySignals(teacher, reader, COUNT, SEQ, memory_gib=1.0)
    ids = np.array([[3, 39, 0], [17, 3, 22]])
    got = signal.read(ids).log_probs
    assert got.shape == (2, 3, SEQ, VOCAB) and got.dtype == np.float16
    want = online(teacher, whole)[ids]
    np.testing.assert_allclose(got, want, rtol=2**-10)
    np.testing.assert_allclose(np.exp(got.astype(np.float64)).sum(-1), 1, atol=5e-3)


def test_each_window_is_computed_once(teacher, texts):
    _, reader, read = texts
    signal = InMemorySignals(teacher, reader, COUNT, SEQ, memory_gib=1.0)
    first = signal.read(np.arange(COUNT)).log_probs
    assert (read == 1).all()
    again = signal.read(np.arange(COUNT)[::-1]).log_probs
    assert (read == 1).all()
    np.testing.assert_array_equal(again[::-1], first)


def test_beyond_its_memory_windows_are_computed_anew_and_nothing_is_lost(teacher, texts):
    whole, reader, read = texts
    kept = 10
    signal = InMemorySignals(teacher, reader, COUNT, SEQ, memory_gib=(kept + 0.5) * WINDOW)
    want = InMemorySignals(teacher, reader, COUNT, SEQ, memory_gib=1.0).read(np.arange(COUNT)).log_probs
    read[:] = 0
    for ids in (np.arange(4), np.arange(20), np.arange(COUNT), np.arange(COUNT)[::-1], np.array([39, 0, 25, 9])):
        np.testing.assert_array_equal(signal.read(ids).log_probs, want[ids])
    assert (read[:kept] == 1).all(), "what is kept is computed once"
    assert (read[kept:] >= 2).all(), "what is beyond the limit is not kept"


def test_no_memory_at_all_still_teaches(teacher, texts):
    whole, reader, _ = texts
    signal = InMemorySignals(teacher, reader, COUNT, SEQ, memory_gib=0.0)
    np.testing.assert_allclose(signal.read(np.array([5, 6])).log_probs, online(teacher, whole)[[5, 6]], rtol=2**-10)


def test_segments_and_positions_reach_the_teacher(teacher, texts):
    whole, _, _ = texts
    segment = np.repeat(np.array([[1] * 7 + [2] * 9], np.int32), COUNT, axis=0)
    position = np.repeat(np.array([[*range(7), *range(9)]], np.int32), COUNT, axis=0)
    packed = dataclasses.replace(whole, segment=segment, position=position)
    reader = lambda ids: jax.tree.map(lambda array: array[np.asarray(ids)], packed)
    got = InMemorySignals(teacher, reader, COUNT, SEQ, memory_gib=1.0).read(np.arange(8)).log_probs
    np.testing.assert_allclose(got, online(teacher, packed)[:8], rtol=2**-10)
    assert np.abs(got - online(teacher, whole)[:8]).max() > 1e-2


def test_windows_come_in_chunks_of_one_shape(teacher, texts):
    """Another number of missing windows must not compile the teacher again."""
    _, reader, _ = texts
    signal = InMemorySignals(teacher, reader, COUNT, SEQ, memory_gib=1.0)
    signal.read(np.arange(CHUNK))
    compiled = in_memory._log_probs._cache_size()
    signal.read(np.arange(CHUNK + 5))
    signal.read(np.arange(COUNT))
    assert in_memory._log_probs._cache_size() == compiled
