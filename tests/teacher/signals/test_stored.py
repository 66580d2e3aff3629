"""Students of stored signals: they learn what the teacher itself would have said, and from their own store alone."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from distill import config as configs
from distill.config import ConfigError, DistillError, ObjectiveConfig, TeacherConfig
from distill.data import Loader
from distill.errors import SignalError
from distill.records import runs
from distill.teacher.signals import manifest
from distill.teacher.signals.reader import SignalStore, identify_stored
from distill.teacher.signals.spec import SignalSpec
from distill.training import cache, inputs, loop, teachers
from launch import cache as launch_cache
from launch import train as launch_train
from launch.support import cli
from tests.teacher.signals.conftest import KINDS, reading


def metrics(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return np.array([[line["ntp"], line["kd"], line["grad_norm"]] for line in lines])


# What float32 arithmetic, float16 and the quantiser leave of the online teacher's word.
NEAR = {"hidden": 2e-6, "full": 5e-4, "topk": 1e-2, "topp": 2e-2, "argmax": 2e-6}


@pytest.mark.parametrize("kind", NEAR)
def test_a_student_learns_what_the_teacher_would_have_said(kind, student, made, tmp_path):
    record = loop.train(reading(student, kind, made(kind)), tmp_path / "stored")
    online = loop.train(dataclasses.replace(student, objective=KINDS[kind][1]), tmp_path / "online")
    np.testing.assert_allclose(metrics(tmp_path / "stored"), metrics(tmp_path / "online"), rtol=NEAR[kind])
    assert record.loss == pytest.approx(online.loss, rel=NEAR[kind])
    assert record.kl == pytest.approx(online.kl, rel=0.2) and record.L_T == online.L_T
    assert (record.teacher, record.N_T, record.D_T, record.flops_teacher) == (
        online.teacher, online.N_T, online.D_T, online.flops_teacher
    )  # fmt: skip
    assert record.run != online.run, "what it learned from is part of what it is"


def test_in_chunks_from_hidden_states_the_same(student, made, tmp_path):
    dense = loop.train(reading(student, "hidden", made("hidden")), tmp_path / "dense")
    objective = ObjectiveConfig(implementation="fused")
    config = dataclasses.replace(reading(student, "hidden", made("hidden")), objective=objective, microbatches=2)
    fused = loop.train(config, tmp_path / "fused")
    assert fused.loss == pytest.approx(dense.loss, rel=1e-5) and fused.run == dense.run


def test_sampled_signals_teach(student, made, tmp_path):
    """Draws are noise around the teacher's word: no number can equal the online one, but every step's loss is finite,
    and the same store gives the same run bit for bit."""
    one = loop.train(reading(student, "sampled", made("sampled")), tmp_path / "one")
    two = loop.train(reading(student, "sampled", made("sampled")), tmp_path / "two")
    assert one.loss == two.loss and np.isfinite(metrics(tmp_path / "one")).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_store_says_in_which_precision_its_teacher_spoke(dtype, student, made, tmp_path):
    lowered = dataclasses.replace(student, teacher=dataclasses.replace(student.teacher, dtype=dtype))
    cache.cache_signals(lowered, KINDS["full"][0], tmp_path / "store", shard_tokens=7 * 16)
    online = loop.train(lowered, tmp_path / "online")
    taught = loop.train(reading(student, "full", tmp_path / "store"), tmp_path / "stored")
    assert "teacher.dtype = '" + dtype in (tmp_path / "stored" / "config.txt").read_text().replace('"', "'")
    assert taught.loss == pytest.approx(online.loss, rel=1e-4)
    other = "int8" if dtype == "bfloat16" else "bfloat16"
    with pytest.raises(ConfigError, match=f"teacher.dtype='{other}', but the store .* holds '{dtype}'"):
        identify_stored(dataclasses.replace(reading(student, "full", tmp_path / "store").teacher, dtype=other))
    with pytest.raises(SignalError, match="begun with teacher.dtype"):
        cache.cache_signals(student, KINDS["full"][0], tmp_path / "store", shard_tokens=7 * 16)


def test_without_the_teacher_the_run_is_the_same_and_says_what_it_knows(student, made, tmp_path):
    config = reading(student, "topk", made("topk"))
    with_it = loop.train(config, tmp_path / "with")
    alone = dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, source=""))
    record = loop.train(alone, tmp_path / "alone")
    assert record.run == with_it.run and record.loss == with_it.loss and record.kind == "distillation"
    assert record.L_T == with_it.L_T and record.kl is None and record.agreement is None
    other = dataclasses.replace(alone, eval=dataclasses.replace(alone.eval, tokens=128))
    assert loop.train(other, tmp_path / "other").L_T is None, "measured on another validation set"


def test_several_devices_read_one_store(student, made, tmp_path, mesh_of, monkeypatch):
    """Made on one device, read on four."""
    config = reading(student, "hidden", made("hidden"))
    one = loop.train(config, tmp_path / "one")
    wide = mesh_of(1, 2, 2)
    monkeypatch.setattr(loop.sharding, "make", lambda config: wide)
    four = loop.train(config, tmp_path / "four")
    assert four.loss == pytest.approx(one.loss, rel=1e-5)


def test_hosts_read_their_share_in_the_loaders_order(student, made):
    store = inputs.open_store(student, "")
    signal = SignalStore(made("topk"))
    whole = Loader(store, split="student", batch_size=4, seq_len=16)
    halves = [Loader(store, split="student", batch_size=4, seq_len=16, process=(i, 2)) for i in (0, 1)]
    for step in range(6):
        want = signal.read(whole.windows(step))
        got = [signal.read(half.windows(step)) for half in halves]
        for name in ("ids", "log_probs"):
            np.testing.assert_array_equal(np.concatenate([getattr(g, name) for g in got]), getattr(want, name))


READ = """
import hashlib, sys
import numpy as np
from distill.config import ObjectiveConfig
from distill.teacher.signals.reader import SignalStore
store = SignalStore(sys.argv[1], ObjectiveConfig(target="topk", top_k=4))
windows = np.setdiff1d(np.arange(10_000), store.missing(np.arange(10_000)))
assert len(windows) == 24
found = {}
for i in range(20):
    for window in np.random.default_rng(int(sys.argv[2]) + i).permutation(windows):
        signal = store.read(np.array([window]))
        found[int(window)] = np.asarray(signal.ids).tobytes() + np.asarray(signal.log_probs).tobytes()
print(hashlib.sha256(b"".join(found[window] for window in sorted(found))).hexdigest())
"""


def test_several_students_read_one_store_at_once(made):
    """Processes of their own, each in an order of its own, all at the same time."""
    command = [sys.executable, "-c", READ, str(made("topk"))]
    readers = [subprocess.Popen([*command, str(seed)], stdout=subprocess.PIPE, text=True) for seed in range(3)]
    digests = [reader.communicate(timeout=120)[0] for reader in readers]
    assert len(digests[0]) == 65 and digests == digests[:1] * 3


# ---- identity


def test_what_is_stored_is_part_of_a_run_and_where_is_not(student, made, tmp_path):
    config = inputs.resolve(reading(student, "topk", made("topk"))).config
    assert config.teacher.stored == "topk top_k=4" and config.teacher.run
    moved = shutil.copytree(made("topk"), tmp_path / "moved")
    assert configs.fingerprint(inputs.resolve(reading(student, "topk", moved)).config) == configs.fingerprint(config)
    other = inputs.resolve(reading(student, "sampled", made("sampled"))).config
    assert other.teacher.stored == "sampled draws=16 proposal=1.0 seed=0"
    again = dataclasses.replace(other, objective=config.objective)
    assert configs.fingerprint(again) != configs.fingerprint(config)


def test_a_config_that_names_another_signal_or_teacher_is_refused(student, made):
    config = reading(student, "topk", made("topk"))
    for name, value in (("stored", "topk top_k=9"), ("run", "0123456789ab")):
        with pytest.raises(ConfigError, match=f"teacher.{name}='{value}', but the store .* holds"):
            identify_stored(dataclasses.replace(config.teacher, **{name: value}))
    with pytest.raises(ConfigError, match="teacher.store: got ''"):
        identify_stored(TeacherConfig(signal="stored"))
    with pytest.raises(ConfigError, match="reading it is 'stored'|set signal='stored'"):
        TeacherConfig(store="somewhere")


def refused(config, store, match):
    device_mesh = loop.sharding.make(config.mesh)
    with jax.set_mesh(device_mesh), pytest.raises(DistillError, match=match):
        teachers.StoredTeacher(inputs.resolve(config), store)


def test_other_data_tokens_and_targets_are_refused_with_both_sides(student, made, tmp_path):
    config, store = reading(student, "topk", made("topk")), inputs.open_store(student, "")
    change = lambda **fields: dataclasses.replace(config, data=dataclasses.replace(config.data, **fields))
    refused(change(split="teacher"), store, "made for data of split='student', and this run has 'teacher'")
    refused(change(packing="segments"), store, "packing='windows', and this run has 'segments'")
    refused(dataclasses.replace(config, seq_len=8), store, "seq_len=16, and this run has 8")
    generated = dataclasses.replace(student.data.generated, seed=1)
    other = change(generated=generated, cache=str(tmp_path / "other"))
    refused(other, inputs.open_store(other, ""), "made for data of store='[0-9a-f]*', and this run has")
    wide = dataclasses.replace(config, objective=ObjectiveConfig(target="topk", top_k=5))
    refused(wide, store, "holds 'topk top_k=4' at tau=1, but objective.target='topk' reads top_k=5")
    refused(dataclasses.replace(config, objective=ObjectiveConfig(temperature=2.0)), store, "at tau=2")
    sampled = dataclasses.replace(config, objective=ObjectiveConfig(target="sampled", draws=4))
    refused(sampled, store, "'sampled' reads draws=4")
    longer = dataclasses.replace(config, tokens=40 * 4 * 16)
    refused(longer, store, r"no signal of \d+ of the windows that this run reads .* first 24 windows in the order")


def test_another_teacher_is_refused(student, made, tmp_path):
    other = dataclasses.replace(student, seed=5, data=dataclasses.replace(student.data, split="teacher"))
    loop.train(dataclasses.replace(other, teacher=TeacherConfig()), tmp_path / "other")
    config = reading(student, "topk", made("topk"))
    config = dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, source=str(tmp_path / "other")))
    with pytest.raises(ConfigError, match="holds run"):
        inputs.resolve(config)


# ---- making


def test_a_store_is_the_same_however_it_was_made(student, made, tmp_path, monkeypatch):
    """Interrupted after any chunk and gone on with: the same bytes in every file."""
    monkeypatch.setattr(cache, "CHUNK_TOKENS", 3 * 16)
    cache.cache_signals(student, KINDS["sampled"][0], tmp_path / "whole", shard_tokens=7 * 16)

    class Stop(Exception):
        pass

    def stop(_):
        raise Stop

    for _ in range(4):
        with pytest.raises(Stop):
            cache.cache_signals(student, KINDS["sampled"][0], tmp_path / "parts", shard_tokens=7 * 16, on_progress=stop)
        with pytest.raises(SignalError, match="not a finished store"):
            SignalStore(tmp_path / "parts")
    with pytest.raises(SignalError, match="begun with signal.draws=16, and this call has 17"):
        cache.cache_signals(student, SignalSpec(kind="sampled", draws=17), tmp_path / "parts", shard_tokens=7 * 16)
    cache.cache_signals(student, KINDS["sampled"][0], tmp_path / "parts", shard_tokens=7 * 16)
    one, two = (
        {p.name: p.read_bytes() for p in (tmp_path / f).iterdir() if p.name != "lock"} for f in ("whole", "parts")
    )
    assert one == two


def test_a_finished_store_is_not_made_again_and_another_is_not_made_over_it(student, made):
    want = manifest.read(made("topk"))
    assert cache.cache_signals(student, KINDS["topk"][0], made("topk"), shard_tokens=7 * 16) == want
    with pytest.raises(SignalError, match="begun with signal.top_k=4, and this call has 5"):
        cache.cache_signals(student, SignalSpec(kind="topk", top_k=5), made("topk"), shard_tokens=7 * 16)


def test_repeated_text_is_stored_once_and_other_text_is_another_store(student, tmp_path):
    """data.unique: six steps read the same four windows, which are all that a store needs; a store of as many others is
    not taken for it, although it has as many windows."""

    def unique(number, **changes):
        return dataclasses.replace(student, data=dataclasses.replace(student.data, unique=number), **changes)

    stored = cache.cache_signals(unique(64), SignalSpec(kind="full"), tmp_path / "four")
    assert stored["recipe"]["windows"]["count"] == 4 and stored["recipe"]["windows"]["unique"] == 64
    loop.train(reading(unique(64), "full", tmp_path / "four"), tmp_path / "student")
    refused(reading(unique(128), "full", tmp_path / "four"), inputs.open_store(student, ""), "of data.unique=64")
    one_step = dict(tokens=64)
    cache.cache_signals(unique(128, **one_step), SignalSpec(kind="full"), tmp_path / "first")
    with pytest.raises(DistillError, match="unique"):
        cache.cache_signals(unique(640, **one_step), SignalSpec(kind="full"), tmp_path / "first")


def test_all_windows_of_a_split(student, tmp_path):
    found = cache.cache_signals(student, SignalSpec(kind="argmax"), tmp_path / "all", every=True)
    kept = found["recipe"]["windows"]
    assert kept["count"] == kept["of"] > 100
    store = inputs.open_store(student, "")
    longer = dataclasses.replace(student, tokens=40 * 4 * 16)
    config = reading(longer, "argmax", tmp_path / "all")
    with jax.set_mesh(loop.sharding.make(config.mesh)):
        teachers.StoredTeacher(inputs.resolve(config), store)
    with pytest.raises(SignalError, match=rf"window {kept['of']}; its data have {kept['of']} windows"):
        SignalStore(tmp_path / "all").read(np.array([kept["of"]]))


def test_folders_of_something_else_are_left_alone(student, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(SignalError, match="is no store of signals .thesis.txt."):
        cache.cache_signals(student, SignalSpec(kind="argmax"), tmp_path / "mine")
    with pytest.raises(ConfigError, match="a local disk"):
        cache.cache_signals(student, SignalSpec(kind="argmax"), "gs://bucket/store")
    alone = dataclasses.replace(student, teacher=TeacherConfig())
    with pytest.raises(ConfigError, match="teacher.source: got ''"):
        cache.cache_signals(alone, SignalSpec(kind="argmax"), tmp_path / "x")


def test_the_manifest_says_what_the_store_is(student, made):
    found = manifest.read(made("topk"))
    recipe = found["recipe"]
    store = inputs.open_store(student, "")
    assert recipe["data"] == manifest.data_of(student, store) and recipe["tau"] == 1.0
    assert recipe["signal"] == {"kind": "topk", "top_k": 4}
    assert recipe["teacher"]["run"] == inputs.resolve(student).config.teacher.run
    assert len(recipe["teacher"]["checkpoint"]) == 64
    size = sum(shard["size"] for shard in found["shards"])
    assert found["bytes_per_token"] == pytest.approx(size / (24 * 16))
    assert found["fidelity"]["gradient_cosine"] > 0.9 and 0 < found["fidelity"]["kl"] < 0.3
    whole = manifest.read(made("hidden"))["fidelity"]
    assert abs(whole["kl"]) < 1e-9 and whole["gradient_cosine"] == pytest.approx(1, abs=1e-9)


# ---- the commands


@pytest.mark.parametrize("route", ["online", "topk", "sampled", "hidden"])
def test_every_route_has_a_preset_and_two_commands(route, student, tmp_path, capsys):
    """launch.cache and launch.train as a user runs them, on a run of 6 steps."""
    small = ["--config.model.vocab_size=32", "--config.model.d_model=16", "--config.model.d_head=8"]
    small += ["--config.model.tied=true", "--config.model.unroll=1", "--config.data.source=generated"]
    small += ["--config.data.generated.tokens=20000", "--config.data.generated.validation_tokens=4096"]
    small += ["--config.data.generated.document_tokens=40", f"--config.data.cache={student.data.cache}"]
    small += [
        "--config.seq_len=16",
        "--config.tokens=384",
        "--config.eval.tokens=256",
        "--config.loop.steps_per_call=3",
    ]
    small += [f"--config=configs/signals.py:{route}", f"--config.teacher.source={student.teacher.source}"]
    if route != "online":
        # A vocabulary of 32 tokens has the 32 likeliest; cut them down to 5.
        small += ["--config.objective.top_k=5"] if route == "topk" else []
        assert launch_cache.main([*small, f"--out={tmp_path / 'store'}"]) == 0
        said = capsys.readouterr().out
        assert "bytes a token" in said and "cosine of gradients" in said and "24 of" in said
        assert launch_cache.main([*small, f"--out={tmp_path / 'store'}", "--verify"]) == 0
        assert "every record matches its digest" in capsys.readouterr().out
        small.append(f"--config.teacher.store={tmp_path / 'store'}")
    assert launch_train.main([*small, f"--workdir={tmp_path / 'run'}"]) == 0
    record = runs.load_record(tmp_path / "run" / "result.json")
    assert record.kind == "distillation" and record.kl is not None and np.isfinite(record.loss)
    stored_words = json.loads(re.search("teacher.stored = (.*)", (tmp_path / "run" / "config.txt").read_text())[1])
    assert stored_words.split(" ")[0] == ("" if route == "online" else route)


def test_a_mistyped_command_is_one_line(student, tmp_path, capsys):
    for flags, words in (
        ([], "--out=... is missing"),
        (["--out=x", "--kinds=topk"], "Did you mean --kind"),
        (["--out=x", "--kind=topq"], "Did you mean 'topk'|Did you mean 'topp'"),
        (["--out=x", "--kind=topk", "--top_k=0"], "--top_k: got '0', wanted at least 1"),
        (["--out=x", "--windows=some"], "wanted one of run, all"),
        (["--out=x"], "config.teacher.source: got ''"),
    ):
        assert cli.guard(launch_cache.main, flags) == 2
        error = capsys.readouterr().err
        assert re.search(words, error) and error.startswith("error: ") and error.count("\n") == 1


def test_the_signal_that_an_objective_reads():
    assert SignalSpec.of(ObjectiveConfig()) == SignalSpec(kind="hidden")
    assert SignalSpec.of(ObjectiveConfig(target="topk", top_k=9)) == SignalSpec(kind="topk", top_k=9)
    assert SignalSpec.of(ObjectiveConfig(target="sampled", draws=9), seed=2) == SignalSpec(
        kind="sampled", draws=9, seed=2
    )
    assert SignalSpec.of(ObjectiveConfig(target="topk", top_k=9), kind="hidden") == SignalSpec(kind="hidden")
    for _, objective in KINDS.values():
        SignalSpec.of(objective).check_serves(objective, "s")
