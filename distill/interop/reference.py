"""The logits of a published model by a reader of its files that shares no code with the import.

That is transformers where it is installed and reads the model; else a forward pass in NumPy that is written here for
this purpose alone, plainly and with its own reading of config.json, safetensors and (by the package gguf) GGUF files.
"""

import contextlib
import importlib
import io
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from distill.errors import InteropError

Floats = NDArray[np.float32]
Ids = NDArray[np.int32]
_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_GGUF_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "embed_tokens": "token_embd", "norm": "output_norm",
    "lm_head": "output",
}  # fmt: skip


class Reading(NamedTuple):
    """Logits [B, S, V] of a fixed input, and the name of what computed them."""

    logits: Floats
    reader: str


class _Files(NamedTuple):
    """A model's config.json, and its tensors by name; None for one that it does not have."""

    config: dict[str, Any]
    tensor: Callable[[str], Floats | None]


def logits(path: str | Path, tokens: Ids) -> Reading:
    """The logits of the model at `path` on token ids [B, S]. Raises InteropError where no reader can compute them."""
    try:
        return by_transformers(Path(path), tokens)
    except ImportError:
        return by_numpy(Path(path), tokens)
    except InteropError as error:
        found = by_numpy(Path(path), tokens)
        return Reading(found.logits, f"{found.reader} ({error})")


def by_transformers(path: Path, tokens: Ids) -> Reading:
    """As `transformers` reads it, in float32. Raises ImportError where it is missing, InteropError where it refuses."""
    place = {"gguf_file": path.name} if path.suffix == ".gguf" else {"use_safetensors": True}
    name = "transformers"
    try:
        # Its bars and warnings are none of this program's.
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
            name = f"transformers {transformers.__version__}"
            transformers.logging.set_verbosity_error()
            model, info = transformers.AutoModelForCausalLM.from_pretrained(
                str(path.parent if path.suffix == ".gguf" else path), dtype=torch.float32,
                attn_implementation="eager", output_loading_info=True, local_files_only=True,
                trust_remote_code=False, **place,
            )  # fmt: skip
        made_up = sorted([*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])])
        if made_up:
            raise ValueError(f"it lacks {made_up[0]}")
        with torch.no_grad():
            found = model.eval()(torch.tensor(tokens.astype(np.int64))).logits.float().numpy()
    except ImportError:
        raise
    except Exception as error:  # whatever libraries of that size raise
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InteropError(f"{name} cannot read the model: {why:.120}") from None
    return Reading(found, name)


def by_numpy(path: Path, tokens: Ids) -> Reading:
    """As the forward pass below reads it. Raises InteropError for a family or a rotation that it does not know."""
    files = _gguf(path) if path.suffix == ".gguf" else _directory(path)
    kind, activation = files.config.get("model_type"), files.config.get("hidden_act")
    if kind not in (None, "llama", "mistral", "qwen2", "qwen3") or activation not in (None, "silu", "swish"):
        raise InteropError(f"models of the type {kind!r} with {activation!r} are not known to the check in NumPy")
    return Reading(_forward(files, tokens), "an independent forward pass in NumPy")


def _directory(path: Path) -> _Files:
    index = path / "model.safetensors.index.json"
    single = path / "model.safetensors"
    shards = {single} if single.exists() else {path / n for n in json.loads(index.read_text())["weight_map"].values()}
    where: dict[str, tuple[Path, int, dict[str, Any]]] = {}
    for shard in sorted(shards):
        with open(shard, "rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            head = json.loads(stream.read(size))
        where |= {name: (shard, 8 + size, item) for name, item in head.items() if name != "__metadata__"}

    def tensor(name: str) -> Floats | None:
        if name not in where:
            return None
        shard, begin, item = where[name]
        (start, _), shape = item["data_offsets"], item["shape"]
        dtype = np.dtype(_DTYPES[str(item["dtype"])])
        values = np.fromfile(shard, dtype, math.prod(shape), offset=begin + start)
        return values.reshape(shape).astype(np.float32)

    return _Files(json.loads((path / "config.json").read_text("utf-8")), tensor)


def _gguf(path: Path) -> _Files:
    """One file; its fields under the names of config.json, Llama's queries and keys in the order of their halves."""
    library = importlib.import_module("gguf")
    reader = library.GGUFReader(path)
    say = lambda name, default=None: field.contents() if (field := reader.get_field(name)) else default
    family = say("general.architecture")
    if say("split.count", 1) > 1:
        raise InteropError(f"{path}: the parts of a split file are read by the import alone")
    ours = lambda name, default=None: say(f"{family}.{name}", default)
    stored = {item.name: item for item in reader.tensors}
    heads, kind = ours("attention.head_count"), ours("rope.scaling.type", "linear")
    factor = ours("rope.scaling.factor", ours("rope.scale_linear", 0))
    config = {
        "model_type": family, "num_hidden_layers": ours("block_count"), "num_attention_heads": heads,
        "num_key_value_heads": ours("attention.head_count_kv", heads), "head_dim": ours("attention.key_length"),
        "hidden_size": ours("embedding_length"), "rms_norm_eps": ours("attention.layer_norm_rms_epsilon"),
        "rope_theta": ours("rope.freq_base", 10_000.0), "sliding_window": ours("attention.sliding_window"),
        "use_sliding_window": True, "max_window_layers": 0, "divisors": None,
        "rope_scaling": {"rope_type": kind, "factor": factor} if kind != "none" and factor else None,
    }  # fmt: skip

    def tensor(name: str) -> Floats | None:
        stem, ending = name.removeprefix("model.").rsplit(".", 1)
        layer, _, part = stem.removeprefix("layers.").partition(".") if stem.startswith("layers.") else ("", "", stem)
        name = f"{f'blk.{layer}.' if layer else ''}{_GGUF_NAMES[part]}.{ending}"
        if name not in stored:
            return None
        item = stored[name]
        shape = tuple(int(n) for n in reversed(item.shape))
        values: Floats = library.quants.dequantize(item.data, item.tensor_type).reshape(shape).astype(np.float32)
        groups = {"self_attn.q_proj": heads, "self_attn.k_proj": config["num_key_value_heads"]}.get(part)
        if family != "llama" or groups is None:
            return values
        rows = np.arange(shape[0]).reshape(groups, 2, -1)  # head, half, pair: where each is kept as head, pair, half
        return values[np.argsort(np.swapaxes(rows, 1, 2).reshape(-1))]

    if "rope_freqs.weight" in stored:
        config["divisors"] = np.asarray(stored["rope_freqs.weight"].data, np.float64)
    return _Files(config, tensor)


def _forward(files: _Files, tokens: Ids) -> Floats:
    """The whole model, one tensor at a time: pre-norm blocks, rotary attention, SwiGLU."""
    config = files.config
    heads = int(config["num_attention_heads"])
    groups = int(config.get("num_key_value_heads") or heads)
    width = int(config.get("head_dim") or (128 if config.get("model_type") == "qwen3" else 0))
    width = width or int(config["hidden_size"]) // heads
    eps = float(config.get("rms_norm_eps") or 1e-6)
    embed = _required(files, "model.embed_tokens.weight")
    x = embed[tokens]
    angles = np.arange(tokens.shape[1])[:, None] * _frequencies(config, width)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def norm(name: str, x: Floats) -> Floats:
        gain = files.tensor(f"{name}.weight")
        whole = np.asarray(x, np.float64)
        scaled = whole / np.sqrt(np.mean(whole**2, -1, keepdims=True) + eps)
        return x if gain is None else (scaled * gain).astype(np.float32)

    def linear(name: str, x: Floats) -> Floats:
        bias = files.tensor(f"{name}.bias")
        return x @ _required(files, f"{name}.weight").T + (0 if bias is None else bias)

    def turned(x: Floats) -> Floats:
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(np.float32)

    split = lambda x, count: x.reshape(*x.shape[:-1], count, width)
    for layer in range(int(config["num_hidden_layers"])):
        at = f"model.layers.{layer}."
        h = norm(f"{at}input_layernorm", x)
        query, key, value = (
            split(linear(f"{at}self_attn.{name}_proj", h), count)
            for name, count in (("q", heads), ("k", groups), ("v", groups))
        )
        query, key = turned(norm(f"{at}self_attn.q_norm", query)), turned(norm(f"{at}self_attn.k_norm", key))
        key, value = (np.repeat(part, heads // groups, axis=2) for part in (key, value))
        scores = np.einsum("bqhk,bshk->bhqs", query, key) / math.sqrt(width)
        behind = np.arange(tokens.shape[1])[:, None] - np.arange(tokens.shape[1])
        window = _window(config, layer)
        scores = np.where((behind < 0) | (behind >= window if window else False), -np.inf, scores)
        weight = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("bhqs,bshk->bqhk", weight / weight.sum(-1, keepdims=True), value)
        x = x + linear(f"{at}self_attn.o_proj", mixed.reshape(*mixed.shape[:2], -1))
        h = norm(f"{at}post_attention_layernorm", x)
        gate = linear(f"{at}mlp.gate_proj", h).astype(np.float64)
        x = x + linear(f"{at}mlp.down_proj", (gate / (1 + np.exp(-gate)) * linear(f"{at}mlp.up_proj", h)))
        x = x.astype(np.float32)
    head = files.tensor("lm_head.weight")
    return norm("model.norm", x) @ (embed if head is None else head).T


def _required(files: _Files, name: str) -> Floats:
    found = files.tensor(name)
    if found is None:
        raise InteropError(f"the tensor {name!r} is missing")
    return found


def _frequencies(config: dict[str, Any], width: int) -> NDArray[np.float64]:
    """Radians per position of each pair of channels; for rope_type llama3 see Llama 3.1's model card."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    base = float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    turn = base ** (-np.arange(0, width, 2) / width)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if config.get("divisors") is not None:
        return turn / config["divisors"]
    if kind == "default":
        return turn
    if kind == "linear":
        return turn / float(rope["factor"])
    if kind != "llama3":
        raise InteropError(f"the rotation {kind!r} is not known to the check")
    waves = float(rope["original_max_position_embeddings"]) * turn / (2 * math.pi)  # in the context before
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    kept = np.clip((waves - low) / (high - low), 0, 1)
    return kept * turn + (1 - kept) * turn / float(rope["factor"])


def _window(config: dict[str, Any], layer: int) -> int:
    """How many positions a layer looks back on, its own included; 0: all."""
    family, kinds = config.get("model_type"), config.get("layer_types")
    window = config.get("sliding_window", 4096 if family == "mistral" else None)
    if family == "llama" and "divisors" not in config:  # no GGUF file, where Mistral goes by this name
        return 0
    late = layer >= int(config.get("max_window_layers", 28))
    if family not in ("llama", "mistral") and not (config.get("use_sliding_window") and (kinds or late)):
        return 0
    return int(window or 0) if not kinds or kinds[layer] == "sliding_attention" else 0
