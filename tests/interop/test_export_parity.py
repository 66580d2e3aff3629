"""What we write, `transformers` reads: the same logits, for each kind of model of ours that a run can make."""

import dataclasses

import jax
import numpy as np
import pytest

from distill.config import ModelConfig
from distill.data.tokenizers.tokenizer import ByteTokenizer
from distill.interop import export, tokenizer_files
from distill.interop.card import Prediction, card
from distill.model.transformer import Transformer

pytestmark = pytest.mark.slow
SHAPE = ModelConfig(vocab_size=256, d_model=16, n_layers=3, n_heads=4, n_kv_heads=2, d_head=6, d_ff=24, norm_eps=1e-2)
VARIANTS = {
    "Qwen3": SHAPE,
    "Qwen3 untied": dataclasses.replace(SHAPE, tied=False),
    "Qwen3 window": dataclasses.replace(SHAPE, window=5),
    "Llama": dataclasses.replace(SHAPE, qk_norm=False, rope_scaling="llama3", rope_factor=8.0, rope_context=32),
    "Llama biases": dataclasses.replace(SHAPE, qk_norm=False, qkv_bias=True, out_bias=True),
    "Mistral": dataclasses.replace(SHAPE, qk_norm=False, window=5),
    "Qwen2": dataclasses.replace(SHAPE, qk_norm=False, qkv_bias=True, rope_scaling="linear", rope_factor=2.0),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_transformers_gives_the_logits_of_the_run(torch, transformers, tmp_path, name):
    """Seen to catch: the scale of a tied embedding forgotten, rope_scaling not written, windows not switched on."""
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jax.device_put(np.asarray(x) + random.uniform(-0.3, 0.3, x.shape).astype(np.float32), x.sharding),
        Transformer(VARIANTS[name], jax.random.key(0)),
    )
    files = tokenizer_files.of_tokenizer(ByteTokenizer())
    text = card("m", {"loss": "1"}, Prediction(law="law.json", loss=2.0, low=1.9, high=2.1))
    export.write(tmp_path / "m", params, files, context=64, card=text)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", attn_implementation="eager")
    assert type(model).__name__ == f"{name.split()[0]}ForCausalLM"
    tokens = random.integers(0, 256, (2, 40))
    with torch.no_grad():
        want = model(torch.tensor(tokens)).logits.numpy()
    assert np.std(want) > 0.3
    got = jax.jit(lambda m, t: m(t))(params, tokens.astype(np.int32))
    np.testing.assert_allclose(got, want, atol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    assert tokenizer("né 1")["input_ids"] == list("né 1".encode())
    assert "2.0000 [1.9000, 2.1000]" in (tmp_path / "m" / "README.md").read_text()
