"""Batches that the student writes: which, from what, what counts in them, and that they lower its KL on its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.config import ConfigError, OnPolicyConfig, build, counts
from distill.losses import divergences
from distill.model import decode, sharding
from distill.model.decode import DecodeConfig
from distill.model.transformer import Transformer
from distill.training import inputs, on_policy, optim, step

PROMPT = 5


def with_own(config, fraction=1.0, **changes):
    own = OnPolicyConfig(**{"fraction": fraction, "prompt_tokens": PROMPT, **changes})
    return dataclasses.replace(config, on_policy=own)


def with_objective(config, **changes):
    return dataclasses.replace(config, objective=dataclasses.replace(config.objective, **changes))


def params_of(config, seed):
    return step.init_state(dataclasses.replace(config, seed=seed)).params


write = jax.jit(on_policy.student_batch, static_argnums=0)


def written(config, batch, index, params):
    """The batch of step `index` as the student of `config` writes it."""
    placed = sharding.place(batch, jax.sharding.get_mesh())
    return write(on_policy.on_policy_spec(config), optim.hyperparams(config), jnp.asarray(index), params, placed)


def row(batches, i):
    return jax.tree.map(lambda leaf: leaf[i], batches)


def test_a_fraction_of_the_steps_is_the_students_own(tiny):
    steps = jnp.arange(4000)
    chosen = lambda c: np.asarray(jax.vmap(lambda i: on_policy.is_on_policy(optim.hyperparams(c), i))(steps))
    got = chosen(with_own(tiny, 0.3))
    assert abs(got.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 4000)
    np.testing.assert_array_equal(got, chosen(with_own(tiny, 0.3, temperature=0.5)))
    assert (got != chosen(with_own(dataclasses.replace(tiny, seed=1), 0.3))).any()
    assert chosen(with_own(tiny, 1.0)).all() and on_policy.on_policy_spec(tiny) is None
    # A larger fraction only adds steps: the coin is the same, its bias is not.
    assert (chosen(with_own(tiny, 0.6)) >= got).all()


def test_the_student_continues_the_first_tokens_of_each_row_and_only_that_counts(tiny, make_batch):
    config, batch = with_own(tiny, temperature=0.0), row(make_batch(), 0)
    student = params_of(tiny, 3)
    got = written(config, batch, 0, student)
    tokens = np.asarray(got.tokens)
    np.testing.assert_array_equal(tokens[:, :PROMPT], batch.tokens[:, :PROMPT])
    likeliest = np.argmax(np.asarray(jax.jit(Transformer.__call__)(student, tokens[:, :-1])), axis=-1)
    np.testing.assert_array_equal(tokens[:, PROMPT:], likeliest[:, PROMPT - 1 :])
    # labels are tokens[1:]: the first written token is label PROMPT - 1
    np.testing.assert_array_equal(got.weight, np.arange(16)[None].repeat(4, 0) >= PROMPT - 1)


def test_nothing_counts_after_a_stop_token(tiny, make_batch):
    config, batch = with_own(tiny, temperature=0.0), row(make_batch(), 0)
    student = params_of(tiny, 3)
    free = np.asarray(written(config, batch, 0, student).tokens)
    stop = int(free[0, PROMPT + 2])
    got = written(with_own(tiny, temperature=0.0, stop=(stop,)), batch, 0, student)
    for whole, weight in zip(free, np.asarray(got.weight)):
        ends = np.flatnonzero(whole[PROMPT:] == stop)
        end = ends[0] + PROMPT if len(ends) else 16
        np.testing.assert_array_equal(weight, (np.arange(16) >= PROMPT - 1) & (np.arange(16) < end))


def test_draws_change_with_step_seed_and_row_and_nothing_else(tiny, make_batch):
    config, batch = with_own(tiny), row(make_batch(), 0)
    same = dataclasses.replace(batch, tokens=np.broadcast_to(batch.tokens[:1], batch.tokens.shape))
    student = params_of(tiny, 3)
    one = np.asarray(written(config, same, 2, student).tokens)
    np.testing.assert_array_equal(one, written(config, same, 2, student).tokens)
    assert (one[0] != one[1]).any(), "rows must not share their draws"
    assert (one != np.asarray(written(config, same, 3, student).tokens)).any()
    assert (one != np.asarray(written(dataclasses.replace(config, seed=1), same, 2, student).tokens)).any()


@pytest.mark.parametrize("sizes", [(2, 1, 2), (1, 4, 1)])
def test_any_mesh_writes_the_same_batch(tiny, make_batch, mesh_of, sizes):
    config, batch = with_own(tiny), row(make_batch(), 0)
    want = np.asarray(written(config, batch, 1, params_of(tiny, 3)).tokens)
    with jax.set_mesh(mesh_of(*sizes)):
        np.testing.assert_array_equal(written(config, batch, 1, params_of(tiny, 3)).tokens, want)


def test_a_step_is_one_on_the_written_batch_without_labels_or_else_one_on_data(
    tiny, make_batch, run_steps, assert_trees_equal
):
    """Cut into microbatches, beside whole steps on batches written outside, with lambda = 1 where they are.

    And cut into two calls, bit for bit: what a resumed run does.
    """
    whole = with_objective(tiny, lambda_=0.75, divergence="jensen_shannon")
    config = with_own(dataclasses.replace(whole, microbatches=2), 0.5)
    teacher, batches = params_of(tiny, 7), make_batch(5)
    state, _ = run_steps(config, batches, teacher=teacher)
    half, _ = run_steps(config, batches, teacher=teacher, count=2)
    rest = jax.tree.map(lambda leaf: np.roll(leaf, -2, axis=0), batches)
    assert_trees_equal(run_steps(config, rest, teacher=teacher, state=half, count=3)[0].params, state.params)
    plain, kinds = step.init_state(whole), set()
    for i in range(5):
        own = bool(on_policy.is_on_policy(optim.hyperparams(config), i))
        batch = written(config, row(batches, i), i, plain.params) if own else row(batches, i)
        here = dataclasses.replace(plain, hyper=optim.hyperparams(with_objective(whole, lambda_=1.0 if own else 0.75)))
        stacked = jax.tree.map(lambda leaf: np.asarray(leaf)[None], batch)
        plain, _ = run_steps(whole, stacked, teacher=teacher, state=here)
        kinds.add(own)
    assert kinds == {True, False}
    for got, want in zip(jax.tree.leaves(state.params), jax.tree.leaves(plain.params)):
        np.testing.assert_allclose(got, want, atol=1e-6, rtol=1e-5)


@jax.jit
def own_kl(student, teacher, prompts):
    """KL(student || teacher) a token on fresh samples of the student after these prompts."""
    keys = jax.random.split(jax.random.key(99), prompts.shape[0])
    drawn = DecodeConfig(new_tokens=17 - PROMPT)
    tokens = decode.generate(drawn, student, prompts, keys).tokens[:, :-1]
    log_q, log_p = (jax.nn.log_softmax(model(tokens)[:, PROMPT - 1 :], axis=-1) for model in (student, teacher))
    return jnp.mean(jnp.sum(divergences.terms("reverse", log_p, log_q), axis=-1))


def test_own_batches_lower_the_kl_on_own_samples(tiny, make_batch, run_steps):
    """Data of a narrow kind (8 of 32 tokens) says little of where the student goes by itself; its own batches do."""
    small = dataclasses.replace(tiny.model, d_model=8, n_heads=1)
    config = dataclasses.replace(with_objective(tiny, divergence="reverse"), model=small)
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, schedule="constant"))
    teacher = params_of(tiny, 7)
    teacher.embed[...] = 3 * teacher.embed[...]
    batches = make_batch(200, vocab=8, weighted=False)
    prompts = make_batch(1, seed=5, batch=256, vocab=8).tokens[0, :, :PROMPT]
    found = {}
    for fraction in (1e-9, 1.0):  # not zero, to compile one program
        state, _ = run_steps(with_own(config, fraction), batches, teacher=teacher)
        found[fraction] = own_kl(state.params, teacher, prompts)
    assert found[1.0] < 0.5 * found[1e-9]  # .042 and .125 when this was written


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"on_policy": {"fraction": 1.5}}, "on_policy.fraction: got 1.5"),
        ({"on_policy": {"fraction": 0.5, "prompt_tokens": 129}}, "prompt_tokens: got 129, wanted 1 to seq_len=128"),
        ({"on_policy": {"fraction": 0.5}, "teacher": {"signal": "memory"}}, "set teacher.signal='online'"),
        ({"on_policy": {"fraction": 0.5}, "data": {"packing": "segments"}}, "set packing='windows'"),
        ({"on_policy": {"fraction": 0.5, "temperature": -1.0}}, "temperature of sampling: got -1.0"),
    ],
)
def test_what_cannot_be_had_is_refused(tiny, changes, words):
    with pytest.raises(ConfigError, match=words):
        build(type(tiny), changes)


def test_without_a_teacher_there_is_nobody_to_judge(tiny):
    with pytest.raises(ConfigError, match="give config.teacher.source"):
        inputs.resolve(with_own(tiny, 0.5))


def test_own_batches_are_counted(tiny):
    forward = counts.forward_flops(tiny.model, 16) * counts.training_tokens(tiny)
    assert counts.run_flops(with_own(tiny, 0.5)).student == 3.5 * forward
