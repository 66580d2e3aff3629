"""GGUF files against llama.cpp's own arithmetic, written out one number at a time, and against damage."""

import struct

import gguf
import numpy as np
import pytest

from distill import data, interop
from distill.config.data import FilesConfig, TokenizerConfig
from distill.data.documents import Part
from distill.data.tokenizers import gguf as head
from distill.data.tokenizers.subword import SubwordTokenizer
from distill.errors import DataError, InteropError
from distill.interop.layout import expected

D, F, V, HEADS, KV = 256, 256, 256, 4, 2
TYPES = gguf.GGMLQuantizationType


def half(raw):
    return float(np.frombuffer(bytes(raw), np.float16)[0])


def q8_0(raw):
    return [half(raw[:2]) * np.int8(np.uint8(b)) for b in raw[2:]]


def q4_0(raw):
    d = half(raw[:2])
    return [d * ((b & 15) - 8) for b in raw[2:]] + [d * ((b >> 4) - 8) for b in raw[2:]]


def q4_1(raw):
    d, m = half(raw[:2]), half(raw[2:4])
    return [d * (b & 15) + m for b in raw[4:]] + [d * (b >> 4) + m for b in raw[4:]]


def q4_k(raw):
    d, least, s, q = half(raw[:2]), half(raw[2:4]), raw[4:16], raw[16:]
    scale = [s[j] & 63 if j < 4 else (s[j + 4] & 15) | (s[j - 4] >> 6) << 4 for j in range(8)]
    minimum = [s[j + 4] & 63 if j < 4 else (s[j + 4] >> 4) | (s[j] >> 6) << 4 for j in range(8)]
    found = []
    for j in range(8):
        part = q[32 * (j // 2) : 32 * (j // 2) + 32]
        found += [d * scale[j] * ((b >> 4) if j % 2 else (b & 15)) - least * minimum[j] for b in part]
    return found


def q6_k(raw):
    low, high, scale, d = raw[:128], raw[128:192], [int(np.int8(np.uint8(b))) for b in raw[192:208]], half(raw[208:])
    found = [0.0] * 256
    for i in range(256):
        n, rest = divmod(i, 128)
        quarter, place = divmod(rest, 32)
        byte = low[64 * n + 32 * (quarter % 2) + place]
        four = byte >> 4 if quarter >= 2 else byte & 15
        two = high[32 * n + place] >> (2 * quarter) & 3
        found[i] = d * scale[8 * n + 2 * quarter + place // 16] * ((four | two << 4) - 32)
    return found


def fifth_bits(raw):
    """The 32 values of 5 bits: four low bits in 16 bytes, the fifth in a word before them."""
    word, low = int.from_bytes(bytes(raw[:4]), "little"), raw[4:]
    four = [b & 15 for b in low] + [b >> 4 for b in low]
    return [value | (word >> j & 1) << 4 for j, value in enumerate(four)]


def q5_0(raw):
    return [half(raw[:2]) * (value - 16) for value in fifth_bits(raw[2:])]


def q5_1(raw):
    return [half(raw[:2]) * value + half(raw[2:4]) for value in fifth_bits(raw[4:])]


def q5_k(raw):
    """Q4_K's scales, and a plane of fifth bits: bit j of byte i belongs to value 32 j + i."""
    fifth = raw[16:48]
    d, least, s, q = half(raw[:2]), half(raw[2:4]), raw[4:16], raw[48:]
    scale = [s[j] & 63 if j < 4 else (s[j + 4] & 15) | (s[j - 4] >> 6) << 4 for j in range(8)]
    minimum = [s[j + 4] & 63 if j < 4 else (s[j + 4] >> 4) | (s[j] >> 6) << 4 for j in range(8)]
    found = []
    for i in range(256):
        j, place = divmod(i, 32)
        byte = q[32 * (j // 2) + place]
        value = (byte >> 4 if j % 2 else byte & 15) | (fifth[place] >> j & 1) << 4
        found.append(d * scale[j] * value - least * minimum[j])
    return found


def q2_k(raw):
    scale, q, d, least = raw[:16], raw[16:80], half(raw[80:82]), half(raw[82:])
    found = []
    for i in range(256):
        part, rest = divmod(i, 128)
        two = q[32 * part + rest % 32] >> (2 * (rest // 32)) & 3
        found.append(d * (scale[i // 16] & 15) * two - least * (scale[i // 16] >> 4))
    return found


def q3_k(raw):
    mask, q, s, d = raw[:32], raw[32:96], raw[96:108], half(raw[108:])
    scale = [(s[j] & 15 if j < 8 else s[j - 8] >> 4) | (s[8 + j % 4] >> (2 * (j // 4)) & 3) << 4 for j in range(16)]
    found = []
    for i in range(256):
        part, rest = divmod(i, 128)
        two = q[32 * part + rest % 32] >> (2 * (rest // 32)) & 3
        high = mask[rest % 32] >> (4 * part + rest // 32) & 1
        found.append(d * (scale[i // 16] - 32) * (two - (0 if high else 4)))
    return found


CODES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # llama.cpp's kvalues_iq4nl


def iq4_nl(raw):
    d = half(raw[:2])
    return [d * CODES[b & 15] for b in raw[2:]] + [d * CODES[b >> 4] for b in raw[2:]]


def iq4_xs(raw):
    d, high, low, q = half(raw[:2]), int.from_bytes(bytes(raw[2:4]), "little"), raw[4:8], raw[8:]
    found = []
    for j in range(8):
        scale = (low[j // 2] >> (4 * (j % 2)) & 15) | (high >> (2 * j) & 3) << 4
        part = q[16 * j : 16 * j + 16]
        found += [d * (scale - 32) * CODES[n] for n in [b & 15 for b in part] + [b >> 4 for b in part]]
    return found


FOUR_BIT_FLOATS = (0, 0.5, 1, 1.5, 2, 3, 4, 6)  # E2M1 of the OCP microscaling formats; the fourth bit is the sign


def mxfp4(raw):
    codes = [b & 15 for b in raw[1:]] + [b >> 4 for b in raw[1:]]
    return [2.0 ** (raw[0] - 127) * FOUR_BIT_FLOATS[n & 7] * (-1 if n & 8 else 1) for n in codes]


SCALAR = {
    "Q8_0": q8_0, "Q4_0": q4_0, "Q4_1": q4_1, "Q5_0": q5_0, "Q5_1": q5_1, "Q2_K": q2_k, "Q3_K": q3_k, "Q4_K": q4_k,
    "Q5_K": q5_k, "Q6_K": q6_k, "IQ4_NL": iq4_nl, "IQ4_XS": iq4_xs, "MXFP4": mxfp4,
}  # fmt: skip
# Where the scales of a block are: offsets of float16 numbers.
SCALES = {
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
}


def random_blocks(kind, shape, rng):
    """Random bytes with scales that are finite and of order one hundredth."""
    block, size = gguf.GGML_QUANT_SIZES[TYPES[kind]]
    raw = rng.integers(0, 256, (int(np.prod(shape)) // block, size), np.uint8)
    if kind == "MXFP4":
        raw[:, 0] = rng.integers(118, 123, len(raw))
        return raw
    for offset in SCALES.get(kind, (0,)):
        scale = rng.uniform(0.005, 0.02, (len(raw), 1)).astype(np.float16)
        raw[:, offset : offset + 2] = scale.view(np.uint8)
    return raw


def permute(weight, heads):
    """llama.cpp's reordering of queries and keys for its rotary embedding (conversion of Llama checkpoints)."""
    return weight.reshape(heads, 2, len(weight) // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


NAMES = {
    "attn_q": (D, D), "attn_k": (D // 2, D), "attn_v": (D // 2, D), "attn_output": (D, D),
    "ffn_gate": (F, D), "ffn_up": (F, D), "ffn_down": (D, F),
}  # fmt: skip


def write(path, kind, family="llama", extra=lambda writer: None, drop=()):
    """A one-layer model in which every matrix has a type; returns each tensor's values by scalar arithmetic."""
    rng, values = np.random.default_rng(0), {}
    writer = gguf.GGUFWriter(path, family)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(F)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV)
    writer.add_layer_norm_rms_eps(1e-5)
    extra(writer)

    def put(name, shape):
        if name in drop:
            return
        if kind in SCALAR and len(shape) == 2:
            raw = random_blocks(kind, shape, rng)
            values[name] = np.array([SCALAR[kind]([int(b) for b in row]) for row in raw], np.float64).reshape(shape)
            size = raw.size // shape[0]
            writer.add_tensor(name, raw.reshape(shape[0], size), raw_dtype=TYPES[kind])
            return
        value = (0.1 * rng.standard_normal(shape)).astype(np.float32)
        if kind == "BF16" and len(shape) == 2:
            value = (value.view(np.uint32) & 0xFFFF0000).view(np.float32)
            writer.add_tensor(
                name, (value.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8), raw_dtype=TYPES.BF16
            )
        else:
            value = value.astype(np.float16 if kind == "F16" and len(shape) == 2 else np.float32)
            writer.add_tensor(name, value)
        values[name] = value.astype(np.float64)

    put("token_embd.weight", (V, D))
    put("output_norm.weight", (D,))
    for name in ("attn_norm", "ffn_norm"):
        put(f"blk.0.{name}.weight", (D,))
    for name, shape in NAMES.items():
        put(f"blk.0.{name}.weight", shape)
    if family == "qwen2":
        for name, size in (("attn_q", D), ("attn_k", D // 2), ("attn_v", D // 2)):
            put(f"blk.0.{name}.bias", (size,))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


@pytest.mark.parametrize("kind", [*SCALAR, "F32", "F16", "BF16"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_tensors_are_what_llama_cpp_says(tmp_path, kind, family):
    """Seen to catch: no un-permutation, un-permutation of Qwen's too, keys permuted by the number of query heads."""
    values = write(tmp_path / "m.gguf", kind, family)
    source = interop.open_source(tmp_path / "m.gguf")[0]
    stored = {
        "model.layers.0.self_attn.q_proj.weight": ("attn_q.weight", HEADS),
        "model.layers.0.self_attn.k_proj.weight": ("attn_k.weight", KV),
        "model.layers.0.mlp.down_proj.weight": ("ffn_down.weight", 0),
        "model.layers.0.self_attn.o_proj.weight": ("attn_output.weight", 0),
    } | ({"model.layers.0.self_attn.k_proj.bias": ("attn_k.bias", KV)} if family == "qwen2" else {})
    for there, (name, heads) in stored.items():
        got = source.read(there, 0, source.shapes[there][0]).astype(np.float64)
        again = permute(got, heads) if heads and family == "llama" else got
        np.testing.assert_allclose(again, values[f"blk.0.{name}"], rtol=2e-6, atol=1e-7, err_msg=there)
        np.testing.assert_array_equal(source.read(there, 3, 70), got[3:70].astype(source.read(there, 3, 70).dtype))


def test_the_loaded_model_is_that_of_its_tensors(tmp_path):
    write(tmp_path / "m.gguf", "Q4_K")
    model = interop.load(tmp_path / "m.gguf")
    assert (model.config.tied, model.config.scaled_embedding, model.config.norm_eps) == (True, False, 1e-5)
    source = model.source
    for there, ours, _, shape in expected(model.config):
        if ours == "blocks.query":
            want = source.read(there, 0, shape[0]).reshape(HEADS, D // HEADS, D).transpose(2, 0, 1)
            np.testing.assert_array_equal(model.params.blocks.query[...][0], want)


def test_llama3_scaling_is_read_off_the_stored_divisors(tmp_path):
    """llama.cpp stores what each frequency is divided by; Llama 3.1's formula, written out here in its own words."""
    base, factor = 500_000.0, 8.0
    wavelength = 2 * np.pi * base ** (np.arange(32) / 32)
    smooth = (8192 / wavelength - 1) / 3
    mixed = 1 / ((1 - smooth) / factor + smooth)
    divisors = np.where(wavelength > 8192, factor, np.where(wavelength < 2048, 1.0, mixed)).astype(np.float32)

    def extra(writer):
        writer.add_rope_freq_base(base)
        writer.add_tensor("rope_freqs.weight", divisors)

    write(tmp_path / "m.gguf", "F32", extra=extra)
    config = interop.open_source(tmp_path / "m.gguf")[1]
    assert (config.rope_scaling, config.rope_factor, config.rope_context) == ("llama3", 8.0, 8192)

    def wrong(writer):
        writer.add_tensor("rope_freqs.weight", np.linspace(1, 8, 32, dtype=np.float32))

    write(tmp_path / "w.gguf", "F32", extra=wrong)
    with pytest.raises(InteropError, match=r"rope_freqs.weight does not hold Llama 3's"):
        interop.open_source(tmp_path / "w.gguf")


def test_damage_is_named(tmp_path):
    file = tmp_path / "m.gguf"
    write(file, "F32")
    whole = file.read_bytes()
    file.write_bytes(whole[:-4096])
    with pytest.raises(InteropError, match=r"cut off: tensor 'blk.0.ffn_down.weight' ends at byte"):
        interop.load(file)
    for size in (0, 3, 20, 100, 400):
        file.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"m\.gguf"):
            interop.load(file)
    file.write_bytes(whole[:8] + struct.pack("<QQ", 2**50, 2**50) + whole[24:])
    with pytest.raises(DataError, match="claims 1125899906842624 items"):
        interop.load(file)
    write(file, "F32", drop=("blk.0.ffn_up.weight",))
    with pytest.raises(InteropError, match=r"'model.layers.0.mlp.up_proj.weight' is missing, wanted \[256, 256\]"):
        interop.load(file)
    write(file, "F32", family="gemma")
    with pytest.raises(InteropError, match="architecture 'gemma' is not supported"):
        interop.load(file)


@pytest.mark.parametrize("seed", range(3))
def test_random_damage_never_ends_in_a_traceback(tmp_path, seed):
    """Bytes of the head are flipped at random: it loads, or says a sentence."""
    file, rng = tmp_path / "m.gguf", np.random.default_rng(seed)
    write(file, "F32", extra=lambda writer: writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"]))
    whole = np.frombuffer(file.read_bytes(), np.uint8)
    for _ in range(60):
        broken = whole.copy()
        where = rng.integers(0, 1200, rng.integers(1, 4))
        broken[where] = rng.integers(0, 256, len(where))
        file.write_bytes(broken.tobytes())
        try:
            interop.open_source(file)
        except (InteropError, DataError) as error:
            assert "\n" not in str(error)


WORDS = {"gpt-2": 2, "smollm": 3, "llama-bpe": 1, "qwen2": 3}


@pytest.mark.parametrize("cut", WORDS)
def test_the_tokenizer_inside(tmp_path, cut):
    """Numbers tell the ways to cut apart: '123' stays, or falls into digits; special tokens are none in plain text."""
    letters = [chr(i) for i in range(ord("!"), ord("~") + 1)] + ["Ġ", "Ċ"]
    merges = ["1 2", "12 3", "Ġ a"]
    tokens = ["<|endoftext|>", "<|im_end|>", *letters, *(m.replace(" ", "") for m in merges)]

    def extra(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(cut)
        writer.add_token_list(tokens)
        writer.add_token_types([3, 3, *[1] * (len(tokens) - 2)])
        writer.add_token_merges(merges)
        if cut == "llama-bpe":  # whose rule is a BOS
            writer.add_bos_token_id(0)

    write(tmp_path / "m.gguf", "F32", extra=extra)
    made = SubwordTokenizer(str(tmp_path / "m.gguf"))
    encode = lambda text, template=False: [tokens[i] for i in made.encode([Part(text, template=template)])[0]]
    assert len(encode("123")) == (3 if cut in ("smollm", "qwen2") else 1)
    assert encode(" a<|im_end|>")[:1] == ["Ġa"] and len(encode(" a<|im_end|>")) > 5
    assert encode("a<|im_end|>", template=True) == ["a", "<|im_end|>"]
    assert (made.end_of_text, made.byte_lengths[1], made.byte_lengths[tokens.index("Ġa")]) == (0, 0, 2)
    assert made.decode(made.encode([Part("a 123 b\n")])[0]) == "a 123 b\n"


def test_other_tokenizers_are_refused(tmp_path):
    write(tmp_path / "m.gguf", "F32", extra=lambda writer: writer.add_tokenizer_model("llama"))
    with pytest.raises(DataError, match="kind 'llama'"):
        head.tokenizer_json(tmp_path / "m.gguf")


def test_a_store_is_built_with_it(tmp_path):
    """The store keeps a tokenizer.json of its own, and names the tokens as the file does."""
    letters = [chr(i) for i in range(33, 127)] + ["Ġ", "Ċ"]

    def extra(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(["<|endoftext|>", *letters])
        writer.add_token_types([3, *[1] * len(letters)])
        writer.add_token_merges([])

    write(tmp_path / "m.gguf", "F32", extra=extra)
    (tmp_path / "text.txt").write_text("all the words\n" * 50)
    config = data.DataConfig(
        source="files",
        files=FilesConfig(paths=(str(tmp_path / "text.txt"),)),
        tokenizer=TokenizerConfig(kind="json", path=str(tmp_path / "m.gguf")),
    )
    store = data.open_store(config, tmp_path / "cache")
    assert store.tokenizer_name == SubwordTokenizer(str(tmp_path / "m.gguf")).name
    assert (store.path / "tokenizer.json").exists()
    assert store.tokenizer().hash == SubwordTokenizer(str(tmp_path / "m.gguf")).hash
