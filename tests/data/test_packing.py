import jax
import numpy as np
import pytest

from distill import data
from distill.config import ModelConfig
from distill.data.store.packing import best_fit
from distill.model.transformer import Transformer


@pytest.mark.parametrize("seed", range(5))
def test_best_fit_places_everything_once_and_within_capacity(seed):
    lengths = np.random.default_rng(seed).integers(1, 65, size=500)
    order, starts = best_fit(lengths, 64)
    assert sorted(order) == list(range(500)) and starts[-1] == 500
    loads = np.add.reduceat(lengths[order], starts[:-1])
    assert loads.max() <= 64
    # Best-fit decreasing needs at most 11/9 of the optimum plus one row (Johnson 1973).
    assert len(loads) <= 11 / 9 * -(-lengths.sum() // 64) + 1


def test_best_fit_prefers_the_tightest_row():
    order, starts = best_fit(np.array([60, 50, 14, 4]), 64)
    rows = [set(order[a:b]) for a, b in zip(starts[:-1], starts[1:])]
    assert rows == [{0, 3}, {1, 2}]


def test_packed_documents_hold_every_document_once(store):
    seq_len = 48
    split = store.split("student")
    ends = split.document_ends().astype(int)
    texts = [split.read_span(a, b) for a, b in zip([0, *ends], ends)]
    loader = data.Loader(store, split="student", batch_size=1, seq_len=seq_len, packing="documents")
    pieces, predicted = [], 0
    for window in range(loader.window_count):
        batch = loader.read([window])
        tokens, segment, weight = batch.tokens[0], batch.segment[0], batch.weight[0]
        predicted += int(weight.sum())
        for s in range(1, segment.max() + 1):
            inside = np.flatnonzero(segment == s)
            assert np.array_equal(batch.position[0, inside], np.arange(len(inside)))
            assert np.array_equal(np.diff(inside), np.ones(len(inside) - 1))
            last = inside[-1]
            # The last token of a segment is read only if the next one, which it predicts, is of the same document.
            stop = last + 2 if weight[last] else last + 1
            pieces.append(tokens[inside[0] : stop].tolist())
        assert not weight[segment == 0].any()
    assert predicted == sum(len(t) - 1 for t in texts) == loader.unique_tokens(10**6)
    wanted = []
    for text in texts:
        starts = range(0, max(len(text) - 1, 1), seq_len)
        wanted += [text[k : k + seq_len + 1].tolist() for k in starts]
    assert sorted(pieces) == sorted(wanted)


@pytest.mark.parametrize("packing", ["segments", "documents"])
def test_attention_never_crosses_a_document(store, packing):
    """The model's logits for a packed row are those of each of its documents alone."""
    model = Transformer(ModelConfig(vocab_size=256, d_model=32, n_layers=2), jax.random.key(0))
    forward = jax.jit(lambda inputs, segment, position: model(inputs, segment=segment, position=position))
    loader = data.Loader(store, split="student", batch_size=1, seq_len=256, packing=packing)
    rows = [loader.read([window]) for window in range(loader.window_count)]
    batch = max(rows, key=lambda b: b.segment.max())
    assert batch.segment.max() >= 2
    packed = np.asarray(forward(batch.inputs, batch.segment, batch.position))[0]
    for s in range(1, batch.segment.max() + 1):
        inside = np.flatnonzero(batch.segment[0] == s)
        alone = np.zeros((1, 256), np.int32)
        alone[0, : len(inside)] = batch.inputs[0, inside]
        ones, places = np.ones((1, 256), np.int32), np.arange(256, dtype=np.int32)[None]
        logits = np.asarray(forward(alone, ones, places))[0, : len(inside)]
        np.testing.assert_allclose(packed[inside], logits, atol=2e-5)


def test_packing_wastes_little(embedded, store):
    loader = data.Loader(store, split="student", batch_size=1, seq_len=255, packing="documents")
    assert loader.unique_tokens(10**6) / (loader.window_count * 255) > 0.95
