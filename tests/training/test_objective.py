"""The objective against numpy in float64: its weights, its masks, and what it asks of a perfect student."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from distill.config import ExperimentConfig, ObjectiveConfig
from distill.training import objective, optim
from distill.types import Batch, TeacherSignal

B, S, V = 3, 4, 6


@pytest.fixture
def case(float64):
    """(logits, teacher logits, batch) with weights that are zero, one and neither."""
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(2 * rng.normal(size=(B, S, V)) + 1) for _ in range(2))
    weight = jnp.asarray(rng.choice([0.0, 0.5, 1.0], (B, S)))
    return student, teacher, Batch(jnp.asarray(rng.integers(0, V, (B, S + 1))), weight)


def evaluate(config, logits, teacher, batch):
    signal = None if teacher is None else TeacherSignal(log_probs=teacher)
    numbers = optim.hyperparams(ExperimentConfig(objective=config))
    return objective.loss(objective.objective_spec(config), numbers, logits, signal, batch)


def reference(config, logits, teacher, batch):
    """[B, S]: (1 - lambda) L_NTP + lambda L_KD + lambda_z Z (section 6), in numpy."""
    logits, labels = np.asarray(logits), np.asarray(batch.labels)
    ntp = -np.take_along_axis(special.log_softmax(logits, -1), labels[..., None], -1)[..., 0]
    z = special.logsumexp(logits, -1) ** 2
    if teacher is None:
        return ntp + config.z_loss * z
    tau = config.temperature
    if config.target == "argmax":
        best = np.asarray(teacher).argmax(-1)
        kd = -np.take_along_axis(special.log_softmax(logits, -1), best[..., None], -1)[..., 0]
    else:
        kd = -(tau**2) * (special.softmax(np.asarray(teacher) / tau, -1) * special.log_softmax(logits / tau, -1)).sum(
            -1
        )
    return (1 - config.lambda_) * ntp + config.lambda_ * kd + config.z_loss * z


# Numbers that float32 holds exactly, for they travel in float32.
CONFIGS = {
    "paper": ObjectiveConfig(lambda_=1.0, temperature=1.0, z_loss=2.0**-10),
    "mixed": ObjectiveConfig(lambda_=0.75, temperature=1.0, z_loss=0.0),
    "tempered": ObjectiveConfig(lambda_=0.5, temperature=2.0, z_loss=0.125),
    "hard": ObjectiveConfig(lambda_=0.25, z_loss=0.5, target="argmax"),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("taught", [True, False])
def test_the_objective_is_the_papers_sum(case, name, taught):
    logits, teacher, batch = case
    teacher = teacher if taught else None
    loss_sum, sums = evaluate(CONFIGS[name], logits, teacher, batch)
    want = (reference(CONFIGS[name], logits, teacher, batch) * np.asarray(batch.weight)).sum()
    np.testing.assert_allclose(loss_sum, want, rtol=1e-12)
    np.testing.assert_allclose(sums["loss"].value, want, rtol=1e-12)
    assert float(sums["loss"].weight) == float(batch.weight.sum())


def test_without_a_teacher_lambda_and_temperature_mean_nothing(case):
    logits, _, batch = case
    plain = evaluate(ObjectiveConfig(lambda_=0.0, z_loss=0.5), logits, None, batch)[0]
    assert evaluate(ObjectiveConfig(lambda_=0.75, temperature=3.0, z_loss=0.5), logits, None, batch)[0] == plain


def test_lambda_zero_is_supervised_training(case):
    logits, teacher, batch = case
    config = ObjectiveConfig(lambda_=0.0, temperature=2.0, z_loss=0.5)
    taught, alone = (evaluate(config, logits, t, batch)[0] for t in (teacher, None))
    np.testing.assert_allclose(taught, alone, rtol=1e-14)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_perfect_student_has_no_gradient(case, temperature):
    _, teacher, batch = case
    config = ObjectiveConfig(lambda_=1.0, temperature=temperature, z_loss=0.0)
    gradient = jax.grad(lambda z: evaluate(config, z, teacher, batch)[0])(teacher + 3.0)
    np.testing.assert_allclose(gradient, 0, atol=1e-14)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_mask_is_the_subset_of_its_tokens(case, name):
    """To 1e-12: value, weight and gradient of all parts, and no gradient at all where there is no weight."""
    logits, teacher, batch = case
    keep = np.asarray(batch.weight) > 0
    assert 0 < keep.sum() < keep.size

    def value(z, t, b):
        total, sums = evaluate(CONFIGS[name], z, t, b)
        return total, {key: (s.value, s.weight) for key, s in sums.items()}

    (total, sums), gradient = jax.value_and_grad(value, has_aux=True)(logits, teacher, batch)
    only = lambda array: jnp.asarray(np.asarray(array)[keep][None])  # the kept tokens as one row
    labels = only(batch.labels)
    row = Batch(jnp.concatenate([labels[:, :1], labels], axis=1), only(batch.weight))
    (subset, subset_sums), subset_gradient = jax.value_and_grad(value, has_aux=True)(only(logits), only(teacher), row)
    np.testing.assert_allclose(total, subset, rtol=1e-12)
    for key in sums:
        np.testing.assert_allclose(sums[key], subset_sums[key], rtol=1e-12, err_msg=key)
    np.testing.assert_allclose(np.asarray(gradient)[keep], subset_gradient[0], rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(np.asarray(gradient)[~keep], 0)


def test_a_masked_token_may_be_anything(case):
    """Padding may hold tokens on which the loss overflows; it must reach neither the value nor the metrics."""
    logits, teacher, batch = case
    wild = jnp.where(batch.weight[..., None] == 0, 1e300, logits)
    for name, config in CONFIGS.items():
        got, want = (evaluate(config, z, teacher, batch)[1] for z in (wild, logits))
        for key in want:
            np.testing.assert_allclose(got[key].value, want[key].value, rtol=1e-12, err_msg=f"{name}: {key}")


def test_weights_scale_the_sum_linearly(case):
    logits, teacher, batch = case
    double = dataclasses.replace(batch, weight=2 * batch.weight)
    one, two = (evaluate(CONFIGS["tempered"], logits, teacher, b)[0] for b in (batch, double))
    np.testing.assert_allclose(two, 2 * one, rtol=1e-14)
