"""Building, reopening, damage, kills, races and full disks, with real processes and real signals."""

import dataclasses
import filecmp
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from distill import data
from distill.config import ModelConfig
from distill.config.data import DataConfig, FilesConfig, SplitConfig
from distill.data.documents import SPLITS, assign
from distill.data.store.blocks import BLOCK, BlockReader, BlockWriter

BUILD = """
import json, sys, time
from distill import data
from distill.data.store.build import build_store
from distill.config.data import DataConfig, FilesConfig
from distill.data.corpus import make_recipe
from pathlib import Path

pattern, out, pause = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
recipe = make_recipe(DataConfig(source="files", files=FilesConfig(paths=(pattern,))))
try:
    build_store(out, recipe, on_progress=lambda _: time.sleep(pause), commit_seconds=0.0)
except data.DataError as error:
    sys.exit(f"error: {error}")
"""


def build_process(pattern, out, pause=0.0, prefix=()):
    command = [*prefix, sys.executable, "-c", BUILD, str(pattern), str(out), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """About 6 MB in three files: several chunks each."""
    folder = tmp_path_factory.mktemp("big")
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        lines = [f"{name}{i} " + "".join(map(chr, rng.integers(97, 123, 2000))) for i in range(1000)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def whole(big, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "store"
    assert build_process(f"{big}/*.jsonl", out).wait() == 0
    return out


def identical(a, b):
    names = sorted(path.name for path in a.iterdir())
    return names == sorted(path.name for path in b.iterdir()) and not filecmp.cmpfiles(a, b, names, False)[1]


def test_embedded_split_is_the_documented_one(embedded):
    from distill.data.sources import embedded as corpus

    addresses = corpus.addresses()
    assert len(addresses) == 123 and addresses[0].name.startswith("1900_") and addresses[-1].name.startswith("2021_")
    assert [i for i, a in enumerate(addresses) if a.split == "validation"] == list(range(9, 123, 10))
    rest = [a.split for a in addresses if a.split != "validation"]
    assert rest[::2] == ["teacher"] * 56 and rest[1::2] == ["student"] * 55
    for name in SPLITS:
        texts = [a.text for a in addresses if a.split == name]
        split = embedded.split(name)
        assert split.documents == len(texts) and split.bytes == sum(len(t.encode()) for t in texts)
        wanted = b"".join(t.encode() + b"\0" for t in texts)
        assert split.read_span(0, split.tokens).tobytes() == wanted
    assert embedded.vocab_size == 256 and embedded.tokenizer_name == "bytes"


def test_provenance_names_what_ships():
    import hashlib
    from importlib import resources

    from distill.data.sources import embedded as corpus

    text = resources.files(corpus).joinpath("PROVENANCE.md").read_text()
    assert hashlib.sha256(corpus.content()).hexdigest() in text
    assert "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9" in text


def test_splits_are_disjoint(embedded, store):
    for s in (embedded, store):
        digests = [set(s.split(name).digests().tolist()) for name in SPLITS]
        assert sum(map(len, digests)) == len(set.union(*digests)) > 0


def test_built_once_and_reused(config, tmp_path):
    first = data.open_store(config, tmp_path / "s")
    before = (first.path / "manifest.json").stat().st_mtime_ns
    again = data.open_store(config, tmp_path / "s")
    assert again.path == first.path and (again.path / "manifest.json").stat().st_mtime_ns == before
    assert [p for p in first.path.parent.iterdir() if p.is_dir()] == [first.path]


def test_workers_make_the_same_bytes(config, tmp_path):
    one = data.open_store(config, tmp_path / "one")
    two = data.open_store(config, tmp_path / "two", workers=2)
    assert identical(one.path, two.path)


def test_another_recipe_is_refused_with_both_sides(config, tmp_path):
    from distill.data.corpus import make_recipe, open_at

    open_at(tmp_path / "s", make_recipe(config))
    other = dataclasses.replace(config, splits=SplitConfig(validation=0.2))
    with pytest.raises(data.DataError, match="splits.validation is 0.05 there, 0.2 in the config"):
        open_at(tmp_path / "s", make_recipe(other))


def test_adding_files_moves_no_document(config, corpus, tmp_path, texts):
    before = data.open_store(config, tmp_path / "s")
    (corpus / "0_first.jsonl").write_text("".join(json.dumps({"text": f"new {i}"}) + "\n" for i in range(300)))
    after = data.open_store(config, tmp_path / "s")
    assert after.path != before.path
    for name in SPLITS:
        old, new = (set(s.split(name).digests().tolist()) for s in (before, after))
        assert old < new


def test_split_fractions():
    rng = np.random.default_rng(0)
    digests = [int(d) for d in rng.integers(2**64, size=20_000, dtype=np.uint64)]
    counts = {name: 0 for name in SPLITS}
    for digest in digests:
        counts[assign(digest, SplitConfig(validation=0.1, teacher=0.7))] += 1
    assert abs(counts["validation"] - 2000) < 200 and abs(counts["teacher"] - 12_600) < 400


def test_duplicates_across_splits_are_removed_and_counted(tmp_path, texts):
    held = texts[:20]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in held))
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in held[:7] + texts[20:] * 2))
    files = FilesConfig(paths=(f"{tmp_path}/*.jsonl",), validation=(f"{tmp_path}/held.jsonl",))
    splits = SplitConfig(validation=0.0)
    store = data.open_store(DataConfig(source="files", files=files, splits=splits), tmp_path / "s")
    assert store.manifest["counts"]["duplicates_across"] == 7 and store.split("validation").documents == 20
    assert store.split("teacher").documents + store.split("student").documents == 2 * (len(texts) - 20)
    splits = SplitConfig(validation=0.0, duplicates="all")
    store = data.open_store(DataConfig(source="files", files=files, splits=splits), tmp_path / "s")
    assert store.manifest["counts"]["duplicates_within"] == len(texts) - 20
    assert store.split("teacher").documents + store.split("student").documents == len(texts) - 20


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 17])
def test_blocks_survive_any_cut(tmp_path, size):
    """Writing, cutting back to a committed size and going on gives the file of one uninterrupted writer."""
    content = np.random.default_rng(size).integers(256, size=size, dtype=np.uint8).tobytes()
    plain = BlockWriter(tmp_path / "plain")
    plain.append(content)
    entry = plain.finish()
    for cut in {0, size // 3, size // 2, size}:
        writer = BlockWriter(tmp_path / "cut")
        writer.append(content[:cut])
        writer.append(b"never committed")
        writer.flush()
        writer.close()
        writer = BlockWriter(tmp_path / "cut", cut)
        writer.append(content[cut:])
        assert writer.finish() == entry
    reader = BlockReader(tmp_path / "cut", entry, np.uint8)
    reader.check_all()
    assert reader.array.tobytes() == content


def flip(path, at):
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def test_damage_is_found_on_read_and_by_verify(config, tmp_path):
    store = data.open_store(config, tmp_path / "s")
    store.verify()
    flip(store.path / "student.bin", 1000)
    damaged = data.TokenStore(store.path)
    damaged.split("teacher").verify()
    with pytest.raises(data.DataError, match=r"student.bin: bytes 0\.\.\d+ do not match their sha256"):
        data.Loader(damaged, split="student", batch_size=1, seq_len=16).batch(0)
    with pytest.raises(data.DataError, match="student.bin"):
        damaged.verify()
    flip(store.path / "student.bin", 1000)
    flip(store.path / "student.bin.sha256", 3)
    with pytest.raises(data.DataError, match="student.bin.sha256: does not match the manifest"):
        data.TokenStore(store.path)


def test_only_blocks_that_are_read_are_checked(embedded, tmp_path):
    import shutil

    copy = shutil.copytree(embedded.path, tmp_path / "copy")
    flip(copy / "student.bin", 5 * BLOCK + 10)
    split = data.TokenStore(copy).split("student")
    split.read([0, 6 * BLOCK], 100)
    with pytest.raises(data.DataError, match=f"bytes {5 * BLOCK}..{6 * BLOCK} "):
        split.read([5 * BLOCK - 50], 100)


def test_short_or_missing_files(config, tmp_path):
    store = data.open_store(config, tmp_path / "s")
    os.truncate(store.path / "teacher.bin", 10)
    with pytest.raises(data.DataError, match="teacher.bin: got 10 bytes, wanted"):
        data.TokenStore(store.path)
    with pytest.raises(data.DataError, match="no manifest.json.*launch.tokenize"):
        data.TokenStore(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(data.DataError, match="got format 99, wanted 1"):
        data.TokenStore(tmp_path)


def test_killed_at_any_moment_it_ends_the_same(big, whole, tmp_path):
    """SIGKILL after each further commit; the store never looks whole before it is, and ends byte for byte the same."""
    out = tmp_path / "store"
    progress = tmp_path / ".store.building" / "progress.json"
    seen, kills = [], 0
    while not out.exists():
        # Slow only where it is killed, so that it is not done before; the last one may hurry.
        process = build_process(f"{big}/*.jsonl", out, pause=0.5 if kills < 3 else 0.0)
        start = json.loads(progress.read_text()) if progress.exists() else None
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline and kills < 3:
            now = json.loads(progress.read_text()) if progress.exists() else None
            if now != start:
                time.sleep(0.07 * kills)  # at another phase each time
                process.send_signal(signal.SIGKILL)
                kills += 1
                seen.append((now["shard"], now["document"]))
                break
            time.sleep(0.01)
        assert process.wait() in (0, -signal.SIGKILL), process.stderr.read()
        if process.returncode:
            with pytest.raises(data.DataError, match="no token store"):
                data.TokenStore(tmp_path / ".store.building")
    assert kills == 3 and seen == sorted(set(seen)), "each run must go on where the last one stopped"
    assert identical(out, whole)


def test_memory_is_bounded_by_a_block_not_by_the_corpus(tmp_path):
    """Four times the text, the same peak (jsonl and one unbroken txt file)."""
    peak = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    line = json.dumps({"text": "all work and no play " * 400}) + "\n"
    for name, unit in (("x.jsonl", line), ("x.txt", "all work and no play makes a dull corpus\n" * 200)):
        peaks = []
        for megabytes in (12, 48):
            folder = tmp_path / f"{megabytes}"
            folder.mkdir(exist_ok=True)
            with open(folder / name, "w") as file:
                for _ in range(megabytes * 10**6 // len(unit)):
                    file.write(unit)
            command = [sys.executable, "-c", f"{BUILD}\n{peak}", str(folder / name), str(folder / f"store-{name}"), "0"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
            peaks.append(int(done.stderr.split()[-1]) / 1e3)
        assert peaks[1] - peaks[0] < 30, f"{name}: {peaks} MB"


def test_two_processes_build_one_store(big, whole, tmp_path):
    racers = [build_process(f"{big}/*.jsonl", tmp_path / "store", pause=0.02) for _ in range(2)]
    for racer in racers:
        _, errors = racer.communicate(timeout=60)
        assert racer.returncode == 0, errors
    assert identical(tmp_path / "store", whole)


def test_a_disk_that_fills_leaves_nothing_that_looks_whole(big, whole, tmp_path):
    """A file-size limit stands in for the full disk; with room again, the same command continues."""
    limit = ("bash", "-c", 'ulimit -f 1500; exec "$@"', "limited")
    process = build_process(f"{big}/*.jsonl", tmp_path / "store", prefix=limit)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in errors
    assert "the disk is full" in errors and "it continues where it stopped" in errors
    assert not (tmp_path / "store").exists()
    reached = json.loads((tmp_path / ".store.building" / "progress.json").read_text())
    assert reached["counts"]["documents"] > 0
    assert build_process(f"{big}/*.jsonl", tmp_path / "store").wait(timeout=60) == 0
    assert identical(tmp_path / "store", whole)


def test_ten_billion_tokens_open_at_once(tmp_path):
    """A sparse store of 20 GB: opening and sampling must not read it."""
    from distill.bench.data import sparse_store

    sparse_store(tmp_path / "sparse", tokens=10**10)
    began = time.process_time()  # a busy machine does not count
    store = data.TokenStore(tmp_path / "sparse")
    loader = data.Loader(store, split="student", batch_size=8, seq_len=1024)
    assert loader.batch(123).tokens.shape == (8, 1025)
    assert time.process_time() - began < 1.0
    assert loader.window_count == (10**10 - 1) // 1024
    assert loader.windows(10**6).max() > 10**6


def test_a_path_that_is_taken_is_refused_at_once(config, tmp_path):
    from distill.data.corpus import make_recipe, open_at

    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/dear.txt").write_text("Anna")
    (tmp_path / "file").write_text("")
    for name in ("letters", "file"):
        with pytest.raises(data.DataError, match=f"{name}: exists and is no token store; give another path"):
            open_at(tmp_path / name, make_recipe(config))
    with pytest.raises(data.DataError, match="file/stores: Not a directory"):
        data.open_store(config, tmp_path / "file/stores")
    assert (tmp_path / "letters/dear.txt").read_text() == "Anna"


def test_a_finished_store_needs_no_writable_disk(config, tmp_path, monkeypatch):
    first = data.open_store(config, tmp_path / "s")
    from distill.data.store import build

    monkeypatch.setattr(build, "_locked", None)  # as good as a disk on which no lock can be made
    assert data.open_store(config, tmp_path / "s").fingerprint == first.fingerprint


def test_a_model_with_too_small_a_vocabulary(embedded):
    embedded.check_vocabulary(ModelConfig(vocab_size=256))
    for model, advice in (
        (
            ModelConfig(vocab_size=128),
            "model.vocab_size is 128.*'bytes' with a vocabulary of 256; set model.vocab_size=256",
        ),
        (ModelConfig(vocab_size=256, valid_vocab=200), "valid_vocab is 200.*set model.valid_vocab=256"),
        (ModelConfig(vocab_size=128, valid_vocab=100), "set model.vocab_size=256 and model.valid_vocab=0"),
    ):
        with pytest.raises(data.DataError, match=advice):
            embedded.check_vocabulary(model)
