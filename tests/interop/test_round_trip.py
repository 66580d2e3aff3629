"""Out and in again: bit-equal weights on any mesh, equal logits, little memory."""

import dataclasses
import json
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill import interop
from distill.config import ModelConfig
from distill.data.documents import Part
from distill.data.tokenizers.subword import SubwordTokenizer
from distill.data.tokenizers.tokenizer import ByteTokenizer, SymbolTokenizer
from distill.interop import export, parameters, safetensors, tokenizer_files
from distill.interop.layout import expected
from distill.interop.source import Directory, fingerprint
from distill.interop.tokenizer_files import TokenizerFiles
from distill.model import sharding, transformer
from distill.model.transformer import Transformer

SHAPE = ModelConfig(vocab_size=32, d_model=16, n_layers=3, n_heads=4, n_kv_heads=2, d_head=6, d_ff=24)
VARIANTS = {
    "ours": SHAPE,  # QK-norm, tied and scaled: untied on the way out
    "ours untied": dataclasses.replace(SHAPE, tied=False),
    "ours padded": dataclasses.replace(SHAPE, valid_vocab=29),
    "no qk_norm": dataclasses.replace(SHAPE, qk_norm=False, tied=False),
    "biases": dataclasses.replace(SHAPE, qk_norm=False, qkv_bias=True),
    "all biases": dataclasses.replace(SHAPE, qk_norm=False, qkv_bias=True, out_bias=True),
    "window": dataclasses.replace(SHAPE, qk_norm=False, window=5),
    "published": dataclasses.replace(SHAPE, scaled_embedding=False, rope_scaling="linear", rope_factor=2.0),
}


def make(config, seed=0):
    """A model whose gains and biases are not all alike."""
    model = Transformer(config, jax.random.key(seed))
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jax.device_put(np.asarray(x) + random.uniform(-0.1, 0.1, x.shape).astype(np.float32), x.sharding),
        model,
    )


LOGITS = jax.jit(lambda model, tokens: model(tokens))


def write(path, params, **changes):
    export.write(path, params, TokenizerFiles({}), context=64, **changes)
    return path


@pytest.mark.parametrize("name", VARIANTS)
def test_out_and_in_gives_the_same_logits(tmp_path, name):
    """Exactly: what is untied or cut off on the way out changes no number. Seen to catch an embedding left unscaled."""
    config = VARIANTS[name]
    params = make(config)
    back = interop.load(write(tmp_path / "m", params))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, config.tokens, (2, 12), np.int32))
    np.testing.assert_array_equal(LOGITS(back.params, tokens), LOGITS(params, tokens)[..., : config.tokens])
    assert back.config == dataclasses.replace(
        export.published(config), d_head=config.head_dim, d_ff=config.ff_dim, n_kv_heads=config.kv_heads
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_out_in_is_bit_equal(tmp_path, assert_trees_equal, dtype):
    first = interop.load(write(tmp_path / "a", make(VARIANTS["published"]), dtype=dtype))
    second = interop.load(write(tmp_path / "b", first.params, dtype=dtype))
    assert_trees_equal(second.params, first.params)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert second.run == first.run and second.config == first.config and second.context == 64


def test_a_model_is_named_by_its_weights(tmp_path):
    names = {interop.load(write(tmp_path / str(i), make(VARIANTS["published"], i))).run for i in range(2)}
    changed = make(VARIANTS["published"])
    changed.last_norm[...] = changed.last_norm[...].at[3].add(1)
    names.add(interop.load(write(tmp_path / "c", changed)).run)
    assert len(names) == 3


@pytest.fixture(params=["a CPU's memory", "sent to devices"])
def way(request, monkeypatch):
    """Both ways in which parameters are put together, of which a CPU takes the first."""
    if request.param == "sent to devices":
        monkeypatch.setattr(parameters, "platform", lambda: "tpu")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2)])
def test_the_mesh_does_not_change_what_is_loaded(tmp_path, mesh_of, shape):
    """Every parameter lies where sharding.PARAM_SPECS says, with the values of one device."""
    config = dataclasses.replace(VARIANTS["all biases"], vocab_size=32, tied=False, qk_norm=False)
    path = write(tmp_path / "m", make(config))
    want = {k: np.asarray(v) for k, v in named(interop.load(path).params).items()}
    with jax.set_mesh(mesh_of(*shape)):
        found = named(interop.load(path).params)
        model = named(jax.eval_shape(lambda: Transformer(config, jax.random.key(0))))
        for name, value in found.items():
            assert value.sharding.spec == model[name].sharding.spec, name
            np.testing.assert_array_equal(value, want[name], err_msg=name)
        # And out again from there.
        export.write(tmp_path / "again", jax.tree.unflatten(jax.tree.structure(make(config)), list(found.values())),
                     TokenizerFiles({}), context=64)  # fmt: skip
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (path / "model.safetensors").read_bytes()


def named(model):
    leaves, _ = jax.tree_util.tree_flatten_with_path(model)
    return {transformer.parameter_name(path): leaf for path, leaf in leaves}


class Counted(Directory):
    """A directory that notes how many bytes each read asks for."""

    def read(self, name, start, stop):
        found = super().read(name, start, stop)
        self.reads.append(found.nbytes)
        return found


@pytest.mark.usefixtures("way")
def test_the_host_holds_one_tensor_and_two_parts_of_one(tmp_path, mesh_of):
    """Allocations of NumPy, on one device and split over four. On four CPU devices JAX lets parts go when it likes.

    Seen to catch: stacking the layers on the host before they are sent.
    """
    config = ModelConfig(
        vocab_size=512, d_model=256, n_layers=12, n_heads=4, d_ff=1024, qk_norm=False, scaled_embedding=False
    )
    path = write(tmp_path / "m", make(config))
    sizes = {name: int(np.prod(shape)) * 4 for name, _, _, shape in expected(config)}
    largest, stacked = max(sizes.values()), max(leaf.nbytes for leaf in jax.tree.leaves(make(config)))
    for devices in (1, 4):
        with jax.set_mesh(mesh_of(1, devices, 1)):
            interop.load(path)  # compile first
            source = Counted(path)
            source.reads = []
            tracemalloc.start()
            parameters.load(config, source)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert max(source.reads) == largest
        assert peak < 3 * largest + 900_000 < largest + stacked // 4


def test_a_7b_directory_by_arithmetic():
    """Llama 2 7B in bfloat16: the largest tensor is a table of 262 MB; on 8 chips a shard of it is 33 MB."""
    config = ModelConfig(vocab_size=32000, d_model=4096, n_layers=32, n_heads=32, d_ff=11008, qk_norm=False, tied=False)
    sizes = {name: int(np.prod(shape)) for name, _, _, shape in expected(config)}
    assert sum(sizes.values()) == 6_738_415_616
    assert max(sizes.values()) * 2 == 262_144_000
    assert max(sizes, key=sizes.get) in ("model.embed_tokens.weight", "lm_head.weight")


def test_large_models_are_cut_into_files(tmp_path, monkeypatch, assert_trees_equal):
    monkeypatch.setattr(export, "_LARGEST_FILE", 6000)
    params = make(VARIANTS["published"])
    path = write(tmp_path / "m", params)
    files = sorted(p.name for p in path.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(4 * int(np.prod(s)) for _, _, _, s in expected(params.config))
    assert_trees_equal(interop.load(path).params, params)


def test_safetensors_of_the_library_and_ours_are_one_format(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    values = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float16)}
    library.save_file(values, tmp_path / "theirs")
    entries = safetensors.read_head(tmp_path / "theirs")
    for name, value in values.items():
        np.testing.assert_array_equal(safetensors.read_rows(entries[name], 0, len(value)), value)
    list(safetensors.write(tmp_path / "ours", {"a": (2, 3)}, "F32", values.get))
    np.testing.assert_array_equal(library.load_file(tmp_path / "ours")["a"], values["a"])


def test_bytes_have_a_tokenizer_json(tmp_path):
    """Ids are the bytes; 0 ends a document."""
    files = tokenizer_files.of_tokenizer(ByteTokenizer()).files
    (tmp_path / "tokenizer.json").write_bytes(files["tokenizer.json"])
    made = SubwordTokenizer(str(tmp_path))
    text = "né 日本 \t\n 12"
    np.testing.assert_array_equal(made.encode([Part(text)])[0], list(text.encode()))
    assert (made.end_of_text, made.vocab_size, made.decode(list(text.encode()))) == (0, 256, text)
    np.testing.assert_array_equal(made.byte_lengths, ByteTokenizer().byte_lengths)
    with pytest.raises(interop.InteropError, match="symbols of a generated language"):
        tokenizer_files.of_tokenizer(SymbolTokenizer(8))


def test_half_the_memory_where_a_teacher_is_stored_in_bfloat16(tmp_path):
    model = interop.load(write(tmp_path / "m", make(VARIANTS["published"])), dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype("bfloat16")}
    tokens = jnp.arange(8)[None]
    assert LOGITS(model.params, tokens).dtype == jnp.float32
    assert sharding.PARAM_SPECS and fingerprint(model.source, model.config) == model.run
