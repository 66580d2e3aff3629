"""Every field that transformers reads, changed: the import sees it, refuses it, or transformers' numbers stay as well.

What is changed is what transformers writes into config.json, what its class has besides, and what other families have.
The zoo (test_zoo.py) compares the numbers of models that are read as changed; here nothing may be ignored.
"""

import json
from collections.abc import Iterator

import numpy as np
import pytest

from distill.errors import InteropError
from distill.interop import open_source
from tests.interop import zoo

# Sizes that tensors check, and what transformers does not compute with.
LEFT_OUT = {
    *("architectures", "model_type", "transformers_version", "vocab_size", "hidden_size", "intermediate_size", "dtype"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "initializer_range", "id2label", "label2id"),
}
ELSEWHERE = {
    "attention_bias": True, "mlp_bias": True, "partial_rotary_factor": 0.5, "sliding_window": 5,
    "use_sliding_window": True, "layer_types": ["sliding_attention"] * 4, "max_window_layers": 2, "head_dim": 8,
    "rope_theta": 500.0, "hidden_act": "gelu", "hidden_activation": "gelu", "tie_word_embeddings": True,
    "rms_norm_eps": 0.2, "rope_local_base_freq": 50.0, "no_rope_layers": [1, 0, 1, 0], "no_rope_layer_interval": 2,
    "num_key_value_heads": 4, "use_bidirectional_attention": True, "attention_multiplier": 0.7,
    "residual_multiplier": 0.7, "embedding_multiplier": 3.0, "logits_scaling": 3.0, "query_pre_attn_scalar": 30,
    "attn_logit_softcapping": 1.0, "final_logit_softcapping": 1.0, "sliding_window_pattern": 2,
    "original_max_position_embeddings": 16, "layer_norm_eps": 0.2, "norm_epsilon": 0.2, "use_bias": True,
    "max_position_embeddings": 64, "clip_qkv": 0.1, "qk_layernorm": True, "use_qkv_bias": True,
    "attention_out_bias": True, "rope_scaling": {"rope_type": "yarn", "factor": 3.0,
    "original_max_position_embeddings": 32}, "rope_parameters": {"rope_type": "linear", "factor": 3.0,
    "rope_theta": 1e4},
}  # fmt: skip
IN_ROPE = {
    "attention_factor": 0.7, "beta_fast": 9.0, "beta_slow": 2.0, "mscale": 0.5, "mscale_all_dim": 0.5, "factor": 3.0,
    "truncate": False, "partial_rotary_factor": 0.5, "original_max_position_embeddings": 64, "low_freq_factor": 2.0,
}  # fmt: skip
FIRST = {animal.family: animal for animal in reversed(zoo.READ)}
ALSO = ("Llama, yarn", "Phi3, Phi-4-mini", "Gemma3, text, linear", "Olmo3, yarn without a window")
DENSE = (
    *("Llama", "Mistral", "Ministral", "Qwen2", "Qwen3", "SeedOss", "Phi3", "Granite", "SmolLM3", "Cwm", "Helium"),
    *("Ernie4_5", "Olmo2", "Olmo3", "Exaone4", "Gemma", "Gemma2", "Gemma3", "Glm", "Glm4", "StableLm", "Starcoder2"),
)
ANIMALS = {a.name: a for a in zoo.READ if a.family in DENSE and (a is FIRST[a.family] or a.name in ALSO)}


def others(value: object) -> list[object]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, 0]
    return [2 * value + 0.1, 0.0] if isinstance(value, float) else []


def changes(tree: dict, extra: dict, left_out: set[str] = frozenset()) -> Iterator[tuple[str, dict]]:
    """Copies of a tree with one field changed, removed or added, with what was done."""
    for key in dict.fromkeys([*tree, *extra]):
        if key in left_out:
            continue
        added = [extra[key]] if key in extra and extra[key] is not None else []
        for value in [*others(tree.get(key, extra.get(key))), *added]:
            yield f"{key} = {value}", tree | {key: value}
        if key in tree:
            yield f"{key} removed", {name: value for name, value in tree.items() if name != key}
            if isinstance(tree[key], dict):
                for what, inner in changes(tree[key], IN_ROPE if "rope_type" in tree[key] else {}):
                    yield f"{key}.{what}", tree | {key: inner}


@pytest.mark.slow
@pytest.mark.parametrize("name", ANIMALS)
def test_no_field_is_ignored(name, torch, transformers, tmp_path):
    """Catches: a scaling beside one object for each kind of layers, a cap of zero, a window that layer_types unsets."""
    zoo.write(ANIMALS[name], tmp_path)
    file = tmp_path / "config.json"
    tree = json.loads(file.read_text())
    source, read = open_source(tmp_path)
    folded = source.family.folded(tree, read)
    tokens = torch.tensor(np.random.default_rng(0).integers(0, 96, (1, 150)))
    logits = lambda: zoo.reload(tmp_path)(tokens).logits.detach().numpy()
    want, silent, compared = logits(), [], 0
    default = type(transformers.AutoConfig.from_pretrained(tmp_path))().to_dict()
    for what, changed in changes(tree, default | ELSEWHERE, LEFT_OUT):
        file.write_text(json.dumps(changed))
        try:
            source, config = open_source(tmp_path)
        except InteropError:
            continue
        if config != read or source.family.folded(changed, config) != folded:
            continue
        try:
            found = logits()
        except Exception:  # whatever transformers raises, it makes no other model of the file
            continue
        compared += 1
        if not np.abs(found - want).max() < 5e-4:
            silent.append(what)
    assert not silent and compared > 10
