"""Updates that are not made: the rule, the state that stays clean, and the run that stops with its reason."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.config import ConfigError, OptimConfig
from distill.diagnostics import replay
from distill.training import guard, loop, step


def judged(spike, norms, loss=1.0):
    """Which of these gradient norms, one after the other, are accepted; and the guard at the end."""
    state, found = guard.init(), []
    for norm in norms:
        good, state = guard.accept(spike, state, jnp.asarray(loss), jnp.asarray(norm, jnp.float32))
        found.append(bool(good))
    return found, state


def test_what_is_not_finite_is_rejected_and_counted_in_a_row():
    found, state = judged(0.0, [1.0, np.nan, np.inf, 1e30, np.nan])
    assert found == [True, False, False, True, False]
    assert (int(state.consecutive_rejections), int(state.accepted)) == (1, 2)
    assert judged(0.0, [1.0, 1.0], loss=np.nan)[0] == [False, False]


def test_a_spike_is_told_from_what_was_usual_before_it():
    usual = [1.0, 1.2, 0.8, 1.0] * 6
    found, state = judged(5.0, [*usual, 4.9, 7.0, 100.0, 1.0])
    assert found == [True] * 24 + [True, False, False, True]
    assert 0.9 < float(state.norm) < 1.3, "a rejected spike is no part of what is usual"
    assert all(judged(0.0, [*usual, 1e6])[0]), "off by default"
    assert all(judged(5.0, [1.0, 100.0, 1e4])[0]), "the first steps are steep"


def test_the_running_mean_is_a_mean_at_first():
    _, state = judged(0.0, [1.0, 2.0, 6.0])
    assert float(state.norm) == pytest.approx(3.0)


def test_a_bad_batch_changes_nothing_but_the_step(tiny, make_batch, run_steps, assert_trees_equal):
    """Parameters and Adam stay bit for bit; the good steps around it are those of a run without it."""
    batch = make_batch(5)
    weight = np.array(batch.weight)
    weight[2] = np.nan
    poisoned = dataclasses.replace(batch, weight=weight)
    state = step.init_state(tiny)
    before, _ = run_steps(tiny, jax.tree.map(lambda a: a[:2], batch), state=step.init_state(tiny), count=2)
    after, sums = run_steps(tiny, jax.tree.map(lambda a: a[:3], poisoned), state=state, count=3)
    assert float(sums["rejected"]) == 1 and int(sums["consecutive_rejections"]) == 1 and int(after.step) == 3
    assert_trees_equal(after.params, before.params)
    assert_trees_equal(after.opt_state, before.opt_state)
    whole, sums = run_steps(tiny, poisoned, state=step.init_state(tiny))
    assert np.isfinite(float(sums["loss"])) and int(sums["consecutive_rejections"]) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.tree.map(np.asarray, whole.params)))


@pytest.fixture
def one_device(monkeypatch):
    """A mesh of data=-1 takes one of the eight fake devices."""
    make = loop.sharding.make
    monkeypatch.setattr(loop.sharding, "make", lambda config: make(config, jax.devices()[:1]))


def test_a_run_that_diverges_stops_with_the_step_and_can_be_replayed(tiny, store, tmp_path, one_device):
    """A weight decay of 1e30 blows the parameters up at once: from then on no update is finite."""
    config = dataclasses.replace(
        tiny,
        optim=dataclasses.replace(tiny.optim, weight_decay=1e30, warmup_steps=1),
        loop=dataclasses.replace(tiny.loop, steps_per_call=5, checkpoint_seconds=1e9, log_steps=1),
    )
    with pytest.raises(loop.Diverged) as error:
        loop.train(config, tmp_path, store=store)
    assert "in each of the last 9 steps, from step 1 on" in str(error.value)
    assert f"launch.replay --workdir={tmp_path} --step=1" in str(error.value)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["rejected"] == 4 and "loss" in lines[0] and "loss" not in lines[1]
    found = replay.replay(tmp_path, 1)
    assert not np.isfinite([found.means["loss"], found.means["grad_norm"]]).all() and found.start == 0
    assert len(found.sequences) == config.batch_size
    first = replay.replay(tmp_path, 0)
    assert first.means["loss"] == pytest.approx(lines[0]["loss"], rel=1e-6)
    mean = np.mean([sequence.loss for sequence in first.sequences])
    assert first.means["loss"] == pytest.approx(mean, rel=1e-5), "rows of equal weight"
    assert all(gradient > 0 for _, gradient in first.parameters.values())


@pytest.mark.parametrize("spike", [-3.0, 0.5, 1.0, float("nan")])
def test_a_bound_that_would_reject_everything_is_refused(spike):
    with pytest.raises(ConfigError, match="optim.spike: got"):
        OptimConfig(spike=spike)


def test_what_cannot_be_replayed_is_refused(tiny, tmp_path):
    with pytest.raises(ConfigError, match="there is no run"):
        replay.replay(tmp_path, 0)
