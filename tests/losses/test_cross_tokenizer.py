"""Losses between vocabularies: identities, an oracle in plain loops, gradients, and cuts of a batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from distill.losses import cross_tokenizer as cross
from distill.losses import divergences
from distill.types import LOG_ZERO, CellSignal, ChunkSignal

KINDS = ("forward", "reverse", "jensen_shannon", "total_variation")
B, S, V, W = 3, 7, 6, 9
# Chunks of 1, 2, none, 3 and 1 tokens of the student; of 2, 1, 3 and 1 of the teacher.
CHUNK = np.array([[1, 2, 2, 0, 5, 5, 5], [1, 2, 3, 4, 5, 6, 7], [0, 0, 3, 3, 5, 6, 6]], np.int32)
THEIRS = np.array([[1, 1, 2, 5, 5, 5, 0, 0], [1, 2, 3, 4, 5, 6, 7, 0], [0, 3, 3, 3, 5, 6, 0, 0]], np.int32)
STUDENT = [b"a", b"b", b"ab", b"c", b"", b"cab"]
TEACHER = [b"a", b"b", b"abc", b"c", b"ca", b"bb", b"", b"\xff", b"cc"]


def first(mine, other):
    """The longest token of the other side that is a prefix, as a tokenizer without merges would take."""
    ids = {piece: i for i, piece in enumerate(other) if piece}
    return lambda i: next((ids[mine[i][:n]] for n in range(len(mine[i]), 0, -1) if mine[i][:n] in ids), -1)


FIRST = first(STUDENT, TEACHER), first(TEACHER, STUDENT)


def test_cells():
    """Equal strings are cells of their own; others fall to the first piece that both have; the rest share one."""
    mine, theirs, count = cross.cell_numbers(STUDENT, TEACHER, FIRST)
    assert count == 4  # a, b, c, and what has no piece
    assert mine.tolist() == [0, 1, 0, 2, 3, 2]  # cab -> ca -> c
    assert theirs.tolist() == [0, 1, 0, 2, 2, 1, 3, 3, 2]  # abc -> ab -> a
    same, others, count = cross.cell_numbers(TEACHER, TEACHER, (first(TEACHER, TEACHER),) * 2)
    assert same.tolist() == others.tolist() and len(set(same.tolist())) == len(TEACHER) == count


@pytest.fixture
def case(float64):
    """Logits and labels of both sides."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(2 * rng.normal(size=(B, S, V)))
    teacher = jax.nn.log_softmax(jnp.asarray(2 * rng.normal(size=(B, THEIRS.shape[1], W))), axis=-1)
    labels = jnp.asarray(rng.integers(0, V, (B, S), np.int32))
    return logits, labels, teacher, jnp.asarray(rng.integers(0, W, THEIRS.shape, np.int32))


def signals(teacher, labels, chunk=CHUNK, theirs=THEIRS, cells=None):
    """What a teacher's log-probabilities say of chunks, and of cells."""
    chunk, theirs = jnp.asarray(chunk), jnp.asarray(theirs)
    size = chunk.shape[1]
    log_p = jnp.take_along_axis(teacher, labels[..., None], axis=-1)[..., 0]
    whole = cross.chunk_sums(log_p, theirs, size)
    number = lambda c: cross.chunk_sums(jnp.ones(c.shape), c, size)
    at = cross.chunk_starts(theirs, size)
    several = (number(chunk) > 1) | (number(theirs) > 1)
    log_rest = jnp.where(several, whole - cross.rows_at(log_p, at), LOG_ZERO)
    mine, his, count = cells or cross.cell_numbers(STUDENT, TEACHER, FIRST)
    log_probs = cross.outcomes(cross.rows_at(teacher, at), cross.rows_at(labels, at), log_rest, jnp.asarray(his), count)
    return ChunkSignal(chunk, whole), CellSignal(chunk, log_probs, jnp.asarray(mine))


def plain(kind, p, q, tau=1.0):
    """A divergence of two lists of probabilities, softened by tau, less the entropy of p if forward."""
    p, q = (np.asarray(x, float) ** (1 / tau) / np.sum(np.asarray(x, float) ** (1 / tau)) for x in (p, q))
    if kind == "forward":
        return -sum(a * np.log(b) for a, b in zip(p, q) if a)
    if kind == "reverse":
        return sum(b * np.log(b / a) for a, b in zip(p, q) if b)
    if kind == "total_variation":
        return sum(abs(a - b) for a, b in zip(p, q)) / 2
    m = [0.3 * a + 0.7 * b for a, b in zip(p, q)]
    one = sum(0.3 * a * np.log(a / c) for a, c in zip(p, m) if a)
    return one + sum(0.7 * b * np.log(b / c) for b, c in zip(q, m) if b)


def chunks_of(row):
    return {i: [s for s in range(len(row)) if row[s] == i] for i in sorted(set(row.tolist())) if i}


@pytest.mark.parametrize("tau", [1.0, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_both_losses_against_loops(case, kind, tau):
    """The formulas of the docstring, chunk by chunk."""
    logits, labels, teacher, theirs = case
    chunk_signal, cell_signal = signals(teacher, theirs)
    got = cross.likelihood(kind, -divergences.cross_entropy(logits, labels), chunk_signal, tau, 0.3)
    projected = cross.projection(kind, logits, labels, cell_signal, tau, 0.3)
    q, p = np.asarray(jax.nn.softmax(logits, axis=-1)), np.exp(np.asarray(teacher))
    mine, his, count = cross.cell_numbers(STUDENT, TEACHER, FIRST)
    want, cells = np.zeros((B, S)), np.zeros((B, S))
    for b in range(B):
        their_chunks = chunks_of(THEIRS[b])
        for name, places in chunks_of(CHUNK[b]).items():
            his_places = their_chunks[name]
            q_tokens = [q[b, s, labels[b, s]] for s in places]
            p_tokens = [p[b, t, theirs[b, t]] for t in his_places]
            x, y = (np.prod(p_tokens) ** (1 / tau), np.prod(q_tokens) ** (1 / tau))
            want[b, name - 1] = plain(kind, [x, 1 - x], [y, 1 - y])
            both = []
            for probs, numbers, token, tokens in (
                (p[b, his_places[0]], his, theirs[b, his_places[0]], p_tokens),
                (q[b, places[0]], mine, labels[b, places[0]], q_tokens),
            ):
                cell = np.bincount(numbers, probs, count)
                own = np.prod(tokens) if len(p_tokens) + len(q_tokens) > 2 else 0.0
                cell[numbers[token]] -= own
                both.append([*cell, own])
            cells[b, name - 1] = tau**2 * _floored(kind, *both, tau)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(projected, cells, rtol=1e-7, atol=1e-9)


def _floored(kind, p, q, tau):
    least = np.exp(cross.LEAST)
    return (
        plain(kind, np.maximum(p, 1e-300), np.maximum(q, 1e-300), tau)
        if min(*p, *q) < least
        else plain(kind, p, q, tau)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_one_token_each_of_one_vocabulary_is_todays_loss(case, kind, tau):
    """To 1e-12 in value and in gradient, for every divergence and temperature."""
    logits, labels, _, _ = case
    teacher = jax.nn.log_softmax(jnp.asarray(np.random.default_rng(1).normal(size=(B, S, V))), axis=-1)
    chunk = np.tile(1 + np.arange(S, dtype=np.int32), (B, 1))
    ids = np.arange(V, dtype=np.int32)
    signal = signals(teacher, labels, chunk, chunk, (ids, ids, V))[1]
    ours = lambda z: cross.projection(kind, z, labels, signal, tau, 0.3)
    today = lambda z: divergences.divergence(kind, z, teacher, tau, 0.3)
    np.testing.assert_allclose(ours(logits), today(logits), rtol=1e-12, atol=1e-13)
    slope = lambda f: jax.grad(lambda z: f(z).sum())(logits)
    np.testing.assert_allclose(slope(ours), slope(today), rtol=1e-11, atol=1e-12)


def loss(name, logits, labels, signal, kind="forward", tau=2.0):
    logits = jnp.asarray(logits)
    if name == "likelihood":
        return cross.likelihood(kind, -divergences.cross_entropy(logits, labels), signal, tau, 0.3)
    return cross.projection(kind, logits, labels, signal, tau, 0.3)


@pytest.mark.parametrize("name", ["likelihood", "projection"])
def test_gradients_and_where_they_vanish(case, name):
    """Against differences; a student that says what the teacher says has none, as has a token in no chunk."""
    logits, labels, teacher, theirs = case
    signal = signals(teacher, theirs)[name == "projection"]
    for kind in ("forward", "reverse", "jensen_shannon"):
        check_grads(functools.partial(lambda k, z: loss(name, z, labels, signal, k).sum(), kind), (logits,), 1, ["rev"])
    gradient = jax.grad(lambda z: loss(name, z, labels, signal).sum())(logits)
    np.testing.assert_array_equal(np.asarray(gradient)[CHUNK == 0], 0)
    same = signals(jax.nn.log_softmax(logits, axis=-1), labels, CHUNK, CHUNK, (np.arange(V),) * 2 + (V,))
    gradient = jax.grad(lambda z: loss(name, z, labels, same[name == "projection"]).sum())(logits)
    np.testing.assert_allclose(gradient, 0, atol=1e-10)


@pytest.mark.parametrize("name", ["likelihood", "projection"])
def test_cuts_of_a_batch_change_nothing(case, name):
    """Row by row, in float64 to 1e-12: no sum leaves its row, and no choice depends on what else is in the batch."""
    logits, labels, teacher, theirs = case
    whole = loss(name, logits, labels, signals(teacher, theirs)[name == "projection"])
    for b in range(B):
        row = slice(b, b + 1)
        signal = signals(teacher[row], theirs[row], CHUNK[row], THEIRS[row])[name == "projection"]
        np.testing.assert_allclose(loss(name, logits[row], labels[row], signal)[0], whole[b], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["likelihood", "projection"])
def test_the_mesh(case, name, mesh_of):
    """Rows over two devices and the vocabulary over two, in float32, against float64 on one."""
    from distill.model import sharding

    logits, labels, teacher, theirs = case
    pad = lambda x: np.concatenate([np.asarray(x), np.asarray(x[:1])])
    cells = (np.arange(V, dtype=np.int32) % 3, np.arange(W, dtype=np.int32) % 3, 3)
    made = lambda dtype: signals(
        jnp.asarray(pad(teacher), dtype), jnp.asarray(pad(theirs)), pad(CHUNK), pad(THEIRS), cells
    )[name == "projection"]
    want = np.asarray(loss(name, jnp.asarray(pad(logits)), jnp.asarray(pad(labels)), made(jnp.float64)))
    signal = jax.tree.map(np.asarray, made(jnp.float64))
    z, ids = pad(logits).astype(np.float32), pad(labels)
    with jax.enable_x64(False), jax.set_mesh(mesh_of(2, 1, 2)):
        z = jax.device_put(z, sharding.LOGITS_BSV)
        ids, chunk, log_probs = sharding.place(
            (ids, signal.chunk, signal.log_probs.astype(np.float32)), jax.sharding.get_mesh()
        )
        if name == "projection":
            placed = CellSignal(chunk, log_probs, jax.device_put(signal.cells, jax.P()))
        else:
            placed = ChunkSignal(chunk, log_probs)
        run = jax.jit(jax.value_and_grad(lambda z: loss(name, z, ids, placed).sum()))
        value, gradient = run(z)
    np.testing.assert_allclose(float(value), want.sum(), rtol=1e-5)
    assert np.isfinite(np.asarray(gradient)).all()
