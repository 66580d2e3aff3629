import numpy as np
import pytest

from distill import data
from distill.config.data import DataConfig, GeneratedConfig
from distill.data.sources.language import Language, hidden, make_language, markov


def coin(p):
    return Language(np.array([[1 - p, p]]), np.zeros((1, 2), np.int64))


def test_entropy_rates_known_in_closed_form():
    p = 0.2
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    assert coin(p).entropy_rate() == pytest.approx(entropy, abs=1e-14)
    # Flip with probability p, whatever the symbol: the same entropy, all of it in the transitions.
    flips = Language(np.array([[1 - p, p], [p, 1 - p]]), np.array([[0, 1], [0, 1]]))
    assert flips.entropy_rate() == pytest.approx(entropy, abs=1e-14)
    # The golden mean process (Crutchfield): state A tosses, B must emit 1; h = 2/3 ln 2.
    golden = Language(np.array([[0.5, 0.5], [0.0, 1.0]]), np.array([[1, 0], [0, 0]]))
    assert golden.entropy_rate() == pytest.approx(2 / 3 * np.log(2), abs=1e-12)
    uniform = Language(np.full((1, 8), 1 / 8), np.zeros((1, 8), np.int64))
    assert uniform.entropy_rate() == pytest.approx(np.log(8), abs=1e-14)


@pytest.mark.parametrize("language", [markov(4, 3, 0.3, 1), hidden(5, 7, 0.3, 1)], ids=["markov", "hidden"])
def test_stationary_distribution_is_the_eigenvector(language):
    states = len(language.emission)
    transition = np.zeros((states, states))
    for q in range(states):
        np.add.at(transition[q], language.successor[q], language.emission[q])
    values, vectors = np.linalg.eig(transition.T)
    pi = np.real(vectors[:, np.argmin(abs(values - 1))])
    np.testing.assert_allclose(language.stationary(), pi / pi.sum(), atol=1e-10)


@pytest.mark.parametrize("language", [markov(4, 2, 0.3, 1), hidden(5, 7, 0.3, 1)], ids=["markov", "hidden"])
def test_prediction_matches_enumeration_over_states(language):
    """p(x_1..x_T) summed over start states, each followed by hand, in float64."""
    tokens = language.sample(6, np.random.default_rng(0))
    pi = language.stationary()

    def probability(prefix):
        total = 0.0
        for q, weight in enumerate(pi):
            for x in prefix:
                weight *= language.emission[q, x]
                q = language.successor[q, x]
            total += weight
        return total

    logs = language.predict(tokens[None])[0]
    for t in range(6):
        for x in range(language.vocab_size):
            wanted = probability([*tokens[:t], x]) / probability(tokens[:t])
            assert np.exp(logs[t, x]) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("language", [markov(6, 2, 0.3, 0), hidden(6, 12, 0.3, 0)], ids=["markov", "hidden"])
def test_optimal_prediction_falls_to_the_entropy_rate(language):
    text = language.sample(4000 * 64, np.random.default_rng(1)).reshape(-1, 64)
    logs = language.predict(text)
    loss = -np.take_along_axis(logs, text[..., None], 2)[..., 0]
    rate = language.entropy_rate()
    assert loss[:, 32:].mean() == pytest.approx(rate, abs=4 * loss[:, 32:].std() / np.sqrt(loss[:, 32:].size / 8))
    assert loss[:, 0].mean() > rate + 0.1  # the window's start does not know the state
    np.testing.assert_allclose(np.exp(logs).sum(-1), 1, atol=1e-12)


def test_texts_are_seeded_and_sizes_exact(tmp_path):
    config = GeneratedConfig(symbols=5, depth=1, tokens=30_001, validation_tokens=5_000, document_tokens=4_096)
    stores = [data.open_store(DataConfig(source="generated", generated=config), tmp_path / name) for name in "ab"]
    for name, size in (("teacher", 15_000), ("student", 15_001), ("validation", 5_000)):
        one, two = (s.split(name) for s in stores)
        assert one.tokens == size and np.array_equal(one.read_span(0, size), two.read_span(0, size))
        assert one.bytes == one.token_bytes == size
    assert stores[0].vocab_size == 5 and stores[0].tokenizer_name == "symbols-5"
    text = stores[0].split("student").read_span(0, 4096)
    counts = np.zeros((5, 5))
    np.add.at(counts, (text[:-1], text[1:]), 1)
    emission = make_language(config).emission
    np.testing.assert_allclose(counts / counts.sum(1, keepdims=True), emission, atol=0.08)


def test_impossible_languages():
    for bad in (dict(symbols=1), dict(symbols=10, depth=9), dict(kind="hidden", states=0)):
        with pytest.raises(data.DataError, match="generated language"):
            make_language(GeneratedConfig(**bad))
