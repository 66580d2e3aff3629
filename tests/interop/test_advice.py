"""Paths that are no model, and tensors under another prefix: the error says what to give instead."""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from distill.config import ConfigError
from distill.errors import InteropError
from distill.interop.source import open_source
from distill.teacher import load

FIELDS = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5,
}  # fmt: skip
BLOCK = {
    "input_layernorm": (16,), "post_attention_layernorm": (16,), "self_attn.q_proj": (16, 16),
    "self_attn.k_proj": (8, 16), "self_attn.v_proj": (8, 16), "self_attn.o_proj": (16, 16),
    "mlp.gate_proj": (24, 16), "mlp.up_proj": (24, 16), "mlp.down_proj": (16, 24),
}  # fmt: skip


def model(folder, rename=lambda name: name, **fields):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(FIELDS | fields))
    shapes = {f"model.layers.0.{name}.weight": shape for name, shape in BLOCK.items()}
    shapes |= {"model.embed_tokens.weight": (32, 16), "lm_head.weight": (32, 16), "model.norm.weight": (16,)}
    save_file(
        {rename(name): np.zeros(shape, np.float32) for name, shape in shapes.items()}, folder / "model.safetensors"
    )
    return folder


def test_the_model_of_these_tests_is_read(tmp_path):
    assert open_source(model(tmp_path / "m"))[1].n_layers == 1


@pytest.mark.parametrize("kind", ["adapter", "gguf", "cache", "folders", "meta", "empty"])
def test_a_folder_without_a_model(kind, tmp_path):
    folder = tmp_path / "given"
    folder.mkdir()
    if kind == "adapter":
        (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
        words = "an adapter of PEFT for org/base: merge it"
    elif kind == "gguf":
        (folder / "m.Q8_0.gguf").touch()
        words = "it holds m.Q8_0.gguf: give that file"
    elif kind == "cache":
        place = model(folder / "snapshots" / "0123")
        words = f"it is a cache of Hugging Face: give {place}"
    elif kind == "folders":
        for name in "abcd":
            model(folder / name)
        words = "it holds the folders a, b, c, ...: give one of them"
    elif kind == "meta":
        (folder / "params.json").touch()
        (folder / "consolidated.00.pth").touch()
        words = "the form of Meta's own code"
    else:
        words = "wanted a Hugging Face model's directory$"
    with pytest.raises(InteropError, match=re.escape(words).replace(r"\$", "$")):
        open_source(folder)
    if kind != "empty":
        with pytest.raises(ConfigError, match=re.escape(words)):  # what every command says
            load.read_info(folder)


def test_a_path_that_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = model(tmp_path / "m")
    with pytest.raises(InteropError, match=re.escape(f"it is a file: give its folder, {place}")):
        open_source(place / "config.json")
    with pytest.raises(InteropError, match="`hf download Qwen/Qwen3-0.6B --local-dir=models/Qwen3-0.6B`"):
        open_source("Qwen/Qwen3-0.6B")
    for name in ("m/missing", "runs/nothing"):
        with pytest.raises(InteropError, match="no such file or directory$"):
            open_source(name)
    with pytest.raises(ConfigError, match="no shell expands ~ after '=': write .HOME"):
        load.read_info("~/models/qwen")


@pytest.mark.parametrize(
    "rename, found",
    [
        (lambda name: name.removeprefix("model."), "embed_tokens.weight"),
        (lambda name: f"_orig_mod.{name}", "_orig_mod.model.embed_tokens.weight"),
        (lambda name: name.replace("model.", "model.language_model."), "model.language_model.embed_tokens.weight"),
    ],
)
def test_tensors_under_another_prefix(rename, found, tmp_path):
    place = model(tmp_path / "m", rename)
    with pytest.raises(InteropError, match=rf"'model.embed_tokens.weight' is missing, .*; there is '{found}': rename"):
        open_source(place)


@pytest.mark.parametrize("name", ["LlamaForSequenceClassification", "LlamaModel", "Qwen3ForTokenClassification"])
def test_another_head_is_named(name, tmp_path):
    with pytest.raises(InteropError, match=f"{name} is not supported: it has no head for the next token"):
        open_source(model(tmp_path / "m", architectures=[name]))


def test_a_folder_that_vanishes_has_no_advice(tmp_path):
    place = model(tmp_path / "m")
    shutil.rmtree(place)
    with pytest.raises(InteropError, match="no such file or directory$"):
        open_source(place)
