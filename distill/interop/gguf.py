"""GGUF files as sources: their fields as a config.json, their tensors dequantised row by row.

llama.cpp stores the queries and keys of Llama with the channels of each head interleaved for its rotary embedding;
they are put back here. (Rotating the stored ones half-split runs, and is wrong.) Qwen's are stored as they are.
"""

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data.tokenizers.gguf import GgufFile, Stored
from distill.errors import InteropError
from distill.interop.safetensors import read_bytes

READABLE = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
_FAMILIES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_FREQUENCIES = "rope_freqs.weight"  # by what each rotary angle is divided


def open_file(path: str | Path) -> "Gguf":
    """The GGUF file at a path. InteropError for a kind that cannot be read, DataError for a damaged one."""
    try:
        library = importlib.import_module("gguf")
    except ImportError:
        raise InteropError(f"{path}: reading GGUF needs the package gguf; `pip install 'distill[interop]'`") from None
    return Gguf(path, library)


class Gguf:
    """A GGUF file as a source of tensors under their Hugging Face names."""

    def __init__(self, path: str | Path, library: Any):
        self.path, self._library = Path(path), library
        self._file = GgufFile(path)
        self._stored: dict[str, tuple[Stored, str, int]] = {}  # name: (where, type, bytes a row)
        for name, stored in self._file.tensors.items():
            self._stored[self._rename(name)] = (stored, *self._check(name, stored))
        self.tree = self._config()
        self._stored.pop(_FREQUENCIES, None)
        self.shapes = {name: stored.shape for name, (stored, _, _) in self._stored.items()}
        self.dtypes = {name: kind for name, (_, kind, _) in self._stored.items()}

    def _rename(self, name: str) -> str:
        """The Hugging Face name of a tensor; its own where it has none."""
        stem, _, kind = name.rpartition(".")
        if stem in _WHOLE:
            return f"{_WHOLE[stem]}.{kind}"
        begin, _, rest = stem.partition(".")
        layer, _, part = rest.partition(".")
        if begin == "blk" and part in _LAYER:
            return f"model.layers.{layer}.{_LAYER[part]}.{kind}"
        return name

    def _check(self, name: str, stored: Stored) -> tuple[str, int]:
        """The type's name and the bytes of a row; InteropError where the file cannot hold the tensor."""
        types = self._library.GGMLQuantizationType
        kind = next((t.name for t in types if t.value == stored.kind), str(stored.kind))
        if kind not in READABLE:
            raise InteropError(f"{self.path}: tensor {name!r} is of type {kind}, wanted one of {', '.join(READABLE)}")
        block, size = self._library.GGML_QUANT_SIZES[types[kind]]
        if not stored.shape or stored.shape[-1] % block:
            raise InteropError(f"{self.path}: tensor {name!r} has shape {list(stored.shape)}, wanted rows of {block}s")
        row = stored.shape[-1] // block * size
        end = stored.offset + math.prod(stored.shape[:-1]) * row
        if end > self._file.size:
            raise InteropError(
                f"{self.path}: the file is cut off: tensor {name!r} ends at byte {end:,} of {self._file.size:,}"
            )
        return kind, row

    def _field(self, name: str, default: Any = ..., kind: type = int) -> Any:
        """A field of the architecture, 'llama.block_count' by 'block_count'; no default: it must be there."""
        family = self._file.fields.get("general.architecture")
        value = self._file.fields.get(f"{family}.{name}", default)
        if value is ...:
            raise InteropError(f"{self.path}: the field {family}.{name} is missing")
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise InteropError(f"{self.path}: the field {family}.{name} is {value!r:.60}, wanted {kind.__name__}")
        return value

    def _config(self) -> dict[str, Any]:
        """What this model's config.json would say."""
        family = self._file.fields.get("general.architecture")
        if family not in _FAMILIES:
            raise InteropError(
                f"{self.path}: architecture {family!r} is not supported in GGUF; wanted one of {', '.join(_FAMILIES)}"
            )
        heads, width = self._field("attention.head_count"), self._field("embedding_length")
        if heads < 1:
            raise InteropError(f"{self.path}: the field {family}.attention.head_count is {heads}, wanted at least 1")
        embed = self._stored.get("model.embed_tokens.weight")
        if embed is None:
            raise InteropError(f"{self.path}: tensor 'token_embd.weight' is missing")
        tree = {
            "architectures": [f"{_FAMILIES[family]}ForCausalLM"],
            "vocab_size": embed[0].shape[0],
            "hidden_size": width,
            "num_hidden_layers": self._field("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._field("attention.head_count_kv", heads),
            "head_dim": self._field("attention.key_length", width // heads),
            "intermediate_size": self._field("feed_forward_length"),
            "max_position_embeddings": self._field("context_length"),
            # Stored in float32: the shortest decimal that means the same number is the one that was meant.
            "rms_norm_eps": float(str(np.float32(self._field("attention.layer_norm_rms_epsilon", kind=float)))),
            "rope_theta": float(self._field("rope.freq_base", 10_000.0, float)),
            "rope_scaling": self._scaling(),
            "tie_word_embeddings": "lm_head.weight" not in self._stored,
        }
        window = self._field("attention.sliding_window", 0)
        if family == "llama":
            tree["attention_bias"] = "model.layers.0.self_attn.q_proj.bias" in self._stored
            if window:
                tree |= {"architectures": ["MistralForCausalLM"], "sliding_window": window}
        elif window:
            tree |= {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0}
        end = self._file.fields.get("tokenizer.ggml.eos_token_id")
        return tree | ({"eos_token_id": end} if type(end) is int else {})

    def _scaling(self) -> dict[str, Any] | None:
        """rope_scaling, from the fields or, for Llama 3, from the stored divisors of all frequencies."""
        kind = self._field("rope.scaling.type", "none", str)
        if kind == "linear":
            return {"rope_type": "linear", "factor": self._field("rope.scaling.factor", kind=float)}
        if kind != "none":
            return {"rope_type": kind}
        if _FREQUENCIES not in self._stored:
            return None
        stored = self._stored[_FREQUENCIES][0]
        divisors = self.read(_FREQUENCIES, 0, stored.shape[0])
        base = float(self._field("rope.freq_base", 10_000.0, float))
        factor = float(np.max(divisors))
        turns = 8192 * base ** -(np.arange(len(divisors)) / len(divisors)) / (2 * np.pi)
        kept = np.clip((turns - 1) / 3, 0, 1)
        if not np.allclose(divisors, 1 / (kept + (1 - kept) / factor), rtol=1e-4):
            raise InteropError(f"{self.path}: {_FREQUENCIES} does not hold Llama 3's scaling of a context of 8192")
        return {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows of a tensor, dequantised to float32 (or as they are, where they are not quantised)."""
        stored, kind, row = self._stored[name]
        permuted = self._file.fields["general.architecture"] == "llama" and ".self_attn." in name
        if permuted and (".q_proj." in name or ".k_proj." in name):
            heads = self.tree["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
            whole = self._rows(stored, kind, row, 0, stored.shape[0])
            # Stored as (head, pair, half); wanted as (head, half, pair).
            apart = whole.reshape(heads, stored.shape[0] // heads // 2, 2, *stored.shape[1:])
            return np.swapaxes(apart, 1, 2).reshape(stored.shape)[start:stop]
        return self._rows(stored, kind, row, start, stop)

    def pieces(self, name: str) -> Iterator[bytes]:
        """A tensor's bytes as they are stored, some megabytes at a time."""
        stored, _, row = self._stored[name]
        return read_bytes(self.path, stored.offset, math.prod(stored.shape[:-1]) * row)

    def _rows(self, stored: Stored, kind: str, row: int, start: int, stop: int) -> NDArray[Any]:
        if len(stored.shape) == 1:  # a vector is one row of bytes
            return self._dequantise(stored, kind, row, stored.offset, stored.shape)[start:stop]
        shape = (stop - start, *stored.shape[1:])
        return self._dequantise(stored, kind, row, stored.offset + start * row, shape)

    def _dequantise(self, stored: Stored, kind: str, row: int, offset: int, shape: tuple[int, ...]) -> NDArray[Any]:
        count = math.prod(shape[:-1]) * row
        with open(self.path, "rb") as stream:
            stream.seek(offset)
            raw = np.fromfile(stream, np.uint8, count)
        if raw.size != count:
            raise InteropError(f"{self.path}: the file ended while a tensor was read")
        types = self._library.GGMLQuantizationType
        return self._library.quants.dequantize(raw.reshape(-1, row), types[kind]).reshape(shape)
