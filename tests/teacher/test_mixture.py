"""Several teachers as one: the mixture exactly, on every route and mesh, and what a run says of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from distill import config as configs
from distill.config import ConfigError, TeacherConfig, counts
from distill.config.objective import every
from distill.model.transformer import Transformer
from distill.records import runs
from distill.teacher.mixture import TeacherMixture
from distill.training import inputs, loop
from distill.training.evaluate import evaluate

ROUTES = every(lambda_=0.7, beta=0.3, top_k=5, draws=4)
WEIGHTS = (0.7, 0.3)


def mixture_of(*shapes, weights=WEIGHTS):
    """Models of these shapes, with weights drawn from their places; heads sharper than at the start."""
    models = [Transformer(shape, jax.random.key(i + 5)) for i, shape in enumerate(shapes)]
    for model in models:
        model.embed = type(model.embed)(3 * model.embed[...])
    return TeacherMixture(models=tuple(models), weights=jnp.asarray(weights, jnp.float32))


@pytest.fixture(scope="session")
def shapes(tiny):
    """Two teachers of unequal width, depth and head; 24 columns are tokens."""
    one = dataclasses.replace(tiny.model, valid_vocab=24)
    return one, dataclasses.replace(one, d_model=24, n_layers=1, vocab_size=40)


def test_the_mixture_is_the_weighted_mean_of_distributions(shapes):
    mixed = mixture_of(*shapes)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 24, (2, 6)))
    each = [special.softmax(np.asarray(model(tokens), np.float64)[..., :24], axis=-1) for model in mixed.models]
    want = 0.7 * each[0] + 0.3 * each[1]
    got = np.asarray(mixed(tokens), np.float64)
    assert got.shape[-1] == 32 and (got[..., 24:] < -1e29).all()
    np.testing.assert_allclose(np.exp(got[..., :24]), want, rtol=2e-6)
    assert np.abs(want - each[0]).max() > 0.05


def test_a_teacher_mixed_with_itself_is_itself(shapes):
    model = Transformer(shapes[0], jax.random.key(1))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 24, (2, 6)))
    mixed = TeacherMixture(models=(model, model), weights=jnp.asarray([0.2, 0.8]))
    np.testing.assert_allclose(mixed(tokens)[..., :24], jax.nn.log_softmax(model(tokens))[..., :24], atol=2e-6)


@pytest.mark.parametrize("name", ["jensen_shannon-soft-2", "reverse-topk-bucket-1"])
def test_every_route_and_cut_gives_one_gradient(name, tiny, shapes, make_batch, gradient_of, relative_error, mesh_of):
    """Dense on one device against fused, in two microbatches, on 2 x 1 x 2 devices."""
    config = dataclasses.replace(tiny, model=shapes[0], objective=ROUTES[name])
    batches = make_batch(1, vocab=24)
    want = gradient_of(config, batches, teacher=mixture_of(*shapes))
    fused = dataclasses.replace(config.objective, implementation="fused")
    with jax.set_mesh(mesh_of(2, 1, 2)):
        cut = dataclasses.replace(config, objective=fused, microbatches=2)
        spread = gradient_of(cut, batches, teacher=mixture_of(*shapes))
    assert relative_error(spread, want) < 1e-5
    other = gradient_of(config, batches, teacher=mixture_of(*shapes, weights=(0.3, 0.7)))
    assert relative_error(other, want) > 0.01


def test_its_loss_is_below_the_mean_of_its_teachers(tiny, shapes, store):
    """-log is convex: L_T of the mixture is measured, not averaged."""
    evaluation = store.evaluation("validation", 16, 512, packing="windows", completions_only=False)
    mixed = mixture_of(*shapes)
    got = evaluate(mixed, evaluation, 8).loss
    each = [evaluate(model, evaluation, 8).loss for model in mixed.models]
    assert got < 0.7 * each[0] + 0.3 * each[1]
    logits = [np.asarray(m(jnp.asarray(evaluation.batch.inputs)), np.float64)[..., :24] for m in mixed.models]
    log_p = np.log(0.7 * special.softmax(logits[0], -1) + 0.3 * special.softmax(logits[1], -1))
    of_label = np.take_along_axis(log_p, np.asarray(evaluation.batch.labels)[..., None], -1)[..., 0]
    weight = np.asarray(evaluation.batch.weight)
    assert got == pytest.approx(-(of_label * weight).sum() / weight.sum(), rel=1e-5)


@pytest.fixture(scope="module")
def small(tiny):
    return dataclasses.replace(
        tiny,
        eval=dataclasses.replace(tiny.eval, tokens=512, batch_size=8),
        loop=dataclasses.replace(tiny.loop, steps_per_call=5, checkpoint_seconds=1e9),
    )


@pytest.fixture(scope="module")
def teachers(small, store, tmp_path_factory):
    """Two finished runs: [(record, workdir)]."""
    make, found = loop.sharding.make, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.sharding, "make", lambda config: make(config, jax.devices()[:1]))
        for seed, width in ((0, 16), (1, 24)):
            workdir = tmp_path_factory.mktemp(f"teacher{seed}")
            config = dataclasses.replace(small, seed=seed, model=dataclasses.replace(small.model, d_model=width))
            found.append((loop.train(config, workdir, store=store), workdir))
    return found


@pytest.fixture
def one_device(monkeypatch):
    make = loop.sharding.make
    monkeypatch.setattr(loop.sharding, "make", lambda config: make(config, jax.devices()[:1]))


def student_of(small, teachers, weights=(0.7, 0.3), **changes):
    mixture = tuple(f"{workdir}@{weight}" for (_, workdir), weight in zip(teachers, weights))
    return dataclasses.replace(small, seed=3, teacher=TeacherConfig(mixture=mixture, **changes))


def test_a_run_of_several_teachers_names_and_counts_them_all(small, teachers, store, tmp_path, one_device):
    config = student_of(small, teachers)
    record = loop.train(config, tmp_path / "online", store=store)
    (a, _), (b, _) = teachers
    assert set(record.teacher.split("+")) == {f"{a.run}@0.7", f"{b.run}@0.3"}
    assert (record.N_T, record.D_T) == (a.N + b.N, a.D + b.D)
    width = dataclasses.replace(small.model, d_model=24)
    each = [counts.forward_flops(model, small.seq_len) for model in (small.model, width)]
    assert record.flops_teacher == pytest.approx(sum(each) * record.D)
    assert min(a.loss, b.loss) - 0.5 < record.L_T < 0.7 * a.loss + 0.3 * b.loss
    assert record.kl > 0 and record.agreement > 0
    kept = loop.train(student_of(small, teachers, signal="memory"), tmp_path / "memory", store=store)
    assert (kept.run, kept.L_T) == (record.run, record.L_T)
    assert kept.loss == pytest.approx(record.loss, rel=2e-3)


def test_a_mixture_is_named_by_content_and_weights(small, teachers, store, tmp_path):
    name = lambda config: configs.fingerprint(inputs.resolve(config).config)
    want = name(student_of(small, teachers))
    assert name(student_of(small, teachers, weights=(7, 3))) == want
    assert name(student_of(small, teachers[::-1], weights=(0.3, 0.7))) == want
    assert name(student_of(small, teachers, weights=(0.3, 0.7))) != want
    elsewhere = tmp_path / "moved"
    elsewhere.symlink_to(teachers[0][1])
    assert name(student_of(small, [(None, elsewhere), teachers[1]])) == want


def test_unequal_tokenizers_are_refused(small, teachers, store, tmp_path, one_device):
    record, workdir = teachers[1]
    other = tmp_path / "other"
    other.mkdir()
    (other / "checkpoints").symlink_to(workdir / "checkpoints")
    (other / "config.txt").write_text((workdir / "config.txt").read_text())
    runs.save_record(dataclasses.replace(record, tokenizer="another"), other / "result.json")
    with pytest.raises(ConfigError, match="other reads 'another' tokens and the text is 'symbols-8' tokens"):
        loop.train(student_of(small, [teachers[0], (record, other)]), tmp_path / "student", store=store)


@pytest.mark.parametrize("part", ["runs/a", "runs/a@", "@0.5", "runs/a@0", "runs/a@-1", "runs/a@much"])
def test_a_part_is_a_workdir_and_a_weight(part):
    with pytest.raises(ConfigError, match=r"teacher.mixture\[0\]: got .*, wanted 'WORKDIR@WEIGHT'"):
        TeacherConfig(mixture=(part,))


def test_source_and_mixture_exclude_each_other():
    with pytest.raises(ConfigError, match="both source and mixture"):
        TeacherConfig(source="a", mixture=("b@1",))
    assert TeacherConfig(mixture=("a@b@1", "c@3")).sources == (("a@b", 0.25), ("c", 0.75))
    assert TeacherConfig().sources == ()
