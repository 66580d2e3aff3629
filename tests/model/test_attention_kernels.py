"""The library's attention kernels beside our own attention: the same numbers and gradients, on any mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.config import ConfigError, MeshConfig, ModelConfig
from distill.model import attention_kernels, sharding
from distill.model.transformer import Transformer

MODEL = ModelConfig(vocab_size=32, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff_multiple=16)
LENGTH = 256


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(0)
    tokens = jnp.asarray(random.integers(0, 32, (2, LENGTH), np.int32))
    segment = jnp.asarray(np.sort(random.integers(0, 3, (2, LENGTH)), axis=1).astype(np.int32))
    return tokens, segment


def measured(config, tokens, segment, shape=(1, 1, 1)):
    """Logits, and the gradients of a scalar of them, on a mesh."""
    count = int(np.prod(shape))
    config_of_mesh = MeshConfig(data=shape[0], fsdp=shape[1], tensor=shape[2])
    with jax.set_mesh(sharding.make(config_of_mesh, jax.devices()[:count])):
        model = jax.jit(Transformer, static_argnums=0)(config, jax.random.key(1))

        @jax.jit
        def both(model, tokens, segment):
            def scalar(model):
                logits = model(tokens, segment=segment)
                return jnp.sum(jnp.sin(logits)), logits

            (_, logits), gradient = jax.value_and_grad(scalar, has_aux=True)(model)
            return {"logits": logits} | {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(gradient))}

        return jax.tree.map(np.asarray, both(model, tokens, segment))


CASES = {
    "causal": ({}, False),
    "packed": ({}, True),
    "window": ({"window": 40}, True),
    "heads of their own": ({"n_kv_heads": 4}, False),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["splash", "cudnn"])
def test_a_kernel_gives_our_own_attentions_numbers_and_gradients(monkeypatch, relative_error, batch, kind, case):
    changed, packed = CASES[case]
    if kind == "cudnn":  # XLA computes its call here, in float32
        monkeypatch.setattr(attention_kernels, "chosen", lambda config, length: config.attention)
    tokens, segment = batch[0], batch[1] if packed else None
    own = dataclasses.replace(MODEL, attention="xla", **changed)
    want = measured(own, tokens, segment)
    got = measured(dataclasses.replace(own, attention=kind), tokens, segment)
    assert relative_error(got, want) < 2e-5
    # And the comparison sees what a mask does.
    other = dataclasses.replace(own, window=(own.window or LENGTH) // 8)
    assert relative_error(measured(other, tokens, segment), want) > 1e-3


@pytest.mark.parametrize("shape", [(2, 1, 1), (1, 2, 2)])
def test_a_kernel_runs_on_each_devices_rows_and_heads(relative_error, batch, shape):
    config = dataclasses.replace(MODEL, attention="splash", remat="dots")
    assert relative_error(measured(config, *batch, shape), measured(config, *batch)) < 2e-5


def test_several_blocks_give_the_same(monkeypatch, relative_error, batch):
    """Two blocks of 128, where the other tests have one."""
    monkeypatch.setattr(attention_kernels, "MAX_BLOCK", 128)
    assert attention_kernels.splash_blocks(LENGTH, 0, 32) == (128, 128)
    found = measured(dataclasses.replace(MODEL, attention="splash"), *batch)
    assert relative_error(found, measured(dataclasses.replace(MODEL, attention="xla"), *batch)) < 2e-5


@pytest.mark.parametrize(
    ("length", "window", "row", "blocks"),
    [
        (4096, 0, 256, (1024, 512)),
        (16384, 0, 256, (1024, 512)),
        (4096, 0, 1024, (512, 512)),  # float32 heads of 256: what a v5p has room for
        (4096, 700, 256, (512, 512)),
        (4096, 4096, 256, (1024, 512)),
        (4224, 0, 256, (128, 128)),
    ],
)
def test_splash_gets_the_largest_blocks_that_divide_fit_and_pay(length, window, row, blocks):
    assert attention_kernels.splash_blocks(length, window, row) == blocks


def test_a_tpu_gets_splash_where_its_blocks_fit_and_no_other_device_does(monkeypatch):
    assert attention_kernels.platform() == "cpu"
    assert attention_kernels.chosen(MODEL, LENGTH) == "xla"
    with jax.sharding.use_abstract_mesh(sharding.abstract(MeshConfig(data=1))):
        assert attention_kernels.chosen(MODEL, LENGTH) == "xla"
    monkeypatch.setattr(attention_kernels, "platform", lambda: "tpu")
    assert attention_kernels.chosen(MODEL, LENGTH) == "splash"
    assert attention_kernels.chosen(MODEL, LENGTH + 1) == "xla"
    assert attention_kernels.chosen(dataclasses.replace(MODEL, attention="xla"), LENGTH) == "xla"


H100, WIDE = "NVIDIA H100 80GB HBM3", {"dtype": "bfloat16", "d_head": 64}


@pytest.mark.parametrize(
    ("changed", "length", "kind", "kernel", "why"),
    [
        (WIDE, 256, H100, "cudnn", ""),
        (WIDE, 256, "NVIDIA A100-SXM4-80GB", "cudnn", ""),
        (WIDE, 256, "Tesla T4", "xla", "was not considered for a Tesla T4"),
        (WIDE, 255, H100, "xla", "an even number of positions, not 255"),
        (WIDE | {"dtype": "float32"}, 256, H100, "xla", "dtype='float32'"),
        (WIDE | {"d_head": 12}, 256, H100, "xla", "heads of 12"),
        (WIDE | {"d_head": 136}, 256, H100, "xla", "heads of 136"),
    ],
)
def test_a_gpu_gets_cudnn_where_its_conditions_hold_and_a_reason_where_not(
    monkeypatch, changed, length, kind, kernel, why
):
    """Against auto being our own attention on every GPU."""
    config = dataclasses.replace(MODEL, **changed)
    got, reason = attention_kernels.automatic(config, length, "gpu", kind)
    assert (got, bool(reason)) == (kernel, bool(why)) and why in reason
    monkeypatch.setattr(attention_kernels, "platform", lambda: "gpu")
    monkeypatch.setattr(attention_kernels, "device_kind", lambda: kind)
    assert attention_kernels.chosen(config, length) == kernel
    assert attention_kernels.automatic(config, length, "cpu", "cpu") == ("xla", "")


@pytest.mark.parametrize(
    ("changed", "length", "message"),
    [
        ({"attention": "splash"}, 200, "model.attention='splash' takes multiples of 128 positions, got 200"),
        ({"attention": "cudnn"}, 256, "'cudnn': cuDNN takes bfloat16 .* got dtype='float32' and heads of 8"),
        ({"attention": "cudnn", "dtype": "bfloat16", "d_head": 12}, 256, "heads of 12"),
    ],
)
def test_a_kernel_that_cannot_take_the_model_is_refused_with_what_it_takes(changed, length, message):
    with pytest.raises(ConfigError, match=message):
        attention_kernels.chosen(dataclasses.replace(MODEL, **changed), length)
