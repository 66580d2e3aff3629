"""Experts that share a tensor, in floats and in MXFP4: the values by hand, and the numbers of transformers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill import interop
from distill.errors import InteropError
from distill.interop import packed_experts, safetensors, source
from tests.interop import zoo

BITS = {0.0: 0, 0.5: 1, 1.0: 2, 1.5: 3, 2.0: 4, 3.0: 5, 4.0: 6, 6.0: 7}  # of a value that is not negative
EXPERTS = "model.layers.0.mlp.experts"


def encode(values):
    """MXFP4 of [X, rows, columns] by the nearest value, and what it stands for: an encoder of its own for the test."""
    x, rows, columns = values.shape
    split = values.reshape(x, rows, columns // 32, 32)
    exponent = np.floor(np.log2(np.abs(split).max(-1))).astype(int) - 2
    scaled = np.abs(split) / 2.0 ** exponent[..., None]
    known = np.array(list(BITS))
    nearest = np.argmin(np.abs(scaled[..., None] - known), axis=-1)
    stands = np.sign(split) * known[nearest] * 2.0 ** exponent[..., None]
    four = np.array(list(BITS.values()))[nearest] + 8 * (split < 0)
    blocks = (four[..., 0::2] + 16 * four[..., 1::2]).astype(np.uint8)
    return blocks, (exponent + 127).astype(np.uint8), stands.reshape(values.shape).astype(np.float32)


def write_file(path, tensors):
    """A safetensors file of float32 and uint8 arrays."""
    head, at = {}, 0
    for name, array in tensors.items():
        kind = {"float32": "F32", "uint8": "U8"}[str(array.dtype)]
        head[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(head).encode()
    content = len(text).to_bytes(8, "little") + text
    path.write_bytes(content + b"".join(np.ascontiguousarray(array).tobytes() for array in tensors.values()))


def read_all(path):
    entries = safetensors.read_head(path)
    return {name: safetensors.read_rows(entry, 0, entry.shape[0]) for name, entry in entries.items()}


def test_the_sixteen_values_and_a_scale():
    low = np.arange(16, dtype=np.uint8)
    blocks = np.concatenate([low + 16 * low[::-1]])[None, None]
    got = packed_experts.dequantise(blocks, np.array([[129]], np.uint8)).astype(np.float32)
    signed = [*BITS, *(-value for value in BITS)]
    want = np.stack([signed, signed[::-1]], axis=-1).reshape(1, 32) * 4
    np.testing.assert_array_equal(got, want)


@pytest.fixture
def directory(tmp_path, torch, transformers):
    oss = next(animal for animal in zoo.READ if animal.family == "GptOss")
    sizes = {"hidden_size": 64, "intermediate_size": 32}
    animal = zoo.Animal(oss.family, oss.what, dict(oss.fields) | sizes)
    zoo.write(animal, tmp_path / "floats")
    return tmp_path / "floats"


@pytest.mark.slow
def test_mxfp4_is_what_transformers_reads(directory, tmp_path):
    """A directory in MXFP4 beside one in floats of the same values, which transformers computes."""
    there, plain = tmp_path / "mxfp4", tmp_path / "plain"
    stored = read_all(directory / "model.safetensors")
    packed, unpacked = {}, {}
    for name, array in stored.items():
        if name.endswith(("gate_up_proj", "down_proj")):
            blocks, scales, stands = encode(np.swapaxes(array, 1, 2))
            packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            unpacked[name] = np.swapaxes(stands, 1, 2).copy()
        else:
            packed[name] = unpacked[name] = array
    tree = json.loads((directory / "config.json").read_text())
    for path, tensors, more in (
        (there, packed, {"quantization_config": {"quant_method": "mxfp4"}}),
        (plain, unpacked, {}),
    ):
        path.mkdir()
        write_file(path / "model.safetensors", tensors)
        (path / "config.json").write_text(json.dumps(tree | more))
    tokens = np.random.default_rng(0).integers(0, 96, (2, 40))
    loaded, floats = interop.load(there), interop.load(plain)
    for one, other in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(floats.params), strict=True):
        np.testing.assert_array_equal(one, other)
    assert loaded.source.dtypes[f"{EXPERTS}.0.gate_proj.weight"] == "BF16" and loaded.run != floats.run
    import torch

    with torch.no_grad():
        want = zoo.reload(plain)(torch.tensor(tokens)).logits.numpy()
    got = jax.jit(lambda model: model(jnp.asarray(tokens, jnp.int32)))(loaded.params)
    np.testing.assert_allclose(got, want, atol=5e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda blocks, scales: (blocks, scales[:, :1]), "with scales of .*wanted"),
        (lambda blocks, scales: (blocks, None), "with scales of no shape"),
        (lambda blocks, scales: (blocks[..., :8], scales), r"wanted \[experts, rows, blocks, 16\]"),
        (lambda blocks, scales: (blocks[:1], scales[:1]), "is missing, wanted"),
        (lambda blocks, scales: (blocks[:, :0], scales[:, :0]), "wanted one map of each expert"),
    ],
)
def test_damaged_blocks_are_refused(directory, tmp_path, change, message):
    stored = read_all(directory / "model.safetensors")
    name = f"{EXPERTS}.gate_up_proj"
    blocks, scales, _ = encode(np.swapaxes(stored.pop(name), 1, 2))
    blocks, scales = change(blocks, scales)
    stored[f"{name}_blocks"] = blocks
    if scales is not None:
        stored[f"{name}_scales"] = scales
    write_file(directory / "model.safetensors", stored)
    with pytest.raises(InteropError, match=message):
        source.open_source(directory)


def test_bytes_are_no_weights_of_another_model(tmp_path):
    """Only tensors of that name may be bytes."""
    write_file(tmp_path / "model.safetensors", {"model.embed_tokens.weight": np.zeros((4, 4), np.uint8)})
    with pytest.raises(InteropError, match="has dtype 'U8', wanted one of F32, F16, BF16"):
        safetensors.read_head(tmp_path / "model.safetensors")
