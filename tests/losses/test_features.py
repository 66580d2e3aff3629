"""Feature losses against numpy, their invariances, what trains beside the student and what of it is kept."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.config import ConfigError, ExperimentConfig, ModelConfig, ObjectiveConfig, TeacherConfig, counts
from distill.losses import features
from distill.losses.features import Projector
from distill.model import transformer
from distill.training import loop as train
from distill.training import optim, step
from distill.types import Batch

B, S, D, E = 4, 6, 8, 12
KINDS = ("mse", "cosine")


@pytest.fixture
def case():
    """(student's states, teacher's states, weights): two pairs; a third of the tokens weigh nothing."""
    rng = np.random.default_rng(0)
    states = lambda width: tuple(rng.normal(size=(B, S, width)) for _ in range(2))
    return states(D), states(E), rng.choice([0.0, 0.5, 2.0], (B, S))


def projector(dtype=jnp.float64):
    found = Projector(2, D, E, jax.random.key(0))
    found.project = type(found.project)(found.project[...].astype(dtype))
    return found


def reference(kind, maps, student, teacher):
    """[B, S], in numpy."""
    unit = lambda x: x / np.sqrt((x**2).mean(-1, keepdims=True) + features.EPS)
    each = []
    for w, x, y in zip(np.asarray(maps), student, teacher):
        z, y = unit(x) @ w, unit(y)
        if kind == "mse":
            each.append(((z - y) ** 2).mean(-1))
        else:
            norms = np.sqrt((z**2).sum(-1) * (y**2).sum(-1) + features.EPS)
            each.append(1 - (z * y).sum(-1) / norms)
    return np.mean(each, axis=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_distance_is_what_it_says(kind, case, float64):
    student, teacher, _ = case
    own = projector()
    got = features.distance(kind, own, *(tuple(map(jnp.asarray, x)) for x in (student, teacher)))
    np.testing.assert_allclose(got, reference(kind, own.project[...], student, teacher), rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_states_that_a_projection_maps_onto_each_other_cost_nothing(kind, case, float64):
    """Whatever their scale: y = 3 x W, with an orthogonal W of unequal widths."""
    (x, _), _, _ = case
    own = projector()
    w = np.linalg.qr(np.random.default_rng(1).normal(size=(E, D)))[0].T * np.sqrt(E / D)  # rows keep their RMS
    own.project = type(own.project)(jnp.asarray(np.stack([w, w])))
    pair = (jnp.asarray(x), jnp.asarray(5 * x)), (jnp.asarray(3 * x @ w), jnp.asarray(x @ w))
    assert (np.abs(features.distance(kind, own, *pair)) < 1e-5).all()  # EPS is in the norms
    assert (features.distance(kind, own, pair[0], pair[1][::-1]) < 1e-5).all()
    assert (features.distance(kind, own, pair[0], (-pair[1][0], pair[1][1])) > 0.9).all()


def scored(kind, maps, student, teacher, weight):
    """(loss sum, its gradients by projections and the student's states)."""

    def loss(own, student):
        return jnp.sum(jnp.where(weight == 0, 0, features.distance(kind, own, student, teacher) * weight))

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(maps, student)


def cut(tree, rows):
    return jax.tree.map(lambda x: x[rows], tree)


@pytest.mark.parametrize("kind", KINDS)
def test_microbatches_packing_and_padding_change_nothing(kind, case, float64):
    """To 1e-12: halves add up; rows side by side with a seam and a row of junk under no weight are the same rows."""
    student, teacher, weight = jax.tree.map(jnp.asarray, case)
    own = projector()
    value, (by_maps, by_states) = scored(kind, own, student, teacher, weight)
    assert float(jnp.linalg.norm(by_maps.project[...])) > 0.1
    halves = [scored(kind, own, *cut((student, teacher, weight), rows)) for rows in (slice(0, 2), slice(2, 4))]
    np.testing.assert_allclose(halves[0][0] + halves[1][0], value, rtol=1e-12)
    joined = halves[0][1][0].project[...] + halves[1][1][0].project[...]
    np.testing.assert_allclose(joined, by_maps.project[...], rtol=1e-11, atol=1e-13)

    def pack(x, junk):
        rows = jnp.concatenate([x[0::2], jnp.full_like(x[0::2, :1], junk), x[1::2]], axis=1)
        return jnp.pad(rows, ((0, 1), (0, 0)) + ((0, 0),) * (x.ndim - 2), constant_values=junk)

    packed = jax.tree.map(lambda x: pack(x, 7.0), (student, teacher))
    got, (maps, states) = scored(kind, own, *packed, pack(weight, 0.0))
    np.testing.assert_allclose(got, value, rtol=1e-12)
    np.testing.assert_allclose(maps.project[...], by_maps.project[...], rtol=1e-11, atol=1e-13)
    for packed_slope, slope in zip(states, by_states):
        back = jnp.stack([packed_slope[:2, :S], packed_slope[:2, S + 1 :]], axis=1).reshape(B, S, D)
        np.testing.assert_allclose(back, slope, rtol=1e-11, atol=1e-13)
        np.testing.assert_array_equal(packed_slope[2], 0)
        np.testing.assert_array_equal(packed_slope[:, S], 0)


STATES = ("1>3", "2>0")


@pytest.fixture(scope="module")
def big(tiny):
    """A teacher's shape: deeper and wider than `tiny`."""
    return dataclasses.replace(tiny.model, d_model=32, n_layers=3)


def with_features(config, kind="mse", pairs=STATES, **changes):
    objective = ObjectiveConfig(features=pairs, feature_loss=kind, **{"lambda_": 0.75, "feature_weight": 0.5} | changes)
    return dataclasses.replace(config, objective=objective)


def teacher_of(shape):
    return transformer.Transformer(shape, jax.random.key(9))


def gradients(config, shape, batches, run_steps):
    """Of the student and of the projections, read off the first moments of Adam."""
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, clip=1e9))
    state, sums = run_steps(config, batches, teacher=teacher_of(shape), state=step.init_state(config, shape), count=1)
    moments = {}
    for name, tree in (("student", state.opt_state), ("projector", state.projector_state)):
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
        moments |= {
            name + jax.tree_util.keystr(path): np.asarray(leaf) / (1 - config.optim.b1)
            for path, leaf in leaves
            if ".mu" in jax.tree_util.keystr(path)
        }
    return moments, sums


@pytest.mark.dear("every cut of a batch is a program of its own")
@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_step_however_it_is_cut(kind, tiny, big, make_batch, run_steps, relative_error, mesh_of):
    """Two microbatches; fused on 2 x 1 x 2 devices: the same gradient of student and projections to 1e-5."""
    config, batches = with_features(tiny, kind), make_batch(1)
    want, sums = gradients(config, big, batches, run_steps)
    assert any(name.startswith("projector") for name in want) and float(sums["features"]) > 0.1
    got, _ = gradients(dataclasses.replace(config, microbatches=2), big, batches, run_steps)
    assert relative_error(got, want) < 1e-5
    heavy, _ = gradients(config, big, dataclasses.replace(batches, weight=8 * batches.weight), run_steps)
    assert relative_error(heavy, want) < 1e-5  # a mean, whatever the scale of the weights
    fused = dataclasses.replace(config.objective, implementation="fused")
    with jax.set_mesh(mesh_of(2, 1, 2)):
        spread, _ = gradients(dataclasses.replace(config, objective=fused), big, batches, run_steps)
    assert relative_error(spread, want) < 1e-5


def test_the_weight_stands_beside_lambda(tiny, big, make_batch, run_steps):
    _, sums = gradients(with_features(tiny), big, make_batch(1), run_steps)
    parts = 0.25 * sums["ntp"] + 0.75 * sums["kd"] + 0.5 * sums["features"] + 1e-4 * sums["z"]
    np.testing.assert_allclose(sums["loss"], parts, rtol=1e-6)


def test_projections_train_and_stay_out_of_the_student(tiny, big, make_batch, run_steps, assert_trees_equal):
    """The loss falls; the student's tree is a Transformer's; a checkpoint brings the projections back."""
    config, batches = with_features(tiny, lambda_=0.0), make_batch(1)
    state = step.init_state(config, big)
    assert_trees_equal(state.params, step.init_state(tiny).params)
    first, last = None, None
    for _ in range(12):
        state, sums = run_steps(config, batches, teacher=teacher_of(big), state=state)
        first, last = first or float(sums["features"]), float(sums["features"])
    assert last < 0.8 * first
    stored = state.stored()
    assert_trees_equal(stored["params"], state.params)
    other = step.init_state(dataclasses.replace(config, seed=4), big)
    assert_trees_equal(other.restored(stored).stored(), stored)
    assert "projector" not in step.init_state(tiny).stored()["optimizer"]


def test_without_a_teacher_features_mean_nothing(tiny, make_batch, run_steps):
    state, sums = run_steps(with_features(tiny), make_batch(1))
    assert state.projector is None and "features" not in sums


def test_states_are_those_of_the_layers(tiny):
    """Layer 0 is the embedding, the last one normalised is `hidden`; asking for states changes nothing."""
    own = transformer.Transformer(tiny.model, jax.random.key(0))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 32, (2, 5)))
    hidden, (last, first, middle) = own.states((2, 0, 1), tokens)
    np.testing.assert_array_equal(hidden, own.hidden(tokens))
    np.testing.assert_array_equal(first, own.embed_tokens(tokens))
    np.testing.assert_allclose(transformer.rms_norm(last, own.last_norm[...], tiny.model.norm_eps), hidden, rtol=1e-6)
    shallow = transformer.Transformer(dataclasses.replace(tiny.model, n_layers=1), jax.random.key(0))
    shallow.embed, shallow.blocks = own.embed, jax.tree.map(lambda x: x[:1], own.blocks)
    np.testing.assert_allclose(middle, shallow.states((1,), tokens)[1][0], rtol=1e-5, atol=1e-6)


def test_projections_follow_mup():
    """Scale 1 / sqrt(D_S) at the start; the rate falls with the student's width, decay as for every linear map."""
    wide, narrow = (Projector(1, width, 32, jax.random.key(0)) for width in (256, 64))
    assert float(jnp.std(wide.project[...])) == pytest.approx(1 / 16, rel=0.05)
    h = optim.hyperparams(ExperimentConfig())
    change = {}
    for name, own in (("wide", wide), ("narrow", narrow)):
        transform = optim.optimizer(ExperimentConfig().optim, h, features.fan_in(own))
        ones = jax.tree.map(jnp.ones_like, own)
        updates, _ = transform.update(ones, transform.init(own), jax.tree.map(jnp.zeros_like, own), step=0)
        change[name] = float(jnp.abs(updates.project[...]).mean())
    assert change["narrow"] == pytest.approx(4 * change["wide"], rel=1e-4)


def test_projections_cost_flops_and_no_parameters(tiny, big):
    plain, other = (counts.run_flops(c, big) for c in (tiny, with_features(tiny)))
    extra = 3 * 2 * (2 * tiny.model.d_model * big.d_model) * counts.training_tokens(tiny)
    assert other.student - plain.student == pytest.approx(extra)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": ObjectiveConfig(features=("3>1",))}, "the student has 2 layers, got layer 3"),
        ({"teacher": TeacherConfig(signal="memory")}, "holds distributions and no hidden states"),
        ({"teacher": TeacherConfig(mixture=("a@1", "b@1"))}, "layers are those of one teacher"),
    ],
)
def test_what_cannot_be_had_is_refused_at_build(changes, words):
    with pytest.raises(ConfigError, match=words):
        ExperimentConfig(**{"objective": ObjectiveConfig(features=("1>1",)), "model": ModelConfig()} | changes)


@pytest.mark.parametrize("pair", ["2", "a>b", "2>", "1>2>3", "-1>2"])
def test_a_pair_is_two_layers(pair):
    with pytest.raises(ConfigError, match=r"objective.features\[0\]: got .*wanted 'layer of the student>"):
        ObjectiveConfig(features=(pair,))


def test_a_batch_may_be_packed(tiny, big, make_batch, run_steps):
    """Segments reach the states: two windows in one row give the features of the two rows."""
    batches = make_batch(1, batch=4, seq=16, weighted=False)
    config = with_features(tiny)
    tokens = np.concatenate([batches.tokens[:, 0::2, :16], batches.tokens[:, 1::2]], axis=2)
    weight = np.ones((1, 2, 32), np.float32)
    weight[:, :, 15] = 0  # the seam predicts across windows
    place = np.broadcast_to(np.tile(np.arange(16, dtype=np.int32), 2), (1, 2, 32))
    segment = np.broadcast_to(np.repeat(np.arange(2, dtype=np.int32), 16), (1, 2, 32))
    packed = Batch(tokens, weight, segment=segment, position=place)
    rows = batches.weight.copy()
    rows[:, 0::2, 15] = 0
    want, _ = gradients(config, big, dataclasses.replace(batches, weight=rows), run_steps)
    got, _ = gradients(config, big, packed, run_steps)
    flat = lambda tree: np.concatenate([np.ravel(tree[name]) for name in sorted(tree)])
    assert np.linalg.norm(flat(got) - flat(want)) < 1e-5 * np.linalg.norm(flat(want))


class Killed(Exception):
    """What stands for a kill."""


def test_a_run_that_was_stopped_ends_as_if_it_had_not(tiny, big, store, tmp_path, monkeypatch):
    """Projections and their moments come back with the checkpoint; the teacher reads none of them."""
    make = train.sharding.make
    monkeypatch.setattr(train.sharding, "make", lambda config: make(config, jax.devices()[:1]))
    loop = dataclasses.replace(tiny.loop, steps_per_call=5, checkpoint_seconds=0.0)
    small = dataclasses.replace(tiny, loop=loop, eval=dataclasses.replace(tiny.eval, tokens=512, batch_size=8))
    train.train(dataclasses.replace(small, model=big), tmp_path / "teacher", store=store)
    config = dataclasses.replace(with_features(small), teacher=TeacherConfig(source=str(tmp_path / "teacher")))
    whole = train.train(config, tmp_path / "whole", store=store)

    def stop(progress):
        if progress.done >= 10:
            raise Killed

    with pytest.raises(Killed):
        train.train(config, tmp_path / "stopped", store=store, on_progress=stop)
    again = train.train(config, tmp_path / "stopped", store=store)
    assert (again.loss, again.kl, again.N) == (whole.loss, whole.kl, counts.non_embedding(small.model))
    student = train.train(
        dataclasses.replace(small, seed=2, teacher=TeacherConfig(source=str(tmp_path / "whole"))),
        tmp_path / "next", store=store,
    )  # fmt: skip
    assert student.teacher == whole.run and pytest.approx(whole.loss, rel=1e-6) == student.L_T
