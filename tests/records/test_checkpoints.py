"""Checkpoints: bit for bit, on any mesh, safe from donation, pruned as asked, and refused with a reason."""

import dataclasses
import random
import resource
import shutil

import jax
import jax.numpy as jnp
import pytest

from distill.records.checkpoints import CheckpointError, Checkpoints, DamagedCheckpoint
from distill.system import distributed
from distill.training import step


@pytest.fixture(scope="module")
def wide(tiny):
    """Divisible by every mesh of eight devices."""
    model = dataclasses.replace(tiny.model, d_model=32, n_heads=4, d_ff_multiple=32)
    return dataclasses.replace(tiny, model=model, batch_size=8, tokens=20 * 8 * 16)


def test_a_state_comes_back_bit_for_bit_on_another_mesh(wide, mesh_of, tmp_path, assert_trees_equal):
    with jax.set_mesh(mesh_of(2, 2, 2)):
        state = step.init_state(wide)
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(7, state.stored(), "text")
    for shape in ((1, 2, 4), (8, 1, 1)):
        with jax.set_mesh(mesh_of(*shape)):
            other = step.init_state(dataclasses.replace(wide, seed=5))
            with Checkpoints(tmp_path) as checkpoints:
                found = checkpoints.restore(7, other.stored())
            assert_trees_equal(found, state.stored())
            places = lambda tree: [(leaf.sharding.spec, leaf.sharding.mesh.shape) for leaf in jax.tree.leaves(tree)]
            assert places(found["params"]) == places(other.params)
            assert other.restored(found).params.config == wide.model


def test_a_state_may_be_donated_while_it_is_being_saved(tiny, make_batch, run_steps, tmp_path, assert_trees_equal):
    """Saving is asynchronous and the next step overwrites the buffers: what is on disk must be the state as saved."""
    state, kept = step.init_state(tiny), {}
    with Checkpoints(tmp_path, keep=0) as checkpoints:
        for i in range(4):
            kept[i] = jax.tree.map(jnp.copy, state.stored())  # a NumPy view would keep the buffers from being reused
            checkpoints.save(i, state.stored(), "")
            state, _ = run_steps(tiny, make_batch(5, seed=i), state=state)
    with Checkpoints(tmp_path) as checkpoints:
        for i, want in kept.items():
            assert_trees_equal(checkpoints.restore(i, state.stored()), want)


def test_a_save_that_lost_a_process_is_a_loss_and_not_a_failure(tiny, tmp_path, monkeypatch):
    """Seen to fail on two nodes of Slurm: the host that was left noted a failed run, which cancels its students."""

    def lose(*_, **__):
        raise RuntimeError("UNKNOWN: Gloo AllGather failed: Connection closed by peer [127.0.0.1]:45215")

    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "save", lose)
        with pytest.raises(CheckpointError, match="saving step 1 failed: .*Gloo"):  # of one process: only strange
            checkpoints.save(1, step.init_state(tiny).stored(), "")
        monkeypatch.setattr(distributed, "several", lambda: True)
        with pytest.raises(distributed.PeerLost, match="saving step 1: .*Connection closed by peer"):
            checkpoints.save(1, step.init_state(tiny).stored(), "")


def test_a_teacher_is_read_without_its_optimiser(tiny, tmp_path, assert_trees_equal):
    state = step.init_state(tiny)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state.stored(), "")
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.restore(1, {"params": step.init_state(dataclasses.replace(tiny, seed=2)).params})
    assert found.keys() == {"params"}
    assert_trees_equal(found["params"], state.params)


def test_only_the_latest_are_kept_and_none_is_written_twice(tiny, tmp_path, assert_trees_equal):
    state, other = (step.init_state(dataclasses.replace(tiny, seed=seed)) for seed in (0, 3))
    with Checkpoints(tmp_path / "two", keep=2) as checkpoints:
        for i in (5, 10, 15):
            checkpoints.save(i, state.stored(), "")
        checkpoints.save(15, other.stored(), "")
    with Checkpoints(tmp_path / "two", keep=2) as checkpoints:
        assert checkpoints.steps() == [10, 15]
        assert_trees_equal(checkpoints.restore(15, other.stored()), state.stored())


def test_another_model_is_refused_by_the_first_array_that_differs(tiny, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, step.init_state(tiny).stored(), "")
    changes = {
        "n_layers": (dict(n_layers=3), r"blocks\S* has shape \(2, .*wanted \(3, "),
        "untied": (dict(tied=False), r"head\S* has shape None, wanted \(32, 16\)"),
        "no norm": (dict(qk_norm=False), r"key_norm\S* has shape \(2, 8\), wanted None"),
    }
    for change, message in changes.values():
        other = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, **change))
        like = jax.eval_shape(lambda: step.init_state(other).stored())  # noqa: B023
        with Checkpoints(tmp_path) as checkpoints, pytest.raises(CheckpointError, match=message) as error:
            checkpoints.restore(1, like)
        assert str(tmp_path) in str(error.value) and "use the config that made the checkpoint" in str(error.value)


def test_a_step_that_is_not_there_is_named_with_those_that_are(tiny, tmp_path):
    state = step.init_state(tiny)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, state.stored(), "")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(CheckpointError, match=r"no checkpoint of step 3.*\[4\]"):
        checkpoints.restore(3, state.stored())


@pytest.fixture(scope="module")
def three(tiny, mesh_of, tmp_path_factory):
    """Checkpoints 1, 2 and 3 of three different states, and these states."""
    folder, states = tmp_path_factory.mktemp("three"), {}
    with jax.set_mesh(mesh_of(1, 1, 1)), Checkpoints(folder, keep=0) as checkpoints:
        for i in (1, 2, 3):
            states[i] = step.init_state(dataclasses.replace(tiny, seed=i)).stored()
            checkpoints.save(i, states[i], "text")
    return folder, states


def hurt(path, way, chance):
    data = bytearray(path.read_bytes())
    if way == "flip" and data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    if way == "cut":
        del data[len(data) // 2 :]
    path.write_bytes(bytes(data))
    if way == "remove":
        path.unlink()


@pytest.mark.parametrize("way", ["flip", "cut", "remove"])
def test_damage_is_named_set_aside_and_the_one_before_is_taken(three, tmp_path, way, caplog, assert_trees_equal):
    """Whatever happens to whichever file of a checkpoint, no wrong number is restored from it."""
    folder, states = three
    names = sorted(path.relative_to(folder) for path in (folder / "3").rglob("*") if path.is_file())
    chance, marks = random.Random(way), ("commit_success.txt", "_CHECKPOINT_METADATA")  # orbax's own, without a number
    for i, name in enumerate(names):
        copy = tmp_path / str(i)
        shutil.copytree(folder, copy)
        hurt(copy / name, way, chance)
        with Checkpoints(copy) as checkpoints:
            at, found = checkpoints.newest(states[1])
        assert_trees_equal(found, states[at])
        if name.name not in marks:
            assert at == 2, name
            assert (tmp_path / f"{i}-damaged" / "3").exists()
        if name.name not in (*marks, "sha256.json"):
            assert f"step 3 is damaged: {name.relative_to('3')}" in caplog.text


def test_where_none_is_whole_nothing_is_restored_and_nothing_is_lost(three, tmp_path):
    folder, states = three
    shutil.copytree(folder, tmp_path / "copy")
    for i in (1, 2, 3):
        hurt(next(path for path in (tmp_path / "copy" / str(i) / "params" / "d").iterdir()), "flip", random.Random(i))
    with Checkpoints(tmp_path / "copy") as checkpoints, pytest.raises(DamagedCheckpoint, match="none of the 3"):
        checkpoints.newest(states[1])
    assert sorted(path.name for path in (tmp_path / "copy-damaged").iterdir()) == ["1", "2", "3"]
    with Checkpoints(tmp_path / "copy") as checkpoints:
        assert checkpoints.newest(states[1]) is None  # a second start is a fresh one


def test_a_teacher_is_not_read_from_a_damaged_checkpoint(three, tmp_path):
    folder, states = three
    shutil.copytree(folder, tmp_path / "copy")
    hurt(next(path for path in (tmp_path / "copy" / "3" / "params" / "d").iterdir()), "flip", random.Random(0))
    with Checkpoints(tmp_path / "copy") as checkpoints, pytest.raises(DamagedCheckpoint, match="params/d/"):
        checkpoints.restore(3, {"params": states[3]["params"]})


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax abandons its own event loop
def test_a_full_disk_ends_the_saving_and_leaves_the_others(tiny, tmp_path, assert_trees_equal):
    """Files may grow to 4 KB only, which fails as a full disk does."""
    state = step.init_state(tiny).stored()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, "")
    message, before = r"saving step 2 failed: .*of \[1\] are as they were", resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(CheckpointError, match=message), Checkpoints(tmp_path) as checkpoints:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            checkpoints.save(2, state, "")
            checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]
        assert_trees_equal(checkpoints.restore(1, state), state)
