"""Maps into and out of heads, and their rotation, in the form that a TPU takes: the numbers of the form of a CPU."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.config import LoraConfig, ModelConfig
from distill.model import attention_kernels, head_maps
from distill.model.transformer import Transformer

SMALL = ModelConfig(vocab_size=32, d_model=32, n_layers=2, n_heads=4, d_ff=48, tied=False, qk_norm=True)
MODELS = {
    "plain": SMALL,
    "grouped, with biases": dataclasses.replace(
        SMALL, n_kv_heads=2, qkv_bias=True, out_bias=True, qk_norm=False, rope_channels=4
    ),
    "narrower than the stream": dataclasses.replace(SMALL, d_head=4, sequence=True),
    "kept by name": dataclasses.replace(SMALL, remat="dots"),
}


def outcome(config, mesh):
    """(logits, gradients of their sum weighed at random) as NumPy arrays."""
    with jax.set_mesh(mesh):
        model = Transformer(config, jax.random.key(0))
        place = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
        tokens = jax.device_put(np.arange(64, dtype=np.int32).reshape(4, 16) % 32, place)
        weight = jax.device_put(np.random.default_rng(0).normal(size=(4, 16, 32)).astype(np.float32), place)

        @jax.jit
        def both(model):
            def total(model):
                logits = model(tokens)
                return jnp.sum(logits * jax.sharding.reshard(weight, jax.typeof(logits).sharding)), logits

            return jax.value_and_grad(total, has_aux=True)(model)

        (_, logits), gradients = both(model)
        return jax.tree.map(np.asarray, (logits, jax.tree.leaves(gradients)))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 2, 2)])
def test_the_numbers_are_those_of_a_cpu(name, sizes, mesh_of, monkeypatch):
    """Logits and every gradient to 1e-5 of their norms in float32."""
    mesh, used = mesh_of(*sizes), []
    want = outcome(MODELS[name], mesh)
    monkeypatch.setattr(attention_kernels, "platform", lambda: "tpu")
    for function in ("into", "out_of"):
        original = getattr(head_maps, function)
        monkeypatch.setattr(head_maps, function, lambda *given, f=original: used.append(f.__name__) or f(*given))
    got = outcome(MODELS[name], mesh)
    assert {*used} == {"into", "out_of"}
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)


def test_maps_with_an_adapter_stay_matrices(one_device_mesh, monkeypatch):
    monkeypatch.setattr(attention_kernels, "platform", lambda: "tpu")
    monkeypatch.setattr(head_maps, "into", None)
    adapted = dataclasses.replace(SMALL, lora=LoraConfig(rank=2, maps=("query", "key", "value", "out")))
    monkeypatch.setattr(head_maps, "out_of", None)
    assert np.all(np.isfinite(outcome(adapted, jax.sharding.get_mesh())[0]))
