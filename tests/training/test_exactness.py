"""The exactness table: each verdict is what the losses really do, and a refused cell does not build."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.config import ConfigError, ExperimentConfig, ObjectiveConfig, build, fingerprint, trunk_fingerprint
from distill.config.exactness import DIVERGENCES, TABLE, markdown
from distill.config.objective import every
from distill.training import objective, optim, step
from distill.types import Batch, TeacherSignal

B, S, V = 2, 4, 11
GRID = every(lambda_=0.7, beta=0.3, top_k=3, top_p=0.7, draws=4)


def loss_and_gradient(config, seed=0, steps=1, peak=1.0):
    """Mean over `steps` of (loss sum, its gradient by the student's logits), in float64."""
    rng = np.random.default_rng(seed)
    logits, teacher = (jnp.asarray(peak * rng.normal(size=(B, S, V))) for _ in range(2))
    batch = Batch(jnp.asarray(rng.integers(0, V, (B, S + 1), np.int32)), jnp.ones((B, S)))
    h = optim.hyperparams(ExperimentConfig(objective=config))
    signal = TeacherSignal(log_probs=jax.nn.log_softmax(teacher, axis=-1))

    def one(number):
        loss = lambda z: objective.loss(objective.objective_spec(config), h, z, signal, batch, number)[0]
        return jax.value_and_grad(loss)(logits)

    options = {"xla_backend_optimization_level": 0}
    return jax.jit(lambda: jax.lax.map(one, jnp.arange(steps, dtype=jnp.int32)), compiler_options=options)()


def full(config, **changes):
    return dataclasses.replace(config, target="soft", **changes)


def test_every_cell_builds_or_is_refused():
    """Five signals, two of them by two targets: 7 x 4 divergences x 2 temperatures, less the refused ones."""
    targets = {"full": 1, "truncated": 2, "renormalised": 2, "sampled": 1, "argmax": 1}
    allowed = {cell: targets[cell[1]] for cell, found in TABLE.items() if found.verdict != "refused"}
    built = [(c.divergence, c.exactness_row, not c.tempered) for c in GRID.values()]
    assert {cell: built.count(cell) for cell in built} == allowed
    assert len(TABLE) == 40


def test_a_refusal_says_where_and_why():
    with pytest.raises(ConfigError, match=r"divergence='reverse' of target='sampled' at temperature 1.*not linear"):
        build(ExperimentConfig, {"objective": {"target": "sampled", "divergence": "reverse"}})
    with pytest.raises(ConfigError, match="tail is known at tau = 1 only"):
        ObjectiveConfig(target="topk", schedule="linear", temperature_final=2.0)


@pytest.mark.parametrize(
    "values", [{"beta": 0.0}, {"beta": 1.0}, {"lambda_": 1.5}, {"temperature": 0.0}, {"top_k": 0}, {"top_p": 1.2},
               {"draws": 0}, {"schedule": "linear", "temperature_final": -1.0}]
)  # fmt: skip
def test_impossible_numbers_are_named(values):
    name = list(values)[-1]
    with pytest.raises(ConfigError, match=f"objective.{name}: got {values[name]}"):
        ObjectiveConfig(**values)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_biased_cells_differ_from_the_whole_distribution(divergence, float64):
    for name, config in GRID.items():
        cell = TABLE[config.divergence, config.exactness_row, not config.tempered]
        if config.divergence == divergence and cell.verdict == "biased":
            want = loss_and_gradient(full(config))[1]
            assert np.linalg.norm(loss_and_gradient(config)[1] - want) > 1e-2 * np.linalg.norm(want), name


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_tail_bucket_never_exceeds_the_whole_divergence_and_reaches_it_at_k_equal_v(divergence, float64):
    """Joining outcomes can only lower a divergence (data processing); the cross-entropy loses the teacher's entropy."""
    config = ObjectiveConfig(target="topk", divergence=divergence, top_k=3, beta=0.3)
    whole = loss_and_gradient(dataclasses.replace(config, top_k=V))
    want = loss_and_gradient(full(config))
    np.testing.assert_allclose(whole[0], want[0], rtol=1e-10)
    np.testing.assert_allclose(whole[1], want[1], atol=1e-10)
    assert (loss_and_gradient(config)[0] < want[0]).all()


def test_sampled_targets_are_unbiased_for_forward_kl(float64):
    """Every component of the mean gradient over 4000 steps lies within 5 of its standard errors of the full one."""
    config = ObjectiveConfig(target="sampled", draws=3)
    losses, gradients = loss_and_gradient(config, steps=4000)
    want_loss, want = loss_and_gradient(full(config))
    for got, truth in ((losses, want_loss), (gradients, want)):
        error = got.std(axis=0) / np.sqrt(len(got))
        assert (np.abs(got.mean(axis=0) - truth[0]) < 5 * error + 1e-12).all()
    assert gradients.std(axis=0).max() > 0.01


def test_argmax_is_a_top_one_whose_mass_is_one(float64):
    hard = loss_and_gradient(ObjectiveConfig(target="argmax"))
    one = loss_and_gradient(ObjectiveConfig(target="topk", top_k=1, tail="renormalise"))
    np.testing.assert_allclose(hard[1], one[1])


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_schedules_go_from_the_first_to_the_last_value(kind):
    config = ObjectiveConfig(schedule=kind, lambda_=0.2, temperature=4.0, beta=0.1, beta_final=0.9)
    h = optim.hyperparams(ExperimentConfig(objective=config, tokens=101 * 512))
    shape = objective.objective_spec(config)
    values = [objective.scheduled(shape, h, jnp.int32(t)) for t in (0, 50, 100)]
    np.testing.assert_allclose([v.lambda_ for v in values], [0.2, 0.6, 1.0], rtol=1e-6)
    np.testing.assert_allclose([v.temperature for v in values], [4.0, 2.5, 1.0], rtol=1e-6)
    np.testing.assert_allclose([v.beta for v in values], [0.1, 0.5, 0.9], rtol=1e-6)
    quarter = objective.scheduled(shape, h, jnp.int32(25)).lambda_
    assert (quarter < 0.4 - 1e-3) if kind == "cosine" else (abs(quarter - 0.4) < 1e-6)


def test_the_step_follows_the_schedule(tiny, make_batch, run_steps):
    """With lambda going from 0 to 1, the first step is next-token loss alone and the last distillation alone."""
    config = dataclasses.replace(tiny, objective=ObjectiveConfig(schedule="linear", lambda_=0.0, z_loss=0.0))
    batches = make_batch(2)
    signal = np.random.default_rng(0).normal(size=(2, 4, 16, 32)).astype(np.float32)
    batches = dataclasses.replace(batches, signal=TeacherSignal(log_probs=signal))
    config = dataclasses.replace(config, tokens=2 * 64)
    _, first = run_steps(config, batches, count=1)
    _, both = run_steps(config, batches, count=2)
    np.testing.assert_allclose(first["loss"], first["ntp"], rtol=1e-6)
    np.testing.assert_allclose(both["loss"] - first["loss"], both["kd"] - first["kd"], rtol=1e-5)


def test_new_fields_orphan_no_run():
    """Fingerprints as they were before the objectives grew."""
    assert fingerprint(ExperimentConfig()) == "4f53cda18c2b"
    assert fingerprint(ExperimentConfig(objective=ObjectiveConfig(lambda_=0.5, temperature=2.0))) == "f94c00e76a45"
    assert fingerprint(ExperimentConfig(objective=ObjectiveConfig(target="argmax"))) == "39b3fac039a1"


def test_a_scheduled_objective_shares_no_trunk():
    long, short = (ExperimentConfig(tokens=t, objective=ObjectiveConfig(schedule="linear")) for t in (10**6, 10**5))
    assert trunk_fingerprint(long) != trunk_fingerprint(short)


def test_the_step_compiles_a_target_once_for_all_of_its_numbers():
    a, b = (ExperimentConfig(objective=ObjectiveConfig(lambda_=x, top_k=k)) for x, k in ((0.5, 3), (0.9, 128)))
    assert step.step_spec(a) == step.step_spec(b)


def test_the_docs_show_the_table():
    assert markdown() in (Path(__file__).parents[2] / "docs/guide/objectives.md").read_text("utf-8")
