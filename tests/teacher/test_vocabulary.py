"""Tokens that meet an embedding, a head or a text that is not theirs: refused in one line that can be followed."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill import config as configs
from distill import data, interop
from distill.config import ConfigError, DecodeConfig, ExperimentConfig, InitConfig, ModelConfig
from distill.config.data import DataConfig, FilesConfig, SplitConfig, TokenizerConfig
from distill.config.generation import GenerationConfig
from distill.data.tokenizers.subword import SubwordTokenizer
from distill.errors import DataError, InteropError
from distill.model.transformer import Transformer
from distill.model.warm_start import warm_start
from distill.records.runs import RunRecord
from distill.teacher import any_model, conversion, load, vocabulary
from distill.teacher.generation import generate, journal
from distill.teacher.load import TeacherInfo
from distill.training import inputs, loop, origin
from launch import convert
from launch import evaluate as launch_evaluate
from launch import generate as launch_generate
from launch.support import cli
from tests import tokens

LOGITS = jax.jit(lambda model, ids: model(ids))
PLAIN = tokens.library()
SIZE = PLAIN.get_vocab_size()
STUDENT = {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 24, "qk_norm": False, "tied": False}


pytestmark = pytest.mark.usefixtures("one_device_loop")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """60 documents, and a data config that reads them in the tokens of the tokenizer at a path."""
    folder = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": tokens.text(rng, 40)}) + "\n" for _ in range(60)))

    def config(path, **fields):
        return DataConfig(
            source="files",
            files=FilesConfig(paths=(str(folder / "texts.jsonl"),)),
            splits=SplitConfig(validation=0.2, teacher=0.5),
            tokenizer=TokenizerConfig(kind="json", path=str(path), **fields),
            cache=str(folder / "stores"),
        )

    return config


def student(texts, path, **fields):
    model = ModelConfig(vocab_size=fields.pop("vocab_size", SIZE), scaled_embedding=False, **STUDENT)
    loops = dataclasses.replace(ExperimentConfig().loop, steps_per_call=2)
    config = ExperimentConfig(model=model, data=texts(path), tokens=4 * 4 * 8, batch_size=4, seq_len=8, loop=loops)
    return dataclasses.replace(config, eval=dataclasses.replace(config.eval, tokens=64, batch_size=8), **fields)


def refusal(capsys, main, *flags):
    capsys.readouterr()
    assert cli.guard(main, [str(flag) for flag in flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


# A model with fewer rows than its tokenizer has tokens.


@pytest.fixture
def short(tmp_path):
    """A model of three rows less than its tokenizer has tokens."""
    return tokens.publish(tmp_path / "short", PLAIN, rows=SIZE - 3)


def test_evaluate_generate_and_convert_refuse_tokens_without_a_row(short, texts, tmp_path, capsys):
    """Each printed figures on the code before: JAX clamps an index that is beyond its array."""
    files = texts("").files.paths[0]
    flags = (f"--model={short}", f"--text={files}", f"--cache={tmp_path}", "--seq_len=8", "--tokens=64")
    words = rf"has {SIZE - 3} tokens.*has {SIZE}: the ids from {SIZE - 3} on have no row"
    assert re.search(words, refusal(capsys, launch_evaluate.main, *flags))
    with pytest.raises(ConfigError, match=words):
        generate.generate(GenerationConfig(teacher=str(short), data=texts(short)), tmp_path / "g")
    bare = shutil.copytree(short, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    given = tokens.save(PLAIN, tmp_path / "t")
    said = refusal(capsys, convert.main, f"--in={bare}", f"--tokenizer={given}", f"--out={tmp_path / 'o'}")
    assert f"it has {SIZE} tokens and the model {SIZE - 3}" in said and not (tmp_path / "o").exists()
    assert convert.main([f"--in={short}", f"--out={tmp_path / 'p'}"]) == 0
    assert "warning: its tokenizer has" in capsys.readouterr().out


def test_the_advice_of_training_can_be_followed(short, texts, tmp_path):
    """What no field can mend, names none; what one can, trains when it is set as told."""
    for vocab in ({"vocab_size": SIZE}, {"vocab_size": SIZE - 3}):
        taught = student(texts, short, teacher=configs.TeacherConfig(source=str(short)), **vocab)
        with pytest.raises(ConfigError, match="no row in its embedding and head; tokenize the text with") as error:
            loop.train(taught, tmp_path / "w")
        assert "valid_vocab" not in str(error.value) and "vocab_size" not in str(error.value)
    for rows, valid in ((SIZE - 3, 0), (SIZE - 3, SIZE - 5), (SIZE + 8, SIZE - 1)):
        model = ModelConfig(vocab_size=rows, valid_vocab=valid, **STUDENT)
        with pytest.raises(DataError, match="set (.*)$") as error:
            data.open_store(texts(short), tmp_path / "s").check_vocabulary(model)
        told = re.findall(r"model\.(\w+)=(\d+)", str(error.value).rpartition("set ")[2])
        model = dataclasses.replace(model, **{name: int(value) for name, value in told})
        data.open_store(texts(short), tmp_path / "s").check_vocabulary(model)


def test_a_padded_head_draws_no_padding(texts, tmp_path):
    """160 rows more than tokens, at logits of order one. On the code before: IndexError, after all was generated."""
    padded = tokens.publish(tmp_path / "padded", PLAIN, rows=SIZE + 160, scale=0.1)
    wanted = GenerationConfig(
        teacher=str(padded), data=texts(padded), decode=DecodeConfig(new_tokens=8), prompt_tokens=8, prompts=16
    )
    generate.generate(wanted, tmp_path / "g")
    records = list(journal.read(tmp_path / "g" / "completions.jsonl"))
    drawn = [i for record in records for i in record["ids"]]
    assert len(drawn) > 60 and max(drawn) < SIZE
    assert data.TokenStore(tmp_path / "g" / "store").vocab_size == SIZE


def test_what_is_generated_begins_and_ends_as_the_tokenizer_says(texts, tmp_path):
    """BOS begins a prompt, what closes a document is no part of it, and completions stay the tokens that were drawn."""
    made = tokens.library()
    made.post_processor = tokens.around(made, ["<s>"], ["<mask>"])
    model = tokens.publish(tmp_path / "model", made, scale=0.1)
    wanted = GenerationConfig(
        teacher=str(model), data=texts(model), decode=DecodeConfig(new_tokens=6), prompt_tokens=10_000, prompts=16,
        batch_size=4,
    )  # fmt: skip
    generate.generate(wanted, tmp_path / "g")
    records = list(journal.read(tmp_path / "g" / "completions.jsonl"))
    ids = made.get_vocab()
    for record in records:
        assert record["prompt_ids"][0] == ids["<s>"] and record["prompt_ids"][-1] not in (ids["<mask>"], ids["</s>"])
    store = data.TokenStore(tmp_path / "g" / "store")
    split = store.split("student")
    ends = split.document_ends().astype(int).tolist()
    kept = {tuple(split.read_span(a, b).tolist()) for a, b in zip([0, *ends], ends)}
    assert kept <= {(*record["prompt_ids"], *record["ids"]) for record in records}
    assert store.special == "<s> $A <mask>"


# Tokenizers by content.


def test_equal_tokenizers_in_two_folders_generate_and_teach(texts, tmp_path):
    """On the code before, generate compared their names. The other says the same in another form."""
    model = tokens.publish(tmp_path / "model", PLAIN, scale=0.1)
    tree = json.loads(PLAIN.to_str())
    tree["decoder"]["trim_offsets"] = not tree["decoder"]["trim_offsets"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(tree))
    shutil.copytree(model, tmp_path / "copy")
    assert len({SubwordTokenizer(str(tmp_path / name)).name for name in ("model", "copy", "other")}) == 3
    for name in ("copy", "other"):
        wanted = GenerationConfig(teacher=str(model), data=texts(tmp_path / name), prompts=2, batch_size=2)
        generate.generate(dataclasses.replace(wanted, decode=DecodeConfig(new_tokens=2)), tmp_path / f"g-{name}")
        taught = student(texts, tmp_path / name, teacher=configs.TeacherConfig(source=str(model)))
        assert loop.train(taught, tmp_path / f"w-{name}").kind == "distillation"


def test_a_teacher_that_saw_bos_warns_of_a_text_without(texts, tmp_path):
    model = tokens.publish(tmp_path / "model", tokens.bos())
    taught = student(texts, model, teacher=configs.TeacherConfig(source=str(model)))
    for special, warned in (("model", False), ("none", True)):
        asked = dataclasses.replace(taught.data.tokenizer, special=special)
        config = dataclasses.replace(taught, data=dataclasses.replace(taught.data, tokenizer=asked))
        with inputs.preview(inputs.resolve(config), tmp_path / "w") as (run, store):
            assert any("texts in '<s> $A'" in said for said in origin.describe(run, store).warnings) == warned


@pytest.mark.parametrize("seed", range(5))
def test_sizes_and_orders_of_tokenizers_against_heads(seed, tmp_path):
    """Fifty pairs a seed of a model and a text: accepted if all ids have a row, and mean the same token in both."""
    rng = np.random.default_rng(seed)
    for case in range(50):
        extra = [f"<x{i}>" for i in range(rng.integers(0, 4))]
        mine = tokens.library(specials=[*tokens.SPECIALS, *extra])
        other = rng.choice(["same", "same", "more", "order"])
        order = rng.permutation(mine.get_vocab_size()) if other == "order" else None
        more = [*extra, *["<y>"][: int(other == "more")]]
        theirs = tokens.library(specials=[*tokens.SPECIALS, *more], order=order)
        rows = mine.get_vocab_size() + int(rng.integers(-3, 4))
        folder = tmp_path / str(case)
        tokens.save(mine, folder)
        (folder / "config.json").write_text("{}")
        text = SubwordTokenizer(str(tokens.save(theirs, folder / "text")))
        record = RunRecord(
            run="r", kind="supervised", N=1, trunk="r", model="m", tokenizer=SubwordTokenizer(str(folder)).name
        )
        model = TeacherInfo(
            source=str(folder), config=ExperimentConfig(model=ModelConfig(vocab_size=rows)), record=record
        )
        store = _Text(text)
        fits = rows >= theirs.get_vocab_size() and other == "same"
        if fits:
            vocabulary.check(model, store, "teacher")
            continue
        with pytest.raises(ConfigError) as error:
            vocabulary.check(model, store, "teacher")
        assert ("no row" in str(error.value)) == (rows < theirs.get_vocab_size())


class _Text:
    """As much of a token store as is compared."""

    def __init__(self, tokenizer):
        self._tokenizer, self.tokenizer_name, self.vocab_size = tokenizer, tokenizer.name, tokenizer.vocab_size

    def tokenizer(self):
        return self._tokenizer


# Weights of another model.


def test_rows_of_another_tokenizer_are_not_taken_by_number(texts, tmp_path):
    """On the code before, silently. `text` carries rows by what tokens mean: other numbers change nothing."""
    order = np.random.default_rng(1).permutation(SIZE)
    model = tokens.publish(tmp_path / "model", PLAIN)
    tokens.save(tokens.library(order=order), tmp_path / "other")
    config = student(texts, tmp_path / "other", init=InitConfig(source=str(model)))
    with pytest.raises(ConfigError, match="token 0 is .* or config.init.tokens='text'"):
        loop.train(config, tmp_path / "w")
    assert not (tmp_path / "w" / "config.txt").exists()
    store = data.open_store(config.data, config.data.cache)
    rows = vocabulary.rows_by_text(load.read_info(str(model)), store)
    np.testing.assert_array_equal(rows[order], np.arange(SIZE))
    source = interop.load(model).params
    begun = warm_start(dataclasses.replace(config.init, tokens="text"), config.model, source, rows)
    ids = jnp.asarray(np.random.default_rng(2).integers(0, SIZE, (2, 8)), jnp.int32)
    np.testing.assert_array_equal(np.asarray(LOGITS(begun, jnp.asarray(order)[ids]))[..., order], LOGITS(source, ids))
    for tokens_ in ("text", "number"):
        init = dataclasses.replace(config.init, tokens=tokens_)
        assert loop.train(dataclasses.replace(config, init=init), tmp_path / tokens_).run


@pytest.mark.parametrize("seed", range(4))
def test_rows_follow_tokens_through_any_renumbering(seed, tmp_path):
    """Fifty draws a seed: other orders, other specials, other merges; against a map by name."""
    rng = np.random.default_rng(seed)
    for case in range(50):
        folders = []
        for name in "ab":
            merges = [m for m in tokens.MERGES if len(m[0]) == 1 or rng.random() < 0.7]
            merges = [m for m in merges if m[0] != "Ġ" or m[1] != "the" or ("th", "e") in merges]
            specials = [s for s in tokens.SPECIALS if s == "</s>" or rng.random() < 0.7]
            size = len(tokens.LETTERS) + len(merges) + len(specials)
            made = tokens.library(merges=merges, specials=specials, order=rng.permutation(size))
            folders.append((tmp_path / f"{case}{name}", made))
            tokens.save(made, folders[-1][0])
        (folders[0][0] / "config.json").write_text("{}")
        (_, source), (place, text) = folders
        rows_held = int(source.get_vocab_size() - rng.integers(0, 9))
        model = ModelConfig(vocab_size=rows_held)
        record = RunRecord(run="r", kind="supervised", N=1, trunk="r", model="m", tokenizer="")
        info = TeacherInfo(source=str(folders[0][0]), config=ExperimentConfig(model=model), record=record)
        rows = vocabulary.rows_by_text(info, _Text(SubwordTokenizer(str(place))))
        theirs = {name: i for name, i in source.get_vocab().items() if i < rows_held}
        assert rows.tolist() == [theirs.get(text.id_to_token(i), -1) for i in range(text.get_vocab_size())]


def test_rows_that_are_drawn_have_the_mean_and_spread_of_the_others():
    source = Transformer(ModelConfig(vocab_size=400, **STUDENT), jax.random.key(0))
    source.embed[...] = source.embed[...] * 0.02 + 0.3
    rows = np.concatenate([np.arange(100), np.full(200, -1)])
    model = ModelConfig(vocab_size=320, **STUDENT)  # the last twenty are padding
    begun = warm_start(InitConfig(source="s", tokens="text"), model, source, rows, seed=3)
    np.testing.assert_array_equal(begun.embed[:100], source.embed[:100])
    drawn, carried = np.asarray(begun.embed[100:]), np.asarray(source.embed[:100])
    assert drawn.shape == (220, 16) and len(np.unique(drawn[:, 0])) == 220
    np.testing.assert_allclose(drawn.mean(0), carried.mean(0), atol=0.01)
    np.testing.assert_allclose(drawn.std(0), carried.std(0), rtol=0.25)


# Messages that can be followed.


def test_evaluate_has_the_flags_that_its_errors_name(texts, tmp_path, capsys):
    """Its tokenizer names no usual end of text. On the code before, evaluate had no flag for what it asked."""
    made = tokens.library(specials=["<s>", "<stop>"])
    model = tokens.publish(tmp_path / "model", made)
    flags = [
        f"--model={model}",
        f"--text={texts('').files.paths[0]}",
        f"--cache={tmp_path / 'c'}",
        "--seq_len=8",
        "--tokens=64",
    ]
    said = refusal(capsys, launch_evaluate.main, *flags)
    assert "Set data.tokenizer.end_of_text to one of them" in said
    assert cli.guard(launch_evaluate.main, [*flags, "--data.tokenizer.end_of_text=<stop>", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    # The files of the model may say it themselves.
    (model / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<stop>"}}))
    assert cli.guard(launch_evaluate.main, [*flags, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == told["loss"]


def test_evaluate_reads_a_text_as_the_model_was_trained(texts, tmp_path, capsys):
    """BOS or not changes the loss; a store of an earlier version in the cache does not decide it."""
    model = tokens.publish(tmp_path / "model", tokens.bos())
    flags = [
        f"--model={model}",
        f"--text={texts('').files.paths[0]}",
        f"--cache={tmp_path / 'c'}",
        "--seq_len=8",
        "--json",
    ]
    loss = {}
    for special in ("none", "model", "<s> $A"):
        assert cli.guard(launch_evaluate.main, [*flags, f"--tokenizer.special={special}"]) == 0
        loss[special] = json.loads(capsys.readouterr().out)["loss"]
        for manifest in (tmp_path / "c").glob("*/manifest.json"):  # as if all were of an earlier version
            tree = json.loads(manifest.read_text())
            if tree["tokenizer"].get("special") == "none":
                del tree["tokenizer"]["special"]
                manifest.write_text(json.dumps(tree))
    assert loss["none"] != loss["model"] == loss["<s> $A"]


def test_a_teacher_without_a_tokenizer_is_said_to_have_none(texts, tmp_path, capsys):
    model = tokens.publish(tmp_path / "model", PLAIN)
    (model / "tokenizer.json").unlink()
    tokens.save(PLAIN, tmp_path / "t")
    taught = student(texts, tmp_path / "t", teacher=configs.TeacherConfig(source=str(model)))
    with pytest.raises(
        ConfigError, match="no tokenizer that can be read .*there is no tokenizer.json.*put its tokenizer.json"
    ):
        loop.train(taught, tmp_path / "w")
    flags = [
        f"--model={model}",
        f"--text={texts('').files.paths[0]}",
        f"--cache={tmp_path / 'c'}",
        "--seq_len=8",
        "--tokens=64",
    ]
    assert "there is no tokenizer.json in this folder" in refusal(capsys, launch_evaluate.main, *flags)
    assert cli.guard(launch_evaluate.main, [*flags, f"--tokenizer.path={tmp_path / 't'}"]) == 0


def test_a_sentencepiece_teacher_has_a_name(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "text.txt").write_text("\n".join(tokens.text(np.random.default_rng(i)) for i in range(99)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=60, minloglevel=2,
        hard_vocab_limit=False,
    )  # fmt: skip
    model = tokens.publish(tmp_path / "model", None, rows=64)
    shutil.copy(tmp_path / "tokenizer.model", model)
    info = load.read_info(str(model))
    assert re.fullmatch(r"model-\d+-[0-9a-f]{8}", info.record.tokenizer)
    assert any_model.load(str(model)).tokenizer().name == info.record.tokenizer


def test_convert_takes_no_tokenizer_of_another_model(tmp_path):
    model = any_model.load(str(tokens.publish(tmp_path / "model", PLAIN, rows=SIZE + 8)))
    fits = tokens.library(specials=[*tokens.SPECIALS, "<tool>"])  # in a row of padding
    assert conversion.check_tokenizer(model, str(tokens.save(fits, tmp_path / "more"))) == []
    other = tokens.library(order=np.roll(np.arange(SIZE), 1))
    with pytest.raises(InteropError, match="not the tokenizer of .*token 0 is"):
        conversion.check_tokenizer(model, str(tokens.save(other, tmp_path / "other")))


def test_the_flags_of_generation_are_those_that_errors_name():
    wanted, _ = launch_generate.read(
        ["--teacher=t", "--out=o", "--data.tokenizer.path=m", "--data.tokenizer.special=none"]
    )
    assert (wanted.data.tokenizer.path, wanted.data.tokenizer.special) == ("m", "none")
