"""Models that somebody else made: safetensors, config.json, GGUF, tokenizer.json, chat templates."""

import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from distill.data.documents import Part
from distill.data.sources import chat, template_files
from distill.data.tokenizers.gguf import tokenizer_json
from distill.data.tokenizers.subword import SubwordTokenizer
from distill.interop import hf_config, source, tokenizer_files
from distill.interop.layout import expected
from tests.fuzz.harness import FIRST, Reader

Prepared = tuple[Callable[[bytes], Any], list[bytes]]

TREE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 4, "intermediate_size": 4,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16,
    "rms_norm_eps": 1e-5, "rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "eos_token_id": 0,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
QWEN = TREE | {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "sliding_window": 4,
               "max_window_layers": 0, "rope_scaling": None, "rope_parameters": LLAMA3}  # fmt: skip


def _tensors(tree: Mapping[str, Any]) -> bytes:
    """A whole safetensors file of a config, in the file's own words."""
    shapes = {name: shape for name, _, _, shape in expected(hf_config.read_config(tree, "seed"))}
    head, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        head[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + bytes(range(256)) * (at // 256 + 1)


def _read_all(path: Path) -> float:
    """A model's every tensor, as an import reads it, and what travels with it."""
    found, config = source.open_source(path)
    total = 0.0
    for name, _, _, shape in expected(config):
        total += float(np.nansum(found.read(name, 0, shape[0]).astype(np.float64)))
    source.fingerprint(found, config)
    return total


def _directory(which: str) -> Callable[[Path], Prepared]:
    def prepare(folder: Path) -> Prepared:
        model = folder / "m"
        model.mkdir()
        tensors = _tensors(TREE)
        (model / "config.json").write_text(json.dumps(TREE))
        # Beside a model.safetensors no index is read.
        weights = "shard.safetensors" if which.endswith(".index.json") else "model.safetensors"
        (model / weights).write_bytes(tensors)

        def call(case: bytes) -> Any:
            if which == "safetensors":
                # A head that is JSON gets the length that it has: what lies behind that check is met as well.
                if case[:1] == b"{":
                    case = len(case).to_bytes(8, "little") + case + tensors[8 + int.from_bytes(tensors[:8], "little") :]
                (model / "model.safetensors").write_bytes(case)
            else:
                (model / which).write_bytes(case)
            return _read_all(model)

        if which == "safetensors":
            length = int.from_bytes(tensors[:8], "little")
            return call, [tensors, tensors[8 : 8 + length]]
        if which == "config.json":
            return call, [json.dumps(TREE).encode()]
        names = json.loads(tensors[8 : 8 + int.from_bytes(tensors[:8], "little")])
        return call, [json.dumps({"weight_map": dict.fromkeys(names, weights)}).encode()]

    return prepare


def _config(folder: Path) -> Prepared:
    """config.json alone: every family, and what is written of it again."""

    def call(case: bytes) -> Any:
        (folder / "config.json").write_bytes(case)
        found = hf_config.read_config(source.read_json(folder / "config.json"), str(folder / "config.json"))
        return found.head_dim, found.ff_dim

    qwen3 = TREE | {"architectures": ["Qwen3ForCausalLM"], "rope_scaling": None, "layer_types": ["full_attention"]}
    mistral = TREE | {"architectures": ["MistralForCausalLM"], "sliding_window": 8, "rope_scaling": LLAMA3}
    gpt = TREE | {"architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "quantization_config": None}
    return call, [json.dumps(tree).encode() for tree in (TREE, QWEN, qwen3, mistral, gpt)]


_NAMES = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32), "ffn_gate": (32, 32),
          "ffn_up": (32, 32), "ffn_down": (32, 32)}  # fmt: skip


def _gguf_bytes(folder: Path, kind: str = "Q8_0") -> bytes:
    path = folder / "seed.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    tokens = ["<|endoftext|>", *letters, "ab"]
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    writer.add_chat_template("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    for name, shape in {"token_embd": (len(tokens), 32), **{f"blk.0.{n}": s for n, s in _NAMES.items()}}.items():
        raw = np.full((shape[0], shape[1] // block * size), 7, np.uint8)
        writer.add_tensor(f"{name}.weight", raw, raw_dtype=gguf.GGMLQuantizationType[kind])
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    content = path.read_bytes()
    path.unlink()
    return content


def _gguf(what: str) -> Callable[[Path], Prepared]:
    """A GGUF file as a model, as a tokenizer, or as a chat template."""

    def prepare(folder: Path) -> Prepared:
        file = folder / "model.gguf"

        def call(case: bytes) -> Any:
            file.write_bytes(case)
            if what == "model":
                return _read_all(file)
            special = template_files.read_templates(file).special
            found = SubwordTokenizer(str(file), "none")
            return found.vocab_size, tokenizer_files._files(tokenizer_json(file), special)

        return call, [_gguf_bytes(folder, kind) for kind in (("Q8_0", "Q4_0", "F16") if what == "model" else ("F16",))]

    return prepare


def _tokenizer(folder: Path) -> Prepared:
    file = folder / "tokenizer.json"

    def call(case: bytes) -> Any:
        file.write_bytes(case)
        found = SubwordTokenizer(str(file), "none")
        ids = found.encode([Part("Hello, it is 42.\n", template=True), Part("<|endoftext|> naïve")])
        return found.decode(ids[1].tolist()), found.vocab_size, int(found.byte_lengths.sum())

    whole = (FIRST / "store" / "tokenizer.json").read_bytes()
    tiny = json.loads(whole)
    tiny["model"] |= {"vocab": {"a": 0, "b": 1, "ab": 2, "▁": 3, "<0x0A>": 4}, "merges": ["a b"]}
    words = {"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 1},
             "unk_token": "[UNK]"}, "pre_tokenizer": {"type": "Whitespace"}}  # fmt: skip
    return call, [json.dumps(tiny).encode(), json.dumps(words).encode(), json.dumps(json.loads(whole)).encode()]


TEMPLATE = (
    "{%- if messages[0].role == 'system' %}{{ messages[0].content }}\n{% endif %}{% for message in messages %}"
    "{% if loop.index > 50 %}{{ raise_exception('too long') }}{% endif %}<|{{ message['role'] }}|>\n"
    "{{ message.content }}{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_TALK = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]
_CHAT_WORDS = (
    *(b"{{", b"}}", b"{%", b"%}", b" for x in range(99999) ", b"{% endfor %}", b"{% if ", b"{% endif %}", b"messages"),
    *(b"* 10**9", b"|tojson", b"~", b"loop.", b".__class__", b"|attr('x')", b"{% set x = ", b"|center(10**9)", b"**"),
    *(b"message.content", b"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", b"lipsum()", b"cycler", b"namespace()"),
    *(b"{% include 'x' %}", b"{% import 'x' as y %}", b"{% break %}", b"strftime_now", b"'%999999999d' % 1", b"[0]"),
)


def _chat(folder: Path) -> Prepared:
    """A template as a .jinja file, on a conversation of two turns."""
    file = folder / "chat_template.jinja"
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')

    def call(case: bytes) -> Any:
        file.write_bytes(case)
        return len(chat.ChatTemplate(str(file)).parts(_TALK))

    return call, [TEMPLATE.encode(), b"{% for m in messages %}[{{ m.role }}]{{ m.content|trim }}[/]{% endfor %}"]


def _chat_config(folder: Path) -> Prepared:
    """A template in tokenizer_config.json, alone or among several."""
    file = folder / "tokenizer_config.json"

    def call(case: bytes) -> Any:
        file.write_bytes(case)
        return template_files.read_templates(folder)

    tree = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": TEMPLATE}
    several = tree | {"chat_template": [{"name": "default", "template": TEMPLATE}, {"name": "t", "template": "x"}]}
    return call, [json.dumps(one).encode() for one in (tree, several)]


_GGUF_WORDS = (b"GGUF", struct.pack("<Q", 2**40), struct.pack("<I", 9), struct.pack("<I", 8), b"llama.", b"blk.0.")

READERS = (
    Reader(name="safetensors", prepare=_directory("safetensors"), named=("/m",), tree=True),
    Reader(name="safetensors_index", prepare=_directory("model.safetensors.index.json"), named=("/m",), tree=True),
    Reader(name="model_config", prepare=_directory("config.json"), named=("/m",), tree=True),
    Reader(name="hf_config", prepare=_config, named=("config.json",), tree=True),
    Reader(name="gguf_model", prepare=_gguf("model"), named=("model.gguf",), words=_GGUF_WORDS),
    Reader(name="gguf_tokenizer", prepare=_gguf("tokenizer"), named=("model.gguf",), words=_GGUF_WORDS),
    Reader(name="tokenizer_json", prepare=_tokenizer, named=("tokenizer.json",), tree=True),
    Reader(name="chat_template", prepare=_chat, named=("chat_template.jinja",), words=_CHAT_WORDS),
    Reader(name="chat_config", prepare=_chat_config, named=(os.sep,), tree=True),
)
