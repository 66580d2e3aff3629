"""Converts config.json of Hugging Face to ModelConfig and back, by the table of families.

A field that would change a forward pass is either supported or refused by name; no field is ignored silently.
"""

from collections.abc import Mapping

from distill.config import ConfigError, ModelConfig, build, nearest
from distill.errors import InteropError
from distill.interop import rope
from distill.interop.families import FAMILIES, KEYS, Family, Key, family_of, fitting, keys_of, misfit, rotates
from distill.interop.reading import Reader

# Keys that a forward pass of some family reads, beside those of its own row.
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
    *("residual_dropout", "resid_pdrop", "embd_pdrop", "hidden_dropout", "embedding_dropout", "cache_implementation"),
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
    *("output_router_logits", "router_aux_loss_coef", "router_jitter_noise"),
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
_ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
}  # fmt: skip
_ACTIVATION_KEY = {"silu": "silu", "clipped_swiglu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}
_MOST_LAYERS, _WIDEST_HEAD = 10_000, 65_536


def read_config(tree: Mapping[str, object], where: str) -> ModelConfig:
    """The ModelConfig of a config.json. Raises InteropError, with the reason, for anything this model lacks."""
    family = family_of(tree, where)
    reader = Reader(tree, where)
    if tree.get("quantization_config") is not None:
        kind = reader.get("quantization_config", dict).get("quant_method")
    if tree.get("quantization_config") is not None and not (family.packed and kind == "mxfp4"):
        raise InteropError(f"{where}: the weights are quantised ({kind!r}); take the original, or a GGUF file of it")
    for key, allowed in family.wanted.items():
        reader.want(key, (*allowed, None), f"{family.name} is read here with that alone")
    keys = keys_of(family)
    _refuse_unknown(
        tree,
        where,
        {*family.read, *family.wanted, *(key.name for key in keys.values()), *(key.also for key in keys.values())},
    )
    fields = dict(family.fields) | {name: _stated(reader, name, key) for name, key in keys.items()}
    fields["n_kv_heads"] = fields["n_kv_heads"] or fields["n_heads"]
    fields["scaled_embedding"] = bool(family.fields.get("scaled_embedding", False))
    fields["qk_norm"] = bool(family.fields.get("qk_norm", False))
    fields["attention_sinks"] = bool(family.fields.get("attention_sinks", False))
    fields["activation"] = _activation(reader, family)
    if fields["scaled_embedding"] and not fields["tied"]:
        raise InteropError(f"{where}: tie_word_embeddings is false; {family.name} is read with a tied embedding alone")
    try:
        shape = build(ModelConfig, fields, "model")
        if shape.n_layers > _MOST_LAYERS:  # what differs by layer is a list of them
            raise InteropError(
                f"{where}: {keys['n_layers'].name} is {shape.n_layers:,}; wanted at most {_MOST_LAYERS:,}"
            )
        if shape.head_dim > _WIDEST_HEAD:  # and the order of a head's channels is another
            raise InteropError(f"{where}: a head is {shape.head_dim:,} wide; wanted at most {_WIDEST_HEAD:,}")
        fields |= _layers(reader, family, shape.n_layers)
        family.folded(tree, shape)  # raises where its numbers are none
        return build(ModelConfig, fields | rope.read(reader, family, shape, bool(fields["window"])), "model")
    except ConfigError as error:
        raise InteropError(f"{where}: {error}") from None


def _stated(reader: Reader, name: str, key: Key) -> object:
    """The value of a field that config.json states."""
    if name.endswith("_cap"):
        if key.name in reader.tree and reader.tree[key.name] is None:
            return 0.0  # null is no cap, though absent is the family's
        return reader.positive(key.name, float, key.default) or 0.0  # zero would make every logit zero
    if name == "attention_scale":  # 1 / sqrt of a number that is the width of a head where nothing is said
        scalar = reader.positive(key.name, int, 256)
        return 0.0 if scalar == reader.positive("head_dim", int, 256) else float(scalar) ** -0.5
    if key.also:  # one number under either name
        reader.want(key.also, (reader.tree.get(key.name) or reader.tree.get(key.also),), f"so says {key.name}")
        if reader.tree.get(key.name) is None:
            return reader.get(key.also, key.kind, key.default)
    if key.name in {one.name for one in KEYS.values()} and key.kind is int:  # sizes
        return reader.positive(key.name, int, key.default)
    value = reader.get(key.name, key.kind, key.default)
    if name == "norm_eps" and isinstance(value, float) and value < 0:
        raise InteropError(f"{reader.where}: {key.name} is {value!r}, wanted a number of at least 0")
    return 0.0 if value is None and key.kind is float else value


def _activation(reader: Reader, family: Family) -> str:
    """The feed-forward's activation. Raises InteropError for one that is not known, or that the family never has."""
    if family.units:
        reader.want("hidden_act", ("silu",), f"{family.name} has units of its own")
        return family.units
    fixed = family.fields.get("activation")
    said = reader.get("hidden_activation", str, None) if "hidden_activation" in family.read else None
    said = said or reader.get("hidden_act", str, family.activation)
    found = _ACTIVATIONS.get(said)
    if found is None or fixed not in (None, found):
        wanted = [name for name, ours in _ACTIVATIONS.items() if fixed in (None, ours)]
        raise InteropError(f"{reader.where}: hidden_act is {said!r:.80}, wanted one of {', '.join(wanted)}")
    return found


def _refuse_unknown(tree: Mapping[str, object], where: str, read: set[str]) -> None:
    """Raises InteropError for the first key that is neither read nor known to be harmless; null values are ignored."""
    for key, value in tree.items():
        known = key in _READ or key in read or key in _HARMLESS or value in _HARMLESS_AS.get(key, ())
        if value is not None and not known:
            raise InteropError(
                f"{where}: {key} is {value!r:.80}, which is not supported: it may change what the model computes. "
                f"Where it does not, use a copy of the model without it.{nearest(key, _READ)}"
            )


def _layers(reader: Reader, family: Family, count: int) -> dict[str, object]:
    """window, global_layers and unrotated_layers: what each layer sees, and whether it has positions."""
    window, listed = _window(reader, family), reader.get("layer_types", list, [])
    if listed and len(listed) != count:
        raise InteropError(f"{reader.where}: layer_types names {len(listed)} layers, num_hidden_layers is {count}")
    kinds = {str(kind) for kind in listed}
    if other := sorted(kinds - {"full_attention", "sliding_attention"}):
        raise InteropError(f"{reader.where}: layer_types has {other[0]!r:.80}; attention is full or windowed here")
    if len(kinds) > 1 and family.windows != "listed":
        raise InteropError(
            f"{reader.where}: layer_types mixes {' and '.join(sorted(kinds))[:80]}; layers of {family.name} are alike"
        )
    if "full_attention" in kinds and window and family.windows == "all":  # transformers reads no layer_types there
        raise InteropError(
            f"{reader.where}: layer_types has full_attention and sliding_window is {window}; all layers of "
            f"{family.name} have the window: use a copy of the model without layer_types"
        )
    if "sliding_attention" in kinds and not window and family.windows != "none":
        raise InteropError(f"{reader.where}: layer_types are sliding_attention, but no sliding_window is in force")
    if listed:
        local = [kind == "sliding_attention" for kind in listed]
    else:
        local = [family.windows == "all" or family.local(reader.tree, layer) for layer in range(count)]
    if not any(local):
        window = 0
    unrotated: tuple[int, ...] = ()
    if family.unrotated == "listed":
        unrotated = tuple(layer for layer in range(count) if not rotates(reader.tree, layer))
    elif family.unrotated == "global" and window:
        unrotated = tuple(layer for layer in range(count) if not local[layer])
    elif not family.local_base and window >= reader.positive("max_position_embeddings", int, window + 1):
        window = 0  # it can never take effect
    full = tuple(layer for layer in range(count) if not local[layer]) if window else ()
    return {"window": window, "global_layers": full, "unrotated_layers": unrotated}


def _window(reader: Reader, family: Family) -> int:
    """The window in force, 0 for none. An absent field means the family's default, null means no window."""
    if family.windows == "none" or ("use_sliding_window" in family.read and not _uses_window(reader)):
        return 0
    return reader.positive("sliding_window", int, 0) if "sliding_window" in reader.tree else family.window


def _uses_window(reader: Reader) -> bool:
    return reader.get("use_sliding_window", bool, False)


def write_config(model: ModelConfig, *, context: int, dtype: str, end_of_text: int = -1) -> dict[str, object]:
    """The config.json of a model, as the first family of the table that can express it.

    QK-norm gives Qwen3, biases of queries, keys and values alone give Qwen2, a window gives Mistral, the rest Llama;
    others have what these lack. Raises InteropError for a combination that no family has, and for a scaled tied
    embedding of another family than Gemma, which must be untied first (export.published).
    """
    family = fitting(model)
    if family is None:
        raise InteropError(f"no family of models has this combination; {_lacks(model)}")
    tree: dict[str, object] = {"architectures": [family.architecture], "model_type": family.model_type}
    for name, key in keys_of(family).items():
        tree[key.name] = _written(model, name)
    tree |= {
        "head_dim": model.head_dim,
        "hidden_act": _ACTIVATION_KEY[model.activation],
        "max_position_embeddings": context,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,  # the same field for transformers before 4.56
    }
    if "activation" in family.fields and family.name != "Gemma":
        tree["hidden_activation"] = tree.pop("hidden_act")
    tree |= rope.write(model, family, context) | _written_layers(model, family)
    if family not in FAMILIES[:4]:
        tree["pad_token_id"] = None  # else the class's own, which may be beyond this vocabulary
    if end_of_text >= 0:
        tree["eos_token_id"] = end_of_text
    return tree


def _lacks(model: ModelConfig) -> str:
    """What the nearest families lack, in words."""
    each = {family.name: misfit(family, model) for family in FAMILIES if family.exported}
    nearest = each if not model.experts else {name: lack for name, lack in each.items() if lack[:8] != "experts="}
    return "; ".join(f"{name} has no {lack}" for name, lack in list(nearest.items())[:4])


def _written(model: ModelConfig, name: str) -> object:
    """The value of a field as config.json states it."""
    sizes = {"vocab_size": model.tokens, "n_kv_heads": model.kv_heads, "d_head": model.head_dim, "d_ff": model.ff_dim}
    sizes["expert_d_ff"] = model.expert_dim
    if name == "attention_scale":
        whole = round(model.attention_scale**-2) if model.attention_scale else model.head_dim
        if model.attention_scale and float(whole) ** -0.5 != model.attention_scale:
            raise InteropError(f"model.attention_scale={model.attention_scale}: wanted 1 / sqrt of a whole number")
        return whole
    if name in ("attention_cap", "logit_cap"):
        return getattr(model, name) or None
    return sizes.get(name, getattr(model, name))


def _written_layers(model: ModelConfig, family: Family) -> dict[str, object]:
    """The keys that say which layers have a window, and which have positions."""
    tree: dict[str, object] = {}
    if family.windows != "none":
        tree["sliding_window"] = model.window or None
    if "use_sliding_window" in family.read:
        tree["use_sliding_window"] = bool(model.window)
        tree["max_window_layers"] = 0 if model.window else model.n_layers
    if family.windows == "listed" and (model.global_layers or family.name not in ("Qwen2", "Qwen3")):
        local = [bool(model.window) and layer not in model.global_layers for layer in range(model.n_layers)]
        tree["layer_types"] = ["sliding_attention" if one else "full_attention" for one in local]
    if family.unrotated == "listed":
        tree["no_rope_layers"] = [int(layer not in model.unrotated_layers) for layer in range(model.n_layers)]
    return tree
