"""What a run says of its text and of its teacher, before it begins."""

import dataclasses

import pytest

from distill import config as configs
from distill import data
from distill.config import DataConfig, ExperimentConfig
from distill.config.data import FilesConfig, GeneratedConfig, MixtureConfig
from distill.data.mixture import Mixture
from distill.errors import DataError, DistillError
from distill.records.runs import RunRecord
from distill.system import cloud
from distill.teacher.load import TeacherInfo
from distill.training import inputs, origin, start


def run_of(config, **more):
    return inputs.ResolvedRun(config=config, **more)


def teacher_of(config, **changes):
    """A teacher that was trained with this config; nothing was."""
    known = {field.name: None for field in dataclasses.fields(RunRecord)}
    record = RunRecord(**known | {"run": "0123456789ab", "N": 26_848, "D": 1_000_000} | changes)
    return TeacherInfo(source="runs/teacher", config=config, record=record)


def test_more_than_four_epochs_are_a_warning(tiny, store):
    windows = data.Loader(store, split="student", batch_size=4, seq_len=16).window_count
    for steps, text, warned in ((windows // 4, "1 epochs", 0), (windows, "4 epochs", 0), (2 * windows, "8 epochs", 1)):
        described = origin.describe(run_of(dataclasses.replace(tiny, tokens=steps * 4 * 16)), store)
        assert described.text.endswith(f" unique tokens, {text}") and len(described.warnings) == warned
    assert f"{8 * windows * 16:,d} tokens are 8 epochs of this text" in described.warnings[0]


def test_few_unique_tokens_are_said(tiny, store):
    few = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, unique=640), tokens=10 * 640)
    described = origin.describe(run_of(few), store)
    total = store.split("student").tokens
    assert described.text.endswith(f" 640 of its {total:,d} unique tokens, 10 epochs") and len(described.warnings) == 1
    capped = dataclasses.replace(few, data=dataclasses.replace(few.data, unique=total + 1), tokens=640)
    (warning,) = origin.describe(run_of(capped), store).warnings
    assert f"data.unique={total + 1:,d} is more than the {total:,d} tokens of the student split" in warning


def test_a_teacher_says_its_text_and_another_text_is_a_warning(tiny, store):
    same = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, split="teacher", seed=3, packing="segments"))
    described = origin.describe(run_of(tiny, teachers=(teacher_of(same),)), store)
    assert described.teacher == (
        "0123456789ab in runs/teacher: 26.8K parameters, trained on 1M tokens of a generated markov language of "
        "8 symbols, seed 0, teacher split"
    )
    assert described.warnings == ()
    generated = dataclasses.replace(tiny.data.generated, seed=1)
    other = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, generated=generated))
    (warning,) = origin.describe(run_of(tiny, teachers=(teacher_of(other),)), store).warnings
    assert "the teacher in runs/teacher was trained on another text (a generated markov language" in warning
    built = dataclasses.replace(tiny, data=DataConfig(source="tokens", tokens="texts/one", store=store.fingerprint))
    (warning,) = origin.describe(run_of(tiny, teachers=(teacher_of(built),)), store).warnings
    assert "was trained on the student split too" in warning, "the same store elsewhere, and the same half of it"
    built = dataclasses.replace(built, data=dataclasses.replace(built.data, split="teacher"))
    assert not origin.describe(run_of(tiny, teachers=(teacher_of(built),)), store).warnings, "the same store elsewhere"
    unknown = dataclasses.replace(tiny, data=DataConfig(source="files", files=FilesConfig(paths=("a.txt",))))
    assert not origin.describe(run_of(tiny, teachers=(teacher_of(unknown),)), store).warnings, "an older run"
    published = origin.describe(run_of(tiny, teachers=(teacher_of(ExperimentConfig(), D=0),)), store)
    assert published.teacher.endswith("a published model; its text is not known") and not published.warnings


def test_a_mixture_says_what_each_store_gives(tiny, store, tmp_path):
    other = data.open_store(dataclasses.replace(tiny.data, generated=GeneratedConfig(tokens=9_000, seed=2)), tmp_path)
    mixed = DataConfig(source="mixture", mixture=MixtureConfig(stores=("one", "two"), weights=(3.0, 1.0)))
    config = dataclasses.replace(tiny, data=mixed)
    text = origin.describe(run_of(config), Mixture((store, other), (3.0, 1.0))).text
    assert text.startswith("one, student split: ") and "; two, student split: " in text and text.count("epochs") == 2


def test_comments_are_lines_that_a_config_skips(tiny):
    text = "files a\u2028b\nc \N{SNOWMAN} \udcff"
    comments = origin.Origin(text=text, teacher="none", warnings=("once", "twice")).comments()
    assert comments.isascii() and [line[:2] for line in comments.splitlines()] == ["# "] * 4
    assert configs.from_text(ExperimentConfig, comments + configs.to_text(tiny)) == tiny


@pytest.fixture
def texts(tmp_path):
    for i in range(40):
        (tmp_path / f"{i:02d}.txt").write_text(f"text {i} " * 60)
    files = FilesConfig(paths=(str(tmp_path / "*.txt"),))
    config = ExperimentConfig(seq_len=16, tokens=4096)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, source="files", files=files))


def test_a_preview_names_the_run_as_its_record_will_and_leaves_nothing(texts, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    with inputs.preview(inputs.resolve(texts), workdir) as (seen, store):
        assert store is not None and not workdir.exists()
    monkeypatch.setattr(inputs, "PREVIEWED", 100)
    with inputs.preview(inputs.resolve(texts), workdir) as (large, nothing):
        assert nothing is None and not workdir.exists()
        assert "not tokenized yet" in origin.describe(large, None).text
    run, store = start.opened(texts, cloud.Workdir(workdir))
    assert configs.fingerprint(seen.config) == configs.fingerprint(large.config) == configs.fingerprint(run.config)
    assert configs.fingerprint(run.config) != configs.fingerprint(texts), "the text has a part in the name"
    with inputs.preview(inputs.resolve(texts), workdir) as (_, standing):
        assert standing.path == store.path, "a store that is there is taken"


@pytest.mark.parametrize("paths, words", [((), "data.files.paths is empty"), (("no.txt",), "'no.txt' matches no file")])
def test_a_preview_opens_the_text(paths, words, tmp_path):
    files = DataConfig(source="files", files=FilesConfig(paths=paths))
    with pytest.raises(DataError, match=words), inputs.preview(run_of(ExperimentConfig(data=files)), tmp_path / "run"):
        pass


def test_what_is_wrong_with_a_previewed_text_names_a_place_that_is_there(texts, tmp_path):
    config = dataclasses.replace(texts, seq_len=4096, tokens=2**16)
    workdir = tmp_path / "run"
    with pytest.raises(DistillError) as error, inputs.preview(inputs.resolve(config), workdir):
        pass
    assert str(workdir / "data") in str(error.value) and "/tmp/tmp" not in str(error.value)
