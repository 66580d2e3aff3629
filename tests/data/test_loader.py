import itertools
import threading
import time

import jax
import numpy as np
import pytest

from distill import data
from distill.config.data import DataConfig, FilesConfig
from distill.model import sharding


def fields(batch):
    return [x for x in (batch.tokens, batch.weight, batch.segment, batch.position) if x is not None]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(fields(a), fields(b), strict=True))


PACKINGS = ("windows", "segments", "documents")


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_every_number_of_hosts_sees_the_same_global_batch(store, packing, hosts):
    whole = data.Loader(store, split="student", batch_size=8, seq_len=32, seed=1, packing=packing)
    parts = [
        data.Loader(
            store, split="student", batch_size=8, seq_len=32, seed=1, packing=packing,
            process=(i, hosts),
        )
        for i in range(hosts)
    ]  # fmt: skip
    for step in (0, 3, 1000):
        joined = [np.concatenate(x) for x in zip(*(fields(part.batch(step)) for part in parts))]
        assert all(np.array_equal(x, y) for x, y in zip(joined, fields(whole.batch(step)), strict=True))
        assert np.array_equal(np.concatenate([part.windows(step) for part in parts]), whole.windows(step))


def test_a_batch_depends_on_the_step_alone(store, config, tmp_path):
    loader = data.Loader(store, split="student", batch_size=4, seq_len=32, seed=1)
    there = [loader.batch(step) for step in range(20)]
    again = data.Loader(data.open_store(config, tmp_path / "other"), split="student", batch_size=4, seq_len=32, seed=1)
    assert all(same(again.batch(step), there[step]) for step in (19, 3, 11, 0))
    other = data.Loader(store, split="student", batch_size=4, seq_len=32, seed=2)
    assert not same(other.batch(0), there[0])


@pytest.mark.parametrize("packing", PACKINGS)
def test_stacked_batches_are_the_single_ones(store, packing):
    loader = data.Loader(store, split="teacher", batch_size=4, seq_len=32, packing=packing)
    stacked = loader.batches(5, 3)
    assert stacked.tokens.shape == (3, 4, 33) and stacked.weight.shape == (3, 4, 32)
    for k in range(3):
        single = loader.batch(5 + k)
        assert all(np.array_equal(x[k], y) for x, y in zip(fields(stacked), fields(single), strict=True))


def test_an_epoch_predicts_every_token_once(store):
    split = store.split("student")
    loader = data.Loader(store, split="student", batch_size=1, seq_len=16, seed=3)
    n = loader.window_count
    ids = np.concatenate([loader.windows(step) for step in range(n)])
    assert sorted(ids) == list(range(n)) and n == (split.tokens - 1) // 16
    text = split.read_span(0, split.tokens)
    order = np.argsort(ids)
    labels = np.concatenate([loader.batch(step).labels for step in range(n)])[order].reshape(-1)
    assert np.array_equal(labels, text[1 : n * 16 + 1])
    assert loader.epochs(2 * n) == (2.0,)


@pytest.mark.parametrize("packing", PACKINGS)
def test_unique_tokens_are_repeated_in_new_orders(store, packing):
    """Every epoch reads the same few windows, all of them; fewer are a part of more; ids stay those of the split."""
    how = dict(split="student", batch_size=4, seq_len=16, seed=3, packing=packing)
    whole, few, more = (data.Loader(store, **how, unique=unique) for unique in (0, 40 * 16, 100 * 16))
    epochs = [np.concatenate([few.windows(step) for step in range(10 * e, 10 * e + 10)]) for e in range(3)]
    assert all(len(set(epoch)) == 40 and set(epoch) == set(epochs[0]) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])
    assert set(epochs[0]) < set(more.distinct(1000)) and len(more.distinct(1000)) == 100
    assert np.array_equal(few.distinct(10**6), np.sort(epochs[0])) and few.epochs(20) == (2.0,)
    assert few.window_count == whole.window_count and max(epochs[0]) > 100, "a choice, not the beginning"
    assert all(np.array_equal(x, y) for x, y in zip(fields(few.batch(3)), fields(whole.read(few.windows(3)))))
    assert np.array_equal(data.Loader(store, **how, unique=10**9).windows(7), whole.windows(7))


def test_fewer_unique_tokens_than_a_batch_are_refused(store):
    with pytest.raises(data.DataError, match="data.unique=63: wanted at least one batch, 64 tokens"):
        data.Loader(store, split="student", batch_size=4, seq_len=16, unique=63)


def test_batches_straddle_epochs_without_losing_a_window(store):
    loader = data.Loader(store, split="student", batch_size=7, seq_len=64)
    n = loader.window_count
    drawn = np.concatenate([loader.windows(step) for step in range(3 * n)])[: 7 * n]
    assert np.bincount(drawn, minlength=n).tolist() == [7] * n


def test_unique_tokens_count_what_was_seen(store):
    loader = data.Loader(store, split="student", batch_size=4, seq_len=16)
    for steps in (1, 10, 10_000):
        seen = {int(w) for step in range(min(steps, loader.window_count)) for w in loader.windows(step)}
        if steps < loader.window_count // 4 or steps == 10_000:
            assert loader.unique_tokens(steps) == len(seen) * 16


def test_segments_do_not_cross_documents(store):
    """The reference walks token by token through the documents' own ends."""
    seq_len, split = 40, store.split("student")
    loader = data.Loader(store, split="student", batch_size=4, seq_len=seq_len, packing="segments")
    document_of = np.repeat(np.arange(split.documents), np.diff(split.document_ends().astype(int), prepend=0))
    plain = data.Loader(store, split="student", batch_size=4, seq_len=seq_len)
    for step in range(30):
        batch = loader.batch(step)
        assert np.array_equal(batch.tokens, plain.batch(step).tokens)
        for row, window in enumerate(loader.windows(step)):
            documents = document_of[window * seq_len : window * seq_len + seq_len + 1]
            seen: list[int] = []
            for k in range(seq_len):
                seen.append(documents[k])
                assert batch.segment[row, k] == len(set(seen))
                assert batch.position[row, k] == seen.count(documents[k]) - 1
                assert batch.weight[row, k] == (documents[k + 1] == documents[k])


def test_prefetch_keeps_order_and_runs_ahead():
    made = []

    def make(step):
        made.append(step)
        return step * step

    stream = data.prefetch(make, range(10), depth=3)
    assert next(stream) == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(made) >= 4
    assert list(stream) == [k * k for k in range(1, 10)]


def test_prefetch_places_batches_on_devices(store, mesh_of):
    """The thread hands over arrays that already lie on the mesh, in the loader's order."""
    loader = data.Loader(store, split="student", batch_size=8, seq_len=32, packing="segments")
    device_mesh = mesh_of(4, 2, 1)
    placed = list(data.prefetch(lambda step: sharding.place(loader.batch(step), device_mesh), range(5)))
    for step, batch in enumerate(placed):
        assert all(isinstance(x, jax.Array) and len(x.sharding.device_set) == 8 for x in jax.tree.leaves(batch))
        assert same(batch, loader.batch(step))


def test_prefetch_hands_on_errors_and_stops_when_closed():
    def fail(step):
        if step == 2:
            raise ValueError("no step 2")
        return step

    with pytest.raises(ValueError, match="no step 2"):
        list(data.prefetch(fail, range(5)))
    stream = data.prefetch(lambda step: step, itertools.count(), depth=2)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    stream.close()
    assert not [t for t in threading.enumerate() if t.name == "prefetch"]


def test_sizes_that_do_not_fit(store):
    with pytest.raises(data.DataError, match="batch_size=6 is not a multiple of the 4 processes"):
        data.Loader(store, split="student", batch_size=6, seq_len=8, process=(0, 4))
    with pytest.raises(data.DataError, match="no split 'studnt'.* Did you mean 'student'"):
        data.Loader(store, split="studnt", batch_size=1, seq_len=8)
    with pytest.raises(data.DataError, match="too few for one row of seq_len"):
        data.Loader(store, split="student", batch_size=1, seq_len=10**7)
    with pytest.raises(data.DataError, match="knows no completions"):
        data.Loader(store, split="student", batch_size=1, seq_len=8, completions_only=True)


def test_mixture_reads_each_store_by_its_weight(store, embedded):
    mixture = data.Mixture([embedded, store], [3.0, 1.0])
    loader = data.Loader(mixture, split="student", batch_size=16, seq_len=32)
    ids = np.concatenate([loader.windows(step) for step in range(256)])
    first = (embedded.split("student").tokens - 1) // 32
    assert abs((ids < first).mean() - 0.75) < 1e-3
    batch = loader.batch(0)
    for row, window in enumerate(loader.windows(0)):
        source, local = (embedded, window) if window < first else (store, window - first)
        assert np.array_equal(batch.tokens[row], source.split("student").read([local * 32], 33)[0])
    evaluation = mixture.evaluation("validation", 32, 4096)
    own = embedded.evaluation("validation", 32, 3072)
    assert np.array_equal(evaluation.batch.tokens[: len(own.windows)], own.batch.tokens)


def test_mixture_wants_one_tokenizer_and_one_weight_a_store(store, tmp_path, texts):
    from distill.config.data import TokenizerConfig

    (tmp_path / "x.txt").write_text(" ".join(texts))
    config = DataConfig(
        source="files",
        files=FilesConfig(paths=(f"{tmp_path}/x.txt",)),
        tokenizer=TokenizerConfig(kind="bpe", vocab_size=300),
    )
    other = data.open_store(config, tmp_path / "bpe")
    with pytest.raises(data.DataError, match="bytes.*bpe-300.*same tokenizer"):
        data.Mixture([store, other], [1.0, 1.0])
    with pytest.raises(data.DataError, match="2 stores and the weights"):
        data.Mixture([store, store], [1.0])


def test_evaluation_is_fixed_and_evenly_spaced(embedded):
    one, two = (embedded.evaluation("validation", 128, 65_536) for _ in range(2))
    assert same(one.batch, two.batch) and np.array_equal(one.windows, two.windows)
    gaps = np.diff(one.windows)
    assert len(one.windows) == 512 and gaps.max() - gaps.min() <= 1
    all_of_it = embedded.evaluation("validation", 128, 10**9)
    assert len(all_of_it.windows) == (embedded.split("validation").tokens - 1) // 128
