"""GGUF files as model sources: fields become a config.json, and tensors are dequantised row by row.

For Llama, llama.cpp interleaves the channels of each head of queries and keys for its rotary embedding; this module
restores their order. (Half-split rotation of the stored channels runs, but is wrong.) Qwen's are stored unchanged.
"""

import importlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from types import EllipsisType, ModuleType
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np

from distill.data.tokenizers.gguf import GgufFile, Stored
from distill.errors import InteropError
from distill.interop.families import Family, family_of
from distill.interop.safetensors import Tensor, read_bytes

T = TypeVar("T")

READABLE = (
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ4_NL", "IQ4_XS", "MXFP4"),
)
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
_FREQUENCIES = "rope_freqs.weight"  # the divisor of each rotary frequency
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")  # NAME-00001-of-00003.gguf
# Architecture fields that are read, and those that change nothing in a forward pass.
_READ = {
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"),
    *("attention.head_count_kv", "attention.key_length", "attention.layer_norm_rms_epsilon"),
    *("attention.sliding_window", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"),
}
_HARMLESS = {"tensor_data_layout", "rope.scaling.original_context_length", "rope.scaling.finetuned"}
# Namespaces that describe the file, its tokenizer (read elsewhere) and how it was made.
_METADATA = ("general.", "tokenizer.", "split.", "quantize.", "mradermacher.")


class _Tensor(NamedTuple):
    """A tensor of a file: where its bytes are, the name of its type, bytes per row."""

    file: Path
    stored: Stored
    kind: str
    row: int


def stored_name(name: str) -> str:
    """The name in a GGUF file of a tensor of a Hugging Face checkpoint."""
    stem, _, kind = name.rpartition(".")
    whole = {there: here for here, there in _WHOLE.items()}
    if stem in whole:
        return f"{whole[stem]}.{kind}"
    layer, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{next(here for here, there in _LAYER.items() if there == part)}.{kind}"


def open_file(path: str | Path) -> "Gguf":
    """Opens a GGUF file. Raises InteropError for an unsupported kind, DataError for a damaged file."""
    try:
        library = importlib.import_module("gguf")
    except ImportError:
        raise InteropError(f"{path}: reading GGUF needs the package gguf; `pip install 'distill[interop]'`") from None
    return Gguf(path, library)


class Gguf:
    """A GGUF file, or all parts of a split one, as a source of tensors under their Hugging Face names."""

    def __init__(self, path: str | Path, library: ModuleType):
        """`path` is a file, or any part of a split one. Raises InteropError where a part is missing."""
        self._library = library
        parts = _parts(Path(path))
        self._file = parts[0]  # the first part has the fields
        self.path = self._file.path
        self._stored: dict[str, _Tensor] = {}
        for part in parts:
            for name, stored in part.tensors.items():
                self._stored[self._rename(name)] = _Tensor(part.path, stored, *self._check(part, name, stored))
        self.tree: dict[str, Any] = self._config()
        self._refuse_unknown()
        self._stored.pop(_FREQUENCIES, None)
        self.shapes = {name: tensor.stored.shape for name, tensor in self._stored.items()}
        self.dtypes = {name: tensor.kind for name, tensor in self._stored.items()}

    def _rename(self, name: str) -> str:
        """The Hugging Face name of a tensor; its own name where there is none."""
        stem, _, kind = name.rpartition(".")
        if stem in _WHOLE:
            return f"{_WHOLE[stem]}.{kind}"
        begin, _, rest = stem.partition(".")
        layer, _, part = rest.partition(".")
        if begin == "blk" and part in _LAYER:
            return f"model.layers.{layer}.{_LAYER[part]}.{kind}"
        return name

    def _check(self, file: GgufFile, name: str, stored: Stored) -> tuple[str, int]:
        """The type's name and the bytes per row. Raises InteropError where the file cannot contain the tensor."""
        types = self._library.GGMLQuantizationType
        kind = next((t.name for t in types if t.value == stored.kind), str(stored.kind))
        if kind not in READABLE:
            raise InteropError(f"{file.path}: tensor {name!r} is of type {kind}, wanted one of {', '.join(READABLE)}")
        block, size = self._library.GGML_QUANT_SIZES[types[kind]]
        if not stored.shape or stored.shape[-1] % block:
            raise InteropError(f"{file.path}: tensor {name!r} has shape {list(stored.shape)}, wanted rows of {block}s")
        row = stored.shape[-1] // block * size
        end = stored.offset + math.prod(stored.shape[:-1]) * row
        if end > file.size:
            raise InteropError(
                f"{file.path}: the file is cut off: tensor {name!r} ends at byte {end:,} of {file.size:,}"
            )
        return kind, row

    def _refuse_unknown(self) -> None:
        """Raises InteropError for the first field that is neither read nor known to be harmless in a forward pass."""
        family = self._file.fields["general.architecture"]
        head_dim = self.tree["head_dim"]
        as_read: dict[str, tuple[object, ...]] = {
            "vocab_size": (self.tree["vocab_size"],),
            "rope.dimension_count": (head_dim,),
            "attention.value_length": (head_dim,),
            "attention.causal": (True,),
            "expert_count": (0,),
            "expert_used_count": (0,),
            "logit_scale": (0.0, 1.0),
            "rope.scaling.attn_factor": (1.0,),
            "use_parallel_residual": (False,),
        }
        for name, value in self._file.fields.items():
            field = name.removeprefix(f"{family}.") if name.startswith(f"{family}.") else ""
            if name.startswith(_METADATA) or field in _READ or field in _HARMLESS:
                continue
            if field not in as_read:
                raise InteropError(
                    f"{self.path}: the field {name} is {value!r:.60}, which is not supported: it may change what the "
                    "model computes"
                )
            if value not in as_read[field]:
                raise InteropError(f"{self.path}: the field {name} is {value!r:.60}, wanted {as_read[field][0]!r}")

    @overload
    def _field(self, name: str, default: int | EllipsisType = ...) -> int: ...

    @overload
    def _field(self, name: str, default: T | EllipsisType, kind: type[T]) -> T: ...

    @overload
    def _field(self, name: str, *, kind: type[T]) -> T: ...

    def _field(self, name: str, default: object = ..., kind: type = int) -> object:
        """An architecture field's value: 'block_count' reads 'llama.block_count'. Without a default, it is required."""
        family = self._file.fields.get("general.architecture")
        value = self._file.fields.get(f"{family}.{name}", default)
        if value is ...:
            raise InteropError(f"{self.path}: the field {family}.{name} is missing")
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise InteropError(f"{self.path}: the field {family}.{name} is {value!r:.60}, wanted {kind.__name__}")
        return value

    def _config(self) -> dict[str, object]:
        """The content of an equivalent config.json."""
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
        tree: dict[str, object] = {
            "architectures": [f"{_FAMILIES[family]}ForCausalLM"],
            "vocab_size": embed.stored.shape[0],
            "hidden_size": width,
            "num_hidden_layers": self._field("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._field("attention.head_count_kv", heads),
            "head_dim": self._field("attention.key_length", width // heads),
            "intermediate_size": self._field("feed_forward_length"),
            "max_position_embeddings": self._field("context_length"),
            # The field is float32: take the shortest decimal with the same value, as the author wrote it.
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

    def _scaling(self) -> dict[str, object] | None:
        """rope_scaling, from the fields or, for Llama 3, from the stored divisors of all frequencies.

        As in llama.cpp, a factor without a type is linear, and rope.scale_linear is the older name of the factor.
        """
        kind = self._field("rope.scaling.type", "linear", str)
        factor = float(self._field("rope.scaling.factor", self._field("rope.scale_linear", 0.0, float), float))
        linear = kind == "linear" and factor not in (0, 1)
        if linear and _FREQUENCIES in self._stored:
            raise InteropError(f"{self.path}: it holds {_FREQUENCIES} and a linear scaling of {factor:g}; wanted one")
        if linear:
            return {"rope_type": "linear", "factor": factor}
        if kind not in ("none", "linear"):
            raise InteropError(
                f"{self.path}: rope_type is {kind!r:.40}; in a GGUF file 'linear' and Llama 3's are read"
            )
        if _FREQUENCIES not in self._stored:
            return None
        stored = self._stored[_FREQUENCIES].stored
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

    @property
    def family(self) -> Family:
        """The family that the file's fields amount to."""
        return family_of(self.tree, str(self.path))

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor: quantised types as float32, others in their stored dtype."""
        tensor = self._stored[name]
        stored = tensor.stored
        permuted = self._file.fields["general.architecture"] == "llama" and ".self_attn." in name
        if permuted and (".q_proj." in name or ".k_proj." in name):
            heads = self.tree["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
            whole = self._rows(tensor, 0, stored.shape[0])
            # From (head, pair, half) as stored to (head, half, pair).
            apart = whole.reshape(heads, stored.shape[0] // heads // 2, 2, *stored.shape[1:])
            return np.swapaxes(apart, 1, 2).reshape(stored.shape)[start:stop]
        return self._rows(tensor, start, stop)

    def pieces(self, name: str) -> Iterator[bytes]:
        """Yields a tensor's stored bytes in pieces of some megabytes."""
        file, stored, _, row = self._stored[name]
        return read_bytes(file, stored.offset, math.prod(stored.shape[:-1]) * row)

    def _rows(self, tensor: _Tensor, start: int, stop: int) -> Tensor:
        stored = tensor.stored
        if len(stored.shape) == 1:  # a vector is one row of bytes
            return self._dequantise(tensor, 0, stored.shape)[start:stop]
        return self._dequantise(tensor, start, (stop - start, *stored.shape[1:]))

    def _dequantise(self, tensor: _Tensor, start: int, shape: tuple[int, ...]) -> Tensor:
        """Dequantises the rows from `start` on that fill an array of this shape."""
        count = math.prod(shape[:-1]) * tensor.row
        with open(tensor.file, "rb") as stream:
            stream.seek(tensor.stored.offset + start * tensor.row)
            raw = np.fromfile(stream, np.uint8, count)
        if raw.size != count:
            raise InteropError(f"{tensor.file}: the file ended while a tensor was read")
        types = self._library.GGMLQuantizationType
        return self._library.quants.dequantize(raw.reshape(-1, tensor.row), types[tensor.kind]).reshape(shape)


def _parts(path: Path) -> list[GgufFile]:
    """The file, or all parts of a split one in order. Raises InteropError that names a missing part."""
    file = GgufFile(path)
    count = file.fields.get("split.count", 1)
    if type(count) is not int or count < 2:
        return [file]
    match = _PART.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        raise InteropError(f"{path}: is one of {count} parts; wanted the name NAME-00001-of-{count:05d}.gguf")
    names = [path.with_name(f"{match[1]}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
    for name in names:
        if not name.exists():
            raise InteropError(f"{name}: is missing; {path.name} is one of {count} parts, which must lie in one folder")
    parts = [file if name == path else GgufFile(name) for name in names]
    for number, part in enumerate(parts):
        if part.fields.get("split.no") != number:
            raise InteropError(f"{part.path}: its split.no is {part.fields.get('split.no')!r}, wanted {number}")
    wanted = parts[0].fields.get("split.tensors.count")
    total = sum(len(part.tensors) for part in parts)
    if wanted is not None and wanted != total:
        raise InteropError(f"{path}: the parts hold {total} tensors, wanted {wanted} (split.tensors.count)")
    return parts
