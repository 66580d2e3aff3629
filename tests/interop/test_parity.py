"""The same numbers as `transformers`, for every architecture and variant: logits, gradients, greedy text.

Weights come from `transformers` alone, never from our exporter. Tests name mutations that they are for.
`variant` runs over conftest.VARIANTS.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill import interop
from distill.interop.layout import expected, layouts
from distill.losses import divergences
from distill.model import decode
from distill.model.decode import DecodeConfig
from distill.model.transformer import parameter_name

pytestmark = pytest.mark.slow


def theirs(torch, model, tokens):
    with torch.no_grad():
        return model(torch.tensor(tokens.astype(np.int64))).logits.numpy()


def test_logits_are_those_of_transformers(torch, reference, loaded, variant, tokens):
    want = theirs(torch, reference(variant), tokens)
    assert np.std(want) > 0.3  # else agreement to 1e-4 says little
    np.testing.assert_allclose(jax.jit(lambda m, t: m(t))(loaded.params, jnp.asarray(tokens)), want, atol=1e-4, rtol=0)


def test_gradients_of_the_loss_are_those_of_transformers(torch, reference, loaded, variant, tokens):
    """Through the forward pass of both; compared as tensors of a checkpoint, so that the table is tested backwards."""
    model = reference(variant)
    ids = torch.tensor(tokens.astype(np.int64))
    logits = model(ids).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1)).backward()
    want = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}

    def loss(params):
        return jnp.mean(divergences.cross_entropy(params(jnp.asarray(tokens))[:, :-1], jnp.asarray(tokens)[:, 1:]))

    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.jit(jax.grad(loss))(loaded.params))
    found = {parameter_name(path): np.asarray(leaf) for path, leaf in leaves}
    table = layouts(loaded.config)
    checked = set()
    for there, ours, index, _ in expected(loaded.config):
        got = table[ours].export(found[ours][index])
        np.testing.assert_allclose(got, want[there], atol=1e-4, rtol=1e-3, err_msg=there)
        checked.add(there)
    assert checked == set(want)


def test_greedy_text_is_that_of_transformers(torch, reference, loaded, variant, tokens):
    """Through our cache and theirs, past the window where there is one."""
    prompt = tokens[:, :6]
    ids = torch.tensor(prompt.astype(np.int64))
    with torch.no_grad():
        want = reference(variant).generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, pad_token_id=0
        )
    config = DecodeConfig(new_tokens=20, temperature=0.0)
    got = decode.generate(config, loaded.params, jnp.asarray(prompt), jax.random.split(jax.random.key(0), len(prompt)))
    np.testing.assert_array_equal(got.tokens, want.numpy())


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize("shards", [False, True])
def test_half_precision_and_shards(torch, reference, saved, tokens, dtype, shards):
    path = saved("qwen3", dtype, shards)
    assert (path / "model.safetensors.index.json").exists() == shards
    rounded = reference("qwen3")
    with torch.no_grad():  # the parameters alone: not the rotary frequencies, which stay float32
        for parameter in rounded.parameters():
            parameter.copy_(parameter.to({"F16": torch.float16, "BF16": torch.bfloat16}[dtype]))
    want = theirs(torch, rounded, tokens)
    model = interop.load(path)
    assert set(model.source.dtypes.values()) == {dtype}
    np.testing.assert_allclose(model.params(jnp.asarray(tokens)), want, atol=1e-4, rtol=0)
