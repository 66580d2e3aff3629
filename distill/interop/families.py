"""The families of published models: for each, what is fixed, where config.json states the rest, its tensors' names.

A family is a row of FAMILIES. It says which fields of ModelConfig all of its models share, which keys of config.json
state the others, and in what its tensors differ from Llama's in name, in the order of channels or by a number. What no
row can express is refused with its reason (reasons.py). An architecture's name is never guessed.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from distill.config import ModelConfig
from distill.errors import InteropError
from distill.interop.reasons import reason

Tree = Mapping[str, object]
LAYER = "model.layers.{}."


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of config.json that states a field: its type, and its value where it is absent (...: it is required)."""

    name: str
    kind: type
    default: Any = ...
    also: str = ""  # another name of it, which transformers 5 writes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture of transformers, 'NAMEForCausalLM'. Defaults are Llama's."""

    name: str
    model_type: str
    fields: Mapping[str, object] = dataclasses.field(default_factory=dict)  # of ModelConfig, in all of its models
    keys: Mapping[str, Key] = dataclasses.field(default_factory=dict)  # beside or in place of KEYS, by field
    read: tuple[str, ...] = ()  # further keys that are read
    wanted: Mapping[str, tuple[object, ...]] = dataclasses.field(default_factory=dict)  # keys and all they may be
    activation: str = "silu"  # hidden_act where it is absent
    window: int = 0  # sliding_window where it is absent
    # which layers have a window: none; all; those that layer_types lists, or `local` says where it is absent
    windows: Literal["none", "all", "listed"] = "none"
    local: Callable[[Tree, int], bool] = lambda tree, layer: True  # whether a layer has it, from 0
    # layers without rotary positions: none, those that no_rope_layers lists, or all that have no window
    unrotated: Literal["none", "listed", "global"] = "none"
    local_base: float = 0.0  # default base of the layers with a window, where they have their own; 0: they have none
    theta: float = 10_000.0  # default base
    rotated: float | None = None  # default share of a head's channels that are rotated; None: it rotates all
    scalings: tuple[str, ...] = ("none", "linear", "llama3", "yarn", "longrope", "dynamic")
    interleaved: bool = False  # rotated pairs are neighbours there, and halves here
    gain_offset: float = 0.0  # what is added to every stored gain of a norm
    whole_heads: bool = False  # all heads together are as wide as the residual stream
    tensors: Mapping[str, str] = dataclasses.field(default_factory=dict)  # names other than Llama's, by our parameter
    folded: Callable[[Tree, ModelConfig], dict[str, float]] = lambda tree, config: {}  # factors of our parameters
    units: str = ""  # the activation of its feed-forward, where hidden_act does not say it (and then is silu)
    packed: bool = False  # all experts of a layer are in one tensor (packed_experts.py)
    exported: bool = True  # false: it is read alone; what another family can express is written as that one

    @property
    def architecture(self) -> str:
        return f"{self.name}ForCausalLM"


_BIASES = {"qkv_bias": Key("attention_bias", bool, False), "out_bias": Key("attention_bias", bool, False)}
_MLP_BIAS = {"feed_bias": Key("mlp_bias", bool, False)}
_TIED = {"tied": Key("tie_word_embeddings", bool, True)}
_WIDE_HEAD = {"d_head": Key("head_dim", int, 128)}
# Where Llama, and most other families, state the fields of ModelConfig.
KEYS = {
    "vocab_size": Key("vocab_size", int),
    "d_model": Key("hidden_size", int),
    "n_layers": Key("num_hidden_layers", int),
    "n_heads": Key("num_attention_heads", int),
    "n_kv_heads": Key("num_key_value_heads", int),
    "d_head": Key("head_dim", int, 0),
    "d_ff": Key("intermediate_size", int),
    "tied": Key("tie_word_embeddings", bool, False),
    "norm_eps": Key("rms_norm_eps", float, 1e-6),
}
# The fields that a family without a word on them has like this; they decide as which family a model is exported.
PLAIN: dict[str, object] = {
    "qk_norm": False, "qk_norm_width": "head", "qkv_bias": False, "out_bias": False, "scaled_embedding": False,
    "norms": "pre", "norm_kind": "rms", "gated": True, "feed_bias": False, "attention_scale": 0.0,
    "attention_cap": 0.0, "logit_cap": 0.0, "attention_sinks": False,
}  # fmt: skip
_EPS5 = {"norm_eps": Key("rms_norm_eps", float, 1e-5)}


def _every(period: int) -> Callable[[Tree, int], bool]:
    """All layers have a window but the last of each `period`."""
    return lambda tree, layer: (layer + 1) % period != 0


def _pattern(default: int) -> Callable[[Tree, int], bool]:
    """As `_every`, of a period that sliding_window_pattern states."""
    return lambda tree, layer: (layer + 1) % _whole(tree, "sliding_window_pattern", default, least=1) != 0


def _whole(tree: Tree, name: str, default: int, least: int = 0) -> int:
    value = tree.get(name, default)
    if value is None:
        return default
    if type(value) is not int or value < least:
        raise InteropError(f"config.json: {name} is {value!r:.60}, wanted a whole number of at least {least}")
    return value


def rotates(tree: Tree, layer: int) -> bool:
    """Whether a layer of SmolLM3 has rotary positions: no_rope_layers says 1, or it is not the last of an interval."""
    listed = tree.get("no_rope_layers")
    if listed is None:
        return (layer + 1) % _whole(tree, "no_rope_layer_interval", 4, least=1) != 0
    if not isinstance(listed, list) or layer >= len(listed) or listed[layer] not in (0, 1):
        raise InteropError(f"config.json: no_rope_layers is {listed!r:.60}, wanted a 0 or a 1 for each layer")
    return bool(listed[layer])


def _granite(tree: Tree, config: ModelConfig) -> dict[str, float]:
    """Granite's multipliers of embedding, residual branches, scores and logits as factors of our parameters."""
    names = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")
    factors = []
    for name in names:
        value = tree.get(name, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise InteropError(f"config.json: {name} is {value!r:.60}, wanted a number above 0")
        factors.append(float(value))
    embed, branch, score, logits = factors
    score *= math.sqrt(config.head_dim)
    return {
        "embed": embed, "blocks.out": branch, "blocks.out_bias": branch, "blocks.down": branch,
        "blocks.down_bias": branch, "blocks.query": score, "blocks.query_bias": score,
        "last_norm": 1 / (logits * (embed if config.tied else 1)),
    }  # fmt: skip


_ATTENTION, _MLP = LAYER + "self_attn.", LAYER + "mlp."
_FUSED_MLP = dict.fromkeys(("blocks.gate", "blocks.up"), _MLP + "gate_up_proj.weight")
_FUSED_QKV = dict.fromkeys(("blocks.query", "blocks.key", "blocks.value"), _ATTENTION + "qkv_proj.weight")
_POST = {
    "blocks.attention_post_norm": LAYER + "post_attention_layernorm.weight",
    "blocks.feed_post_norm": LAYER + "post_feedforward_layernorm.weight",
}
_SANDWICH = _POST | {"blocks.feed_norm": LAYER + "pre_feedforward_layernorm.weight"}
_GEMMA = {"scaled_embedding": True, "activation": "gelu_tanh"}
_GEMMA_KEYS = _TIED | _BIASES | {"d_head": Key("head_dim", int, 256), "n_kv_heads": Key("num_key_value_heads", int)}
_GLM_KEYS = _WIDE_HEAD | {
    "qkv_bias": Key("attention_bias", bool, True), "norm_eps": Key("rms_norm_eps", float, 1.5625e-07),
}  # fmt: skip
_EXPERT_KEYS = {
    "experts_per_token": Key("num_experts_per_tok", int, 8), "expert_norm": Key("norm_topk_prob", bool, False),
}  # fmt: skip
_EXPERT_NAMES = {"gate": ("gate_proj", "w1"), "up": ("up_proj", "w3"), "down": ("down_proj", "w2")}
_MIXTRAL = {
    f"blocks.expert_{ours}": LAYER + f"block_sparse_moe.experts.{{}}.{names[1]}.weight"
    for ours, names in _EXPERT_NAMES.items()
} | {"blocks.router": LAYER + "block_sparse_moe.gate.weight"}
_OSS_KEYS = _EPS5 | {
    **dict.fromkeys(("qkv_bias", "out_bias"), Key("attention_bias", bool, True)),
    "d_head": Key("head_dim", int, 64), "n_kv_heads": Key("num_key_value_heads", int, 8),
    "experts": Key("num_local_experts", int, 128), "expert_d_ff": Key("intermediate_size", int),
    "experts_per_token": Key("num_experts_per_tok", int, 4, also="experts_per_token"),
}  # fmt: skip
_QWEN_READ = ("use_sliding_window", "max_window_layers")
_qwen_local = lambda tree, layer: layer >= _whole(tree, "max_window_layers", 28)

# In the order in which an export looks for the first that fits.
FAMILIES = (
    Family(
        name="Llama", model_type="llama",
        keys=_BIASES | _MLP_BIAS | {"n_kv_heads": Key("num_key_value_heads", int, None)},
    ),
    Family(name="Mistral", model_type="mistral", window=4096, windows="all"),
    Family(
        name="Qwen2", model_type="qwen2", windows="listed", local=_qwen_local, read=_QWEN_READ,
        fields={"qkv_bias": True},
    ),
    Family(
        name="Qwen3", model_type="qwen3", windows="listed", local=_qwen_local, read=_QWEN_READ,
        fields={"qk_norm": True}, keys=_BIASES | _WIDE_HEAD,
    ),
    Family(name="Ministral", model_type="ministral", window=4096, windows="listed"),
    Family(
        name="SmolLM3", exported=False, model_type="smollm3", windows="listed", unrotated="listed", theta=2_000_000.0,
        local=lambda tree, layer: not rotates(tree, layer), keys=_BIASES | _MLP_BIAS | _TIED,
        read=("use_sliding_window", "no_rope_layers", "no_rope_layer_interval", "max_window_layers"),
    ),
    Family(
        name="Cwm", exported=False,
        model_type="cwm", window=8192, windows="listed", local=lambda tree, layer: layer % 4 != 0, theta=1_000_000.0,
        keys=_EPS5 | _WIDE_HEAD, wanted={"mlp_bias": (False,)},
    ),
    Family(
        name="SeedOss", model_type="seed_oss",
        keys=_MLP_BIAS | _WIDE_HEAD | {
            "qkv_bias": Key("attention_bias", bool, True), "out_bias": Key("attention_out_bias", bool, False),
        },
    ),
    Family(
        name="Phi3", exported=False,
        model_type="phi3", whole_heads=True, windows="all", keys=_EPS5, tensors=_FUSED_MLP | _FUSED_QKV,
        rotated=1.0, scalings=("none", "longrope"), read=("original_max_position_embeddings",),
    ),
    Family(
        name="Olmo2", exported=False,
        model_type="olmo2", fields={"norms": "post", "qk_norm": True, "qk_norm_width": "all"},
        keys=_EPS5 | _BIASES, tensors=_POST,
    ),
    Family(
        name="Olmo3", exported=False, model_type="olmo3", window=4096,
        fields={"norms": "post", "qk_norm": True, "qk_norm_width": "all"},
        keys=_EPS5 | _BIASES, tensors=_POST, windows="listed", local=_every(4), local_base=500_000.0, theta=500_000.0,
    ),
    Family(
        name="Exaone4", exported=False,
        model_type="exaone4", window=4096, fields={"norms": "post", "qk_norm": True}, keys=_EPS5, tensors=_POST,
        windows="listed", local=_pattern(4), unrotated="global", read=("sliding_window_pattern",),
    ),
    Family(
        name="Gemma", exported=False, model_type="gemma", activation="gelu_pytorch_tanh", read=("hidden_activation",),
        fields=_GEMMA, keys=_GEMMA_KEYS, gain_offset=1.0,
        wanted={"use_bidirectional_attention": (False,)},
    ),
    Family(
        name="Gemma2", exported=False, model_type="gemma2", activation="gelu_pytorch_tanh", window=4096,
        fields=_GEMMA | {"norms": "sandwich"}, tensors=_SANDWICH, gain_offset=1.0,
        keys=_GEMMA_KEYS | {
            "attention_scale": Key("query_pre_attn_scalar", int, 256),
            "attention_cap": Key("attn_logit_softcapping", float, 50.0),
            "logit_cap": Key("final_logit_softcapping", float, 30.0),
        },
        windows="listed", local=_every(2), read=("hidden_activation",),
        wanted={"use_bidirectional_attention": (False,)},
    ),
    Family(
        name="Gemma3", exported=False, model_type="gemma3_text", activation="gelu_pytorch_tanh", window=4096,
        fields=_GEMMA | {"norms": "sandwich", "qk_norm": True},
        tensors=_SANDWICH, gain_offset=1.0,
        keys=_GEMMA_KEYS | {
            "attention_scale": Key("query_pre_attn_scalar", int, 256),
            "logit_cap": Key("final_logit_softcapping", float, None),
        },
        windows="listed", local=_pattern(6), local_base=10_000.0, theta=1_000_000.0,
        read=("hidden_activation", "sliding_window_pattern", "_sliding_window_pattern", "rope_local_base_freq"),
        wanted={"use_bidirectional_attention": (False,), "attn_logit_softcapping": ()},
    ),
    Family(
        name="Glm", exported=False, model_type="glm", keys=_GLM_KEYS, tensors=_FUSED_MLP, rotated=0.5, interleaved=True,
    ),
    Family(
        name="Glm4", exported=False,
        model_type="glm4", fields={"norms": "sandwich"}, keys=_GLM_KEYS, rotated=0.5, interleaved=True,
        tensors=_FUSED_MLP | {
            "blocks.attention_post_norm": LAYER + "post_self_attn_layernorm.weight",
            "blocks.feed_post_norm": LAYER + "post_mlp_layernorm.weight",
        },
    ),
    Family(
        name="StableLm", exported=False,
        model_type="stablelm", fields={"norm_kind": "layer"}, rotated=0.25, whole_heads=True,
        keys={
            "norm_eps": Key("layer_norm_eps", float, 1e-5), "qkv_bias": Key("use_qkv_bias", bool, False),
        },
        wanted={"qk_layernorm": (False,), "use_parallel_residual": (False,)},
    ),
    Family(
        name="Starcoder2", exported=False, model_type="starcoder2", activation="gelu_pytorch_tanh",
        fields={"norm_kind": "layer", "gated": False}, windows="all",
        keys=_TIED | {
            "norm_eps": Key("norm_epsilon", float, 1e-5),
            **dict.fromkeys(("qkv_bias", "out_bias", "feed_bias"), Key("use_bias", bool, True)),
        },
        tensors={
            "blocks.up": _MLP + "c_fc.weight", "blocks.up_bias": _MLP + "c_fc.bias",
            "blocks.down": _MLP + "c_proj.weight", "blocks.down_bias": _MLP + "c_proj.bias",
        },
    ),
    # Mixtures of experts, in all layers.
    Family(
        name="Mixtral", model_type="mixtral", windows="all", theta=1_000_000.0, tensors=_MIXTRAL,
        keys=_EPS5 | {
            "experts": Key("num_local_experts", int, 8), "experts_per_token": Key("num_experts_per_tok", int, 2),
            "expert_d_ff": Key("intermediate_size", int),
        },
    ),
    Family(
        name="Qwen3Moe", model_type="qwen3_moe", windows="all", window=4096, read=("use_sliding_window",),
        fields={"qk_norm": True}, wanted={"decoder_sparse_step": (1,), "mlp_only_layers": ([],)},
        keys=_BIASES | _EXPERT_KEYS | {
            "experts": Key("num_experts", int, 128, also="num_local_experts"),
            "expert_d_ff": Key("moe_intermediate_size", int, 768),
        },
    ),
    Family(
        name="Olmoe", model_type="olmoe", fields={"qk_norm": True, "qk_norm_width": "all"}, wanted={"clip_qkv": ()},
        keys=_EPS5 | _BIASES | _EXPERT_KEYS | {
            "experts": Key("num_experts", int, 64, also="num_local_experts"),
            "expert_d_ff": Key("intermediate_size", int),
        },
    ),
    Family(
        name="GptOss", model_type="gpt_oss", windows="listed", window=128, local=_every(2), theta=150_000.0,
        fields={"attention_sinks": True, "feed_bias": True}, units="clipped_swiglu", packed=True,
        wanted={"swiglu_limit": (7.0,), "swiglu_alpha": (1.702,)}, read=("initial_context_length",), keys=_OSS_KEYS,
        tensors={"blocks.router": LAYER + "mlp.router.weight", "blocks.router_bias": LAYER + "mlp.router.bias"},
    ),
    # What follows is Llama in another order of channels, or with factors in its weights: it is exported as Llama.
    Family(
        name="Granite", model_type="granite", keys=_BIASES | _MLP_BIAS, folded=_granite, exported=False,
        read=("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"),
    ),
    Family(
        name="Helium", model_type="helium", keys=_WIDE_HEAD | {"norm_eps": Key("rms_norm_eps", float, 1e-8)},
        wanted={"attention_bias": (False,), "mlp_bias": (False,)}, theta=100_000.0, interleaved=True, exported=False,
    ),
    Family(
        name="Ernie4_5", model_type="ernie4_5", keys=_WIDE_HEAD | _EPS5 | _TIED, wanted={"use_bias": (False,)},
        theta=500_000.0, interleaved=True, exported=False,
    ),
)  # fmt: skip
SUPPORTED = tuple(family.architecture for family in FAMILIES)


def family_of(tree: Tree, where: str) -> Family:
    """The family of a config.json: by `architectures`, and by `model_type` where that is absent.

    Raises InteropError, with the reason, for one that is not in the table, and where the two disagree.
    """
    names, kind = tree.get("architectures"), tree.get("model_type")
    if names is None:
        if kind is None:
            raise InteropError(
                f"{where}: architectures is missing, and model_type too; wanted a list of one of {', '.join(SUPPORTED)}"
            )
        found = next((family for family in FAMILIES if family.model_type == kind), None)
        if found is None:
            raise _refusal(f"model_type {str(kind):.80}", str(kind), where)
        return found
    name = str(names[0] if isinstance(names, list) and len(names) == 1 else names)[:80]
    found = next((family for family in FAMILIES if family.architecture == name), None)
    if found is None:
        raise _refusal(name, name, where)
    if kind not in (None, found.model_type):  # transformers goes by model_type alone
        raise InteropError(
            f"{where}: model_type is {kind!r:.80}, wanted {found.model_type!r}: architectures is {name}, and the two "
            "must agree"
        )
    return found


def _refusal(said: str, name: str, where: str) -> InteropError:
    return InteropError(f"{where}: {said} is not supported: {reason(name)}; wanted one of {', '.join(SUPPORTED)}")


def keys_of(family: Family) -> dict[str, Key]:
    """Where a family's config.json states the fields of ModelConfig."""
    return KEYS | dict(family.keys)


def misfit(family: Family, model: ModelConfig) -> str:
    """The first field that the family cannot express, as 'name=value'; '' if a model can be written as this family."""
    keys = keys_of(family)
    stated: dict[str, object] = {}  # by key
    for name, plain in PLAIN.items():
        value = getattr(model, name)
        if name in ("scaled_embedding", "qk_norm_width") and not (model.tied if name[0] == "s" else model.qk_norm):
            continue
        if name not in keys and value != family.fields.get(name, plain):
            return f"{name}={value}"
        # One key may state several fields, which then are equal.
        if name in keys and stated.setdefault(keys[name].name, value) != value:
            return f"{name}={value}"
    may = {
        "activation": model.activation == family.units
        or not family.units
        and model.activation == family.fields.get("activation", model.activation) != "clipped_swiglu",
        "window": not model.window or family.windows != "none",
        "global_layers": not model.global_layers or family.windows == "listed",
        "unrotated_layers": _unrotated_fits(family, model),
        "local_rope_base": bool(model.local_rope_base) == bool(family.local_base and model.window),
        "rope_channels": model.rotated == model.head_dim or family.rotated is not None,
        "rope_scaling": model.rope_scaling in family.scalings,
        "experts": bool(model.experts) == ("experts" in keys),
        "expert_norm": not model.experts or model.expert_norm or "expert_norm" in keys,
        "d_head": not family.whole_heads or model.head_dim * model.n_heads == model.d_model,
    }
    return next((f"{name}={getattr(model, name)}" for name, fits in may.items() if not fits), "")


def _unrotated_fits(family: Family, model: ModelConfig) -> bool:
    if family.unrotated == "global":
        return model.unrotated_layers == (model.global_layers if model.window else ())
    return not model.unrotated_layers or family.unrotated == "listed"


def fitting(model: ModelConfig) -> Family | None:
    """The family as which a model is exported: the first that can express it; None if none can."""
    return next((family for family in FAMILIES if family.exported and not misfit(family, model)), None)
