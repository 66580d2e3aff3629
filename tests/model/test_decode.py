"""Decoding with a cache against the full forward pass: logits, greedy text, stops, cuts, and the mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.config import ConfigError, ModelConfig
from distill.model import decode
from distill.model.decode import DecodeConfig
from distill.model.transformer import Transformer

CONFIG = ModelConfig(vocab_size=24, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_ff_multiple=16)
B, START, NEW = 4, 5, 6


def keys(seed):
    return jax.random.split(jax.random.key(seed), B)


def prompts():
    return jnp.asarray(np.random.default_rng(0).integers(0, 24, (B, START), np.int32))


@pytest.mark.parametrize("tied", [True, False])
def test_prefill_and_steps_equal_the_full_forward(tied):
    model = Transformer(dataclasses.replace(CONFIG, tied=tied, qkv_bias=not tied), jax.random.key(0))
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 24, (B, 9), np.int32))
    want = model.hidden(tokens)
    hidden, cache = decode.extend(model, tokens[:, :5], decode.empty(model, B, 12), 0)
    found = [hidden]
    for i in range(5, 9):
        hidden, cache = jax.jit(decode.extend)(model, tokens[:, i : i + 1], cache, i)
        found.append(hidden)
    np.testing.assert_allclose(np.concatenate(found, axis=1), want, atol=1e-5)


def greedy(model, tokens, count):
    """By the full forward pass, one token after the other."""
    for _ in range(count):
        last = np.argmax(np.asarray(jax.jit(Transformer.__call__)(model, jnp.asarray(tokens)))[:, -1:], axis=-1)
        tokens = np.concatenate([tokens, last.astype(np.int32)], axis=1)
    return tokens


def test_greedy_text_is_that_of_the_full_forward():
    model = Transformer(CONFIG, jax.random.key(0))
    got = decode.generate(DecodeConfig(new_tokens=NEW, temperature=0.0), model, prompts(), keys(1))
    np.testing.assert_array_equal(got.tokens, greedy(model, prompts(), NEW))
    assert (got.weight == 1).all()


def test_a_sequence_ends_with_its_stop_token():
    model = Transformer(CONFIG, jax.random.key(0))
    free = greedy(model, prompts(), NEW)[:, START:]
    stop = int(free[0, 2])
    config = DecodeConfig(new_tokens=NEW, temperature=0.0, stop=(stop,))
    got = decode.generate(config, model, prompts(), keys(1))
    for row, weight, whole in zip(np.asarray(got.tokens)[:, START:], np.asarray(got.weight), free):
        end = list(whole).index(stop) + 1 if stop in whole else NEW
        np.testing.assert_array_equal(row[:end], whole[:end])
        np.testing.assert_array_equal(weight, np.arange(NEW) < end)
        assert (row[end:] == stop).all()


def test_draws_follow_the_cut_distribution():
    """Of 8 tokens the top 4, of those the nucleus of .8, at temperature 2; each token within 5 standard errors."""
    logits = np.array([3.0, 1.0, 2.5, -1.0, 0.5, 2.0, -3.0, 0.0], np.float32)
    config = DecodeConfig(temperature=2.0, top_k=4, top_p=0.8)
    count = 20_000
    rows = jnp.broadcast_to(jnp.asarray(logits)[None], (count, 8))
    got = (
        np.bincount(np.asarray(decode.draw(config, rows, jax.random.split(jax.random.key(0), count))), minlength=8)
        / count
    )
    four = np.exp(logits / 2) * (logits >= 1.0)
    four /= four.sum()
    order = np.argsort(-four)
    want = np.zeros(8)
    want[order[:3]] = four[order[:3]] / four[order[:3]].sum()
    assert four[order[:2]].sum() < 0.8 < four[order[:3]].sum()
    assert (np.abs(got - want) <= 5 * np.sqrt(want * (1 - want) / count)).all()


@pytest.mark.parametrize("sizes", [(2, 1, 2), (1, 4, 1)])
def test_any_mesh_writes_the_same_text(sizes, mesh_of):
    config = DecodeConfig(new_tokens=NEW, temperature=0.0)
    want = greedy(Transformer(CONFIG, jax.random.key(0)), prompts(), NEW)
    with jax.set_mesh(mesh_of(*sizes)):
        model = Transformer(CONFIG, jax.random.key(0))
        got = decode.generate(config, model, jnp.asarray(np.asarray(prompts())), keys(1))
    np.testing.assert_array_equal(got.tokens, want)


def test_a_seed_draws_the_same_again_and_another_does_not():
    model = Transformer(CONFIG, jax.random.key(0))
    config = DecodeConfig(new_tokens=NEW, top_k=10, top_p=0.95)
    one, two, three = (np.asarray(decode.generate(config, model, prompts(), keys(k)).tokens) for k in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert (one != three).any()


def test_impossible_settings_are_named():
    with pytest.raises(ConfigError, match="top_p of sampling: got 0.0"):
        DecodeConfig(top_p=0.0)


def test_prompts_of_any_length_continue_as_each_would_alone():
    """Beside batches of one without padding, whatever stands in the padding."""
    model = Transformer(dataclasses.replace(CONFIG, window=4), jax.random.key(0))
    lengths, rows, config = np.array([5, 2, 3, 2]), np.asarray(prompts()), DecodeConfig(new_tokens=NEW)
    got = decode.generate(config, model, jnp.asarray(rows), keys(1), jnp.asarray(lengths))
    for i in (1, 3):
        alone = decode.generate(config, model, jnp.asarray(rows[i : i + 1, -2:]), keys(1)[i : i + 1])
        np.testing.assert_array_equal(got.tokens[i, START:], alone.tokens[0, 2:])
        np.testing.assert_allclose(got.log_probs[i], alone.log_probs[0], atol=1e-5)


def test_log_probs_are_the_models_own_however_the_tokens_were_drawn():
    model = Transformer(CONFIG, jax.random.key(0))
    config = DecodeConfig(new_tokens=NEW, temperature=0.5, top_k=6, stop=(3, 5, 7, 9))
    got = decode.generate(config, model, prompts(), keys(4))
    whole = jax.nn.log_softmax(jax.jit(Transformer.__call__)(model, got.tokens[:, :-1]), axis=-1)[:, START - 1 :]
    want = np.take_along_axis(np.asarray(whole), np.asarray(got.tokens)[:, START:, None], axis=-1)[..., 0]
    assert 0 < np.asarray(got.weight).mean() < 1
    np.testing.assert_allclose(got.log_probs, want * got.weight, atol=1e-5)


def test_a_sequences_draws_are_its_own():
    """Its place in the batch, and what else is there, change nothing."""
    model, config = Transformer(CONFIG, jax.random.key(0)), DecodeConfig(new_tokens=NEW)
    order = np.array([2, 0, 3, 1])
    one = decode.generate(config, model, prompts(), keys(1))
    other = decode.generate(config, model, prompts()[order], keys(1)[order])
    np.testing.assert_array_equal(np.asarray(one.tokens)[order], other.tokens)


def test_bfloat16_decodes_as_its_full_forward_does():
    model = Transformer(dataclasses.replace(CONFIG, dtype="bfloat16"), jax.random.key(0))
    got = decode.generate(DecodeConfig(new_tokens=NEW, temperature=0.0), model, prompts(), keys(1))
    logits = np.asarray(jax.jit(Transformer.__call__)(model, got.tokens[:, :-1]))[:, START - 1 :]
    chosen = np.take_along_axis(logits, np.asarray(got.tokens)[:, START:, None], axis=-1)[..., 0]
    assert (logits.max(axis=-1) - chosen < 0.05).all()  # rounding may decide between equals


def test_weights_are_cast_once_and_gains_are_not():
    model = decode._cast(Transformer(dataclasses.replace(CONFIG, dtype="bfloat16"), jax.random.key(0)))
    kinds = {jax.tree_util.keystr(path): leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(model)}
    assert {str(kind) for name, kind in kinds.items() if "norm" in name} == {"float32"}
    assert {str(kind) for name, kind in kinds.items() if "norm" not in name} == {"bfloat16"}
