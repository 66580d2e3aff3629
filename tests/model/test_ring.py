"""Attention over sequences that devices share, beside attention over whole ones: the same numbers and gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.config import ConfigError, MeshConfig, ModelConfig
from distill.data import spans
from distill.model import ring, sharding
from distill.model.transformer import Transformer
from distill.types import Batch

MODEL = ModelConfig(vocab_size=32, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff_multiple=16)
LENGTH = 1024


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(0)
    tokens = random.integers(0, 32, (2, LENGTH + 1)).astype(np.int32)
    segment = np.sort(random.integers(0, 5, (2, LENGTH)), axis=1).astype(np.int32)
    first = np.array([np.searchsorted(row, row) for row in segment])
    position = (np.arange(LENGTH)[None] - first).astype(np.int32)
    return Batch(tokens, np.ones((2, LENGTH), np.float32), segment, position)  # type: ignore[arg-type]


def measured(config, batch, shape, context=1):
    """The sum of the sines of all logits by their tokens, its parts by sequence, and its gradients, on a mesh."""
    mesh = MeshConfig(data=shape[0], fsdp=shape[1], tensor=shape[2])
    count = len(batch.tokens)
    with jax.set_mesh(sharding.make(mesh, jax.devices()[: int(np.prod(shape))])):
        model = jax.jit(Transformer, static_argnums=0)(config, jax.random.key(1))
        placed = sharding.place(spans.split(batch, context), jax.sharding.get_mesh())

        @jax.jit
        def both(model, batch):
            def scalar(model):
                logits = model(batch.inputs, batch.segment, batch.position, batch.spans)
                logits = jax.sharding.reshard(logits, sharding.ACT_BSD)
                rows = jnp.sum(jnp.sin(logits * (1 + batch.labels[..., None])), axis=(1, 2))
                rows = jax.sharding.reshard(rows, jax.P())
                return jnp.sum(rows), rows

            (total, rows), gradient = jax.value_and_grad(scalar, has_aux=True)(model)
            return {"rows": rows.reshape(count, -1).sum(axis=1)} | {
                str(i): x for i, x in enumerate(jax.tree.leaves(gradient))
            }

        return jax.tree.map(np.asarray, both(model, placed))


CASES = {
    "plain": ({}, False),
    "packed": ({}, True),
    "capped": ({"attention_cap": 2.0}, True),
    "one head": ({"n_kv_heads": 4}, False),
}


@pytest.mark.parametrize("kind", ["xla", "splash"])
@pytest.mark.parametrize("case", CASES)
def test_shared_sequences_give_the_numbers_and_gradients_of_whole_ones(relative_error, batch, kind, case):
    """Four devices a sequence, eight spans of 128; packed ones have segments and positions of their own."""
    changed, packed = CASES[case]
    one = batch if packed else dataclasses.replace(batch, segment=None, position=None)
    config = dataclasses.replace(MODEL, **changed)
    want = measured(config, one, (1, 1, 1))
    got = measured(dataclasses.replace(config, attention=kind), one, (2, 4, 1), context=4)
    assert relative_error({"rows": got["rows"]}, {"rows": want["rows"]}) < 2e-5
    assert relative_error(got, want) < 5e-5
    if packed:  # and the comparison sees segments
        other = measured(config, dataclasses.replace(one, segment=None), (1, 1, 1))
        assert relative_error({"rows": other["rows"]}, {"rows": want["rows"]}) > 1e-3


@pytest.mark.parametrize(("shape", "context"), [((1, 2, 2), 1), ((2, 2, 2), 2), ((1, 4, 2), 2), ((2, 1, 1), 1)])
def test_any_mesh_and_number_of_devices_a_sequence(relative_error, batch, shape, context):
    """Two sequences over data and fsdp; heads over tensor."""
    config = dataclasses.replace(MODEL, remat="full")
    want = measured(MODEL, batch, (1, 1, 1))
    got = measured(config, batch, shape, context=context)
    assert relative_error(got, want) < 5e-5


def test_rows_are_early_and_late_spans_of_equal_work_and_keep_every_token(batch):
    cut = spans.split(batch, 4)
    assert spans.order(4).tolist() == [0, 7, 1, 6, 2, 5, 3, 4]
    assert cut.spans == 8 and cut.tokens.shape == (16, 129) and cut.position.shape == (16, 128)
    assert (cut.tokens[1] == batch.tokens[0, 7 * 128 : 8 * 128 + 1]).all()
    assert (cut.labels[11] == batch.labels[1, 6 * 128 : 7 * 128]).all()
    back = cut.tokens[:, :-1].reshape(2, 8, 128)[:, np.argsort(spans.order(4))].reshape(2, LENGTH)
    assert (back == batch.inputs).all()
    assert spans.split(batch, 1) is batch


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"window": 64}, "layers with a window .model.window=64."),
        ({"attention_sinks": True}, "attention sinks"),
        ({"attention": "cudnn", "dtype": "bfloat16"}, "cuDNN's attention"),
    ],
)
def test_what_shared_sequences_do_not_know_is_refused(changed, message):
    with pytest.raises(ConfigError, match=message):
        ring.check(dataclasses.replace(MODEL, **changed))


def test_a_batch_that_the_devices_do_not_share_evenly_is_refused():
    mesh = sharding.make(MeshConfig(data=2, fsdp=4), jax.devices()[:8])
    sharding.check(MODEL, 2, mesh, context=4)
    with pytest.raises(ConfigError, match="share 2 sequences at a time; set batch_size to 2 x microbatches"):
        sharding.check(MODEL, 4, mesh, context=4)
    with pytest.raises(ConfigError, match="config.seq_len=100 for config.mesh.context=4"):
        spans.length(100, 4)
