"""A teacher with another tokenizer, from a config to a record: online, stored, refused, and not needed."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill import config as configs
from distill.config import ConfigError, ExperimentConfig, MeshConfig, ModelConfig, ObjectiveConfig, TeacherConfig
from distill.config.data import DataConfig, FilesConfig, SplitConfig, TokenizerConfig
from distill.data.documents import Part
from distill.errors import SignalError
from distill.interop import load as load_model
from distill.model import sharding
from distill.teacher.signals.reader import SignalStore
from distill.teacher.signals.spec import SignalSpec
from distill.training import cache, cross_teacher, inputs, loop, origin
from distill.training.teachers import open_teacher
from tests import tokens

STUDENT = {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 24}
KINDS = {"likelihood": "chunks", "projection": "cells"}


pytestmark = pytest.mark.usefixtures("one_device_loop")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with texts, a teacher of subwords that begins every text with <s>, and one of other subwords."""
    folder = tmp_path_factory.mktemp("cross")
    rng = np.random.default_rng(0)
    lines = [json.dumps({"text": tokens.text(rng, 40)}) for _ in range(60)]
    (folder / "texts.jsonl").write_text("\n".join(lines))
    with jax.set_mesh(sharding.make(MeshConfig(data=1), jax.devices()[:1])):
        tokens.publish(folder / "teacher", tokens.bos(), scale=0.3)
        tokens.publish(folder / "coarse", tokens.library(merges=tokens.MERGES[:4]), scale=0.3)
    return folder


@pytest.fixture
def student(place):
    """student(kind of tokenizer, teacher, **fields of the experiment): 4 steps of 4 x 24 tokens."""

    def make(teacher="teacher", tokenizer="", objective=None, **fields):
        path = str(place / tokenizer) if tokenizer else ""
        data = DataConfig(
            source="files",
            files=FilesConfig(paths=(str(place / "texts.jsonl"),)),
            splits=SplitConfig(validation=0.2, teacher=0.5),
            tokenizer=TokenizerConfig(kind="json" if path else "bytes", path=path),
            cache=str(place / "stores"),
        )
        vocab = len(tokens.LETTERS) + 4 + len(tokens.SPECIALS) if tokenizer == "coarse" else 256
        vocab = len(tokens.LETTERS) + len(tokens.MERGES) + len(tokens.SPECIALS) if tokenizer == "teacher" else vocab
        shared = ExperimentConfig(
            model=ModelConfig(vocab_size=vocab, **STUDENT), data=data, tokens=4 * 4 * 24, batch_size=4, seq_len=24
        )
        return dataclasses.replace(
            shared,
            teacher=TeacherConfig(source=str(place / teacher)) if teacher else TeacherConfig(),
            objective=objective or ObjectiveConfig(cross_tokenizer="likelihood"),
            eval=dataclasses.replace(shared.eval, tokens=192, batch_size=4),
            loop=dataclasses.replace(shared.loop, steps_per_call=4, log_steps=4, checkpoint_seconds=1e6),
            **fields,
        )

    return make


def metrics(workdir):
    return json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])


def test_without_the_option_the_refusal_names_it(student, tmp_path):
    with pytest.raises(ConfigError, match="config.objective.cross_tokenizer=likelihood, or projection"):
        loop.train(student(tokenizer="coarse", objective=ObjectiveConfig()), tmp_path / "w")
    assert configs.fingerprint(student(objective=ObjectiveConfig())) == configs.fingerprint(
        dataclasses.replace(student(objective=ObjectiveConfig(cross_tokenizer="none")))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_of_bytes_learns_online_and_from_a_store(student, tmp_path, kind):
    """The store gives the run that the teacher in the step gives; a store that was interrupted is completed."""
    config = student(objective=ObjectiveConfig(cross_tokenizer=kind, lambda_=0.5))
    record = loop.train(config, tmp_path / "online")
    line = metrics(tmp_path / "online")
    assert 0.5 < line["aligned"] < 1 and line["kd"] > 0.01 and record.kl is None
    assert record.tokenizer == "bytes" and record.teacher and record.flops_teacher > 0
    header = (tmp_path / "online" / "config.txt").read_text()
    assert f"objective: {kind} of chunks of equal bytes" in header
    signal = SignalSpec.of(config.objective)
    assert signal.kind == KINDS[kind]
    out = tmp_path / "store"
    written = cache.cache_signals(config, signal, out, shard_tokens=48)
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.suffix == ".signal"}
    assert len(before) > 2
    (out / sorted(before)[-1]).unlink()
    (out / "recipe.json").write_text(json.dumps(written["recipe"], indent=1, sort_keys=True) + "\n")
    (out / "manifest.json").unlink()
    again = cache.cache_signals(config, signal, out, shard_tokens=48)
    assert again["shards"] == written["shards"] and before == {name: (out / name).read_bytes() for name in before}
    SignalStore(out).verify()
    for source in ("", config.teacher.source):
        taught = dataclasses.replace(config.teacher, source=source, signal="stored", store=str(out))
        stored = loop.train(dataclasses.replace(config, teacher=taught), tmp_path / f"stored{bool(source)}")
        close = {"rtol": 1e-5} if kind == "likelihood" else {"rtol": 1e-3}  # float32, and float16
        np.testing.assert_allclose(stored.loss, record.loss, **close)
        np.testing.assert_allclose(stored.L_T, record.L_T, rtol=1e-5)
        np.testing.assert_allclose(metrics(tmp_path / f"stored{bool(source)}")["kd"], line["kd"], **close)
    wrong = ObjectiveConfig(cross_tokenizer=next(k for k in KINDS if k != kind))
    taught = dataclasses.replace(config.teacher, source="", signal="stored", store=str(out))
    with pytest.raises(SignalError, match=f"set objective.cross_tokenizer={kind}"):
        loop.train(dataclasses.replace(config, teacher=taught, objective=wrong), tmp_path / "wrong")


def test_the_teachers_loss_is_of_the_same_bytes(student, tmp_path, place):
    """L_T by hand: each validation window encoded and scored by the model itself, chunks found by walking."""
    config = student(tokenizer="coarse")
    store = inputs.open_store(config, tmp_path)
    run = inputs.resolve(config, store)
    source = open_teacher(run, store)
    evaluation = inputs.validation_set(config, store)
    teacher, model = source.aligner.teacher, load_model(place / "teacher").params
    nats = count = 0.0
    pieces = [p.text if p.kind == "text" else b"" for p in store.tokenizer().pieces()]
    their_pieces = [p.text if p.kind == "text" else b"" for p in teacher.pieces()]
    rows = np.asarray(evaluation.batch.tokens)
    spelt = [b"".join(pieces[i] for i in row) for row in rows]
    only = [  # by hand, windows of one text alone, that cut no character
        i
        for i, row in enumerate(rows)
        if all(len(pieces[j]) for j in row) and spelt[i].decode("utf-8", "ignore").encode() == spelt[i]
    ]
    assert len(only) > 1
    for row in rows[only]:
        ids = teacher.encode([Part(b"".join(pieces[i] for i in row).decode())])[0]
        whole = np.concatenate([teacher.around.before, ids]).astype(np.int32)
        log_p = np.asarray(jax.nn.log_softmax(model(jnp.asarray(whole[None])), axis=-1))[0]
        ends = np.cumsum([len(their_pieces[i]) for i in ids])
        mine = np.cumsum([len(pieces[i]) for i in row])
        common = np.intersect1d(ends, mine)
        inside = (ends > common[0]) & (ends <= common[-1])
        nats -= sum(log_p[j, whole[j + 1]] for j in np.flatnonzero(inside))
        count += ((mine > common[0]) & (mine <= common[-1])).sum()
    part = dataclasses.replace(
        evaluation,
        windows=evaluation.windows[only],
        batch=jax.tree.map(lambda x: np.asarray(x)[only], evaluation.batch),
    )
    np.testing.assert_allclose(source.loss(part, config), nats / count, rtol=1e-5)


def test_the_last_batch_of_a_validation_set_may_be_partial(student, tmp_path):
    """Seven windows in batches of 4, of 7 and of 1: what fills the last batch up counts nowhere."""
    config = student(tokenizer="coarse")
    store = inputs.open_store(config, tmp_path)
    source = open_teacher(inputs.resolve(config, store), store)
    evaluation = inputs.validation_set(config, store)
    seven = dataclasses.replace(
        evaluation,
        windows=evaluation.windows[:7],
        batch=jax.tree.map(lambda x: np.asarray(x)[:7], evaluation.batch),
    )
    want = cross_teacher.chunk_loss(source, seven, 7)
    for size in (1, 4):
        np.testing.assert_allclose(cross_teacher.chunk_loss(source, seven, size), want, rtol=1e-6)


def test_windows_beyond_the_teachers_context_are_refused(student, tmp_path):
    """In one line, before anything is trained: the teacher was made for 64 positions."""
    config = dataclasses.replace(student(), seq_len=96)
    with pytest.raises(ConfigError, match=r"config.seq_len=96: a window is up to \d+ .* made for 64; set") as error:
        loop.train(config, tmp_path / "w")
    assert "\n" not in str(error.value) and not (tmp_path / "w" / "metrics.jsonl").exists()


def test_equal_tokenizers_train_as_without_the_option(student, tmp_path):
    """Bit for bit: the option stands aside where there is nothing to align."""
    plain = loop.train(student(tokenizer="teacher", objective=ObjectiveConfig()), tmp_path / "a")
    for kind in KINDS:
        crossed = student(tokenizer="teacher", objective=ObjectiveConfig(cross_tokenizer=kind, implementation="dense"))
        found = loop.train(crossed, tmp_path / kind)
        assert (found.loss, found.kl, found.L_T) == (plain.loss, plain.kl, plain.L_T)
    with pytest.raises(SignalError, match="reads the text's own tokens"):
        cache.cache_signals(crossed, SignalSpec(kind="chunks"), tmp_path / "s")


@pytest.mark.parametrize("packing", ["windows", "segments", "documents"])
def test_microbatches_change_nothing(student, tmp_path, packing):
    config = student(objective=ObjectiveConfig(cross_tokenizer="projection", temperature=2.0))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, packing=packing))
    one = loop.train(config, tmp_path / "one")
    two = loop.train(dataclasses.replace(config, microbatches=2), tmp_path / "two")
    np.testing.assert_allclose(two.loss, one.loss, rtol=1e-5)
    np.testing.assert_allclose(metrics(tmp_path / "two")["kd"], metrics(tmp_path / "one")["kd"], rtol=1e-5)


def test_what_cannot_be_crossed_is_refused(student):
    for fields, name in (
        ({"on_policy": configs.OnPolicyConfig(fraction=0.5)}, "on_policy.fraction"),
        ({"teacher": TeacherConfig(source="x", signal="memory")}, "teacher.signal='memory'"),
        ({"teacher": TeacherConfig(mixture=("a@1", "b@1"))}, "teacher.mixture"),
        ({"objective": ObjectiveConfig(cross_tokenizer="likelihood", features=("0>0",))}, "objective.features"),
    ):
        with pytest.raises(ConfigError, match=f"cross_tokenizer='likelihood' with {name}"):
            dataclasses.replace(student(), **fields)
    with pytest.raises(ConfigError, match="set target='soft'"):
        ObjectiveConfig(cross_tokenizer="likelihood", target="topk")


def test_a_teacher_can_be_taken_by_number(student, place, tmp_path):
    """Other merges under the same number of tokens: refused, unless the user says that he knows."""
    swapped = tokens.library(order=np.roll(np.arange(len(tokens.LETTERS) + 9 + 4), 1))
    tokens.publish(place / "swapped", swapped)
    config = student(teacher="swapped", tokenizer="teacher", objective=ObjectiveConfig())
    with pytest.raises(ConfigError, match="config.teacher.tokens=number"):
        loop.train(config, tmp_path / "w")
    taken = dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, tokens="number"))
    assert configs.fingerprint(taken) == configs.fingerprint(config)
    assert loop.train(taken, tmp_path / "w").kl is not None
    assert "taken by number" in (tmp_path / "w" / "config.txt").read_text()


def test_the_header_says_what_a_probe_decided(student, place, tmp_path):
    """A pre-tokenizer that is written otherwise and means the same."""
    from tokenizers import Regex, pre_tokenizers

    made = tokens.bos()
    rule = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # GPT-2's, spelt out
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(rule), "isolated"), whole])
    tokens.publish(place / "spelt", made, scale=0.3)
    config = student(teacher="spelt", tokenizer="teacher", objective=ObjectiveConfig())
    store = inputs.open_store(config, tmp_path)
    said = origin.describe(inputs.resolve(config, store), store).tokenizer
    assert "equal on a probe of 1." in said
    own = student(teacher="teacher", tokenizer="teacher", objective=ObjectiveConfig())
    assert origin.describe(inputs.resolve(own, store), store).tokenizer == ""
