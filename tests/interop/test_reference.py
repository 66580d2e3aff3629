"""The independent reader that convert --verify asks: NumPy beside the import, and what a wrong import is told."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest

from distill import interop
from distill.config import MeshConfig
from distill.errors import InteropError
from distill.interop import export, reference, rope
from distill.interop.tokenizer_files import TokenizerFiles
from distill.model import sharding
from distill.model.transformer import Transformer
from distill.teacher import conversion
from distill.teacher.conversion import Conversion
from tests.interop import test_gguf
from tests.interop.test_formats import CONFIG

TOKENS = np.random.default_rng(3).integers(0, CONFIG.vocab_size, (2, 40), np.int32)
LLAMA3 = {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_context": 32}
SHAPES = {
    "qwen3": {},
    "qwen3 tied, biases, window": {"tied": True, "qkv_bias": True, "out_bias": True, "window": 7},
    "llama": {"qk_norm": False, "n_kv_heads": 4, "norm_eps": 0.1},
    "llama, linear": {"qk_norm": False, "rope_scaling": "linear", "rope_factor": 3.0, "rope_base": 7e4},
    "llama, llama3": {"qk_norm": False} | LLAMA3,
    "qwen2": {"qk_norm": False, "qkv_bias": True, "tied": True},
    "mistral": {"qk_norm": False, "window": 5},
}


def random_model(config):
    """Weights of order one, gains and biases that matter."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jax.device_put((np.asarray(leaf) + 0.3 * rng.standard_normal(leaf.shape)).astype(np.float32)),
        Transformer(config, jax.random.key(0)),
    )


@pytest.fixture
def without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)


@pytest.mark.parametrize("name", SHAPES)
def test_numpy_reads_what_we_read(name, tmp_path):
    """Seen to catch: a rotation left out, a window off by one, a bias or a norm of queries left out."""
    config = dataclasses.replace(CONFIG, **SHAPES[name])
    export.write(tmp_path / "m", random_model(config), TokenizerFiles({}), context=64)
    want = np.asarray(interop.load(tmp_path / "m").params(jax.numpy.asarray(TOKENS)))
    found = reference.by_numpy(tmp_path / "m", TOKENS)
    assert np.std(want) > 0.3 and found.reader == "an independent forward pass in NumPy"
    np.testing.assert_allclose(found.logits, want, atol=2e-4 * np.max(np.abs(want)))


@pytest.mark.parametrize(("family", "kind"), [("llama", "Q5_K"), ("llama", "F32"), ("qwen2", "Q8_0")])
def test_numpy_reads_gguf_as_we_do(family, kind, tmp_path):
    def extra(writer):
        writer.add_sliding_window(9)
        writer.add_rope_scaling_factor(2.0)

    test_gguf.write(tmp_path / "m.gguf", kind, family=family, extra=extra)
    want = np.asarray(interop.load(tmp_path / "m.gguf").params(jax.numpy.asarray(TOKENS)))
    np.testing.assert_allclose(
        reference.by_numpy(tmp_path / "m.gguf", TOKENS).logits, want, atol=2e-4 * np.max(np.abs(want))
    )


@pytest.fixture
def source(tmp_path):
    """A published model whose rotation is scaled, with a tokenizer that its conversion takes along."""
    config = dataclasses.replace(CONFIG, **SHAPES["llama, linear"])
    export.write(tmp_path / "m", random_model(config), TokenizerFiles({}), context=64)
    return tmp_path / "m"


def convert(source, out):
    with jax.set_mesh(sharding.make(MeshConfig())):
        return conversion.convert(Conversion(source=str(source), out=str(out), verify=True))


def test_a_conversion_is_held_to_the_source_and_to_the_result(source, tmp_path, without_transformers):
    lines = convert(source, tmp_path / "out")
    assert "tensors are bit-equal" in lines[1]
    for line, path in zip(lines[2:], (source, tmp_path / "out"), strict=True):
        assert line.startswith(f"verified: the logits of {path} by an independent forward pass in NumPy differ by")


def test_an_import_that_reads_another_model_is_not_verified(source, tmp_path, monkeypatch, without_transformers):
    """Both directions of the import forget the scaling: what was written equals what was imported, and is wrong."""
    monkeypatch.setattr(rope, "read", lambda *asked: {"rope_base": 7e4})
    with pytest.raises(InteropError, match="m: its logits differ by .* it is not read here as it is there"):
        convert(source, tmp_path / "out")


def test_a_directory_that_says_something_else_is_not_verified(source, tmp_path, monkeypatch, without_transformers):
    monkeypatch.setattr(rope, "_written", lambda model: {"rope_type": "linear", "factor": 2.0})
    with pytest.raises(InteropError, match="out: its logits differ by .* from the source's: config.json says another"):
        convert(source, tmp_path / "out")


def test_where_no_reader_knows_the_model_that_is_said(source, tmp_path, monkeypatch, without_transformers):
    def refuse(path, tokens):
        raise InteropError("not today")

    monkeypatch.setattr(reference, "by_numpy", refuse)
    assert "not verified:" in convert(source, tmp_path / "out")[2]


def test_what_transformers_refuses_is_read_by_numpy(source, monkeypatch):
    def refuse(path, tokens):
        raise InteropError("transformers 9 cannot read the model: tensors")

    monkeypatch.setattr(reference, "by_transformers", refuse)
    found = reference.logits(source, TOKENS)
    assert found.reader == "an independent forward pass in NumPy (transformers 9 cannot read the model: tensors)"


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_transformers_and_numpy_agree(name, tmp_path):
    pytest.importorskip("transformers", reason="the extra `parity` is not installed")
    config = dataclasses.replace(CONFIG, **SHAPES[name])
    export.write(tmp_path / "m", random_model(config), TokenizerFiles({}), context=64)
    theirs = reference.by_transformers(tmp_path / "m", TOKENS)
    assert theirs.reader.startswith("transformers ")
    np.testing.assert_allclose(theirs.logits, reference.by_numpy(tmp_path / "m", TOKENS).logits, atol=1e-3)


@pytest.mark.slow
def test_transformers_makes_up_no_tensor(source):
    pytest.importorskip("transformers", reason="the extra `parity` is not installed")
    tree = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(tree | {"num_hidden_layers": 3}))
    with pytest.raises(InteropError, match="cannot read the model: it lacks model.layers.2"):
        reference.by_transformers(source, TOKENS)
