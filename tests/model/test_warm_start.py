"""Students that begin with another model's weights: which layers, which slices, what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill import config as configs
from distill.config import ConfigError, InitConfig, ModelConfig
from distill.model import warm_start
from distill.model.transformer import Transformer
from distill.records.logger import read_metrics
from distill.training import loop

SOURCE = ModelConfig(
    vocab_size=32, d_model=16, n_layers=6, n_heads=4, n_kv_heads=2, d_head=8, d_ff=24, tied=False, qk_norm=False
)
LOGITS = jax.jit(lambda model, tokens: model(tokens))


def from_source(width="same", layers="every", **changes):
    """The student's config and its weights, out of one random source."""
    mine = dataclasses.replace(SOURCE, **changes)
    source = Transformer(SOURCE, jax.random.key(0))
    return source, warm_start.warm_start(InitConfig(source="s", width=width, layers=layers), mine, source)


def test_all_layers_at_full_width_are_the_same_model(assert_trees_equal):
    source, student = from_source()
    assert_trees_equal(student, source)


@pytest.mark.parametrize(
    "kind, count, want",
    [("every", 3, [0, 2, 4]), ("every", 2, [0, 3]), ("every", 4, [0, 1, 3, 4]), ("first", 3, [0, 1, 2])],
)
def test_layers(kind, count, want):
    source, student = from_source(layers=kind, n_layers=count)
    np.testing.assert_array_equal(student.blocks.gate[...], np.asarray(source.blocks.gate[...])[want])
    np.testing.assert_array_equal(student.head[...], source.head[...])


def test_slices_take_the_leading_parts_and_keep_the_scale():
    """Of four query heads in two groups, one a group: heads 0 and 2. Seen to catch the first two instead."""
    source, student = from_source(width="slice", d_model=8, n_heads=2, n_kv_heads=2, d_ff=12, n_layers=2)
    query, down = (np.asarray(array)[[0, 3]] for array in (source.blocks.query[...], source.blocks.down[...]))
    root2 = np.float32(np.sqrt(2))
    np.testing.assert_allclose(student.blocks.query[...], query[:, :8][:, :, [0, 2]] * root2, rtol=1e-6)
    np.testing.assert_allclose(student.blocks.down[...], down[:, :12, :8] * root2, rtol=1e-6)
    np.testing.assert_array_equal(student.embed[...], np.asarray(source.embed[...])[:, :8])
    np.testing.assert_allclose(student.head[...], np.asarray(source.head[...])[:, :8] * root2, rtol=1e-6)
    tokens = jnp.arange(32)[None]
    spread = [float(jnp.std(LOGITS(model, tokens))) for model in (student, source)]
    assert spread[0] == pytest.approx(spread[1], rel=0.4)


def test_an_untied_student_of_a_tied_source_has_two_equal_tables():
    source = Transformer(dataclasses.replace(SOURCE, tied=True, scaled_embedding=False), jax.random.key(0))
    mine = dataclasses.replace(SOURCE, scaled_embedding=False)
    student = warm_start.warm_start(InitConfig(source="s"), mine, source)
    np.testing.assert_array_equal(student.head[...], source.embed[...])
    tokens = jnp.arange(8)[None]
    np.testing.assert_array_equal(LOGITS(student, tokens), LOGITS(source, tokens))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"d_model": 8}, ["d_model=8", "16", "config.init.width='slice'"]),
        ({"d_model": 32, "width": "slice"}, ["d_model=32", "as many or fewer"]),
        ({"n_layers": 7}, ["n_layers=7"]),
        ({"d_head": 4, "width": "slice"}, ["head_dim=4"]),
        ({"rope_base": 1e4}, ["rope_base=10000.0", "the same"]),
        ({"qk_norm": True}, ["qk_norm=True"]),
        ({"tied": True}, ["scaled_embedding", "tied"]),
        ({"n_heads": 4, "n_kv_heads": 1, "width": "slice"}, ["n_heads", "query heads for a key-value head"]),
    ],
)
def test_what_does_not_fit_is_named(changes, words):
    changes = dict(changes)
    width = changes.pop("width", "same")
    mine = dataclasses.replace(SOURCE, **changes)
    with pytest.raises(ConfigError) as error:
        warm_start.check(InitConfig(source="s", width=width), mine, SOURCE)
    assert any(word in str(error.value) for word in words) and "s" in str(error.value)


def test_a_run_begins_with_the_weights_of_another(tiny, store, tmp_path):
    """Its first loss is the other's last, its fingerprint names the other, and a restart does not begin anew."""
    config = dataclasses.replace(tiny, batch_size=8, loop=dataclasses.replace(tiny.loop, log_steps=1, steps_per_call=1))
    loop.train(config, tmp_path / "a", store=store)
    init = InitConfig(source=str(tmp_path / "a"))
    record = loop.train(dataclasses.replace(config, init=init), tmp_path / "b", store=store)
    losses = {name: [line["ntp"] for line in read_metrics(tmp_path / name / "metrics.jsonl")] for name in "ab"}
    assert losses["b"][0] < min(losses["a"][0], losses["a"][5]) and losses["b"][0] < losses["a"][-1] + 0.2
    text = (tmp_path / "b" / "config.txt").read_text()
    named = configs.fingerprint(configs.from_text(type(config), (tmp_path / "a" / "config.txt").read_text()))
    assert f'init.run = "{named}"' in text and record.run != named
