"""The loop end to end on a generated language: resumed, branched, distilled, refused; every comparison bit for bit."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from distill import config as configs
from distill.config import ConfigError, DistillError, InitConfig, TeacherConfig, counts
from distill.data import Loader
from distill.errors import DataError
from distill.records import logger
from distill.records.checkpoints import Checkpoints
from distill.system.numbers import number
from distill.teacher import load
from distill.training import inputs, loop, teachers
from distill.training.step import init_state


class Killed(Exception):
    """What stands for a kill in these tests; the study's own tests send real signals."""


@pytest.fixture(autouse=True)
def one_device_mesh():
    """The loop makes its own mesh."""


@pytest.fixture(scope="session")
def small(tiny):
    """Calls of five steps: the executable that the tests of the step have compiled. One device, by its mesh."""
    return dataclasses.replace(
        tiny,
        eval=dataclasses.replace(tiny.eval, tokens=512, batch_size=8),
        loop=dataclasses.replace(tiny.loop, steps_per_call=5, checkpoint_seconds=1e9, log_steps=1),
    )


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """A mesh of data=-1 takes one of the eight fake devices."""
    make = loop.sharding.make
    monkeypatch.setattr(loop.sharding, "make", lambda config: make(config, jax.devices()[:1]))


def weights(config, workdir):
    """The last checkpoint's parameters and optimiser, by name."""
    with jax.set_mesh(loop.sharding.make(config.mesh)), Checkpoints(workdir / "checkpoints") as checkpoints:
        stored = checkpoints.restore(config.steps, init_state(config).stored())
        leaves, _ = jax.tree_util.tree_flatten_with_path(stored)
        return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def results(record):
    """What a run found, without when and where it did."""
    return {k: v for k, v in dataclasses.asdict(record).items() if k not in ("start", "end", "machine", "commit")}


def metrics(workdir):
    lines = logger.read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in logger.CLOCK} for line in lines]


def assert_same_end(config, one, other):
    a, b = weights(config, one), weights(config, other)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(scope="session")
def whole(small, store, tmp_path_factory):
    """An uninterrupted run: (record, workdir). It teaches, too."""
    workdir = tmp_path_factory.mktemp("whole")
    make = loop.sharding.make
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.sharding, "make", lambda config: make(config, jax.devices()[:1]))
        return loop.train(small, workdir, store=store), workdir


@pytest.fixture(scope="session")
def student(small, whole):
    config = dataclasses.replace(small, seed=1, teacher=TeacherConfig(source=str(whole[1])))
    return dataclasses.replace(config, objective=dataclasses.replace(small.objective, lambda_=0.75, temperature=2.0))


def test_a_run_leaves_its_record_and_its_trace(small, whole, store):
    record, workdir = whole
    assert (record.kind, record.run) == ("supervised", configs.fingerprint(small))
    assert counts.non_embedding(small.model) == record.N and record.D == 20 * 4 * 16
    assert record.flops_student == 3 * counts.forward_flops(small.model, 16) * record.D and record.flops_teacher == 0
    assert record.D_unique == record.D  # less than one epoch
    assert (record.L_T, record.teacher, record.kl, record.lambda_) == (None, None, None, None)
    assert record.loss < np.log(32) and 0 < record.loss_se < 0.2
    text = (workdir / "config.txt").read_text()
    assert text.startswith(f"# run {record.run}\n") and configs.from_text(type(small), text) == small
    head = [line for line in text.splitlines() if line.startswith("#")]
    split = store.split("student")
    windows = Loader(store, split="student", batch_size=4, seq_len=16).window_count
    assert head == [
        f"# run {record.run}",
        f"# text: a generated markov language of 8 symbols, seed 0, student split: {split.documents} documents, "
        f"{split.tokens:,d} unique tokens, {number(80 / windows)} epochs",
        "# teacher: none (supervised)",
    ]
    lines = metrics(workdir)
    assert [line["step"] for line in lines] == [5, 10, 15, 20]  # no line is finer than a call
    assert lines[-1]["tokens"] == record.D and lines[-1]["ntp"] < lines[0]["ntp"] < np.log(32) + 0.5


def test_a_finished_run_is_never_run_again(small, whole, store, tmp_path):
    record, workdir = whole
    before = (workdir / "metrics.jsonl").read_bytes()

    def fail(_):
        raise AssertionError("it ran")

    assert loop.train(small, workdir, store=store, on_progress=fail) == record
    assert (workdir / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("taught", [False, True], ids=["supervised", "distilled"])
def test_a_run_that_was_stopped_ends_bit_for_bit_as_if_it_had_not(small, student, store, tmp_path, taught):
    config = student if taught else small
    config = dataclasses.replace(config, loop=dataclasses.replace(config.loop, checkpoint_seconds=0.0))
    straight = loop.train(config, tmp_path / "straight", store=store)
    seen = []

    def stop(progress):
        seen.append(progress.done)
        if len(seen) in (2, 3):  # twice, in the first run and in the second
            raise Killed

    for _ in range(2):
        with pytest.raises(Killed):
            loop.train(config, tmp_path / "stopped", store=store, on_progress=stop)
        assert not (tmp_path / "stopped" / "result.json").exists()
    record = loop.train(config, tmp_path / "stopped", store=store, on_progress=stop)
    assert seen.count(5) == 1, "the second run must go on at a checkpoint, not begin again"
    assert results(record) == results(straight)
    assert_same_end(config, tmp_path / "stopped", tmp_path / "straight")
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "straight")


def test_steps_a_call_change_nothing(small, store, whole, tmp_path):
    """K = 1 and K = 16 end within 1e-6 of K = 5."""
    for size in (1, 16):
        config = dataclasses.replace(small, loop=dataclasses.replace(small.loop, steps_per_call=size))
        record = loop.train(config, tmp_path / str(size), store=store)
        assert record.run == whole[0].run and record.loss == pytest.approx(whole[0].loss, abs=1e-6)
        got, want = weights(config, tmp_path / str(size)), weights(small, whole[1])
        for name in want:
            np.testing.assert_allclose(got[name], want[name], atol=1e-6, rtol=1e-6, err_msg=name)


def test_a_branch_of_a_trunk_is_the_run_from_scratch_bit_for_bit(small, store, whole, tmp_path):
    trunk, steps = tmp_path / "trunk", []
    short = dataclasses.replace(small, tokens=small.tokens // 2)
    long = dataclasses.replace(small, tokens=small.tokens)
    assert configs.trunk_fingerprint(short) == configs.trunk_fingerprint(long)
    loop.train(short, tmp_path / "short", store=store, trunk=trunk)
    record = loop.train(long, tmp_path / "long", store=store, trunk=trunk, on_progress=lambda p: steps.append(p.done))
    assert min(steps) > short.stable_steps == 8, "the branch must start where the trunk stopped"
    assert results(record) == results(whole[0])
    assert_same_end(long, tmp_path / "long", whole[1])
    # And a shorter run after a longer one takes the trunk of before its own decay.
    again = loop.train(short, tmp_path / "again", store=store, trunk=trunk)
    assert again.loss == loop.runs.load_record(tmp_path / "short" / "result.json").loss


def test_distilled_online_and_from_memory(student, store, whole, tmp_path):
    teacher, _ = whole
    online = loop.train(student, tmp_path / "online", store=store)
    assert online.kind == "distillation" and online.teacher == teacher.run
    assert (online.N_T, online.D_T) == (teacher.N, teacher.D) and pytest.approx(teacher.loss, rel=1e-6) == online.L_T
    assert (online.lambda_, online.tau) == (0.75, 2.0) and online.kl > 0 and 0 < online.agreement <= 1
    assert online.flops_teacher == counts.forward_flops(student.model, 16) * online.D
    memory = dataclasses.replace(student, teacher=dataclasses.replace(student.teacher, signal="memory"))
    stored = loop.train(memory, tmp_path / "memory", store=store)
    assert stored.run == online.run  # the same run, however the signal reached it
    for name in ("loss", "kl", "agreement", "ece", "L_T"):
        assert getattr(stored, name) == pytest.approx(getattr(online, name), rel=2e-3, abs=2e-3), name


@pytest.mark.parametrize("packing", ["segments", "documents"])
def test_memory_and_online_agree_where_documents_are_packed(student, store, tmp_path, packing):
    """The stored signal must be of the windows, segments and positions that the student reads."""
    packed = dataclasses.replace(student, data=dataclasses.replace(student.data, packing=packing))
    online = loop.train(packed, tmp_path / "online", store=store)
    memory = dataclasses.replace(packed, teacher=dataclasses.replace(packed.teacher, signal="memory"))
    stored = loop.train(memory, tmp_path / "memory", store=store)
    assert metrics(tmp_path / "memory")[0]["kd"] == pytest.approx(metrics(tmp_path / "online")[0]["kd"], rel=2e-4)
    assert stored.kl == pytest.approx(online.kl, rel=5e-3, abs=1e-4)


@pytest.mark.parametrize("signal, kind", [("online", teachers.OnlineTeacher), ("memory", teachers.CachedTeacher)])
def test_a_signal_selects_its_teacher_source(signal, kind, small, student, store, whole):
    config = dataclasses.replace(student, teacher=dataclasses.replace(student.teacher, signal=signal))
    with jax.set_mesh(loop.sharding.make(config.mesh)):
        teacher = teachers.open_teacher(inputs.resolve(config), store)
        assert type(teacher) is kind and teacher.run == whole[0].run == teacher.teachers[0].record.run
        inside = signal == "online"
        assert (teacher.step_argument is not None) is inside
        assert (teacher.signal_reader("student") is None) is inside
        assert (teacher.step_flops(16) > 0) is inside
        assert teachers.open_teacher(inputs.resolve(small), store) is None


def test_a_teacher_and_its_store_are_read_once_a_run(small, whole, store, tmp_path, monkeypatch):
    """By the command that describes a run and then trains it, too (launch/train.py)."""
    read = []
    monkeypatch.setattr(load, "read_info", lambda source, real=load.read_info: read.append(source) or real(source))
    student = dataclasses.replace(small, teacher=TeacherConfig(source=str(whole[1])), init=InitConfig(source="init"))
    shutil.copytree(whole[1], tmp_path / "init")
    monkeypatch.chdir(tmp_path)
    run = inputs.resolve(student)
    assert read == ["init", str(whole[1])]
    record = loop.train(run, tmp_path / "student", store=store)
    assert len(read) == 2 and record.teacher == run.config.teacher.run == whole[0].run


def test_the_teacher_enters_by_its_own_name(student, whole, tmp_path):
    named = inputs.resolve(student).config
    assert named.teacher.run == whole[0].run
    assert configs.fingerprint(named) != configs.fingerprint(student)
    wrong = dataclasses.replace(student, teacher=dataclasses.replace(student.teacher, run="0123456789ab"))
    with pytest.raises(ConfigError, match=f"teacher.run=0123456789ab, but .* holds run {whole[0].run}"):
        inputs.resolve(wrong)
    with pytest.raises(ConfigError, match="there is no finished run"):
        inputs.resolve(dataclasses.replace(student, teacher=TeacherConfig(source=str(tmp_path))))


def test_a_workdir_of_another_run_is_refused_by_the_field_that_makes_it_another(small, whole, store):
    other = dataclasses.replace(
        small, seed=4, model=dataclasses.replace(small.model, unroll=2), loop=dataclasses.replace(small.loop, keep=7)
    )
    with pytest.raises(ConfigError, match=r"belongs to another run: config.seed was 0 and is now 4") as error:
        loop.train(other, whole[1], store=store)
    assert str(whole[1]) in str(error.value)
    assert f"# run {whole[0].run}" in (whole[1] / "config.txt").read_text()


def test_what_cannot_be_trained_is_refused_before_it_starts(small, student, store, tmp_path):
    def refused(config, error, message):
        with pytest.raises(error, match=message):
            loop.train(config, tmp_path / message[:8], store=store)

    vocabulary = dataclasses.replace(student.model, vocab_size=64)
    refused(dataclasses.replace(student, model=vocabulary), ConfigError, "vocab_size=64 .*; the teacher .* has 32")
    refused(dataclasses.replace(small, mesh=configs.MeshConfig(data=3)), ConfigError, "config.mesh: got data=3")
    tiny = dataclasses.replace(small.model, vocab_size=4)
    with pytest.raises(DataError, match="vocab_size is 4.*set model.vocab_size="):
        loop.train(
            dataclasses.replace(small, model=tiny, data=dataclasses.replace(small.data, cache=str(store.path.parent))),
            tmp_path / "vocabulary",
        )


def test_a_run_that_diverges_does_not_finish(small, store, tmp_path):
    optim = dataclasses.replace(small.optim, weight_decay=1e30, clip=1e30, warmup_steps=0)
    with pytest.raises(DistillError, match="was not finite or spiked, and no update was made"):
        loop.train(dataclasses.replace(small, optim=optim), tmp_path, store=store)
    assert not (tmp_path / "result.json").exists()


def test_a_torn_line_of_metrics_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert [line["step"] for line in logger.read_metrics(path)] == [1, 2]
    assert logger.read_metrics(tmp_path / "none") == []


def test_a_fork_begins_with_the_whole_state_of_another_run_and_says_so(small, whole, store, tmp_path):
    """Its first steps are those of a run that went on; its name is another's than that of a fresh run."""
    _, origin = whole
    constant = dataclasses.replace(small.optim, schedule="constant")
    longer = dataclasses.replace(small, tokens=2 * small.tokens, optim=constant)
    record = loop.train(longer, tmp_path / "fork", store=store, fork=origin)
    text = (tmp_path / "fork" / "config.txt").read_text()
    found = configs.from_text(type(small), text)
    assert found.forked == f"{configs.fingerprint(small)}@{small.steps}"
    assert record.run == configs.fingerprint(found) != configs.fingerprint(longer)
    assert [line["step"] for line in metrics(tmp_path / "fork")] == [25, 30, 35, 40]
    assert metrics(tmp_path / "fork")[0]["ntp"] < metrics(origin)[0]["ntp"] - 0.3
    assert loop.train(longer, tmp_path / "fork", store=store, fork=origin) == record
    with pytest.raises(ConfigError, match="belongs to another run: config.forked was"):
        loop.train(longer, tmp_path / "fork", store=store)


def test_what_cannot_be_forked_is_refused(small, whole, store, tmp_path):
    with pytest.raises(ConfigError, match=r"--fork=\S+none: there is no run"):
        loop.train(small, tmp_path / "a", store=store, fork=tmp_path / "none")
    with pytest.raises(ConfigError, match=r"is of step 20, and config.tokens=1280 is 20 steps; give more tokens"):
        loop.train(dataclasses.replace(small, seed=3), tmp_path / "b", store=store, fork=whole[1])
    assert not (tmp_path / "a" / "config.txt").exists() and not (tmp_path / "b" / "config.txt").exists()
    with pytest.raises(ConfigError, match="holds a run already, which began with fresh weights"):
        loop.train(small, whole[1], store=store, fork=whole[1])


def test_a_workdir_of_another_run_is_refused_with_all_that_differs(small, whole, store):
    other = dataclasses.replace(small, seed=4, optim=dataclasses.replace(small.optim, learning_rate=0.5))
    with pytest.raises(ConfigError) as error:
        loop.train(other, whole[1], store=store)
    assert "config.optim.learning_rate was " in str(error.value) and "config.seed was 0 and is now 4" in str(
        error.value
    )
    assert f"--fork={whole[1]}" in str(error.value)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(small, store, tmp_path, caplog):
    """Bit for bit as if nothing had happened, and the damaged one is kept."""
    config = dataclasses.replace(small, loop=dataclasses.replace(small.loop, checkpoint_seconds=0.0, keep=4))
    straight = loop.train(config, tmp_path / "run", store=store)
    kept = weights(config, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    for step in (15, 20):
        path = max((tmp_path / "run" / "checkpoints" / str(step) / "params" / "d").iterdir())
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 16
        path.write_bytes(bytes(data))
    record = loop.train(config, tmp_path / "run", store=store)
    assert results(record) == results(straight)
    again = weights(config, tmp_path / "run")
    assert all((again[name] == kept[name]).all() for name in kept)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints-damaged").iterdir()) == ["15", "20"]
    assert "step 20 is damaged" in caplog.text and "step 15 is damaged" in caplog.text
    assert [line["step"] for line in metrics(tmp_path / "run")] == [5, 10, 15, 20]
