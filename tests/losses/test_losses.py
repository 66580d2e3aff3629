"""The per-token losses against scipy in float64, their identities, and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import special

from distill.losses import divergences
from distill.model import sharding

B, S, V = 2, 3, 7


@pytest.fixture
def numbers(float64):
    """Student logits, teacher logits, labels; logits are far from normalised, so that shifts matter."""
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(3 * rng.normal(size=(B, S, V)) + 2) for _ in range(2))
    return student, teacher, jnp.asarray(rng.integers(0, V, (B, S)))


def test_cross_entropy_is_the_negative_log_softmax_of_the_label(numbers):
    logits, _, labels = numbers
    want = -np.take_along_axis(special.log_softmax(np.asarray(logits), axis=-1), np.asarray(labels)[..., None], -1)
    np.testing.assert_allclose(divergences.cross_entropy(logits, labels), want[..., 0], rtol=1e-12)


def test_probabilities_of_all_labels_add_up_to_one(numbers):
    logits, _, labels = numbers
    each = jnp.stack([divergences.cross_entropy(logits, jnp.full_like(labels, v)) for v in range(V)])
    np.testing.assert_allclose(jnp.exp(-each).sum(axis=0), 1, rtol=1e-12)


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary(numbers):
    *_, labels = numbers
    np.testing.assert_allclose(divergences.cross_entropy(jnp.full((B, S, V), 5.0), labels), np.log(V), rtol=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_soft_cross_entropy_against_scipy(numbers, temperature):
    student, teacher, _ = numbers
    p = special.softmax(np.asarray(teacher) / temperature, axis=-1)
    want = -(temperature**2) * (p * special.log_softmax(np.asarray(student) / temperature, axis=-1)).sum(-1)
    np.testing.assert_allclose(divergences.soft_cross_entropy(student, teacher, temperature), want, rtol=1e-12)


def test_a_teacher_may_speak_in_logits_or_in_log_probabilities(numbers):
    student, teacher, _ = numbers
    log_probs = jax.nn.log_softmax(teacher, axis=-1)
    for loss in (
        lambda t: divergences.soft_cross_entropy(student, t, 2.0),
        lambda t: divergences.kl_divergence(student, t),
    ):
        np.testing.assert_allclose(loss(log_probs), loss(teacher), rtol=1e-12)


def test_a_certain_teacher_is_a_hard_label(numbers):
    student, _, labels = numbers
    certain = jnp.where(jax.nn.one_hot(labels, V, dtype=bool), 0.0, -jnp.inf)
    np.testing.assert_allclose(
        divergences.soft_cross_entropy(student, certain), divergences.cross_entropy(student, labels), rtol=1e-12
    )


def test_kl_divergence_against_scipy(numbers):
    student, teacher, _ = numbers
    p, q = special.softmax(np.asarray(teacher), axis=-1), special.softmax(np.asarray(student), axis=-1)
    np.testing.assert_allclose(divergences.kl_divergence(student, teacher), special.rel_entr(p, q).sum(-1), rtol=1e-11)


def test_soft_cross_entropy_is_the_divergence_and_the_teachers_entropy(numbers):
    student, teacher, _ = numbers
    entropy = special.entr(special.softmax(np.asarray(teacher), axis=-1)).sum(-1)
    np.testing.assert_allclose(
        divergences.soft_cross_entropy(student, teacher),
        divergences.kl_divergence(student, teacher) + entropy,
        rtol=1e-12,
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(numbers, temperature):
    _, teacher, _ = numbers
    np.testing.assert_allclose(divergences.kl_divergence(teacher, teacher), 0, atol=1e-14)
    shifted = teacher + 4.0  # the same distribution
    loss = lambda logits: divergences.soft_cross_entropy(logits, teacher, temperature).sum()
    np.testing.assert_allclose(jax.grad(loss)(shifted), 0, atol=1e-14)
    np.testing.assert_allclose(jax.grad(lambda z: divergences.kl_divergence(z, teacher).sum())(shifted), 0, atol=1e-14)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_gradient_of_distillation_is_tau_times_the_difference_of_probabilities(numbers, temperature):
    student, teacher, _ = numbers
    p, q = (special.softmax(np.asarray(z) / temperature, axis=-1) for z in (teacher, student))
    got = jax.grad(lambda z: divergences.soft_cross_entropy(z, teacher, temperature).sum())(student)
    np.testing.assert_allclose(got, temperature * (q - p), atol=1e-13)


def test_tau_squared_keeps_the_gradient_at_high_temperature(numbers):
    """Hinton et al. (1503.02531): as tau grows the gradient tends to the difference of centred logits over V."""
    student, teacher, _ = numbers
    got = jax.grad(lambda z: divergences.soft_cross_entropy(z, teacher, 1e5).sum())(student)
    centred = lambda z: z - z.mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(got, (centred(student) - centred(teacher)) / V, atol=1e-3 * np.abs(got).max())


def test_the_likeliest_token_is_the_first_of_the_highest(numbers):
    logits = (np.asarray(numbers[0]) / 4).round()  # so that some are equal
    assert (np.sort(logits)[..., -1] == np.sort(logits)[..., -2]).any()
    np.testing.assert_array_equal(divergences.argmax_token(jnp.asarray(logits)), np.argmax(logits, axis=-1))
    np.testing.assert_array_equal(divergences.argmax_token(jnp.full((3, 5), -jnp.inf)), 0)


def test_z_loss_is_the_squared_log_normaliser(numbers):
    logits, *_ = numbers
    np.testing.assert_allclose(
        divergences.z_loss(logits), special.logsumexp(np.asarray(logits), axis=-1) ** 2, rtol=1e-12
    )
    normalised = jax.nn.log_softmax(logits, axis=-1)
    np.testing.assert_allclose(divergences.z_loss(normalised), 0, atol=1e-14)


def test_derivatives_agree_with_finite_differences(numbers):
    student, teacher, labels = numbers
    functions = [
        lambda z: divergences.cross_entropy(z, labels),
        lambda z: divergences.soft_cross_entropy(z, teacher, 2.0),
        lambda z: divergences.kl_divergence(z, teacher),
        divergences.z_loss,
    ]
    for function in functions:
        check_grads(jax.jit(function), (student,), order=2, modes=("rev",), eps=1e-4)


def test_temperature_may_be_traced(numbers):
    student, teacher, _ = numbers
    traced = jax.jit(divergences.soft_cross_entropy)(student, teacher, jnp.asarray(2.0))
    np.testing.assert_allclose(traced, divergences.soft_cross_entropy(student, teacher, 2.0), rtol=1e-12)


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_huge_float32_logits_stay_finite(scale):
    logits = scale * jnp.arange(V, dtype=jnp.float32).reshape(1, 1, V)
    for values in (
        divergences.cross_entropy(logits, jnp.zeros((1, 1), jnp.int32)),
        divergences.soft_cross_entropy(logits, -logits, 2.0),
        divergences.kl_divergence(logits, -logits),
        divergences.z_loss(logits),
    ):
        assert values.dtype == jnp.float32 and np.isfinite(values).all()


def test_a_vocabulary_split_over_devices_changes_nothing(mesh_of):
    rng = np.random.default_rng(1)
    student, teacher = (rng.normal(size=(4, 6, 16)).astype(np.float32) for _ in range(2))
    labels = rng.integers(0, 16, (4, 6))

    def gradients(z, t, labels):
        total = lambda z: (
            divergences.cross_entropy(z, labels) + divergences.soft_cross_entropy(z, t, 2.0) + divergences.z_loss(z)
        ).sum()
        return jax.value_and_grad(total)(z), divergences.kl_divergence(z, t)

    want = jax.jit(gradients)(jnp.asarray(student), jnp.asarray(teacher), jnp.asarray(labels))
    with jax.set_mesh(mesh_of(2, 1, 4)) as _:
        split = [
            jax.device_put(z, jax.NamedSharding(mesh_of(2, 1, 4), sharding.LOGITS_BSV)) for z in (student, teacher)
        ]
        place = jax.device_put(labels, jax.NamedSharding(mesh_of(2, 1, 4), sharding.TOKENS_BS))
        got = jax.jit(gradients)(*split, place)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6), got, want)


def test_shapes_that_do_not_match_are_refused_in_tests():
    """The import hook of conftest.py is on: a swapped axis cannot broadcast its way through."""
    with pytest.raises(Exception, match="Type-check error"):
        divergences.cross_entropy(jnp.zeros((2, 3, 5)), jnp.zeros((3, 2), jnp.int32))
