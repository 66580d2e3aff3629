"""The zoo: tiny random directories of many families, made with transformers' own classes, and what becomes of each.

One list for three uses: parity with transformers (test_zoo.py), refusals with their true reasons, and the table of
docs/guide/models.md.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,  # far from zero, so that logits are of order one
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
WINDOWED = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}


def longrope(pairs: int, **more: object) -> dict[str, object]:
    """Divisors for so many rotated pairs."""
    short, long = [1.0 + 0.1 * i for i in range(pairs)], [1.5 + 0.5 * i for i in range(pairs)]
    return {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": short, "long_factor": long,
        "original_max_position_embeddings": 32,
    } | more  # fmt: skip


def both(full: Mapping[str, object], local: float) -> dict[str, object]:
    """rope_parameters with an object for each kind of layers."""
    return {"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": local}}


@dataclasses.dataclass(frozen=True)
class Animal:
    """A model of the zoo: transformers' class and its fields; `refused` is what a refusal must say, '' for parity."""

    family: str  # 'NAMEConfig' and 'NAMEForCausalLM' of transformers
    what: str  # in the words of the guide
    fields: Mapping[str, object] = dataclasses.field(default_factory=dict)
    refused: str = ""
    old: bool = False  # config.json in the dialect before transformers 5: rope_theta and rope_scaling
    rewritten: Mapping[str, object] = dataclasses.field(default_factory=dict)  # of config.json, after it is written
    config: str = ""  # the config's class, where it is not 'NAMEConfig'

    @property
    def name(self) -> str:
        return f"{self.family}, {self.what}" + (" (rope_scaling)" if self.old else "")


def _rope(rope: Mapping[str, object], **more: object) -> dict[str, object]:
    return {"rope_parameters": dict(rope)} | more


_P = "plain"
_BOS = {"bos_token_id": 1, "eos_token_id": 2}
_GEMMA = {"head_dim": 12, "intermediate_size": 48}
_SEES = {"num_hidden_layers": 6, "sliding_window": 8}
_ROUTED = {"num_local_experts": 4, "num_experts_per_tok": 2}
_QWEN_MOE = {"head_dim": 16, "moe_intermediate_size": 24}
_OSS = _ROUTED | {"head_dim": 8, "sliding_window": 9, "rope_parameters": YARN | {"truncate": False}}
READ = [
    Animal("Llama", _P), Animal("Llama", _P, old=True), Animal("Llama", "tied, every head its own keys",
    {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    Animal("Llama", "another epsilon", {"rms_norm_eps": 0.3}), Animal("Llama", "head_dim", {"head_dim": 12}),
    Animal("Llama", "attention_bias", {"attention_bias": True}), Animal("Llama", "mlp_bias", {"mlp_bias": True}),
    Animal("Llama", "GELU", {"hidden_act": "gelu"}), Animal("Llama", "linear", _rope(LINEAR)),
    Animal("Llama", "linear", _rope(LINEAR), old=True), Animal("Llama", "llama3", _rope(LLAMA3)),
    Animal("Llama", "llama3", _rope(LLAMA3), old=True), Animal("Llama", "yarn", _rope(YARN)),
    Animal("Llama", "yarn", _rope(YARN), old=True),
    Animal("Llama", "yarn, mscale", _rope(YARN | {"mscale": 1.0, "mscale_all_dim": 0.7})),
    Animal("Llama", "yarn, whole range", _rope(YARN | {"truncate": False, "beta_fast": 16.0, "beta_slow": 2.0})),
    Animal("Llama", "yarn, attention_factor", _rope(YARN | {"attention_factor": 0.8})),
    Animal("Llama", "dynamic", _rope(DYNAMIC)), Animal("Llama", "dynamic", _rope(DYNAMIC), old=True),
    Animal("Llama", "longrope", _rope(longrope(4))),
    Animal("Llama", "longrope, attention_factor", _rope(longrope(4, attention_factor=1.2))),
    Animal("Llama", "no architectures", rewritten={"architectures": None}),
    Animal("Mistral", _P, {"sliding_window": None}), Animal("Mistral", "a window", {"sliding_window": 7}),
    Animal("Mistral", "yarn", _rope(YARN, sliding_window=None)),
    Animal("Ministral", "no layer windowed", {"head_dim": 8, "sliding_window": 9, "layer_types": WINDOWED[1:2] * 4}),
    Animal("Ministral", "a window", {"head_dim": 12, "sliding_window": 9}),
    Animal("Ministral", "some layers windowed", {"head_dim": 8, "sliding_window": 9, "layer_types": WINDOWED}),
    Animal("Qwen2", _P), Animal("Qwen2", _P, old=True), Animal("Qwen2", "yarn", _rope(YARN), old=True),
    Animal("Qwen2", "a window", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}),
    Animal("Qwen2", "some layers windowed", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
    Animal("Qwen2", "layer_types", {"use_sliding_window": True, "sliding_window": 5, "layer_types": WINDOWED}),
    Animal("Qwen3", _P, {"head_dim": 16}), Animal("Qwen3", _P, {"head_dim": 16}, old=True),
    Animal("Qwen3", "tied, biases", {"head_dim": 8, "tie_word_embeddings": True, "attention_bias": True}),
    Animal("Qwen3", "yarn", _rope(YARN, head_dim=16)),
    Animal("Qwen3", "some layers windowed", {"head_dim": 16, "use_sliding_window": True, "sliding_window": 5,
    "layer_types": WINDOWED}),
    Animal("SeedOss", _P, {"head_dim": 12}), Animal("SeedOss", "no biases", {"head_dim": 8, "attention_bias": False}),
    Animal("SeedOss", "all biases", {"head_dim": 8, "attention_out_bias": True, "mlp_bias": True}),
    Animal("Phi3", "mini-4k", {"sliding_window": 11}), Animal("Phi3", "mini-4k", {"sliding_window": 11}, old=True),
    Animal("Phi3", "Phi-4", {"num_key_value_heads": 1}),
    Animal("Phi3", "mini-128k", _rope(longrope(4), original_max_position_embeddings=32)),
    Animal("Phi3", "mini-128k", _rope(longrope(4), original_max_position_embeddings=32), old=True),
    Animal("Phi3", "Phi-4-mini", _rope(longrope(2, partial_rotary_factor=0.5), original_max_position_embeddings=32,
    tie_word_embeddings=True)),
    Animal("Granite", "multipliers", {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 2.0,
    "attention_multiplier": 0.3}),
    Animal("Granite", "multipliers, tied, biases", {"embedding_multiplier": 2.0, "residual_multiplier": 0.5,
    "logits_scaling": 3.0, "attention_multiplier": 0.2, "tie_word_embeddings": True, "attention_bias": True,
    "mlp_bias": True}),
    Animal("SmolLM3", "every fourth layer without positions"),
    Animal("SmolLM3", "no_rope_layers", {"no_rope_layers": [1, 0, 0, 1], "tie_word_embeddings": False}),
    Animal("SmolLM3", "windows without positions", {"use_sliding_window": True, "sliding_window": 6}),
    Animal("SmolLM3", "yarn", _rope(YARN)), Animal("Cwm", "windows, llama3", _rope(LLAMA3, head_dim=8,
    sliding_window=10, **_BOS)),
    Animal("Cwm", "layer_types", _rope(LLAMA3, head_dim=8, sliding_window=10, layer_types=WINDOWED, **_BOS)),
    Animal("Helium", _P, {"head_dim": 8}), Animal("Helium", "tied", {"head_dim": 8, "tie_word_embeddings": True}),
    Animal("Ernie4_5", _P, {"head_dim": 12}),
    Animal("Ernie4_5", "untied", {"head_dim": 8, "tie_word_embeddings": False}),
    Animal("Olmo2", _P), Animal("Olmo2", "biases, every head its own keys",
    {"attention_bias": True, "num_key_value_heads": 4}),
    Animal("Olmo2", "yarn", _rope(YARN)), Animal("Olmo3", _P, {"sliding_window": 9}),
    Animal("Olmo3", "yarn without a window", {"sliding_window": 9, "rope_parameters": both(YARN, 5e5)}),
    Animal("Olmo3", "layer_types", {"sliding_window": 9, "layer_types": WINDOWED, "rope_parameters": both(
    {"rope_type": "default", "rope_theta": 2e4}, 1e3)}),
    Animal("Exaone4", "a window and positions in most layers", {"sliding_window": 9}),
    Animal("Exaone4", "no window", {"sliding_window": None, "layer_types": ["full_attention"] * 4}),
    Animal("Exaone4", "llama3", _rope(LLAMA3, sliding_window=9)),
    Animal("Gemma", _P, _GEMMA), Animal("Gemma2", _P, _GEMMA | {"query_pre_attn_scalar": 12, "sliding_window": 8}),
    Animal("Gemma2", "query scale, low caps", _GEMMA | {"query_pre_attn_scalar": 20, "sliding_window": 8,
    "final_logit_softcapping": 2.0, "attn_logit_softcapping": 1.5}),
    Animal("Gemma2", "no caps", _GEMMA | {"query_pre_attn_scalar": 12, "sliding_window": 8,
    "final_logit_softcapping": None, "attn_logit_softcapping": None}),
    Animal("Gemma3", "text, 1B", _GEMMA | _SEES | {"query_pre_attn_scalar": 12}, config="Gemma3Text"),
    Animal("Gemma3", "text, linear", _GEMMA | _SEES | {"query_pre_attn_scalar": 20, "rope_parameters": both(
    LINEAR | {"rope_theta": 1e6}, 1e4)}, config="Gemma3Text"),
    Animal("Gemma3", "text, old names", _GEMMA | _SEES | {"query_pre_attn_scalar": 12}, config="Gemma3Text",
    rewritten={"rope_parameters": None, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    Animal("Glm", _P, {"head_dim": 8, "pad_token_id": None}), Animal("Glm4", _P, {"head_dim": 8}),
    Animal("Glm4", "no biases", {"head_dim": 12, "attention_bias": False}),
    Animal("StableLm", _P),
    Animal("StableLm", "biases, half rotated", {"use_qkv_bias": True, "partial_rotary_factor": 0.5}),
    Animal("Starcoder2", _P, {"sliding_window": 9}),
    Animal("Mixtral", _P, _ROUTED), Animal("Mixtral", _P, _ROUTED, old=True),
    Animal("Mixtral", "a window, head_dim", _ROUTED | {"sliding_window": 9, "head_dim": 12}),
    Animal("Qwen3Moe", _P, _ROUTED | _QWEN_MOE), Animal("Qwen3Moe", _P, _ROUTED | _QWEN_MOE, old=True),
    Animal("Qwen3Moe", "shares that sum to 1, yarn", _ROUTED | _QWEN_MOE | {"norm_topk_prob": True,
    "rope_parameters": YARN}),
    Animal("Qwen3Moe", "the names of transformers 4", _ROUTED | _QWEN_MOE, rewritten={"num_local_experts": None,
    "num_experts": 4, "max_window_layers": 4}),
    Animal("Olmoe", _P, _ROUTED), Animal("Olmoe", "shares that sum to 1", _ROUTED | {"norm_topk_prob": True}),
    Animal("GptOss", "yarn, a window in every other layer", _OSS), Animal("GptOss", "yarn", _OSS, old=True),
    Animal("GptOss", "no biases of attention, layer_types", _OSS | {"attention_bias": False, "layer_types": WINDOWED}),
    Animal("GptOss", "no scaling", _OSS | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    Animal("Starcoder2", "no biases, untied", {"use_bias": False, "tie_word_embeddings": False}),
]  # fmt: skip
# Refused by a field of a family that is read.
REFUSED_FIELDS = [
    Animal("Llama", "squared ReLU", {"hidden_act": "relu2"}, refused="hidden_act is 'relu2'"),
    Animal("Llama", "quantised", rewritten={"quantization_config": {"quant_method": "gptq"}}, refused="quantised"),
    Animal("Llama", "rotated in part", rewritten={"partial_rotary_factor": 0.5}, refused="all channels"),
    Animal("Llama", "a key of tomorrow", rewritten={"router_temperature": 2}, refused="router_temperature is 2"),
    Animal("Llama", "rotation of another kind", rewritten={"rope_parameters": {"rope_type": "mrope"}}, refused="mrope"),
    Animal("Gemma2", "both directions", _GEMMA | {"use_bidirectional_attention": True}, refused="use_bidirectional"),
    Animal("Gemma", "an untied head", _GEMMA | {"tie_word_embeddings": False}, refused="tied embedding alone"),
    Animal("Qwen3Moe", "some layers without experts", _ROUTED | _QWEN_MOE | {"mlp_only_layers": [1]},
    refused="mlp_only_layers is"),
    Animal("GptOss", "clipped elsewhere", _OSS | {"swiglu_limit": 5.0}, refused="swiglu_limit is 5.0"),
    Animal("GptOss", "positions as the class has them", _OSS, refused="scales positions 32",
    rewritten={"rope_parameters": None}),
    Animal("Olmoe", "clipped", _ROUTED | {"clip_qkv": 8.0}, refused="clip_qkv is 8.0"),
    Animal("StableLm", "side by side", {"use_parallel_residual": True}, refused="use_parallel_residual is True"),
    Animal("StableLm", "norms of queries", {"qk_layernorm": True}, refused="qk_layernorm is True"),
    Animal("Ernie4_5", "biases", {"use_bias": True}, refused="use_bias is True"),
    Animal("Olmo3", "another base", {"sliding_window": 9}, refused="transformers 5 takes it", rewritten={
    "rope_parameters": None, "rope_theta": 1e4}),
]  # fmt: skip
_SIDE, _EXPERTS, _PLACES = "stand side by side", "mixture of experts", "learned positions"
# Refused by name alone: the class of config.json, and words of the reason.
REFUSED_NAMES = {
    "GPT2LMHeadModel": _PLACES, "GPTNeoXForCausalLM": _SIDE, "GPTJForCausalLM": _SIDE, "PhiForCausalLM": _SIDE,
    "FalconForCausalLM": _SIDE, "CohereForCausalLM": _SIDE, "Cohere2ForCausalLM": _SIDE, "BloomForCausalLM": "ALiBi",
    "Qwen2MoeForCausalLM": "shared by all tokens", "Glm4MoeForCausalLM": _EXPERTS,
    "DeepseekForCausalLM": "shared by all tokens", "DeepseekV2ForCausalLM": "latent attention",
    "DeepseekV3ForCausalLM": "latent attention", "Llama4ForCausalLM": "chunks of positions",
    "OlmoForCausalLM": "norms have no gains", "NemotronForCausalLM": "squares a ReLU",
    "ArceeForCausalLM": "squares a ReLU", "ApertusForCausalLM": "xIELU", "Ministral3ForCausalLM": "scaled by their",
    "Qwen3NextForCausalLM": "linear attention", "FalconMambaForCausalLM": "no attention",
    "Lfm2ForCausalLM": "convolutions", "MambaForCausalLM": "no attention", "Gemma3nForCausalLM": "embedding of its own",
    "Gemma3ForConditionalGeneration": "reads images", "Qwen2_5_VLForConditionalGeneration": "reads images",
    "BertLMHeadModel": "both directions", "T5ForConditionalGeneration": "an encoder and a decoder",
    "HeliumsForCausalLM": "unknown here", "Qwen33ForCausalLM": "unknown here",
}  # fmt: skip


def write(animal: Animal, path: Path, seed: int = 0):
    """Writes the directory as transformers does, and returns its model in float32."""
    import torch
    import transformers

    kind = getattr(transformers, f"{animal.config or animal.family}Config")
    config = kind(**(SIZES | dict(animal.fields)))
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = getattr(transformers, f"{animal.family}ForCausalLM")(config).eval().to(torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif name.endswith("bias"):
                parameter.copy_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(path)
    tree = json.loads((path / "config.json").read_text())
    if animal.old:
        rope = tree.pop("rope_parameters")
        tree["rope_theta"] = rope.pop("rope_theta")
        if "partial_rotary_factor" in rope:
            tree["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
        tree["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    tree |= animal.rewritten
    gone = {key for key, value in animal.rewritten.items() if value is None}
    (path / "config.json").write_text(json.dumps({key: value for key, value in tree.items() if key not in gone}))
    if animal.rewritten and not animal.refused:
        return reload(path)
    return model


def reload(path: Path):
    """The model of a directory as transformers reads it, in float32."""
    import torch
    import transformers

    kind = transformers.AutoModelForCausalLM
    return kind.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def table() -> str:
    """The table of docs/guide/models.md."""
    rows = ["| family | what is read | what is refused |", "|---|---|---|"]
    for family in dict.fromkeys(animal.family for animal in READ):
        read = "; ".join(dict.fromkeys(animal.what for animal in READ if animal.family == family))
        refused = "; ".join(animal.what for animal in REFUSED_FIELDS if animal.family == family)
        rows.append(f"| {family} | {read} | {refused} |")
    reasons: dict[str, list[str]] = {}
    for name, reason in REFUSED_NAMES.items():
        reasons.setdefault(reason, []).append(name)
    rows += ["", "| not read | the reason holds these words |", "|---|---|"]
    rows += [f"| {', '.join(names)} | {reason} |" for reason, names in reasons.items()]
    return "\n".join(rows) + "\n"
