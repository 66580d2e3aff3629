"""What is cut out of a teacher: against float64 references, and in the mean of many draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.config import ConfigError, ObjectiveConfig
from distill.errors import SignalError
from distill.losses import divergences, targets
from distill.model import sharding
from distill.teacher.signals import codec, extract, fidelity
from distill.teacher.signals.spec import GRAIN, SignalSpec
from distill.training import step
from distill.types import LOG_ZERO, Batch, SparseSignal

TOKENS, VOCAB = 6, 40


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)


@pytest.fixture(scope="module")
def log_p():
    """A teacher with a long tail, [1, T, V]."""
    rng = np.random.default_rng(0)
    return log_softmax(2 * rng.standard_normal((1, TOKENS, VOCAB))).astype(np.float32)


@pytest.fixture(scope="module")
def log_q():
    return log_softmax(np.random.default_rng(1).standard_normal((1, TOKENS, VOCAB)))


def stored(config, found, window=0):
    """A sparse signal through its record and back, as a store reads it: ids [T, K], log-weights [T, K]."""
    rank = np.arange(VOCAB)
    found = SparseSignal(ids=np.asarray(found.ids)[0], log_probs=np.asarray(found.log_probs)[0])
    most, payload = extract.record(config, rank, found, window)
    got = codec.unpack(payload, TOKENS, most)
    empty = np.arange(most) >= got.lengths[:, None]
    if config.kind == "sampled":
        grain = 1 if config.proposal == 1 else GRAIN
        values = np.log(np.maximum(got.symbols, 1) / (config.draws * grain))
    elif config.kind == "argmax":
        values = np.zeros(got.ranks.shape)
    else:
        values = codec.log_probs(got.symbols, got.rest)
    return np.minimum(got.ranks, VOCAB - 1), np.where(empty, LOG_ZERO, values)


@pytest.mark.parametrize("proposal", [0.8, 1.0, 1.2])
def test_the_mean_of_sampled_gradients_is_the_full_gradient(log_p, log_q, proposal):
    """d/dlogits of the sampled cross-entropy is q sum(w) - w; over draws its mean must be q - p (2503.16870)."""
    config = SignalSpec(kind="sampled", draws=12, proposal=proposal, seed=3)
    repeats, q, p = 1500, np.exp(log_q[0]), np.exp(log_p[0].astype(np.float64))
    sample = jax.jit(functools.partial(extract.sample, proposal=proposal))
    windows = np.arange(repeats)
    numbers = extract.uniform(config, windows, TOKENS)
    wide = jnp.broadcast_to(jnp.asarray(log_p), (repeats, TOKENS, VOCAB))
    drawn = jax.tree.map(np.asarray, sample(wide, jnp.asarray(numbers)))
    sums, squares = np.zeros((2, TOKENS, VOCAB))
    for i in range(repeats):
        one = SparseSignal(ids=drawn.ids[i : i + 1], log_probs=drawn.log_probs[i : i + 1])
        ids, values = stored(config, one, i)
        w = np.zeros((TOKENS, VOCAB))
        np.add.at(w, (np.arange(TOKENS)[:, None], ids), np.exp(values))
        gradient = q * w.sum(axis=1, keepdims=True) - w
        sums += gradient
        squares += gradient**2
    mean = sums / repeats
    error = np.sqrt(np.maximum(squares / repeats - mean**2, 1e-12) / (repeats - 1))
    # Of rarer tokens the error is not known from the draws themselves.
    proposed = p**proposal / np.sum(p**proposal, axis=1, keepdims=True)
    seen = proposed * repeats * config.draws > 150
    assert np.where(seen, p, 0).sum(axis=1).min() > 0.85
    z = ((mean - (q - p)) / error)[seen]
    # Few draws of a rare token are skewed: a larger limit than of a normal variable.
    assert np.abs(z).max() < 5.5 and 0.8 < np.sqrt(np.mean(z**2)) < 1.25, np.abs(z).max()
    # The test would see a teacher that is a little too sure of itself.
    biased = ((mean - (q - p**1.1 / (p**1.1).sum(axis=1, keepdims=True))) / error)[seen]
    assert np.abs(biased).max() > 5


def test_the_gradient_of_the_loss_is_that_of_the_weights(log_p, log_q, float64):
    """The identity that the test above stands on: the library's own sampled loss, differentiated in float64."""
    config = SignalSpec(kind="sampled", draws=12, seed=3)
    numbers = extract.uniform(config, np.arange(1), TOKENS)
    ids, values = stored(config, extract.sample(jnp.asarray(log_p), jnp.asarray(numbers), 1.0))
    signal = SparseSignal(ids=jnp.asarray(ids)[None], log_probs=jnp.asarray(values)[None])

    def loss(logits):
        log_q = targets.gather(jax.nn.log_softmax(logits, axis=-1), signal.ids)
        return jnp.sum(divergences.sparse_divergence("forward", "sampled", log_q, signal))

    got = jax.grad(loss)(jnp.asarray(log_q))[0]
    w = np.zeros((TOKENS, VOCAB))
    np.add.at(w, (np.arange(TOKENS)[:, None], ids), np.exp(values))
    np.testing.assert_allclose(got, np.exp(log_q[0]) * w.sum(axis=1, keepdims=True) - w, atol=1e-12)
    np.testing.assert_allclose(w.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
def test_the_bias_of_top_k(log_p, log_q, tail, float64):
    """A truncated teacher's gradient is off by a known amount, which no number of tokens averages away."""
    k, p, q = 4, np.exp(log_p[0].astype(np.float64)), np.exp(log_q[0])
    config = ObjectiveConfig(target="topk", top_k=k, tail=tail)
    ids = np.argsort(-p, axis=1)[:, :k]
    kept = np.take_along_axis(log_p[0].astype(np.float64), ids, 1)
    signal = SparseSignal(ids=jnp.asarray(ids)[None], log_probs=jnp.asarray(kept)[None])

    def loss(logits):
        log_q = targets.gather(jax.nn.log_softmax(logits, axis=-1), signal.ids)
        return jnp.sum(divergences.sparse_divergence("forward", config.exactness_row, log_q, signal))

    got = np.asarray(jax.grad(loss)(jnp.asarray(log_q))[0])
    inside = np.zeros(p.shape, bool)
    np.put_along_axis(inside, ids, True, 1)
    mass = np.where(inside, p, 0).sum(axis=1, keepdims=True)
    outside_q = np.where(inside, 0, q).sum(axis=1, keepdims=True)
    stands_for = np.where(inside, p, q * (1 - mass) / outside_q) if tail == "bucket" else np.where(inside, p / mass, 0)
    np.testing.assert_allclose(got, q - stands_for, atol=1e-10)
    bias = got - (q - p)
    assert np.linalg.norm(bias) > 0.05 * np.linalg.norm(q - p)
    # The whole vocabulary kept, the bias is gone.
    everything = SparseSignal(
        ids=jnp.broadcast_to(jnp.arange(VOCAB), (1, TOKENS, VOCAB)), log_probs=jnp.asarray(log_p, jnp.float64)
    )
    signal = everything
    np.testing.assert_allclose(np.asarray(jax.grad(loss)(jnp.asarray(log_q))[0]), q - p, atol=1e-6)


def test_draws_follow_the_proposal(log_p):
    for proposal in (0.8, 1.0):
        u = np.random.default_rng(0).random((1, TOKENS, 20_000), np.float32)
        found = extract.sample(jnp.asarray(log_p), jnp.asarray(u), proposal)
        q = np.exp(proposal * log_p[0].astype(np.float64))
        q /= q.sum(axis=1, keepdims=True)
        got = np.stack([np.bincount(ids, minlength=VOCAB) for ids in np.asarray(found.ids)[0]]) / u.shape[-1]
        np.testing.assert_allclose(got, q, atol=5 * np.sqrt(0.25 / u.shape[-1]))
        want = np.log(np.take_along_axis(np.exp(log_p[0]) / q, np.asarray(found.ids)[0], 1))
        np.testing.assert_allclose(np.asarray(found.log_probs)[0], want, atol=2e-5)


def test_counts_are_whole_and_sum_to_the_draws(log_p):
    config = SignalSpec(kind="sampled", draws=30)
    numbers = extract.uniform(config, np.array([5]), TOKENS)
    found = extract.sample(jnp.asarray(log_p), jnp.asarray(numbers), 1.0)
    ids, values = stored(config, found)
    counts = np.exp(values) * 30
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-4)
    for t in range(TOKENS):
        kept = values[t] > LOG_ZERO / 2
        assert len(set(ids[t][kept])) == kept.sum()
        want = np.bincount(np.asarray(found.ids)[0, t], minlength=VOCAB)
        np.testing.assert_array_equal(np.bincount(ids[t][kept], counts[t][kept], VOCAB).round(), want)


def test_numbers_are_by_seed_and_window_alone():
    config = SignalSpec(kind="sampled", draws=4, seed=1)
    some, more = extract.uniform(config, np.array([7, 3]), 5), extract.uniform(config, np.array([1, 3, 7]), 5)
    np.testing.assert_array_equal(some, more[[2, 1]])
    other = extract.uniform(SignalSpec(kind="sampled", draws=4, seed=2), np.array([7]), 5)
    assert (some[0] != other[0]).any() and (some[0] != some[1]).all()


@pytest.fixture(scope="module")
def teacher_and_batch(tiny):
    with jax.set_mesh(sharding.make(tiny.mesh, jax.devices()[:1])):
        teacher = step.init_state(tiny).params
        teacher.embed[...] = teacher.embed[...] * 3  # untrained, but with opinions
    tokens = np.random.default_rng(0).integers(0, 32, (4, 17), np.int32)
    return teacher, Batch(tokens, np.ones((4, 16), np.float32))


def cut(config, teacher, batch):
    numbers = extract.uniform(config, np.arange(4), 16)
    placed = sharding.place((batch, numbers), jax.sharding.get_mesh())
    return jax.tree.map(np.asarray, extract.extract(config, teacher, *placed))


KINDS = {
    "topk": SignalSpec(kind="topk", top_k=5),
    "topp": SignalSpec(kind="topp", top_p=0.5, floor=2, top_k=12),
    "sampled": SignalSpec(kind="sampled", draws=8, proposal=0.9),
    "argmax": SignalSpec(kind="argmax"),
    "hidden": SignalSpec(kind="hidden", dtype="float32"),
    "full": SignalSpec(kind="full"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_without_whole_logits_the_same(teacher_and_batch, kind, monkeypatch):
    """From a large vocabulary on, a few positions at a time."""
    config = KINDS[kind]
    one = cut(config, *teacher_and_batch)
    monkeypatch.setattr(extract, "WHOLE_VOCABULARY", 1)
    extract.extract.clear_cache()
    other = cut(config, *teacher_and_batch)
    if config.sparse:
        np.testing.assert_array_equal(one.ids, other.ids)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
        np.testing.assert_allclose(a, b, atol=2e-4)


@pytest.mark.parametrize("kind", ["topk", "sampled", "hidden"])
def test_a_store_may_be_made_on_any_mesh(teacher_and_batch, kind, mesh_of, assert_trees_equal):
    teacher, batch = teacher_and_batch
    one = cut(KINDS[kind], teacher, batch)
    device_mesh = mesh_of(2, 2, 2)
    with jax.set_mesh(device_mesh):
        place = lambda x: jax.device_put(np.asarray(x), jax.NamedSharding(device_mesh, jax.typeof(x).sharding.spec))
        other = cut(KINDS[kind], jax.tree.map(place, teacher), batch)
    if kind != "hidden":
        np.testing.assert_array_equal(one.ids, other.ids)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_a_nucleus_with_a_floor(log_p):
    """The fewest tokens that hold half of the mass, but at least two and at most five."""
    found = extract.of_logits(SignalSpec(kind="topp", top_p=0.5, floor=2, top_k=5), jnp.asarray(log_p), jnp.zeros(()))
    falling = np.sort(np.exp(log_p[0].astype(np.float64)), axis=1)[:, ::-1]
    nucleus = (np.cumsum(falling, axis=1) < 0.5).sum(axis=1) + 1
    counts = (np.asarray(found.log_probs)[0] > LOG_ZERO / 2).sum(-1)
    np.testing.assert_array_equal(counts, np.clip(nucleus, 2, 5))
    assert len(set(counts.tolist())) > 1


# ---- what serves what


def config(**fields):
    return ObjectiveConfig(**fields)


SERVED = [
    ("hidden", config(), True),
    ("hidden", config(temperature=2.0, divergence="reverse"), True),
    ("full", config(target="sampled", draws=3), True),
    ("topk", config(target="topk", top_k=5), True),
    ("topk", config(target="topk", top_k=3, tail="renormalise", temperature=2.0), True),
    ("topk", config(target="topp", top_p=0.7, top_k=5), True),
    ("topk", config(target="argmax"), True),
    ("topk", config(target="topk", top_k=6), False),
    ("topk", config(), False),
    ("topk", config(temperature=2.0), False),
    ("topk", config(target="sampled", draws=8), False),
    ("topp", config(target="topp", top_p=0.5, top_k=12), True),
    ("topp", config(target="topp", top_p=0.6, top_k=12), False),
    ("topp", config(target="topk", top_k=2), True),
    ("topp", config(target="topk", top_k=3), False),
    ("sampled", config(target="sampled", draws=8), True),
    ("sampled", config(target="sampled", draws=1), False),
    ("sampled", config(target="topk", top_k=1), False),
    ("sampled", config(), False),
    ("argmax", config(target="argmax"), True),
    ("argmax", config(target="topk", top_k=1), False),
]


@pytest.mark.parametrize(("kind", "objective", "serves"), SERVED)
def test_a_signal_serves_the_targets_that_it_holds(kind, objective, serves):
    if serves:
        KINDS[kind].check_serves(objective, "stores/x")
        return
    with pytest.raises(SignalError, match=f"stores/x: holds '{kind}.*objective.target='{objective.target}' reads"):
        KINDS[kind].check_serves(objective, "stores/x")


def test_the_table_of_exactness_gives_the_reason():
    with pytest.raises(SignalError, match="tau=2 .the mass of a tail is known at tau = 1 only"):
        KINDS["topk"].check_serves(config(temperature=2.0), "s")


@pytest.mark.parametrize("objective", [o for kind, o, serves in SERVED if serves and kind in ("topk", "topp")])
@pytest.mark.parametrize("kind", ["topk", "topp"])
def test_a_wider_signal_cut_down_is_the_narrower_one(log_p, kind, objective):
    """Against the library's own targets, which cut the whole distribution."""
    signal = SignalSpec(kind=kind, top_k=12, top_p=0.999, floor=5)
    signal.check_serves(objective, "s")
    values, ids = jax.lax.top_k(jnp.asarray(log_p), 12)
    shuffled = np.random.default_rng(0).permutation(12)
    got = signal.select(np.asarray(ids)[..., shuffled], np.asarray(values)[..., shuffled], objective)
    if objective.target == "argmax":
        want = targets.argmax(jnp.asarray(log_p))
    elif objective.target == "topk":
        want = targets.top_k(jnp.asarray(log_p), objective.top_k)
    else:
        want = targets.top_p(jnp.asarray(log_p), objective.top_p, objective.top_k)
    np.testing.assert_array_equal(got[0], want.ids)
    np.testing.assert_allclose(got[1], want.log_probs, atol=1e-5)


@pytest.mark.parametrize(
    "fields", [{"top_k": 0}, {"top_p": 0.0}, {"floor": 200}, {"draws": 0}, {"draws": 10**6}, {"proposal": 0.1}]
)
def test_impossible_numbers_are_refused(fields):
    with pytest.raises(ConfigError, match=f"{next(iter(fields))}: got"):
        SignalSpec(**fields)


def test_its_words_name_what_is_read_and_nothing_else():
    assert SignalSpec(top_k=64, draws=3).label == "topk top_k=64"
    assert SignalSpec(kind="sampled", seed=4, top_k=9).label == "sampled draws=50 proposal=1.0 seed=4"


# ---- fidelity


def test_fidelity_of_the_whole_distribution_is_perfect(log_p):
    from distill.types import TeacherSignal

    found = fidelity.Fidelity(tail=False)
    found.add(log_p[0], TeacherSignal(log_probs=log_p[0]))
    result = found.result()
    assert result["tokens"] == TOKENS and abs(result["kl"]) < 1e-12
    assert result["gradient_cosine"] == pytest.approx(1, abs=1e-12)


def test_fidelity_of_top_k_is_what_its_formulas_say(log_p):
    k, p = 4, np.exp(log_p[0].astype(np.float64))
    p /= p.sum(axis=1, keepdims=True)
    ids = np.argsort(-p, axis=1)[:, :k]
    found = fidelity.Fidelity(tail=True)
    found.add(log_p[0], SparseSignal(ids=ids, log_probs=np.log(np.take_along_axis(p, ids, 1))))
    inside = np.zeros(p.shape, bool)
    np.put_along_axis(inside, ids, True, 1)
    rest = 1 - np.where(inside, p, 0).sum(axis=1, keepdims=True)
    spread = np.where(inside, p, rest / (VOCAB - k))
    assert found.result()["kl"] == pytest.approx(np.sum(p * np.log(p / spread), axis=1).mean(), rel=1e-6)
    q = np.sqrt(p) / np.sqrt(p).sum(axis=1, keepdims=True)
    bucket = np.where(inside, p, q * rest / np.where(inside, 0, q).sum(axis=1, keepdims=True))
    a, b = q - p, q - bucket
    want = np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b))
    assert found.result()["gradient_cosine"] == pytest.approx(want, rel=1e-6) and want < 0.999


def test_a_signal_that_rules_tokens_out_has_no_forward_kl(log_p):
    found = fidelity.Fidelity(tail=False)
    found.add(log_p[0], SparseSignal(ids=np.zeros((TOKENS, 1), int), log_probs=np.zeros((TOKENS, 1))))
    assert found.result()["kl"] is None and found.result()["kl_back"] == pytest.approx(-log_p[0, :, 0].mean(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_teacher_that_is_not_finite_stores_nothing(teacher_and_batch, kind, value):
    """Of draws and of the likeliest token only the ids are kept, and they look like any others."""
    teacher, batch = teacher_and_batch
    broken = jax.tree.map(lambda leaf: leaf, teacher)
    leaves, structure = jax.tree.flatten(broken)
    leaves = [leaf.at[...].set(value) if leaf.ndim == 1 else leaf for leaf in leaves]  # the last norm's gains
    found = jax.tree.map(lambda x: np.asarray(x)[0], cut(KINDS[kind], jax.tree.unflatten(structure, leaves), batch))
    rank = np.arange(teacher.config.tokens)
    with pytest.raises(SignalError, match="window 7: the teacher's output is not finite"):
        extract.record(KINDS[kind], rank, found, 7)
    whole = jax.tree.map(lambda x: np.asarray(x)[0], cut(KINDS[kind], teacher, batch))
    assert extract.record(KINDS[kind], rank, whole, 7)[1]
