"""Converts config.json of Hugging Face to ModelConfig and back: Llama (and SmolLM2), Mistral, Qwen2, Qwen3.

A field that would change a forward pass is either supported or refused by name; no field is ignored silently.
"""

from collections.abc import Mapping
from types import EllipsisType
from typing import Literal, TypedDict, TypeVar, overload

from distill.config import ConfigError, ModelConfig, nearest
from distill.errors import InteropError

T = TypeVar("T")

SUPPORTED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
# Why an architecture is not supported, by the prefix of its name; the longest matching prefix applies.
_REASONS = {
    "Gemma": "its norms, embedding scale and soft caps are others",
    "GPT2": "it has learned positions, LayerNorm and GELU",
    "GPTNeoX": "it has parallel blocks, LayerNorm and GELU",
    "GptOss": "it is a mixture of experts with attention sinks",
    "Mixtral": "it is a mixture of experts",
    "Qwen2Moe": "it is a mixture of experts",
    "Qwen3Moe": "it is a mixture of experts",
    "Qwen3Next": "most of its layers are no attention layers",
    "Qwen2VL": "it reads images",
    "Qwen2_5_VL": "it reads images",
    "Llama4": "it is a mixture of experts that reads images",
    "Mllama": "it reads images",
    "Mistral3": "it reads images",
    "Deepseek": "it has latent attention and a mixture of experts",
    "Phi3": "its projections are fused and its rotary angles are of another kind",
    "Phi": "it has parallel blocks and LayerNorm",
    "Olmo2": "its norms come after the blocks",
    "Olmo": "its norms have no gains",
    "SmolLM3": "some of its layers have no positions",
    "Granite": "it has multipliers on embedding, residuals and logits",
    "Cohere": "it has parallel blocks and LayerNorm",
    "Falcon": "it has parallel blocks and fused projections",
    "Mamba": "it has no attention",
    "Bert": "it reads in both directions",
    "T5": "it is an encoder and a decoder",
}


# Keys that a forward pass reads, here or in `_window` and `_rope`.
_READ = {
    *(
        "architectures",
        "model_type",
        "hidden_act",
        "mlp_bias",
        "partial_rotary_factor",
        "quantization_config",
        "num_attention_heads",
    ),
    *("attention_bias", "vocab_size", "hidden_size", "num_hidden_layers", "num_key_value_heads", "head_dim"),
    *(
        "intermediate_size",
        "tie_word_embeddings",
        "rms_norm_eps",
        "sliding_window",
        "use_sliding_window",
        "layer_types",
    ),
    *("max_window_layers", "max_position_embeddings", "rope_parameters", "rope_scaling", "rope_theta"),
}
# Keys that change nothing in a forward pass of these architectures: names and versions, training, generation, output.
_HARMLESS = {
    *("transformers_version", "_name_or_path", "name_or_path", "auto_map", "is_llama_config", "dtype"),
    *("torch_dtype", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id"),
    *("initializer_range", "attention_dropout", "pretraining_tp", "tokenizer_class", "_attn_implementation"),
    *("attn_implementation", "_attn_implementation_autoset", "_flash_attn_2_enabled", "gradient_checkpointing"),
    *("output_attentions", "output_hidden_states", "output_scores", "return_dict", "return_dict_in_generate"),
    *("torchscript", "use_bfloat16", "chunk_size_feed_forward", "id2label", "label2id", "num_labels", "problem_type"),
    *("task_specific_params", "finetuning_task", "prefix", "is_decoder", "tie_encoder_decoder", "tf_legacy_loss"),
    *("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "do_sample", "early_stopping"),
    *("max_length", "min_length", "max_new_tokens", "temperature", "top_k", "top_p", "typical_p", "num_beams"),
    *("num_beam_groups", "diversity_penalty", "length_penalty", "repetition_penalty", "no_repeat_ngram_size"),
    *("encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "remove_invalid_values"),
    *("exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "generation_config"),
    *("transformers.js_config", "unsloth_version", "unsloth_fixed", "_commit_hash", "license", "base_model"),
}
# Keys that are harmless only with one of these values.
_HARMLESS_AS: dict[str, tuple[object, ...]] = {
    "rope_interleaved": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "pruned_heads": ({},),
    "hidden_activation": ("silu", "swish"),
}
_ROPE_TYPES = ("default", "linear", "llama3", None)
_ROPE = {
    *("rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "partial_rotary_factor"),
    "original_max_position_embeddings",
}


class _RopeFields(TypedDict, total=False):
    """The fields of ModelConfig that describe the rotation of positions."""

    rope_base: float
    rope_scaling: Literal["none", "linear", "llama3"]
    rope_factor: float
    rope_low: float
    rope_high: float
    rope_context: int


class _Reader:
    """Reads the fields of a config.json by name; errors name the file and the field."""

    def __init__(self, tree: Mapping[str, object], where: str):
        self.tree, self.where = tree, where

    @overload
    def get(self, name: str, kind: type[T], default: None) -> T | None: ...

    @overload
    def get(self, name: str, kind: type[T], default: T | EllipsisType = ...) -> T: ...

    def get(self, name: str, kind: type, default: object = ...) -> object:
        """A field's value. Null counts as absent; a field without a default is required."""
        value = self.tree.get(name)
        if value is None:
            if default is ...:
                raise InteropError(f"{self.where}: {name} is missing")
            return default
        if kind is float and type(value) is int and abs(value) < 2**53:
            value = float(value)
        if type(value) is not kind:
            raise InteropError(f"{self.where}: {name} is {value!r:.60}, wanted {kind.__name__}")
        return value

    def want(self, name: str, allowed: tuple[object, ...], why: str) -> None:
        """Raises InteropError where a field is present with a value that is not allowed."""
        value = self.tree.get(name)
        if value is not None and value not in allowed:
            raise InteropError(f"{self.where}: {name} is {value!r:.80}, wanted {allowed[0]!r}: {why}")


def read_config(tree: Mapping[str, object], where: str) -> ModelConfig:
    """The ModelConfig of a config.json. Raises InteropError, with the reason, for anything this model lacks."""
    reader = _Reader(tree, where)
    names = tree.get("architectures")
    if names is None:
        raise InteropError(f"{where}: architectures is missing; wanted a list of one of {', '.join(SUPPORTED)}")
    name = str(names[0] if isinstance(names, list) and len(names) == 1 else names)[:80]
    if name not in SUPPORTED:
        begins = max((prefix for prefix in _REASONS if name.startswith(prefix)), key=len, default="")
        why = _REASONS.get(begins, "") or f"this architecture is unknown here.{nearest(name, SUPPORTED)}"
        raise InteropError(f"{where}: {name} is not supported: {why}; wanted one of {', '.join(SUPPORTED)}")
    reader.want("hidden_act", ("silu", "swish"), "the feed-forward is SwiGLU")
    reader.want("mlp_bias", (False,), "the feed-forward has no biases")
    reader.want("partial_rotary_factor", (1, 1.0), "all channels of a head are rotated")
    if tree.get("quantization_config") is not None:
        kind = reader.get("quantization_config", dict).get("quant_method")
        raise InteropError(f"{where}: the weights are quantised ({kind!r}); take the original, or a GGUF file of it")
    _refuse_unknown(tree, where)
    family = name.removesuffix("ForCausalLM")
    # transformers goes by model_type alone.
    reader.want("model_type", (family.lower(),), f"architectures is {name}, and the two must agree")
    heads = reader.get("num_attention_heads", int)
    biased = reader.get("attention_bias", bool, False) if family in ("Llama", "Qwen3") else False
    try:
        return ModelConfig(
            vocab_size=reader.get("vocab_size", int),
            d_model=reader.get("hidden_size", int),
            n_layers=reader.get("num_hidden_layers", int),
            n_heads=heads,
            n_kv_heads=reader.get("num_key_value_heads", int, heads if family == "Llama" else ...),
            # Qwen3 configs may omit the field where Qwen3's default (128) applies.
            d_head=reader.get("head_dim", int, 128 if family == "Qwen3" else 0),
            d_ff=reader.get("intermediate_size", int),
            tied=reader.get("tie_word_embeddings", bool, False),
            scaled_embedding=False,
            qk_norm=family == "Qwen3",
            qkv_bias=biased or family == "Qwen2",
            out_bias=biased,
            window=_window(reader, family),
            norm_eps=reader.get("rms_norm_eps", float, 1e-6),
            **_rope(reader),
        )
    except ConfigError as error:
        raise InteropError(f"{where}: {error}") from None


def _refuse_unknown(tree: Mapping[str, object], where: str) -> None:
    """Raises InteropError for the first key that is neither read nor known to be harmless; null values are ignored."""
    for key, value in tree.items():
        known = key in _READ or key in _HARMLESS or value in _HARMLESS_AS.get(key, ())
        if value is not None and not known:
            raise InteropError(
                f"{where}: {key} is {value!r:.80}, which is not supported: it may change what the model computes. "
                f"Where it does not, use a copy of the model without it.{nearest(key, _READ)}"
            )


def _window(reader: _Reader, family: str) -> int:
    """The sliding window if it can take effect, else 0."""
    # An absent field means Mistral's default; null means no window.
    window = (
        4096 if family == "Mistral" and "sliding_window" not in reader.tree else reader.get("sliding_window", int, 0)
    )
    layers = reader.get("num_hidden_layers", int)
    if family == "Llama" or (family != "Mistral" and not reader.get("use_sliding_window", bool, False)):
        window = 0
    listed = reader.get("layer_types", list, [])
    if listed and len(listed) != layers:
        raise InteropError(f"{reader.where}: layer_types names {len(listed)} layers, num_hidden_layers is {layers}")
    kinds = {str(kind) for kind in listed}
    if not kinds and family != "Mistral" and window:
        first = reader.get("max_window_layers", int, 28)
        kinds = {"sliding_attention" if layer >= first else "full_attention" for layer in (0, layers - 1)}
    if len(kinds) > 1:
        raise InteropError(
            f"{reader.where}: layer_types mixes {' and '.join(sorted(kinds))[:80]}; all layers must attend alike here"
        )
    if kinds and kinds != {"sliding_attention"}:
        if kinds != {"full_attention"}:
            raise InteropError(f"{reader.where}: layer_types are {kinds.pop()!r:.80}; attention is full or windowed")
        window = 0
    elif kinds and not window and family != "Llama":
        raise InteropError(f"{reader.where}: layer_types are sliding_attention, but no sliding_window is in force")
    return 0 if window >= reader.get("max_position_embeddings", int, window + 1) else window


def _rope(reader: _Reader) -> _RopeFields:
    """Base and scaling, from rope_parameters (transformers 5) or rope_theta and rope_scaling (before)."""
    new, old = reader.get("rope_parameters", dict, {}), reader.get("rope_scaling", dict, {})
    top = reader.get("rope_theta", float, 10_000.0)
    bases = [rope.get("rope_theta") or top for rope in (new, old)]
    if new and old and (_scaling(new) != _scaling(old) or bases[0] != bases[1]):
        raise InteropError(
            f"{reader.where}: rope_parameters is {new!r:.80} and rope_scaling is {old!r:.80}; which of them the model "
            "was made with is not known: use a copy of the model with one of them"
        )
    scaling = new or old
    rope = _Reader(scaling, f"{reader.where}: rope_parameters" if new else f"{reader.where}: rope_scaling")
    for key, value in scaling.items():
        if key not in _ROPE and value is not None and scaling.get("rope_type", scaling.get("type")) in _ROPE_TYPES:
            raise InteropError(f"{rope.where}: {key} is {value!r:.80}, which is not supported.{nearest(key, _ROPE)}")
    base = rope.get("rope_theta", float, None) or top
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if scaling.get("type", kind) != kind:
        raise InteropError(f"{rope.where}: type is {scaling['type']!r:.40} and rope_type is {kind!r:.40}; wanted one")
    rope.want("partial_rotary_factor", (1, 1.0), "all channels of a head are rotated")
    if kind == "default":
        return {"rope_base": base}
    if kind == "linear":
        return {"rope_base": base, "rope_scaling": "linear", "rope_factor": rope.get("factor", float)}
    if kind == "llama3":
        return {
            "rope_base": base,
            "rope_scaling": "llama3",
            "rope_factor": rope.get("factor", float),
            "rope_low": rope.get("low_freq_factor", float),
            "rope_high": rope.get("high_freq_factor", float),
            "rope_context": rope.get("original_max_position_embeddings", int),
        }
    raise InteropError(
        f"{rope.where}: rope_type is {kind!r}, wanted 'default', 'linear' or 'llama3'; where your windows stay within "
        "the context before its extension, a copy of the directory without the field is the same model for them"
    )


def _scaling(rope: Mapping[str, object]) -> dict[str, object]:
    """The fields of a rope object with one spelling of each, without the base, which is read separately."""
    said = {key: value for key, value in rope.items() if key not in ("type", "rope_type", "rope_theta")}
    return {key: value for key, value in said.items() if value is not None} | {
        "rope_type": rope.get("rope_type", rope.get("type", "default"))
    }


def write_config(model: ModelConfig, *, context: int, dtype: str, end_of_text: int = -1) -> dict[str, object]:
    """The config.json of a model, under the supported architecture that fits it.

    QK-norm gives Qwen3, biases of queries, keys and values alone give Qwen2, a window gives Mistral, the rest Llama.
    Raises InteropError for a combination that no supported architecture has, and for a scaled tied embedding, which
    must be untied first.
    """
    if model.tied and model.scaled_embedding:
        raise InteropError("a tied embedding that is scaled has no name there; untie it first (export.published)")
    if model.out_bias and not model.qkv_bias:
        raise InteropError("model.out_bias without model.qkv_bias: no supported architecture has that")
    if model.qk_norm:
        family = "Qwen3"
    elif model.qkv_bias and not model.out_bias:
        family = "Qwen2"
    else:
        family = "Mistral" if model.window else "Llama"
    if (family == "Qwen3" and model.qkv_bias != model.out_bias) or (family == "Mistral" and model.qkv_bias):
        raise InteropError(f"{family} has no such biases: qkv_bias={model.qkv_bias}, out_bias={model.out_bias}")
    tree: dict[str, object] = {
        "architectures": [f"{family}ForCausalLM"],
        "model_type": family.lower(),
        "vocab_size": model.tokens,
        "hidden_size": model.d_model,
        "intermediate_size": model.ff_dim,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tied,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "rope_theta": model.rope_base,
        "rope_scaling": _rope_scaling(model),
        "dtype": dtype,
        "torch_dtype": dtype,  # the same field for transformers before 4.56
    }
    if family in ("Llama", "Qwen3"):
        tree["attention_bias"] = model.qkv_bias
    if family == "Llama":
        tree["mlp_bias"] = False
    else:
        tree["sliding_window"] = model.window or None
    if family.startswith("Qwen"):
        tree |= {"use_sliding_window": bool(model.window), "max_window_layers": 0 if model.window else model.n_layers}
    if end_of_text >= 0:
        tree["eos_token_id"] = end_of_text
    return tree


def _rope_scaling(model: ModelConfig) -> dict[str, object] | None:
    kind: Literal["none", "linear", "llama3"] = model.rope_scaling
    if kind == "none":
        return None
    scaling: dict[str, object] = {"rope_type": kind, "factor": model.rope_factor}
    if kind == "llama3":
        scaling |= {
            "low_freq_factor": model.rope_low,
            "high_freq_factor": model.rope_high,
            "original_max_position_embeddings": model.rope_context,
        }
    return scaling
