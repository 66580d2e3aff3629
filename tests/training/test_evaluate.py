"""Every score against numpy in float64, from the model's own logits; padding of the last batch counts nothing."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from distill.data.store.evaluation import Evaluation
from distill.training import step
from distill.training.evaluate import AHEAD, ECE_BINS, evaluate, in_turn
from distill.types import Batch, TeacherSignal

N = 10  # windows: two and a half batches of four


@pytest.fixture(scope="module")
def models(tiny, mesh_of):
    """(student, teacher), sharpened so that confidences fill many bins."""
    with jax.set_mesh(mesh_of(1, 1, 1)):
        pair = [step.init_state(dataclasses.replace(tiny, seed=seed)).params for seed in (0, 1)]
        return [jax.tree.map(lambda leaf: leaf * (3 if leaf.shape == (16,) else 1), model) for model in pair]


@pytest.fixture(scope="module")
def evaluation(make_batch):
    batches = make_batch(1, seed=3, batch=N)
    batch = Batch(batches.tokens[0], batches.weight[0])
    return Evaluation(batch=batch, windows=np.arange(N) * 3, bytes=123.0, exact_bytes=True)


@pytest.fixture(scope="module")
def logits(models, evaluation, mesh_of):
    forward = jax.jit(lambda model, tokens: model(tokens))
    with jax.set_mesh(mesh_of(1, 1, 1)):
        return [np.asarray(forward(model, jnp.asarray(evaluation.batch.inputs)), np.float64) for model in models]


@pytest.fixture
def scores(models, evaluation):
    return evaluate(models[0], evaluation, 4, teacher=models[1])


def losses_of(logits, batch):
    return -np.take_along_axis(special.log_softmax(logits, -1), batch.labels[..., None], -1)[..., 0]


def test_loss_and_bits_per_byte(scores, logits, evaluation):
    batch = evaluation.batch
    loss = losses_of(logits[0], batch)
    assert scores.loss == pytest.approx(np.average(loss, weights=batch.weight), rel=1e-6)
    assert scores.bits_per_byte == pytest.approx((loss * batch.weight).sum() / math.log(2) / 123, rel=1e-6)


def test_the_standard_error_is_that_of_independent_windows(scores, models, logits, evaluation):
    """Against a bootstrap of windows; and, where all weigh the same, against the textbook."""
    loss, weight = losses_of(logits[0], evaluation.batch), np.asarray(evaluation.batch.weight, np.float64)
    draws = np.random.default_rng(0).integers(0, N, (20_000, N))
    means = (loss * weight).sum(1)[draws].sum(1) / weight.sum(1)[draws].sum(1)
    assert scores.loss_se == pytest.approx(means.std() * math.sqrt(N / (N - 1)), rel=0.05)
    even = dataclasses.replace(evaluation, batch=Batch(evaluation.batch.tokens, np.ones_like(evaluation.batch.weight)))
    want = loss.mean(axis=1).std(ddof=1) / math.sqrt(N)
    assert evaluate(models[0], even, 4).loss_se == pytest.approx(want, rel=1e-5)


def test_divergence_and_agreement(scores, logits, evaluation):
    p, q = (special.softmax(z, axis=-1) for z in (logits[1], logits[0]))
    weight = evaluation.batch.weight
    assert scores.kl == pytest.approx(np.average(special.rel_entr(p, q).sum(-1), weights=weight), rel=1e-5)
    same = p.argmax(-1) == q.argmax(-1)
    assert 0 < same.mean() < 1
    assert scores.agreement == pytest.approx(np.average(same, weights=weight), rel=1e-6)


def test_a_teacher_with_a_narrower_head(tiny, models, logits, evaluation, mesh_of):
    """Heads of one tokenizer, padded differently: a column that the teacher lacks has no probability there.

    Seen to catch: the teacher's columns padded by the student's padding alone, which gave arrays of unequal widths.
    """
    wide = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, vocab_size=40))
    with jax.set_mesh(mesh_of(1, 1, 1)):
        student = step.init_state(wide).params
        z = np.asarray(jax.jit(lambda m, t: m(t))(student, jnp.asarray(evaluation.batch.inputs)), np.float64)
    p, q = special.softmax(logits[1], axis=-1), special.softmax(z, axis=-1)[..., :32]
    found = evaluate(student, evaluation, 4, teacher=models[1])
    want = np.average(special.rel_entr(p, q).sum(-1), weights=evaluation.batch.weight)
    assert found.kl == pytest.approx(want, rel=1e-5)


def test_calibration_over_21_bins(scores, logits, evaluation):
    """sum over bins of share * |accuracy - confidence|, in loops over the tokens."""
    q, weight = special.softmax(logits[0], axis=-1), evaluation.batch.weight
    bins = [[] for _ in range(21)]
    for place in np.ndindex(weight.shape):
        confidence = q[place].max()
        hit = q[place].argmax() == evaluation.batch.labels[place]
        bins[min(int(confidence * 21), 20)].append((weight[place], hit, confidence))
    assert sum(bool(b) for b in bins) > 5, "the example must fill several bins"
    want = sum(abs(sum(w * (h - c) for w, h, c in b)) for b in bins) / weight.sum()
    assert ECE_BINS == 21 and scores.ece == pytest.approx(want, rel=1e-4)


def test_a_model_beside_itself(models, evaluation):
    own = evaluate(models[0], evaluation, 4, teacher=models[0])
    assert own.kl == pytest.approx(0, abs=1e-6) and own.agreement == 1


def test_the_size_of_a_batch_does_not_matter(scores, models, evaluation):
    """10 windows in batches of 4 leave 2 rows of padding, in batches of 16 leave 6: none of them counts."""
    other = evaluate(models[0], evaluation, 16, teacher=models[1])
    for name, value in dataclasses.asdict(scores).items():
        assert getattr(other, name) == pytest.approx(value, rel=1e-5), name


def test_a_stored_signal_is_asked_for_by_window_and_scores_as_the_online_teacher(scores, models, logits, evaluation):
    asked = []

    def signal(windows):
        asked.extend(windows.tolist())
        rows = np.searchsorted(evaluation.windows, windows)
        return TeacherSignal(log_probs=special.log_softmax(logits[1][rows], axis=-1).astype(np.float32))

    stored = evaluate(models[0], evaluation, 4, signal=signal)
    assert set(asked) == set(evaluation.windows.tolist())
    for name, value in dataclasses.asdict(scores).items():
        assert getattr(stored, name) == pytest.approx(value, rel=1e-5), name


def test_without_a_teacher_there_is_nothing_to_compare_with(scores, models, evaluation):
    alone = evaluate(models[0], evaluation, 4)
    assert alone == dataclasses.replace(scores, kl=None, agreement=None)


def test_scores_do_not_depend_on_the_mesh(scores, models, evaluation, mesh_of):
    host = [jax.tree.map(np.asarray, model) for model in models]
    with jax.set_mesh(mesh_of(2, 1, 2)) as _:
        place = lambda model: jax.tree.map(lambda a: jax.device_put(a, jax.P()), model)
        got = evaluate(place(host[0]), evaluation, 4, teacher=place(host[1]))
    for name, value in dataclasses.asdict(scores).items():
        assert getattr(got, name) == pytest.approx(value, rel=1e-5), name


def test_few_programs_run_ahead(monkeypatch):
    """More than 32 of them deadlock devices of a CPU: 64 small evaluations on eight did, on a busy machine."""
    waited, most = [], []
    monkeypatch.setattr(jax, "block_until_ready", lambda value: waited.append(value) or value)

    def dispatched():
        for i in range(50):
            most.append(i + 1 - len(waited))
            yield i

    assert list(in_turn(dispatched())) == list(range(50))
    assert max(most) == AHEAD + 1 and waited == list(range(50 - AHEAD))
    assert list(in_turn([])) == []
