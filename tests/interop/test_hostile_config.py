"""Fields of config.json that once made another model than the file's without a word: each is refused by its name."""

import math

import pytest

from distill.errors import InteropError
from distill.interop import hf_config
from tests.interop import zoo

NAN, INF = math.nan, math.inf
BY_KIND = {"rope_parameters": zoo.both({"rope_type": "default", "rope_theta": 1e6}, 1e4)}
LONG = zoo.longrope(4)
FULL = ["full_attention"] * 4


def rope(kind, **changes):
    return {"rope_parameters": kind | changes}


# The family; the field that the refusal names; the fields.
REFUSED = [
    *[("Llama", "rope_theta", {"rope_theta": value}) for value in (0.0, -1.0, NAN, INF, True, "1e4")],
    *[("Llama", "rope_theta", rope({"rope_type": "default"}, rope_theta=value)) for value in (0.0, -1.0, NAN, INF)],
    *[("Llama", "factor", rope(kind, factor=0.0)) for kind in (zoo.YARN, zoo.LINEAR, zoo.DYNAMIC, zoo.LLAMA3)],
    *[("Llama", "factor", rope(kind, factor=NAN)) for kind in (zoo.YARN, zoo.LINEAR, zoo.DYNAMIC, zoo.LLAMA3)],
    ("Llama", "low_freq_factor", rope(zoo.LLAMA3, low_freq_factor=0.0)),
    ("Llama", "original_max_position_embeddings", rope(zoo.LLAMA3, original_max_position_embeddings=0)),
    ("Llama", "original_max_position_embeddings", rope(zoo.YARN, original_max_position_embeddings=0)),
    ("Llama", "attention_factor", rope(zoo.YARN, attention_factor=0.0)),
    ("Llama", "max_position_embeddings", rope(zoo.DYNAMIC) | {"max_position_embeddings": 0}),
    *[("Llama", "rms_norm_eps", {"rms_norm_eps": value}) for value in (-1e-5, NAN, INF, "1e-5", False)],
    *[("Llama", "head_dim", {"head_dim": value}) for value in (0, -8, 8.0, "8")],
    *[("Llama", "num_key_value_heads", {"num_key_value_heads": value}) for value in (0, -2, True)],
    *[("Llama", "intermediate_size", {"intermediate_size": value}) for value in (0, -1)],
    ("Mistral", "max_position_embeddings", {"sliding_window": 7, "max_position_embeddings": 0}),
    ("Mistral", "sliding_window", {"sliding_window": 0}),
    ("Mistral", "layer_types", {"sliding_window": 7, "layer_types": FULL}),
    ("Starcoder2", "layer_types", {"sliding_window": 7, "layer_types": FULL}),
    ("Phi3", "layer_types", {"sliding_window": 7, "layer_types": FULL}),
    *[("Phi3", "partial_rotary_factor", {"partial_rotary_factor": value}) for value in (0.0, -0.5, 1.5, 0.01, NAN)],
    ("Phi3", "original_max_position_embeddings", {"rope_parameters": LONG}),
    *[("Gemma2", "final_logit_softcapping", {"final_logit_softcapping": value}) for value in (0.0, -3.0, NAN, INF)],
    *[("Gemma2", "attn_logit_softcapping", {"attn_logit_softcapping": value}) for value in (0.0, NAN)],
    *[("Gemma2", "query_pre_attn_scalar", {"query_pre_attn_scalar": value}) for value in (0, -4, True)],
    ("Gemma3", "rope_scaling", BY_KIND | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    ("Gemma3", "rope_local_base_freq", {"rope_local_base_freq": 0.0}),
    *[("Gemma3", "sliding_window_pattern", {"sliding_window_pattern": value}) for value in (0, -6, "6", 6.0)],
    ("Olmo3", "rope_scaling", BY_KIND | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
    ("Qwen2", "max_window_layers", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": "2"}),
    *[("SmolLM3", "no_rope_layers", {"no_rope_layers": value}) for value in ([1, 0], [1, 0, 2, 1], ["x"] * 4, 3)],
    ("SmolLM3", "no_rope_layer_interval", {"no_rope_layer_interval": 0}),
    *[("Granite", "residual_multiplier", {"residual_multiplier": value}) for value in (0.0, NAN, INF, "1", True)],
]


@pytest.mark.parametrize("family, field, fields", REFUSED)
def test_it_is_refused_by_name(family, field, fields):
    tree = zoo.SIZES | {"architectures": [f"{family}ForCausalLM"]}
    hf_config.read_config(tree, "config.json")
    with pytest.raises(InteropError) as error:
        hf_config.read_config(tree | fields, "config.json")
    assert field in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400
