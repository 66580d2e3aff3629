"""Divergences against scipy in float64, their limits and bounds, and what padded and truncated rows do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import special

from distill import types
from distill.config.exactness import DIVERGENCES
from distill.losses import divergences, targets
from distill.types import SparseSignal

B, S, V = 2, 3, 9
KINDS = ("reverse", "jensen_shannon", "total_variation")


@pytest.fixture
def pair(float64):
    rng = np.random.default_rng(1)
    return tuple(jnp.asarray(2 * rng.normal(size=(B, S, V)) + 1) for _ in range(2))


def reference(kind, p, q, beta):
    """A divergence of probabilities by scipy's rel_entr; 'forward' is the cross-entropy."""
    if kind == "forward":
        return special.rel_entr(p, q).sum(-1) + special.entr(p).sum(-1)
    if kind == "reverse":
        return special.rel_entr(q, p).sum(-1)
    if kind == "jensen_shannon":
        m = beta * p + (1 - beta) * q
        return beta * special.rel_entr(p, m).sum(-1) + (1 - beta) * special.rel_entr(q, m).sum(-1)
    return np.abs(p - q).sum(-1) / 2


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_divergence_against_scipy(pair, kind, temperature):
    student, teacher = pair
    p, q = (special.softmax(np.asarray(z) / temperature, axis=-1) for z in (teacher, student))
    got = divergences.divergence(kind, student, teacher, temperature, 0.3)
    np.testing.assert_allclose(got, temperature**2 * reference(kind, p, q, 0.3), rtol=1e-11)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_derivatives(pair, kind):
    student, teacher = pair
    loss = lambda z: divergences.divergence(kind, jnp.asarray(z), teacher, 1.5, 0.3)
    check_grads(loss, (student,), order=1, modes=["rev"], rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_for_equal_distributions_only(pair, kind):
    student, teacher = pair
    np.testing.assert_allclose(divergences.divergence(kind, teacher + 3, teacher, 2.0), 0, atol=1e-14)
    assert (divergences.divergence(kind, student, teacher, 2.0) > 1e-3).all()


@pytest.mark.parametrize("kind", ["forward", "reverse", "jensen_shannon"])
def test_equal_distributions_give_no_gradient(pair, kind):
    _, teacher = pair
    gradient = jax.grad(lambda z: divergences.divergence(kind, z, teacher, 2.0).sum())(teacher)
    np.testing.assert_allclose(gradient, 0, atol=1e-14)


def test_jensen_shannon_tends_to_both_divergences(pair):
    student, teacher = pair
    small = 1e-7
    forward = divergences.divergence("jensen_shannon", student, teacher, 1.0, small) / small
    np.testing.assert_allclose(forward, divergences.kl_divergence(student, teacher), rtol=1e-5)
    backward = divergences.divergence("jensen_shannon", student, teacher, 1.0, 1 - small) / small
    np.testing.assert_allclose(backward, divergences.divergence("reverse", student, teacher), rtol=1e-5)


def test_jensen_shannon_changes_beta_with_its_sides(pair):
    student, teacher = pair
    got = divergences.divergence("jensen_shannon", student, teacher, 1.0, 0.2)
    np.testing.assert_allclose(got, divergences.divergence("jensen_shannon", teacher, student, 1.0, 0.8), rtol=1e-12)


def test_pinsker(pair):
    student, teacher = pair
    variation = divergences.divergence("total_variation", student, teacher)
    assert (variation <= jnp.sqrt(divergences.kl_divergence(student, teacher) / 2)).all()


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_padding_columns_change_nothing(pair, kind, temperature):
    """Columns that are no tokens, in the student, in the teacher (junk there, and cut) and in both."""
    student, teacher = pair
    want, slope = jax.value_and_grad(lambda z: divergences.divergence(kind, z, teacher, temperature).sum())(student)
    student_padded = jnp.pad(student, ((0, 0), (0, 0), (0, 5)), constant_values=types.LOG_ZERO)
    junk = jnp.concatenate([teacher, jnp.full((B, S, 2), 7.0)], axis=-1)
    for said in (teacher, junk):
        aligned = targets.align(jax.nn.log_softmax(said, axis=-1), V + 5, V)
        got, gradient = jax.value_and_grad(lambda z, t: divergences.divergence(kind, z, t, temperature).sum())(
            student_padded, aligned
        )
        np.testing.assert_allclose(got, want, rtol=1e-12)
        np.testing.assert_allclose(gradient[..., :V], slope, atol=1e-13)
        np.testing.assert_array_equal(gradient[..., V:], 0)
    cut = targets.align(jnp.asarray(junk), V, V)
    np.testing.assert_allclose(divergences.divergence(kind, student, cut, temperature).sum(), want, rtol=1e-12)


def log_q(student, signal, temperature=1.0):
    whole = jax.nn.log_softmax(student / temperature, axis=-1)
    return jnp.take_along_axis(whole, signal.ids, axis=-1)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_truncated_against_scipy_over_k_plus_one_outcomes(pair, kind):
    student, teacher = pair
    signal = targets.top_k(teacher, 4)
    p, q = (special.softmax(np.asarray(z), axis=-1) for z in (teacher, student))
    order = np.argsort(-p, axis=-1)
    p, q = (np.take_along_axis(x, order, -1) for x in (p, q))
    p, q = (np.concatenate([x[..., :4], x[..., 4:].sum(-1, keepdims=True)], axis=-1) for x in (p, q))
    got = divergences.sparse_divergence(kind, "truncated", log_q(student, signal), signal, 1.0, 0.3)
    np.testing.assert_allclose(got, reference(kind, p, q, 0.3), rtol=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kind", ["forward", "jensen_shannon", "total_variation"])
def test_renormalised_against_scipy_over_the_whole_vocabulary(pair, kind, temperature):
    student, teacher = pair
    signal = targets.top_k(teacher, 4)
    p, q = (special.softmax(np.asarray(z) / temperature, axis=-1) for z in (teacher, student))
    p = np.where(p >= np.sort(p, axis=-1)[..., -4:-3], p, 0)
    p = p / p.sum(-1, keepdims=True)
    got = divergences.sparse_divergence(
        kind, "renormalised", log_q(student, signal, temperature), signal, temperature, 0.3
    )
    np.testing.assert_allclose(got, temperature**2 * reference(kind, p, q, 0.3), rtol=1e-10)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_an_empty_place_counts_for_nothing(pair, kind):
    student, teacher = pair
    signal = targets.top_k(teacher, 3)
    two = ((0, 0), (0, 0), (0, 2))
    more = SparseSignal(
        ids=jnp.pad(signal.ids, two), log_probs=jnp.pad(signal.log_probs, two, constant_values=types.LOG_ZERO)
    )
    few, many = (
        divergences.sparse_divergence(kind, "truncated", log_q(student, s), s, 1.0, 0.3) for s in (signal, more)
    )
    np.testing.assert_allclose(few, many, rtol=1e-12)


def test_the_nucleus_is_the_smallest_set_that_holds_the_mass(pair):
    _, teacher = pair
    signal = targets.top_p(teacher, 0.7, V)
    kept = np.asarray(signal.log_probs) > types.LOG_ZERO / 2
    mass = np.where(kept, np.exp(np.asarray(signal.log_probs)), 0)
    assert (mass.sum(-1) >= 0.7).all()
    smallest = np.where(kept, mass, np.inf).min(-1)
    assert (mass.sum(-1) - smallest < 0.7).all()


def test_draws_follow_the_teacher(pair):
    _, teacher = pair
    draws = 4000
    uniform = (jnp.arange(draws)[None, None] + 0.5) / draws * jnp.ones((B, S, 1))
    ids = np.asarray(targets.sample(teacher, draws, uniform).ids)
    share = np.stack([(ids == v).mean(-1) for v in range(V)], axis=-1)
    np.testing.assert_allclose(share, special.softmax(np.asarray(teacher), axis=-1), atol=1.01 / draws)


def test_a_divergence_without_a_formula_is_refused():
    """Total variation is no default."""
    log_p = jnp.log(jnp.array([0.25, 0.75]))
    with pytest.raises(ValueError, match="'reversed' has no formula"):
        divergences.terms("reversed", log_p, log_p)
