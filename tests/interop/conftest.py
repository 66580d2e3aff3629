"""Tiny random models of every supported architecture, written by `transformers` itself."""

import json

import numpy as np
import pytest

from distill import interop

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # far from zero, so that logits are of order one
    "eos_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
VARIANTS = {
    "llama": ("Llama", {}),
    "llama-tied-multihead": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama-eps": ("Llama", {"rms_norm_eps": 0.3}),
    "llama-llama3-rope": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-linear-rope": ("Llama", {"rope_parameters": LINEAR}),
    "llama-biases": ("Llama", {"attention_bias": True}),
    "llama-head-dim": ("Llama", {"head_dim": 12}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 7}),
    "qwen2": ("Qwen2", {}),
    "qwen2-tied-window": (
        "Qwen2",
        {"tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
    ),
    "qwen3": ("Qwen3", {"head_dim": 16, "rms_norm_eps": 1e-2}),
    "qwen3-tied-biases": ("Qwen3", {"head_dim": 8, "tie_word_embeddings": True, "attention_bias": True}),
}
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@pytest.fixture(scope="session")
def torch():
    """The oracle's library; only the slow suite has it (the extra `parity`)."""
    return pytest.importorskip("torch", reason="the extra `parity` is not installed")


@pytest.fixture(scope="session")
def transformers(torch):
    return pytest.importorskip("transformers", reason="the extra `parity` is not installed")


@pytest.fixture(params=VARIANTS, scope="session")
def variant(request):
    return request.param


@pytest.fixture(scope="session")
def reference(torch, transformers):
    """reference(variant, seed): a random model of `transformers`, in float32, with gains and biases that matter."""

    def make(variant, seed=0, **changes):
        family, fields = VARIANTS[variant]
        config = getattr(transformers, f"{family}Config")(**(SIZES | fields | changes))
        config._attn_implementation = "eager"
        torch.manual_seed(seed)
        model = getattr(transformers, f"{family}ForCausalLM")(config).eval().to(torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("norm.weight"):
                    parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
                elif name.endswith("bias"):
                    parameter.copy_(0.3 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture(scope="session")
def saved(torch, reference, tmp_path_factory):
    """saved(variant, dtype, shards, **changes): the directory that `transformers` writes of a reference."""

    def save(variant, dtype="F32", shards=False, **changes):
        path = tmp_path_factory.mktemp(variant)
        model = reference(variant, **changes).to(getattr(torch, DTYPES[dtype]))
        model.save_pretrained(path, max_shard_size="20KB" if shards else "5GB")
        return path

    return save


@pytest.fixture
def loaded(saved, variant):
    """A variant, imported."""
    return interop.load(saved(variant))


@pytest.fixture(scope="session")
def rewrite():
    """rewrite(directory, field=value): changes config.json; None removes the field."""

    def change(path, **fields):
        file = path / "config.json"
        tree = json.loads(file.read_text()) | fields
        file.write_text(json.dumps({k: v for k, v in tree.items() if v is not ...}))

    return change


@pytest.fixture(scope="session")
def tokens():
    return np.random.default_rng(0).integers(0, SIZES["vocab_size"], (2, 40), np.int32)
