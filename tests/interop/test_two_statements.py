"""Two statements of one fact, and keys that nobody reads: what transformers or llama.cpp do, or a refusal by name."""

import dataclasses
import json
import logging
import random
import string

import gguf
import jax
import ml_dtypes
import numpy as np
import pytest

from distill import interop
from distill.errors import InteropError
from distill.interop import export, hf_config, parameters
from distill.interop.tokenizer_files import TokenizerFiles
from distill.model.transformer import Transformer
from tests.interop import test_gguf
from tests.interop.test_formats import CONFIG, head_of, put


@pytest.fixture
def directory(tmp_path):
    """A model of ours as a directory, untied."""
    export.write(tmp_path / "m", Transformer(CONFIG, jax.random.key(0)), TokenizerFiles({}), context=64)
    return tmp_path / "m"


def edit(directory, **fields):
    """Changes fields of config.json; None as a value takes the field away."""
    path = directory / "config.json"
    tree = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in tree.items() if value is not None}))


def test_a_head_of_its_own_counts_for_more_than_tie_word_embeddings(directory):
    want = interop.load(directory)
    edit(directory, tie_word_embeddings=True)
    got = interop.load(directory)
    assert not got.config.tied and got.config == want.config
    tokens = jax.numpy.arange(8)[None]
    np.testing.assert_array_equal(got.params(tokens), want.params(tokens))


def test_a_head_that_is_the_embedding_stays_tied(directory, monkeypatch):
    """Compared a few rows at a time; the last row alone decides."""
    monkeypatch.setattr("distill.interop.source._COMPARED", 48)
    file = directory / "model.safetensors"
    head, data = head_of(file)
    (a, b), (c, d) = (head[name]["data_offsets"] for name in ("model.embed_tokens.weight", "lm_head.weight"))
    put(file, head, data[:c] + data[a:b] + data[d:])
    edit(directory, tie_word_embeddings=True)
    assert interop.open_source(directory)[1].tied
    put(file, head, data[:c] + data[a : b - 4] + b"\0\0\0\0" + data[d:])
    assert not interop.open_source(directory)[1].tied


def test_two_objects_of_rotary_scaling_agree_or_are_refused(directory):
    linear = {"rope_type": "linear", "factor": 4.0}
    other = {"type": "linear", "factor": 4.0}
    edit(directory, rope_theta=5e4, rope_parameters=linear | {"rope_theta": 5e4}, rope_scaling=other)
    assert interop.open_source(directory)[1].rope_factor == 4
    for other in ({"type": "linear", "factor": 2.0}, {"rope_type": "yarn", "factor": 4.0}, {"rope_type": "default"}):
        edit(directory, rope_parameters=linear, rope_scaling=other)
        with pytest.raises(InteropError, match="rope_parameters is .* and rope_scaling is"):
            interop.open_source(directory)
    edit(directory, rope_parameters={"rope_type": "default", "rope_theta": 1e4}, rope_scaling={"type": "yarn"})
    with pytest.raises(InteropError, match="rope_scaling is"):
        interop.open_source(directory)


def test_two_objects_of_rotary_scaling_agree_on_the_base_too(directory):
    """transformers takes rope_scaling whole, with its base or the one above it; the base of the other was once read."""
    linear = {"rope_type": "linear", "factor": 4.0}
    edit(directory, rope_theta=1e4, rope_parameters=linear | {"rope_theta": 5e4}, rope_scaling=linear)
    with pytest.raises(InteropError, match="rope_parameters is .* and rope_scaling is"):
        interop.open_source(directory)
    edit(directory, rope_theta=5e4)
    assert interop.open_source(directory)[1].rope_base == 5e4


def test_two_names_of_one_kind_agree(directory):
    edit(directory, rope_scaling={"type": "yarn", "rope_type": "linear", "factor": 4.0})
    with pytest.raises(InteropError, match="type is 'yarn' and rope_type is 'linear'"):
        interop.open_source(directory)
    edit(directory, rope_scaling=None, model_type="llama")
    with pytest.raises(InteropError, match="model_type is 'llama', wanted 'qwen3': architectures is Qwen3ForCausalLM"):
        interop.open_source(directory)
    edit(directory, model_type=None)
    interop.open_source(directory)


def test_sliding_layers_have_a_window(directory):
    edit(directory, layer_types=["sliding_attention"] * CONFIG.n_layers, sliding_window=None, use_sliding_window=None)
    with pytest.raises(InteropError, match="layer_types are sliding_attention, but no sliding_window is in force"):
        interop.open_source(directory)


def test_an_adapter_beside_the_weights_is_not_passed_over(directory):
    (directory / "adapter_config.json").write_text("{}")
    with pytest.raises(InteropError, match="adapter_config.json: an adapter's weights are not read here"):
        interop.open_source(directory)


def random_key(draw):
    return "".join(draw.choices(string.ascii_lowercase + "_", k=draw.randint(3, 20)))


def test_unknown_keys_of_config_json_are_refused_by_name(directory):
    tree = json.loads((directory / "config.json").read_text())
    for seed in range(200):
        draw = random.Random(seed)
        key, value = random_key(draw), draw.choice([0, 1, True, False, 0.5, "x", [], {}, [1], {"a": 1}])
        inside = {"rope_type": draw.choice(["default", "linear"]), "factor": 2.0, key: value}
        for changed in ({key: value}, {"rope_parameters": inside}, {"rope_scaling": inside}):
            with pytest.raises(InteropError, match=rf"{key} is .*not supported"):
                hf_config.read_config(tree | changed, "config.json")
        assert hf_config.read_config(tree | {key: None}, "config.json")


def test_harmless_keys_and_nulls_are_none(directory):
    want = interop.open_source(directory)[1]
    tree = json.loads((directory / "config.json").read_text())
    known = {key: "whatever" for key in hf_config._HARMLESS if key not in tree} | {"rope_interleaved": False}
    (directory / "config.json").write_text(json.dumps(tree | known | {"a_key_of_tomorrow": None}))
    assert interop.open_source(directory)[1] == want
    edit(directory, rope_interleaved=True)
    with pytest.raises(InteropError, match="rope_interleaved is True"):
        interop.open_source(directory)


def test_an_unknown_key_of_rotary_scaling_is_refused(directory):
    edit(directory, rope_parameters={"rope_type": "linear", "factor": 2.0, "mscale": 0.7})
    with pytest.raises(InteropError, match="rope_parameters: mscale is 0.7"):
        interop.open_source(directory)


@pytest.mark.parametrize("stale", [True, False])
def test_a_whole_file_beside_an_index_is_read_as_transformers_does(directory, caplog, stale):
    want = interop.load(directory).params
    other = Transformer(CONFIG, jax.random.key(1))
    export.write(directory.parent / "other", other, TokenizerFiles({}), context=64)
    head, _ = head_of(directory / "model.safetensors")
    names = [name for name in head if name != "__metadata__"]
    shard = "model-00001-of-00001.safetensors"
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, shard)}))
    if not stale:
        (directory / shard).write_bytes((directory.parent / "other" / "model.safetensors").read_bytes())
    with caplog.at_level(logging.WARNING):
        got = interop.load(directory).params
    assert "model.safetensors and model.safetensors.index.json; the first was read" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize(
    ("fields", "factor"),
    [
        ({"rope.scaling.factor": 4.0}, 4.0),
        ({"rope.scale_linear": 2.0}, 2.0),
        ({"rope.scaling.factor": 4.0, "rope.scale_linear": 2.0}, 4.0),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 3.0}, 3.0),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, 0),
        ({"rope.scaling.factor": 1.0}, 0),
        ({"rope.dimension_count": 64}, 0),
        ({"expert_count": 0, "attention.causal": True, "vocab_size": 256}, 0),
    ],
)
def test_rotary_factors_of_gguf_are_those_of_llama_cpp(tmp_path, fields, factor):
    test_gguf.write(tmp_path / "m.gguf", "F32", extra=lambda writer: add(writer, fields))
    config = interop.open_source(tmp_path / "m.gguf")[1]
    assert (config.rope_scaling, config.rope_factor if factor else 0) == ("linear" if factor else "none", factor)


def add(writer, fields):
    for name, value in fields.items():
        kind = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        kind[type(value)](f"llama.{name}" if not name.startswith(":") else name[1:], value)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"rope.dimension_count": 32}, "llama.rope.dimension_count is 32, wanted 64"),
        ({"expert_count": 8}, "llama.expert_count is 8, wanted 0"),
        ({"attention.causal": False}, "llama.attention.causal is False, wanted True"),
        ({"logit_scale": 0.25}, "llama.logit_scale is 0.25"),
        ({"vocab_size": 300}, "llama.vocab_size is 300, wanted 256"),
        ({"attention.clamp_kqv": 3.0}, "llama.attention.clamp_kqv is 3.0, which is not supported"),
        ({":foo.bar": 1}, "foo.bar is 1, which is not supported"),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, "rope_type is 'yarn'"),
        *(({f"{word}": 1}, f"llama.{word} is 1, which") for word in ("a", "zz.top", "attention.sinks", "rope.base")),
    ],
)
def test_fields_of_gguf_that_nobody_reads_are_refused_by_name(tmp_path, fields, named):
    test_gguf.write(tmp_path / "m.gguf", "F32", extra=lambda writer: add(writer, fields))
    with pytest.raises(InteropError) as error:
        interop.open_source(tmp_path / "m.gguf")
    assert named in str(error.value)


def test_metadata_of_gguf_is_none_of_the_model(tmp_path):
    fields = {":general.author": "x", ":quantize.imatrix.file": "y", ":general.file_type": 2}
    test_gguf.write(tmp_path / "m.gguf", "F32", extra=lambda writer: add(writer, fields))
    interop.open_source(tmp_path / "m.gguf")


def split(whole, folder, at=None):
    """The tensors of a file in two parts, as llama.cpp's gguf-split writes them."""
    reader = gguf.GGUFReader(whole)
    middle = at or len(reader.tensors) // 2
    for number, tensors in enumerate((reader.tensors[:middle], reader.tensors[middle:])):
        writer = gguf.GGUFWriter(folder / f"m-{number + 1:05d}-of-00002.gguf", "llama")
        if not number:
            writer.add_block_count(1)
            writer.add_context_length(64)
            writer.add_embedding_length(test_gguf.D)
            writer.add_feed_forward_length(test_gguf.F)
            writer.add_head_count(test_gguf.HEADS)
            writer.add_head_count_kv(test_gguf.KV)
            writer.add_layer_norm_rms_eps(1e-5)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


@pytest.mark.parametrize("kind", ["F32", "Q4_0"])
def test_a_split_gguf_is_read_whole_from_any_part(tmp_path, kind):
    test_gguf.write(tmp_path / "whole.gguf", kind)
    split(tmp_path / "whole.gguf", tmp_path)
    want = interop.load(tmp_path / "whole.gguf")
    for number in (1, 2):
        got = interop.load(tmp_path / f"m-0000{number}-of-00002.gguf")
        assert got.config == want.config and got.run == want.run
        jax.tree.map(np.testing.assert_array_equal, got.params, want.params)


def test_a_gguf_split_at_any_tensor_is_the_whole_or_names_the_missing_part(tmp_path):
    """Every way to part the tensors of a model in two; then either part is taken away."""
    test_gguf.write(tmp_path / "whole.gguf", "Q8_0")
    want = interop.open_source(tmp_path / "whole.gguf")
    for at in range(1, len(gguf.GGUFReader(tmp_path / "whole.gguf").tensors)):
        folder = tmp_path / str(at)
        folder.mkdir()
        split(tmp_path / "whole.gguf", folder, at)
        parts = sorted(folder.iterdir())
        for part in parts:
            source, config = interop.open_source(part)
            assert config == want[1] and source.shapes == want[0].shapes
        lost, kept = random.Random(at).sample(parts, 2)
        lost.unlink()
        with pytest.raises(InteropError, match=rf"{lost.name}: is missing"):
            interop.open_source(kept)


def test_a_missing_part_is_named(tmp_path):
    test_gguf.write(tmp_path / "whole.gguf", "F32")
    split(tmp_path / "whole.gguf", tmp_path)
    second = tmp_path / "m-00002-of-00002.gguf"
    second.rename(tmp_path / "elsewhere.gguf")
    with pytest.raises(InteropError, match=r"m-00002-of-00002.gguf: is missing; m-00001-of-00002.gguf is one of 2"):
        interop.open_source(tmp_path / "m-00001-of-00002.gguf")
    with pytest.raises(InteropError, match=r"elsewhere.gguf: is one of 2 parts; wanted the name"):
        interop.open_source(tmp_path / "elsewhere.gguf")
    second.write_bytes((tmp_path / "m-00001-of-00002.gguf").read_bytes())
    with pytest.raises(InteropError, match="its split.no is 0, wanted 1"):
        interop.open_source(tmp_path / "m-00001-of-00002.gguf")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_tensor_that_is_not_finite_is_named(directory, value):
    file = directory / "model.safetensors"
    head, data = head_of(file)
    name = "model.layers.1.mlp.up_proj.weight"
    at = head[name]["data_offsets"][0] + 40
    put(file, head, data[:at] + np.float32(value).tobytes() + data[at + 4 :])
    with pytest.raises(InteropError, match=rf"tensor '{name}' holds values that are not finite"):
        interop.load(directory)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32, np.float64, ml_dtypes.float8_e4m3fn])
def test_one_value_that_is_not_finite_is_seen_wherever_it_stands(dtype):
    values = np.random.default_rng(0).standard_normal(2**20 + 5).astype(dtype)
    values[7] = ml_dtypes.finfo(dtype).max
    assert parameters.finite(values) and parameters.finite(-values) and parameters.finite(values[:0])
    for at in (0, 2**20 - 1, 2**20, values.size - 1):
        for value in (np.nan, -np.nan, np.inf, -np.inf):
            broken = values.copy()
            broken[at] = value
            assert not parameters.finite(broken), (at, value)


def test_what_is_exported_has_no_unknown_key(tmp_path):
    """Our own config.json of every family is read back."""
    plain = {"qk_norm": False}
    linear = {"rope_scaling": "linear", "rope_factor": 2.0}
    for i, changes in enumerate(({}, plain, plain | {"qkv_bias": True}, plain | {"window": 8}, linear)):
        changed = dataclasses.replace(CONFIG, **changes)
        tree = hf_config.write_config(changed, context=64, dtype="float32", end_of_text=0)
        assert hf_config.read_config(tree, f"{i}") == dataclasses.replace(changed, d_head=changed.head_dim)
