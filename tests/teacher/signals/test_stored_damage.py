"""Stores of signals that were damaged, mixed or edited: named, never used."""

import re
import shutil

import jax
import numpy as np
import pytest

from distill.config import DistillError
from distill.errors import SignalError
from distill.teacher.signals import manifest
from distill.teacher.signals.reader import identify_stored
from distill.teacher.signals.spec import SignalSpec
from distill.training import cache, inputs, loop, teachers
from tests.teacher.signals.conftest import reading


def everything(folder, config, store):
    """All that a student does with a store."""
    identify_stored(config.teacher)
    found = teachers.StoredTeacher(inputs.resolve(config), store)
    loader = inputs.make_loader(config, store, "student")
    return found.signal_reader("student")(loader.distinct(config.steps))


def test_every_byte_of_a_store_is_vouched_for(student, made, tmp_path):
    """Flipped bits in every file, at every place of the small ones: named, never used."""
    folder = shutil.copytree(made("topk"), tmp_path / "damaged")
    config, store = reading(student, "topk", folder), inputs.open_store(student, "")
    rng = np.random.default_rng(0)
    with jax.set_mesh(loop.sharding.make(config.mesh)):
        want = everything(folder, config, store)
        for path in sorted(folder.iterdir()):
            if path.name == "lock":
                continue
            good = path.read_bytes()
            for at in sorted(rng.choice(len(good), min(len(good), 150), replace=False).tolist()):
                path.write_bytes(good[:at] + bytes([good[at] ^ (1 << int(rng.integers(8)))]) + good[at + 1 :])
                with pytest.raises(DistillError, match=re.escape(str(folder))):
                    everything(folder, config, store)
            path.write_bytes(good[: len(good) // 2])
            with pytest.raises(DistillError, match=re.escape(str(path))):
                everything(folder, config, store)
            path.unlink()
            with pytest.raises(DistillError, match=re.escape(path.name)):
                everything(folder, config, store)
            path.write_bytes(good)
        np.testing.assert_array_equal(everything(folder, config, store).ids, want.ids)


def test_swapped_shards_and_an_edited_manifest_are_found(student, made, tmp_path):
    folder = shutil.copytree(made("full"), tmp_path / "damaged")
    config, store = reading(student, "full", folder), inputs.open_store(student, "")
    with jax.set_mesh(loop.sharding.make(config.mesh)):
        one, two = (folder / f"shard-00000{i}.signal" for i in (0, 1))
        a, b = one.read_bytes(), two.read_bytes()
        one.write_bytes(b), two.write_bytes(a)
        with pytest.raises(SignalError, match="shard-00000[01].signal"):
            everything(folder, config, store)
        one.write_bytes(a), two.write_bytes(b)
        path = folder / manifest.MANIFEST
        text = path.read_text()
        for old, new in (('"tau": 1.0', '"tau": 2.0'), ('"split": "student"', '"split": "teacher"'), ("\n", "\n ")):
            assert old in text
            path.write_text(text.replace(old, new, 1))
            with pytest.raises(SignalError, match="its seal is broken"):
                everything(folder, config, store)


def test_a_shard_of_another_store_of_the_same_windows_is_found(student, made, tmp_path):
    folder = shutil.copytree(made("topk"), tmp_path / "mixed")
    cache.cache_signals(student, SignalSpec(kind="topk", top_k=3), tmp_path / "three", shard_tokens=7 * 16)
    shutil.copy(tmp_path / "three" / "shard-000001.signal", folder / "shard-000001.signal")
    config, store = reading(student, "topk", folder), inputs.open_store(student, "")
    with jax.set_mesh(loop.sharding.make(config.mesh)), pytest.raises(SignalError, match="shard-000001"):
        everything(folder, config, store)
