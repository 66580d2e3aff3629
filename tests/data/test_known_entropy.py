"""End to end against the truth: a model trained on a language of known entropy comes down to it, from above."""

import jax
import numpy as np
import pytest

from distill import data
from distill.config import ExperimentConfig, ModelConfig
from distill.config.data import DataConfig, GeneratedConfig
from distill.teacher import load
from distill.training import inputs, loop
from distill.training.evaluate import evaluate
from distill.types import TeacherSignal

SEQ_LEN = 128


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """A run takes all devices; eight fake ones would only be slow at this size."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: devices)


def run(language, tokens, folder):
    """(the run's record, its KL to the truth, the optimal loss on the same windows, the entropy rate)."""
    config = ExperimentConfig(
        model=ModelConfig(vocab_size=language.symbols, d_model=32, n_layers=2),
        data=DataConfig(source="generated", generated=language, packing="segments", cache=str(folder / "stores")),
        tokens=tokens,
        seq_len=SEQ_LEN,
    )
    workdir = folder / f"{tokens}"
    record = loop.train(config, workdir)
    evaluation = inputs.open_store(config, workdir).evaluation(
        "validation", SEQ_LEN, config.eval.tokens, packing="segments"
    )
    truth = data.make_language(language)
    # Position 0 is what the model is given; it predicts 1..S from there.
    log_probs = truth.predict(evaluation.batch.tokens)[:, 1:]
    labels, weight = np.asarray(evaluation.batch.labels), np.asarray(evaluation.batch.weight)
    optimal = float(-(np.take_along_axis(log_probs, labels[..., None], 2)[..., 0] * weight).sum() / weight.sum())
    kept = dict(zip(evaluation.windows.tolist(), log_probs.astype(np.float32)))
    scores = evaluate(
        load.load(workdir).params,
        evaluation,
        config.eval.batch_size,
        signal=lambda ids: TeacherSignal(log_probs=np.stack([kept[i] for i in ids.tolist()])),
    )
    return record, scores.kl, optimal, truth.entropy_rate()


def check(language, budgets, folder, last):
    excess = []
    for tokens in budgets:
        record, kl, optimal, rate = run(language, tokens, folder)
        assert optimal > rate - 4 * record.loss_se  # a window knows less than the whole past
        # In expectation the excess over the optimum is the KL divergence from the truth; both are measured here.
        assert record.loss - optimal == pytest.approx(kl, abs=0.15 * kl + 2e-3)
        excess.append(record.loss - optimal)
    assert all(a > b for a, b in zip(excess, excess[1:])) and 0 < excess[-1] < last


def test_the_loss_comes_down_to_the_entropy(tmp_path):
    language = GeneratedConfig(symbols=8, depth=1, tokens=400_000, validation_tokens=65_536)
    check(language, [20_000, 120_000], tmp_path, last=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["markov", "hidden"])
def test_longer_memory_and_more_tokens(tmp_path, kind):
    language = GeneratedConfig(kind=kind, symbols=8, depth=2, states=16, tokens=4_000_000)
    # Hidden states cannot be read off the last few symbols: this small model has not learnt to track them by then.
    check(language, [60_000, 250_000, 1_000_000], tmp_path, last=0.2 if kind == "hidden" else 0.01)
