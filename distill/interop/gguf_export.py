"""Exports a model as a GGUF file, which llama.cpp and this project read: matrices in F16 or Q8_0, vectors in F32.

For Llama, the channels of each head of queries and keys are interleaved, as llama.cpp's rotary embedding wants them.
"""

import importlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from distill.config import ModelConfig
from distill.data.tokenizers import gguf as gguf_tokenizer
from distill.data.tokenizers.same import difference
from distill.data.tokenizers.spec import Spec
from distill.data.tokenizers.tokenizer import load
from distill.errors import DataError, InteropError
from distill.interop import export, hf_config
from distill.interop.gguf import stored_name
from distill.interop.safetensors import Tensor
from distill.interop.tokenizer_files import TOKENIZER, TOKENIZER_CONFIG, TokenizerFiles
from distill.model.transformer import Transformer
from distill.system.files import atomic_file, loads

if TYPE_CHECKING:
    from gguf import GGUFWriter

Kind = Literal["F16", "Q8_0", "F32"]
KINDS: Mapping[str, Kind] = {"float16": "F16", "q8_0": "Q8_0", "float32": "F32"}
_FAMILIES = {"Llama": "llama", "Qwen2": "qwen2", "Qwen3": "qwen3"}
_NORMAL, _CONTROL = 1, 3  # types of tokens
_BLOCK = 32  # values that share a scale in Q8_0


def write(
    path: str | Path,
    params: Transformer,
    tokenizer: TokenizerFiles,
    *,
    context: int,
    kind: Kind,
    licence: str = "",
    on_tensor: Callable[[int], None] = lambda _: None,
) -> str:
    """Writes the file, which appears under its name once complete; returns what there is to say of its tokenizer.

    Raises InteropError where `path` is there already, or no architecture of llama.cpp computes the same.
    """
    path = Path(path)
    if path.exists():
        raise InteropError(f"{path}: there is something already; give another name, or move it away")
    try:
        library = importlib.import_module("gguf")
    except ImportError:
        raise InteropError(f"{path}: writing GGUF needs the package gguf; `pip install 'distill[interop]'`") from None
    config = export.published(params.config)
    if config.experts:
        raise InteropError(f"{path}: a mixture of experts is not written as GGUF here; write a Hugging Face directory")
    tree = hf_config.write_config(config, context=context, dtype="float32", end_of_text=tokenizer.end_of_text)
    name = str(tree["architectures"][0]).removesuffix("ForCausalLM") if isinstance(tree["architectures"], list) else ""
    if name not in _FAMILIES or config.window or config.out_bias:
        raise InteropError(
            f"{path}: llama.cpp has no architecture for a model of {name} with window={config.window} and out_bias="
            f"{config.out_bias}; write a Hugging Face directory"
        )
    family = _FAMILIES[name]
    fields, said = tokenizer_fields(tokenizer)
    with atomic_file(path) as temporary:
        writer = library.GGUFWriter(str(temporary), family)
        _architecture(writer, family, config, context)
        if licence:
            writer.add_license(licence)
        for add, value in fields.items():
            getattr(writer, add)(value)
        readers = export.tensors(params, config)
        types = library.GGMLQuantizationType
        for tensor, read in readers.items():
            value = _stored(tensor, read(), family, config)
            fits = value.ndim > 1 and (kind != "Q8_0" or value.shape[-1] % _BLOCK == 0)
            chosen = types[kind if fits else "F32" if value.ndim == 1 else "F16"]
            content = library.quants.quantize(value, chosen)
            writer.add_tensor(stored_name(tensor), content, raw_shape=content.shape, raw_dtype=chosen)
            on_tensor(value.nbytes)
        if config.rope_scaling == "llama3":
            writer.add_tensor("rope_freqs.weight", _divisors(config))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return said


def _stored(name: str, value: Tensor, family: str, config: ModelConfig) -> Tensor:
    """The tensor as llama.cpp stores it: for Llama, from (head, half, pair) to (head, pair, half)."""
    value = np.ascontiguousarray(value, np.float32)
    if family != "llama" or not any(part in name for part in (".q_proj.", ".k_proj.")):
        return value
    heads = config.n_heads if ".q_proj." in name else config.kv_heads
    apart = value.reshape(heads, 2, config.head_dim // 2, *value.shape[1:])
    return np.ascontiguousarray(np.swapaxes(apart, 1, 2).reshape(value.shape))


def _architecture(writer: "GGUFWriter", family: str, config: ModelConfig, context: int) -> None:
    writer.add_block_count(config.n_layers)
    writer.add_context_length(context)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.ff_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    if config.rope_scaling == "linear":
        writer.add_string(f"{family}.rope.scaling.type", "linear")
        writer.add_float32(f"{family}.rope.scaling.factor", config.rope_factor)


def _divisors(config: ModelConfig) -> Tensor:
    """The divisor of each rotary frequency under Llama 3's scaling [head_dim / 2]."""
    count = config.head_dim // 2
    turns = config.rope_context * config.rope_base ** -(np.arange(count) / count) / (2 * np.pi)
    kept = np.clip((turns - config.rope_low) / (config.rope_high - config.rope_low), 0, 1)
    return (1 / (kept + (1 - kept) / config.rope_factor)).astype(np.float32)


def tokenizer_fields(tokenizer: TokenizerFiles) -> tuple[dict[str, object], str]:
    """Calls of the writer with their values, and what there is to say: a tokenizer that GGUF has no name for stays out.

    A byte-level BPE is written under the first of llama.cpp's names with which it gives the same tokens.
    """
    left = "its tokenizer is left out: {}; keep tokenizer.json beside the file"
    text = tokenizer.files.get(TOKENIZER)
    if text is None:
        return {}, left.format("there is no tokenizer.json")
    tree = loads(text)
    model = tree.get("model", {})
    if model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        return {}, left.format(f"it is of kind {model.get('type')!r}, not byte-level BPE")
    names = dict(model["vocab"])
    control = {}
    for added in tree.get("added_tokens") or []:
        names[added["content"]] = added["id"]
        control[added["id"]] = _CONTROL if added.get("special") else 4
    size = max(names.values()) + 1
    tokens = [f"[unused{i}]" for i in range(size)]
    for name, i in names.items():
        tokens[i] = name
    merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges", [])]
    fields: dict[str, object] = {
        "add_tokenizer_model": "gpt2",
        "add_token_list": tokens,
        "add_token_types": [control.get(i, _NORMAL) for i in range(size)],
        "add_token_merges": merges,
    }
    ids = dict(tokenizer.ids) | ({"eos_token_id": tokenizer.end_of_text} if tokenizer.end_of_text >= 0 else {})
    for name, add in (("bos", "add_bos_token_id"), ("eos", "add_eos_token_id"), ("pad", "add_pad_token_id")):
        value = ids.get(f"{name}_token_id")
        if value is not None:
            fields[add] = value[0] if isinstance(value, list) else value
    settings = loads(tokenizer.files.get(TOKENIZER_CONFIG, b"{}"))
    template = tokenizer.files.get("chat_template.jinja", b"").decode() or settings.get("chat_template")
    if isinstance(template, str):
        fields["add_chat_template"] = template
    return _named(fields, text.decode())


def _named(fields: dict[str, object], text: str) -> tuple[dict[str, object], str]:
    """The fields with llama.cpp's name of the cut before BPE, and with BOS and EOS where the tokenizer puts them."""
    library = importlib.import_module("gguf")
    with tempfile.TemporaryDirectory() as folder:
        own_file, file = Path(folder) / TOKENIZER, Path(folder) / "vocabulary.gguf"
        own_file.write_text(text, "utf-8")
        own = load(Spec("json", str(own_file), "none"))
        around = {f"add_add_{name}_token": bool(ids) for name, ids in zip(("bos", "eos"), own.around)}
        for ids, name in zip(own.around, ("bos", "eos")):
            if ids:
                fields[f"add_{name}_token_id"] = ids[0]
        for cut in gguf_tokenizer.cuts():
            tried = fields | around | {"add_tokenizer_pre": cut}
            writer = library.GGUFWriter(str(file), "llama")
            for add, value in tried.items():
                getattr(writer, add)(value)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.close()
            try:
                if not difference(own, load(Spec("json", str(file), "none"))):
                    return tried, f"its tokenizer is written as llama.cpp's {cut!r}, which gives the same tokens"
            except DataError:
                continue
    known = ", ".join(gguf_tokenizer.cuts())
    return {}, f"its tokenizer is left out: it cuts text unlike {known}; keep tokenizer.json beside the file"
