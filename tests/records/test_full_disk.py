"""File systems that are full or read-only while something is saved: real ones, mounted for the test.

Root is not stopped by permissions, so a folder is made read-only by a mount; where nobody may mount (and nobody is
root) it is done by its permissions. The lowest level that is made up is none: the errors are the kernel's own.
"""

import contextlib
import dataclasses
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from distill.config import ModelConfig
from distill.records.checkpoints import CheckpointError, Checkpoints
from distill.training import step

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax's own event loop


def mount(*arguments):
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this system mounts nothing here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path):
    """A file system of its own of half a megabyte; disk.remount(options) changes it."""
    if os.geteuid():
        pytest.skip("only root mounts")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=512k", "tmpfs", folder)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def readonly(folder):
    """No file of a folder can be changed."""
    if os.geteuid():
        folder.chmod(0o555)
        yield
        folder.chmod(0o755)
        return
    mount("-o", "remount,ro", folder)
    yield
    mount("-o", "remount,rw", folder)


def test_a_read_only_folder_ends_the_saving_and_leaves_the_others(tiny, disk, assert_trees_equal):
    state = step.init_state(tiny).stored()
    folder = disk / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, state, "")
    failed = pytest.raises(CheckpointError, match=r"saving step 2 failed: .*[Rr]ead-only.*of \[1\] are as they were")
    with failed, Checkpoints(folder) as checkpoints, readonly(disk):
        checkpoints.save(2, state, "")
        checkpoints.wait()
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps() == [1]
        assert_trees_equal(checkpoints.restore(1, state), state)


def test_a_full_file_system_ends_the_saving_and_leaves_the_others(tiny, disk, assert_trees_equal):
    state = step.init_state(tiny).stored()
    folder = disk / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, state, "")
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "others").write_bytes(b"x" * (free - 8192))
    told = (
        r"checkpoints/2: .* it needs about [\d.]+ MB and the file system has 0\.01 MB left; .*of \[1\] are as they were"
    )
    with pytest.raises(CheckpointError, match=told), Checkpoints(folder) as checkpoints:
        checkpoints.save(2, state, "")
    (disk / "others").unlink()
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps() == [1]
        assert_trees_equal(checkpoints.restore(1, state), state)
        checkpoints.save(2, state, "")  # mended, it goes on
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps() == [1, 2]


@pytest.mark.slow
def test_a_run_whose_disk_fills_up_says_so_and_goes_on_when_there_is_room(disk, monkeypatch):
    """launch.train as it is: one line, code 2, no traceback; the same command ends the run once there is room."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # the tests' eight devices
    command = [
        sys.executable, "-m", "launch.train", "--config=configs/train.py:micro", f"--workdir={disk / 'run'}",
        "--config.tokens=40K", "--config.eval.tokens=2048", "--config.loop.checkpoint_seconds=0",
        "--config.loop.steps_per_call=16", "--config.data.cache=" + str(disk.parent / "data"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and "Event loop is closed" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert re.fullmatch(
        r"error: \S+/checkpoints/\d+: saving step \d+ failed: it needs about [\d.]+ MB and the file system has "
        r"[\d.]+ MB left; the checkpoints of \[[\d, ]*\] are as they were: make room and run the same command again",
        last,
    )
    kept = sorted(path.name for path in (disk / "run" / "checkpoints").iterdir() if path.name.isdigit())
    assert not (disk / "run" / "result.json").exists()
    mount("-o", "remount,size=64m", disk)
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert (disk / "run" / "result.json").exists() and "damaged" not in again.stderr, kept


def test_a_state_comes_back_under_another_precision_and_mesh(tiny, mesh_of, make_batch, run_steps, tmp_path):
    """Weights are float32 whatever the arithmetic: a run goes on in bfloat16, on other devices, from the same bits."""
    wide = dataclasses.replace(tiny.model, d_model=32, n_heads=4, d_ff_multiple=32)
    config = dataclasses.replace(tiny, model=wide, batch_size=8, tokens=20 * 8 * 16)
    with jax.set_mesh(mesh_of(2, 2, 2)), Checkpoints(tmp_path) as checkpoints:
        state = step.init_state(config)
        checkpoints.save(3, state.stored(), "")
        want = jax.device_get(jax.tree.leaves(state.params))
    brief = dataclasses.replace(config, model=dataclasses.replace(wide, dtype="bfloat16"))
    assert ModelConfig().dtype == "float32"
    with jax.set_mesh(mesh_of(4, 1, 2)):
        other = step.init_state(dataclasses.replace(brief, seed=9))
        with Checkpoints(tmp_path, readonly=True) as checkpoints:
            found = checkpoints.restore(3, other.stored())
            half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), other.params)
            cut = checkpoints.restore(3, {"params": half})["params"]
        restored = other.restored(found)
        for got, short, leaf in zip(*map(jax.tree.leaves, (restored.params, cut)), want):
            assert got.dtype == jnp.float32 and (jax.device_get(got) == leaf).all()
            assert short.dtype == jnp.bfloat16 and (jax.device_get(short) == leaf.astype(jnp.bfloat16)).all()
        after, sums = run_steps(brief, make_batch(1, batch=8, vocab=32), state=restored)
        assert jnp.isfinite(sums["loss"]) and all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(after.params))
