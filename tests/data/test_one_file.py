"""One text file, a folder of them, and files as people write them: CRLF, UTF-16, separators as a shell passes them."""

import codecs
import dataclasses
import json
import logging
import lzma
import random

import numpy as np
import pytest

from distill import data
from distill.config.data import DataConfig, FilesConfig, SplitConfig
from distill.data import corpus
from distill.data.corpus import choose_recipe, make_recipe, open_at
from distill.data.documents import Document, Part, assign
from launch import tokenize as launch_tokenize
from launch import train as launch_train
from tests.data.conftest import WORDS

SPLITS = ("teacher", "student", "validation")


def play(size: int, seed: int = 0) -> str:
    """Text of about `size` characters in speeches, as a play is printed."""
    draw = random.Random(seed)
    text, at = [], 0
    while at < size:
        speech = f"{draw.choice(WORDS).upper()}:\n" + "".join(
            " ".join(draw.choices(WORDS, k=draw.randint(3, 9))) + ",\n" for _ in range(draw.randint(1, 6))
        )
        text.append(speech + "\n")
        at += len(text[-1])
    return "".join(text)


def files(*paths, **fields) -> DataConfig:
    return DataConfig(source="files", files=FilesConfig(paths=tuple(map(str, paths)), **fields))


def text_of(store, name: str) -> str:
    split = store.split(name)
    return split.read_span(0, split.tokens).tobytes().replace(b"\0", b"").decode()


def test_one_text_file_is_cut_into_three_blocks(tmp_path, caplog):
    text = play(1_100_000)
    (tmp_path / "input.txt").write_text(text)
    with caplog.at_level(logging.WARNING):
        store = data.open_store(files(tmp_path / "input.txt"), tmp_path / "stores")
    parts = [text_of(store, name) for name in SPLITS]
    assert "".join(parts) == text, "the blocks are contiguous, none is lost"
    assert [len(part) / len(text) for part in parts] == pytest.approx([0.475, 0.475, 0.05], abs=1e-3)
    assert all(part.endswith("\n") for part in parts)
    assert "contiguous blocks" in caplog.text and f"validation {store.split('validation').tokens:,}" in caplog.text
    assert store.views("validation", 256)[0].count > 100
    again = data.open_store(files(tmp_path / "input.txt"), tmp_path / "stores")
    assert again.path == store.path and again.fingerprint == store.fingerprint


def test_one_text_file_through_train_to_a_result(tmp_path, capsys):
    (tmp_path / "input.txt").write_text(play(1_100_000, seed=1))
    model = ["--config.model.d_model=16", "--config.model.n_layers=1", "--config.model.n_heads=1"]
    run = ["--config.seq_len=64", "--config.batch_size=8", "--config.tokens=2048"]
    judged = ["--config.eval.tokens=512", "--config.eval.batch_size=8"]
    source = ["--config.data.source=files", f"--config.data.files.paths={tmp_path}/input.txt"]
    assert launch_train.main([f"--workdir={tmp_path}/run", *model, *run, *judged, *source]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["D"] == 2048 and 0 < result["loss"] < 6


@pytest.mark.parametrize("count", [1, 2, 19])
def test_few_documents_are_cut_where_a_split_would_be_empty(tmp_path, count):
    for i in range(count):
        (tmp_path / f"{i:02}.txt").write_text(play(30_000 // count + 600, seed=i))
    config = files(tmp_path)
    store = data.open_store(config, tmp_path / "stores")
    assert all(store.split(name).tokens for name in SPLITS)
    texts = [path.read_text() for path in tmp_path.glob("*.txt")]
    by_hash = {assign(Document((Part(text),)).digest(), config.splits) for text in texts}
    assert bool(store.note) == (by_hash != set(SPLITS))
    assert (store.fingerprint == make_recipe(config).fingerprint) == (by_hash == set(SPLITS))


def test_enough_documents_and_their_fingerprints_stay_as_they_were(tmp_path):
    for i in range(60):
        (tmp_path / f"{i:02}.txt").write_text(play(900, seed=i))
    config = files(tmp_path / "*.txt")
    store = data.open_store(config, tmp_path / "stores")
    assert store.fingerprint == make_recipe(config).fingerprint and not store.note
    assert sum(split.documents for split in store.splits.values()) == 60


def test_a_store_of_few_documents_that_was_trained_on_stays(tmp_path):
    """A teacher's half may be empty in a store that students were trained on: it keeps its tokens and its name."""
    fractions = SplitConfig(validation=0.5, teacher=0.5)
    config = DataConfig(source="files", files=FilesConfig(paths=(f"{tmp_path}/*.txt",)), splits=fractions)
    held: set[str] = set()
    for i in range(200):  # documents until one is validation and one is the student's, none the teacher's
        split = assign(Document((Part(play(3000, seed=i)),)).digest(), fractions)
        if split != "teacher" and split not in held:
            held.add(split)
            (tmp_path / f"{split}.txt").write_text(play(3000, seed=i))
    assert len(held) == 2
    recipe = make_recipe(config)
    cache = tmp_path / "stores"
    old = open_at(cache / f"files-bytes-{recipe.fingerprint[:12]}", recipe)
    assert not old.split("teacher").tokens and old.split("student").tokens
    store = data.open_store(config, cache)
    assert store.path == old.path and store.fingerprint == old.fingerprint
    assert data.open_store(config, tmp_path / "elsewhere").note, "without such a store, the new split"


def test_validation_files_beside_one_text(tmp_path):
    (tmp_path / "a.txt").write_text(play(20_000))
    (tmp_path / "held.txt").write_text(play(5_000, seed=2))
    config = files(tmp_path / "a.txt", validation=(str(tmp_path / "held.txt"),))
    store = data.open_store(config, tmp_path / "stores")
    assert text_of(store, "validation") == (tmp_path / "held.txt").read_text()
    assert text_of(store, "teacher") + text_of(store, "student") == (tmp_path / "a.txt").read_text()


def test_a_text_too_short_to_cut_says_what_to_do(tmp_path):
    (tmp_path / "a.txt").write_text("Only a line.\n")
    store = data.open_store(files(tmp_path / "a.txt"), tmp_path / "stores")
    with pytest.raises(data.DataError, match="its documents are in other splits .*data.files.separator"):
        store.views("validation", 16)


def test_tokenize_takes_one_file_and_says_so(tmp_path, caplog, capsys):
    (tmp_path / "input.txt").write_text(play(50_000))
    assert launch_tokenize.main([f"--out={tmp_path}/store", "--workers=0", str(tmp_path / "input.txt")]) == 0
    assert "contiguous blocks" in caplog.text
    assert launch_tokenize.main([f"--out={tmp_path}/store", "--workers=0", str(tmp_path / "input.txt")]) == 0


def test_a_folder_means_its_text_files(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / ".hidden").mkdir()
    for i in range(30):
        (tmp_path / "in" / f"{i}.txt").write_text(play(100, seed=i))
    (tmp_path / "in" / "sub" / "a.txt.xz").write_bytes(lzma.compress(b"pressed\n"))
    for name in ("notes.md", ".hidden/b.txt"):
        (tmp_path / "in" / name).write_text("not text of the corpus")
    recipe = make_recipe(files(tmp_path / "in"))
    assert sorted(path.rpartition("/")[2] for path in recipe.source.shards) == sorted(
        [*(f"{i}.txt" for i in range(30)), "a.txt.xz"]
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(data.DataError, match="folder .*empty' holds no .txt"):
        make_recipe(files(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("written", "meant"),
    [(r"\n", "\n"), (r"\n\n", "\n\n"), (r"\t", "\t"), (r"=\r\n", "=\r\n"), (r"\\n", r"\n"), ("--", "--"), ("\n", "\n")],
)
def test_separators_are_what_they_look_like(tmp_path, written, meant):
    documents = [f"document {i}" for i in range(40)]
    (tmp_path / "a.txt").write_bytes(meant.join(documents).encode())
    read = make_recipe(files(tmp_path / "a.txt", separator=written)).source.read(0)
    assert [document.parts[0].text for document in read] == documents


@pytest.mark.parametrize("piece", [1 << 20, 7])
def test_crlf_text_is_separated_like_any_other(tmp_path, monkeypatch, piece):
    """61 documents with CRLF line ends, and blank lines between: one document before, whatever the read size."""
    monkeypatch.setattr("distill.data.sources.files._PIECE", piece)
    documents = [f"line {i}\r\nand another" for i in range(61)]
    (tmp_path / "dos.txt").write_bytes("\r\n\r\n".join(documents).encode())
    config = files(tmp_path / "dos.txt", separator="\n\n")
    assert [d.parts[0].text for d in make_recipe(config).source.read(0)] == documents


def test_a_store_that_was_built_of_crlf_text_stays(tmp_path):
    """Its documents were cut otherwise: what was trained on it can go on."""
    for i in range(80):
        (tmp_path / f"{i}.txt").write_bytes((play(300, seed=i) + "\n\nmore").replace("\n", "\r\n").encode())
    config = files(tmp_path / "*.txt", separator="\n\n")
    recipe = make_recipe(config)
    old = {key: value for key, value in recipe.description["source"].items() if key != "newlines"}
    assert old != recipe.description["source"]
    before = choose_recipe(config, lambda recipe: tmp_path / "nothing")
    assert before.fingerprint == recipe.fingerprint
    built = open_at(tmp_path / "store", as_before(recipe, "newlines"))
    assert choose_recipe(config, lambda _: tmp_path / "store").fingerprint == built.fingerprint


def as_before(recipe, key):
    """The recipe of a version that knew neither this key of a source nor how documents of several parts are encoded."""
    old = {name: value for name, value in recipe.description.items() if name != "encoding"}
    old["source"] = {name: value for name, value in old["source"].items() if name != key}
    return dataclasses.replace(recipe, description=old, fingerprint=corpus._fingerprint(old))


@pytest.mark.parametrize("mark", [True, False])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("compression", ["", ".xz"])
def test_utf16_is_read_as_text(tmp_path, encoding, mark, compression):
    documents = [f"café number {i}, naïve: {WORDS[i % len(WORDS)]}" for i in range(50)]
    marks = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}
    content = (marks[encoding] if mark else b"") + "\r\n\r\n".join(documents).encode(encoding)
    path = tmp_path / f"a.txt{compression}"
    path.write_bytes(lzma.compress(content) if compression else content)
    recipe = make_recipe(files(path, separator="\n\n"))
    assert [d.parts[0].text for d in recipe.source.read(0)] == documents
    assert encoding in json.dumps(recipe.description)


def _lines(draw, newline):
    """One to three lines of five words each, in several scripts."""
    words = [*WORDS, "café", "naïve", "λόγος", "слово", "日本語"]
    return newline.join(" ".join(draw.choice(words) for _ in range(5)) for _ in range(draw.randint(1, 3)))


def test_text_in_any_dress_is_the_same_documents(tmp_path):
    """200 seeded files: an encoding, a mark before it, line ends, separators, a compression, a script."""
    marks = {"utf-8": codecs.BOM_UTF8, "utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}
    marks |= {"utf-32-le": codecs.BOM_UTF32_LE, "utf-32-be": codecs.BOM_UTF32_BE}
    for seed in range(200):
        draw = random.Random(seed)
        encoding, newline = draw.choice(list(marks)), draw.choice(["\n", "\r\n", "\r"])
        documents = [f"{number}: {_lines(draw, newline)}" for number in range(draw.randint(5, 40))]
        separator = draw.choice(["\n\n", "\n---\n"])
        content = separator.replace("\n", newline).join(documents).encode(encoding)
        # UTF-16 without a mark is told by its NULs, which only Latin scripts leave.
        marked = draw.random() < 0.5 or encoding.startswith("utf-16")
        compression = draw.choice(["", "", ".xz"])
        path = tmp_path / f"{seed}.txt{compression}"
        content = marks[encoding] * marked + content
        path.write_bytes(lzma.compress(content) if compression else content)
        got = [d.parts[0].text for d in make_recipe(files(path, separator=separator)).source.read(0)]
        assert got == documents, (seed, encoding, marked, newline, separator)


def test_a_store_that_was_built_of_marked_text_stays(tmp_path):
    for i in range(80):
        (tmp_path / f"{i}.txt").write_bytes(codecs.BOM_UTF8 + play(300, seed=i).encode())
    config = files(tmp_path / "*.txt")
    recipe = make_recipe(config)
    assert recipe.description["source"]["marks"] == "left out"
    built = open_at(tmp_path / "store", as_before(recipe, "marks"))
    assert choose_recipe(config, lambda _: tmp_path / "store").fingerprint == built.fingerprint


def test_utf16_jsonl_is_refused_and_a_mark_before_json_is_none_of_it(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json.dumps({"text": "a"}).encode("utf-16"))
    with pytest.raises(data.DataError, match="a.jsonl: is written in UTF-16-LE, wanted UTF-8"):
        list(make_recipe(files(tmp_path / "a.jsonl")).source.read(0))
    (tmp_path / "a.jsonl").write_bytes(codecs.BOM_UTF8 + json.dumps({"text": "a"}).encode())
    assert [d.parts[0].text for d in make_recipe(files(tmp_path / "a.jsonl")).source.read(0)] == ["a"]


def test_plain_text_is_never_taken_for_utf16(tmp_path):
    """Bytes of UTF-8 in many scripts, and text with a few NULs in it."""
    rng = np.random.default_rng(0)
    for i in range(200):
        points = rng.integers(32, [127, 0x500, 0x9FFF][i % 3], 400)
        text = "".join(map(chr, points)) + "\0" * int(rng.integers(0, 8))
        (tmp_path / "a.txt").write_text(text, "utf-8")
        assert "encoding" not in json.dumps(make_recipe(files(tmp_path / "a.txt")).description)
