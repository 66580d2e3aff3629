"""Every model of the zoo: the numbers of transformers, or a refusal with its reason (tests/interop/zoo.py)."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill import interop
from distill.config import counts
from distill.errors import InteropError
from distill.interop import export, hf_config
from distill.interop.families import FAMILIES, SUPPORTED, fitting
from distill.interop.tokenizer_files import TokenizerFiles
from distill.losses import fused
from distill.losses.fused import FusedSpec
from distill.model import decode
from tests.interop import zoo

GUIDE = Path(__file__).parents[2] / "docs/guide/models.md"
LENGTH = 640  # positions: past every window, and past the context of 128 and of 32
SAMPLE = ("Phi3, mini-4k", "Gemma2, query scale, low caps", "SmolLM3, yarn")
LOGITS = jax.jit(lambda model, tokens: model(tokens))


def by_name(animals):
    return {animal.name: animal for animal in animals}


READ = by_name(zoo.READ)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, zoo.SIZES["vocab_size"], (2, LENGTH), np.int32)


def theirs(model, tokens):
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens.astype(np.int64))).logits.numpy()


def check(animal, path, tokens):
    model = zoo.write(animal, path / "there")
    want = theirs(model, tokens)
    assert np.std(want) > 0.1  # else agreement says little
    loaded = interop.load(path / "there")
    got = np.asarray(LOGITS(loaded.params, jnp.asarray(tokens)))
    np.testing.assert_array_equal(np.argmax(got, -1), np.argmax(want, -1))
    np.testing.assert_allclose(got, want, atol=5e-4, rtol=0)
    return loaded, got, want


def check_decode(loaded, got, tokens):
    """In pieces through the cache: the logits of the whole."""
    cache, hidden = decode.empty(loaded.params, len(tokens), tokens.shape[1]), []
    for start, stop in ((0, 90), (90, tokens.shape[1])):
        part, cache = EXTEND(loaded.params, jnp.asarray(tokens[:, start:stop]), cache, start)
        hidden.append(part)
    again = loaded.params.logits(jnp.concatenate(hidden, axis=1))
    np.testing.assert_allclose(again, got, atol=2e-4, rtol=0)


EXTEND = jax.jit(decode.extend)


def check_export(loaded, path, tokens, want):
    """Out, and in again by both: our weights bit for bit, and the numbers that transformers had; or a refusal."""
    if fitting(export.published(loaded.config)) is None:
        with pytest.raises(InteropError, match="no family of models has this combination"):
            export.write(path / "again", loaded.params, TokenizerFiles({}), context=loaded.context)
        return
    export.write(path / "again", loaded.params, TokenizerFiles({}), context=loaded.context)
    back = interop.load(path / "again")
    if loaded.config.tied == back.config.tied:
        for one, other in zip(jax.tree.leaves(back.params), jax.tree.leaves(loaded.params), strict=True):
            np.testing.assert_array_equal(one, other)
    found = theirs(zoo.reload(path / "again"), tokens)
    np.testing.assert_allclose(found, want, atol=5e-4, rtol=0)
    kept = back.source.family.name == loaded.source.family.name
    if kept and loaded.source.family.gain_offset == 0:
        np.testing.assert_array_equal(found, want)  # the same family and the same bits


@pytest.mark.slow
@pytest.mark.parametrize("name", READ)
def test_numbers_of_transformers(name, torch, transformers, tmp_path, tokens):
    loaded, got, want = check(READ[name], tmp_path, tokens)
    check_decode(loaded, got, tokens)
    check_export(loaded, tmp_path, tokens, want)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_numbers_of_transformers_in_a_sample(name, torch, transformers, tmp_path, tokens):
    """The three that use most: fused tensors; sandwich norms, 1 + w, caps, windows; layers without positions, yarn."""
    check(READ[name], tmp_path, tokens)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Gemma2, query scale, low caps", "Gemma2, no caps"])
def test_the_fused_loss_has_the_cap(name, torch, transformers, tmp_path, tokens):
    """Value and gradient by all parameters, against the whole logits."""
    zoo.write(READ[name], tmp_path / "m")
    model, ids = interop.load(tmp_path / "m").params, jnp.asarray(tokens[:, :40])
    spec = FusedSpec(divergence="", tempered=False, tokens=96, cap=model.config.logit_cap, chunk_logits=1024)

    def chunked(model):
        found = fused.fused_losses(spec, model.hidden(ids), model.head_vd, ids[..., None], None)
        return jnp.mean(found.log_z - found.id_logits[..., 0])

    def whole(model):
        log_p = jax.nn.log_softmax(jax.sharding.reshard(model(ids), jax.P(("data", "fsdp"), None, None)))
        return -jnp.mean(jnp.take_along_axis(log_p, ids[..., None], axis=-1))

    got, want = jax.jit(jax.value_and_grad(chunked))(model), jax.jit(jax.value_and_grad(whole))(model)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-3)


REFUSED = by_name(zoo.REFUSED_FIELDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_fields_that_are_refused(name, torch, transformers, tmp_path):
    zoo.write(REFUSED[name], tmp_path / "m")
    with pytest.raises(InteropError, match=REFUSED[name].refused):
        interop.open_source(tmp_path / "m")


@pytest.mark.parametrize("name", zoo.REFUSED_NAMES)
def test_names_that_are_refused(name):
    """With the true reason, and without a guess: Llama's own fields are no reason to read it as Llama."""
    with pytest.raises(InteropError, match=zoo.REFUSED_NAMES[name]) as error:
        hf_config.read_config(zoo.SIZES | {"architectures": [name]}, "config.json")
    assert "Did you mean" not in str(error.value)


def test_model_type_alone_names_a_family():
    for family in FAMILIES:
        tree = {"model_type": family.model_type}
        with pytest.raises(InteropError, match="is missing"):
            hf_config.read_config(tree, "config.json")
    for kind, words in (("glm4_moe", "mixture of experts"), ("qwen3_next", "linear attention"), ("heliums", "unknown")):
        with pytest.raises(InteropError, match=words):
            hf_config.read_config({"model_type": kind}, "config.json")


def test_qwen3_30b_a3b_has_the_sizes_that_its_card_says():
    """30.5B in all, 29.9B of them not in embedding and head; a token uses 3.35B, the tables included.

    The fields are those of config.json at huggingface.co/Qwen/Qwen3-30B-A3B, compared with MaxText's qwen3-30b-a3b.yml.
    """
    tree = {
        "architectures": ["Qwen3MoeForCausalLM"], "decoder_sparse_step": 1, "head_dim": 128, "hidden_size": 2048,
        "intermediate_size": 6144, "max_window_layers": 48, "mlp_only_layers": [], "moe_intermediate_size": 768,
        "norm_topk_prob": True, "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
        "num_hidden_layers": 48, "num_key_value_heads": 4, "rope_theta": 1e6, "router_aux_loss_coef": 0.001,
        "sliding_window": None, "use_sliding_window": False, "vocab_size": 151936, "max_position_embeddings": 40960,
    }  # fmt: skip
    model = hf_config.read_config(tree, "config.json")
    tables = counts.total(model) - counts.stored(model)
    sizes = counts.total(model), counts.stored(model), counts.non_embedding(model) + tables
    assert [round(size / 1e9, 2) for size in sizes] == [30.53, 29.91, 3.35]
    with pytest.raises(InteropError, match="num_local_experts is 4, wanted 128"):
        hf_config.read_config(tree | {"num_local_experts": 4}, "config.json")


def test_the_zoo_is_large_and_has_every_family():
    assert len(READ) == len(zoo.READ) and len(zoo.READ) + len(zoo.REFUSED_FIELDS) >= 80
    assert {f"{animal.family}ForCausalLM" for animal in zoo.READ} == set(SUPPORTED)
    assert sum(animal.old for animal in zoo.READ) >= 8


def test_the_guide_has_the_table_of_the_zoo(request):
    """Update with --update-golden."""
    begin, end = "<!-- zoo: .venv/bin/pytest tests/interop/test_zoo.py --update-golden -->\n", "<!-- end of zoo -->"
    text = GUIDE.read_text("utf-8")
    before, rest = text.split(begin)
    stands, after = rest.split(end)
    if request.config.getoption("--update-golden"):
        GUIDE.write_text(before + begin + zoo.table() + end + after, "utf-8")
    else:
        assert stands == zoo.table(), "update with --update-golden"


def test_yarn_is_no_model_without_its_field():
    """The advice to take the field away was wrong: the attention factor acts at every position."""
    with pytest.raises(InteropError) as error:
        hf_config.read_config(zoo.SIZES | {"architectures": ["LlamaForCausalLM"], "rope_scaling": {"type": "x"}}, "c")
    assert "copy" not in str(error.value) and json.dumps("x").strip('"') in str(error.value)
