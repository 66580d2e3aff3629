"""One step, however it is cut: into microbatches, masks, calls, devices; with a teacher online or stored; golden."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.training import optim, step
from distill.types import Batch, TeacherSignal


def with_objective(config, **changes):
    return dataclasses.replace(config, objective=dataclasses.replace(config.objective, **changes))


def teacher_of(config, seed=7):
    """Another model of the same shape, on the current mesh."""
    return step.init_state(dataclasses.replace(config, seed=seed)).params


def with_batch(batches, **changes):
    return dataclasses.replace(batches, **changes)


@pytest.fixture(params=["supervised", "distilled"])
def case(request, tiny):
    """(config, its teacher or None): the two kinds of run that share all of their code."""
    config = with_objective(tiny, lambda_=0.75)
    return config, teacher_of(tiny) if request.param == "distilled" else None


@pytest.mark.parametrize("microbatches", [2, 4])
def test_microbatches_are_one_batch(case, make_batch, gradient_of, run_steps, relative_error, microbatches):
    """Also where they hold different numbers of tokens: a mean of means would show."""
    config, teacher = case
    batches = make_batch(5)
    weight = batches.weight.copy()
    weight[:, 0] = 0  # one row counts nothing
    weight[:, 1, 3:] = 0
    batches = with_batch(batches, weight=weight)
    cut = dataclasses.replace(config, microbatches=microbatches)
    want = gradient_of(config, batches, teacher=teacher)
    assert relative_error(gradient_of(cut, batches, teacher=teacher), want) < 1e-6
    whole, parts = (run_steps(c, batches, teacher=teacher)[1] for c in (config, cut))
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-5, err_msg=name)


def test_a_mask_is_the_subset_of_its_tokens(case, make_batch, gradient_of, relative_error):
    """Masked tokens (two rows, and the ends of the others) may be anything, and add nothing to sum or divisor."""
    config, teacher = case
    batches, other = make_batch(5, weighted=False), make_batch(5, seed=1, weighted=False)
    weight = np.zeros_like(batches.weight)
    weight[:, :2, :9] = 1
    tokens = other.tokens.copy()
    tokens[:, :2, :10] = batches.tokens[:, :2, :10]
    masked = gradient_of(config, with_batch(batches, weight=weight), teacher=teacher)
    changed = gradient_of(config, Batch(tokens, weight), teacher=teacher)
    assert relative_error(changed, masked) < 1e-5
    # The same 18 tokens in every row: twice the sum over twice the weight.
    twice = np.concatenate([batches.tokens[:, :2], batches.tokens[:, :2]], axis=1)
    kept = np.concatenate([weight[:, :2], weight[:, :2]], axis=1)
    assert relative_error(gradient_of(config, Batch(twice, kept), teacher=teacher), masked) < 1e-5
    everything = gradient_of(config, with_batch(batches, weight=np.ones_like(weight)), teacher=teacher)
    assert relative_error(everything, masked) > 0.1


def test_the_loss_is_a_mean_of_weights_whatever_their_scale(case, make_batch, gradient_of, relative_error):
    config, teacher = case
    batches = make_batch(5)
    scaled = gradient_of(config, with_batch(batches, weight=8 * batches.weight), teacher=teacher)
    assert relative_error(scaled, gradient_of(config, batches, teacher=teacher)) < 1e-6


def test_a_batch_without_weight_leaves_the_model_finite(case, make_batch, run_steps):
    config, teacher = case
    batches = make_batch(5)
    state, sums = run_steps(config, with_batch(batches, weight=np.zeros_like(batches.weight)), teacher=teacher, count=1)
    assert float(sums["loss"]) == 0 and float(sums["grad_norm"]) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_a_student_that_equals_its_teacher_has_no_gradient(tiny, make_batch, run_steps):
    config = with_objective(tiny, lambda_=1.0, z_loss=0.0)
    teacher = teacher_of(tiny, seed=config.seed)
    _, sums = run_steps(config, make_batch(5), teacher=teacher, count=1)
    assert float(sums["grad_norm"]) < 1e-6
    _, other = run_steps(config, make_batch(5), teacher=teacher_of(tiny), count=1)
    assert float(other["grad_norm"]) > 1e-2


def test_lambda_zero_is_supervised_training(tiny, make_batch, gradient_of, relative_error):
    config = with_objective(tiny, lambda_=0.0)
    taught = gradient_of(config, make_batch(5), teacher=teacher_of(tiny))
    assert relative_error(taught, gradient_of(tiny, make_batch(5))) < 1e-6


def test_the_teacher_is_an_argument_that_is_read_and_never_changed(tiny, make_batch, run_steps, assert_trees_equal):
    first, second = teacher_of(tiny), teacher_of(tiny, seed=8)
    before = jax.tree.map(np.asarray, first)
    (a, _), compiled = run_steps(tiny, make_batch(5), teacher=first), step.train_steps._cache_size()
    b, _ = run_steps(tiny, make_batch(5), teacher=second)
    assert step.train_steps._cache_size() == compiled, "another teacher of the same shape must not compile again"
    assert np.abs(a.params.embed[...] - b.params.embed[...]).max() > 1e-3, "the teacher is a constant of the program"
    assert_trees_equal(first, before)


def test_a_stored_signal_is_the_online_teacher(tiny, make_batch, gradient_of, run_steps, relative_error):
    config, teacher, batches = with_objective(tiny, temperature=2.0), teacher_of(tiny), make_batch(5)
    log_probs = jax.jit(lambda m, tokens: jax.nn.log_softmax(m(tokens)))
    signal = np.stack([np.asarray(log_probs(teacher, jnp.asarray(tokens[:, :-1]))) for tokens in batches.tokens])
    stored = with_batch(batches, signal=TeacherSignal(log_probs=signal))
    want = gradient_of(config, batches, teacher=teacher)
    assert relative_error(gradient_of(config, stored), want) < 1e-5
    online = run_steps(config, batches, teacher=teacher)[1]
    np.testing.assert_allclose(run_steps(config, stored)[1]["loss"], online["loss"], rtol=1e-5)


def test_count_cuts_a_call_short(tiny, make_batch, run_steps, assert_trees_equal):
    """2 and then 3 steps of a stack of 5 end where 5 steps end, bit for bit, in one executable."""
    batches = make_batch(5)
    whole, sums = run_steps(tiny, batches)
    compiled = step.train_steps._cache_size()
    part, first = run_steps(tiny, batches, count=2)
    rest = jax.tree.map(lambda array: np.roll(array, -2, axis=0), batches)
    part, second = run_steps(tiny, rest, state=part, count=3)
    assert step.train_steps._cache_size() == compiled
    assert int(part.step) == int(whole.step) == 5
    assert_trees_equal(part, whole)
    for name in sums:
        np.testing.assert_allclose(first[name] + second[name], sums[name], rtol=1e-5, err_msg=name)


def test_runs_that_differ_in_numbers_only_share_one_executable(tiny, make_batch, run_steps):
    run_steps(tiny, make_batch(5))
    compiled = step.train_steps._cache_size()
    numbers = dict(learning_rate=0.003, weight_decay=0.1, clip=0.2, warmup_steps=2, decay_fraction=0.5)
    other = dataclasses.replace(
        tiny,
        tokens=2 * tiny.tokens,
        seed=3,
        optim=dataclasses.replace(tiny.optim, **numbers),
        objective=dataclasses.replace(tiny.objective, z_loss=0.01),
        loop=dataclasses.replace(tiny.loop, keep=5),
    )
    _, sums = run_steps(other, make_batch(5))
    assert step.train_steps._cache_size() == compiled
    rates = other.optim.learning_rate * optim.schedule("wsd", optim.hyperparams(other), jnp.arange(5))
    np.testing.assert_allclose(sums["learning_rate"], rates.sum(), rtol=1e-5)  # and yet they are other numbers


def test_the_old_state_is_donated(tiny, make_batch, run_steps):
    state = step.init_state(tiny)
    run_steps(tiny, make_batch(5), state=state)
    assert state.params.embed[...].is_deleted() and state.params.blocks.up[...].is_deleted()


def test_bfloat16_trains_near_float32(tiny, make_batch, run_steps):
    narrow = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, dtype="bfloat16"))
    state, sums = run_steps(narrow, make_batch(5))
    np.testing.assert_allclose(sums["loss"], run_steps(tiny, make_batch(5))[1]["loss"], rtol=5e-3)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}


def test_a_checkpoint_holds_all_but_the_numbers(tiny, make_batch, run_steps, assert_trees_equal):
    state, _ = run_steps(tiny, make_batch(5))
    other = step.init_state(dataclasses.replace(tiny, tokens=2 * tiny.tokens, seed=1))
    steps = float(other.hyper.steps)
    restored = other.restored(state.stored())
    assert_trees_equal(restored.stored(), state.stored())
    assert float(restored.hyper.steps) == steps == 40


MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)]


@pytest.fixture(scope="module")
def wide(tiny):
    """Divisible by every mesh of eight devices."""
    model = dataclasses.replace(tiny.model, d_model=32, n_heads=4, d_ff_multiple=32)
    config = dataclasses.replace(tiny, model=model, batch_size=8, tokens=20 * 8 * 16)
    return with_objective(config, lambda_=0.75)


@pytest.fixture(scope="module")
def trajectories(wide, make_batch, run_steps, mesh_of):
    """trajectories(shape, kind): metrics of the first step, and the sum over the four after it.

    A teacher at lambda = 0 gives the supervised loss by the executable of the distilled one.
    """
    known = {}

    def found(shape, kind):
        if (shape, kind) not in known:
            config = with_objective(wide, lambda_=0.0) if kind == "lambda 0" else wide
            if kind == "sequence":
                config = dataclasses.replace(config, model=dataclasses.replace(config.model, sequence=True))
            with jax.set_mesh(mesh_of(*shape)):
                teacher = None if kind == "supervised" else teacher_of(wide)
                state, first = run_steps(config, make_batch(5, batch=8), teacher=teacher, count=1)
                rest = jax.tree.map(lambda array: np.roll(array, -1, axis=0), make_batch(5, batch=8))
                state, later = run_steps(config, rest, teacher=teacher, state=state, count=4)
                known[shape, kind] = [{k: float(v) for k, v in m.items()} for m in (first, later)]
        return known[shape, kind]

    return found


@pytest.mark.parametrize(
    ("shape", "kind"),
    [(shape, kind) for shape in MESHES for kind in ("distilled", "lambda 0")]
    + [((2, 2, 2), "supervised"), ((2, 2, 2), "sequence"), ((1, 2, 4), "sequence")],
)
def test_the_loss_does_not_depend_on_the_mesh(trajectories, shape, kind):
    want = trajectories((1, 1, 1), "distilled" if kind in ("distilled", "sequence") else "lambda 0")
    # Measured: .39e-6 in the first step, .41e-6 in the four after it; 2e-3 with one token that is read wrongly.
    for got, one, tolerance in zip(trajectories(shape, kind), want, (5e-6, 2e-5)):
        assert got.keys() == one.keys() - ({"kd"} if kind == "supervised" else set())
        for name in got:
            loose = 10 * tolerance if name == "grad_norm" else tolerance
            assert got[name] == pytest.approx(one[name], rel=loose), name


def test_every_mesh_begins_with_the_same_parameters(wide, mesh_of, assert_trees_equal):
    with jax.set_mesh(mesh_of(1, 1, 1)):
        want = step.init_state(wide).params
    with jax.set_mesh(mesh_of(2, 2, 2)):
        got = step.init_state(wide)
    assert_trees_equal(got.params, want)
    assert got.params.blocks.up[...].addressable_shards[0].data.shape == (2, 16, 48)  # fsdp halves D, tensor F
    moments = [leaf for leaf in jax.tree.leaves(got.opt_state) if leaf.shape == got.params.embed.shape]
    assert len(moments) == 2
    assert {leaf.addressable_shards[0].data.shape for leaf in moments} == {(16, 16)}  # so are Adam's moments


def test_five_steps_are_golden(case, make_batch, run_steps, golden):
    """Any change of model, objective, optimiser or initial values moves these numbers."""
    config, teacher = case
    batches, state, got = make_batch(5), None, {}
    for i in range(5):
        turned = jax.tree.map(lambda array: np.roll(array, -i, axis=0), batches)  # noqa: B023
        state, sums = run_steps(config, turned, teacher=teacher, state=state, count=1)
        got |= {f"step {i}: {name}": float(value) for name, value in sorted(sums.items())}
    golden("steps_distilled" if teacher else "steps_supervised", got, rtol=1e-4)
