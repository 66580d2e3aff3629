"""What a model on disk may be damaged by: one line that names the tensor, before anything is allocated."""

import json
import tracemalloc

import jax
import numpy as np
import pytest

from distill import interop
from distill.config import ModelConfig
from distill.errors import InteropError
from distill.interop import export, hf_config, safetensors
from distill.interop.source import Directory, fingerprint, open_source
from distill.interop.tokenizer_files import TokenizerFiles
from distill.model.transformer import Transformer

CONFIG = ModelConfig(
    vocab_size=32, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=24, tied=False, scaled_embedding=False
)


@pytest.fixture
def directory(tmp_path):
    """A model of ours, written as a Qwen3."""
    export.write(tmp_path / "m", Transformer(CONFIG, jax.random.key(0)), TokenizerFiles({}), context=64)
    return tmp_path / "m"


def head_of(file):
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def put(file, head, data, length=None):
    text = json.dumps(head).encode()
    file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def break_file(directory, how):
    """Damages model.safetensors; the words that the error must have."""
    file = directory / "model.safetensors"
    head, data = head_of(file)
    name = "model.layers.1.mlp.up_proj.weight"
    if how == "missing":
        del head[name]
        put(file, head, data)
        return [name, "is missing", "[24, 16]"]
    if how == "extra":
        head["model.layers.2.mlp.up_proj.weight"] = head[name]
        put(file, head, data)
        return ["model.layers.2.mlp.up_proj.weight", "no place"]
    if how == "shape":
        head[name]["shape"] = [16, 24]
        put(file, head, data)
        return [name, "[16, 24]", "[24, 16]"]
    if how == "bytes":
        head[name]["shape"] = [24, 17]
        put(file, head, data)
        return [name, "1,536 bytes", "1,632"]
    if how == "cut off":
        file.write_bytes(file.read_bytes()[:-100])
        return ["cut off", "model.", "ends at byte"]
    if how == "absurd head":
        put(file, head, data, length=2**60)
        return ["1,152,921,504,606,846,976"]
    if how == "absurd shape":
        head[name] |= {"shape": [2**40, 2**20], "data_offsets": [0, 2**62]}
        put(file, head, data)
        return [name, "cut off"]
    if how == "negative":
        head[name]["data_offsets"] = [-8, 4]
        put(file, head, data)
        return [name, "wanted dtype, shape, data_offsets"]
    if how == "dtype":
        head[name]["dtype"] = "I64"
        put(file, head, data)
        return [name, "I64", "F32, F16, BF16"]
    if how == "no json":
        file.write_bytes((10).to_bytes(8, "little") + b"x" * 100)
        return ["not JSON"]
    if how == "empty":
        file.write_bytes(b"")
        return ["0"]
    if how == "pickle":
        file.rename(directory / "pytorch_model.bin")
        return ["pytorch_model.bin is a pickle"]
    raise ValueError(how)


DAMAGE = [
    *("missing", "extra", "shape", "bytes", "cut off", "absurd head", "absurd shape", "negative", "dtype"),
    *("no json", "empty", "pickle"),
]


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_is_named_before_anything_is_allocated(directory, how):
    """The memory bound catches a reader that trusts a head (`np.empty` of its length or shape)."""
    words = break_file(directory, how)
    tracemalloc.start()
    with pytest.raises(InteropError) as error:
        open_source(directory)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    for word in words:
        assert word in str(error.value)
    assert str(directory) in str(error.value) and "\n" not in str(error.value)


def split_in_two(directory):
    """The same tensors in two files with an index; returns the index's tree."""
    file = directory / "model.safetensors"
    source = Directory(directory)
    names = list(source.shapes)
    where = {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        name = f"model-{i:05d}-of-00002.safetensors"
        shapes = {n: source.shapes[n] for n in part}
        list(safetensors.write(directory / name, shapes, "F32", lambda n: source.read(n, 0, source.shapes[n][0])))
        where |= dict.fromkeys(part, name)
    file.unlink()
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return {"weight_map": where}


def test_shards_are_the_same_model(directory, assert_trees_equal):
    want = interop.load(directory).params
    split_in_two(directory)
    assert_trees_equal(interop.load(directory).params, want)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda where: where.update({"lm_head.weight": "../x.safetensors"}), ["../x.safetensors", "beside it"]),
        (lambda where: where.update({"lm_head.weight": "y.safetensors"}), ["y.safetensors", "lm_head.weight"]),
        (lambda where: where.update({"ghost": "model-00001-of-00002.safetensors"}), ["ghost", "not in it"]),
        (lambda where: where.clear() or where.update({"a": 1}), ["weight_map"]),
    ],
)
def test_a_broken_index_is_named(directory, change, words):
    tree = split_in_two(directory)
    change(tree["weight_map"])
    (directory / "model.safetensors.index.json").write_text(json.dumps(tree))
    with pytest.raises(InteropError) as error:
        open_source(directory)
    for word in words:
        assert word in str(error.value)


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"architectures": ["Qwen2MoeForCausalLM"]}, ["Qwen2MoeForCausalLM", "experts are shared by all tokens"]),
        ({"architectures": ["Glm4MoeForCausalLM"]}, ["Glm4MoeForCausalLM is not supported"]),
        ({"architectures": ["OlmoForCausalLM"]}, ["have no gains"]),
        ({"architectures": ["Qwen33ForCausalLM"]}, ["Qwen33ForCausalLM is not supported", "unknown here"]),
        ({"architectures": None}, ["architectures is missing", "model_type", "LlamaForCausalLM"]),
        ({"hidden_act": "relu"}, ["hidden_act", "relu", "gelu_pytorch_tanh"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["gptq", "quantised"]),
        ({"rope_scaling": {"type": "mrope", "factor": 4.0}}, ["mrope", "'llama3'"]),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, ["max_position_embeddings is missing"]),
        ({"rope_scaling": {"rope_type": "linear"}}, ["rope_scaling", "factor is missing"]),
        ({"hidden_size": None}, ["hidden_size is missing"]),
        ({"hidden_size": "16"}, ["hidden_size is '16'", "wanted int"]),
        ({"num_key_value_heads": 3}, ["n_kv_heads=3"]),
        ({"architectures": ["Qwen2ForCausalLM"]}, ["num_key_value_heads is missing"]),
        (
            {
                "architectures": ["MistralForCausalLM"],
                "num_key_value_heads": 4,
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            ["layer_types mixes"],
        ),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(change, words):
    with pytest.raises(InteropError) as error:
        hf_config.read_config(LLAMA | change, "config.json")
    for word in words:
        assert word in str(error.value)


def test_windows_that_cannot_bind_are_none():
    mistral = LLAMA | {"architectures": ["MistralForCausalLM"], "num_key_value_heads": 2}
    read = lambda **fields: hf_config.read_config(mistral | fields, "").window
    assert read() == 4096  # Mistral's own default where the field is absent
    assert read(sliding_window=None) == read(sliding_window=64, max_position_embeddings=64) == 0
    assert read(sliding_window=63, max_position_embeddings=64) == 63
    assert hf_config.read_config(LLAMA | {"sliding_window": 7}, "").window == 0  # Llama knows no such field


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_configs_survive_the_way_out_and_in(family):
    config = ModelConfig(
        vocab_size=32, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_head=6, d_ff=24, tied=False,
        scaled_embedding=False, qk_norm=family == "Qwen3", qkv_bias=family == "Qwen2",
        window=5 if family == "Mistral" else 0, rope_scaling="llama3", rope_factor=8.0, rope_context=32, norm_eps=1e-5,
    )  # fmt: skip
    tree = hf_config.write_config(config, context=64, dtype="float32")
    assert tree["architectures"] == [f"{family}ForCausalLM"]
    assert hf_config.read_config(json.loads(json.dumps(tree)), "") == config


def test_a_write_that_fails_leaves_nothing(directory, tmp_path, monkeypatch):
    def fail(*_):
        yield 1
        raise OSError("disk full")

    monkeypatch.setattr(safetensors, "write", fail)
    with pytest.raises(OSError):
        export.write(tmp_path / "n", Transformer(CONFIG, jax.random.key(0)), TokenizerFiles({}), context=64)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]
    with pytest.raises(InteropError, match="something already"):
        export.write(directory, Transformer(CONFIG, jax.random.key(0)), TokenizerFiles({}), context=64)


def test_a_directory_of_nothing_is_a_sentence(tmp_path):
    with pytest.raises(InteropError, match="no such file or directory"):
        open_source(tmp_path / "nothing")
    with pytest.raises(InteropError, match="config.json: there is no such file"):
        open_source(tmp_path)
    (tmp_path / "config.json").write_text("[1")
    with pytest.raises(InteropError, match="cannot be read as JSON"):
        open_source(tmp_path)


@pytest.mark.parametrize("dtype", safetensors.DTYPES)
def test_rows_of_a_file_are_what_was_written(tmp_path, dtype):
    values = np.random.default_rng(0).standard_normal((7, 3)).astype(safetensors.DTYPES[dtype])
    list(safetensors.write(tmp_path / "x", {"a": (2,), "b": (7, 3)}, dtype, {"a": np.ones(2), "b": values}.get))
    entry = safetensors.read_head(tmp_path / "x")["b"]
    np.testing.assert_array_equal(safetensors.read_rows(entry, 2, 5), values[2:5])


def test_a_bit_in_the_middle_of_a_tensor_makes_another_model(tmp_path):
    """Every byte of every tensor is part of a model's name: two that differ anywhere do not go by one."""
    from tests.fuzz.models import TREE, _tensors

    tree = TREE | {"vocab_size": 4096}
    content = bytearray(_tensors(tree))
    (tmp_path / "config.json").write_text(json.dumps(tree))
    names = set()
    for at in (None, len(content) // 3, len(content) // 2, len(content) - 300):
        if at is not None:
            content[at] ^= 1
        (tmp_path / "model.safetensors").write_bytes(content)
        names.add(fingerprint(*open_source(tmp_path)))
    assert len(names) == 4
