"""Each source on real files, and what bad input says."""

import gzip
import importlib
import json
import lzma
import shutil
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from distill import data
from distill.config.data import (
    ColumnsConfig,
    DataConfig,
    FilesConfig,
    MixtureConfig,
    SplitConfig,
    TokenizerConfig,
)
from distill.data import corpus
from distill.data.documents import SPLITS
from tests.system import gcs

ALL_TRAIN = SplitConfig(validation=0.0, teacher=1.0)


def open_files(tmp_path, *paths, splits=ALL_TRAIN, columns=None, **fields):
    files = FilesConfig(paths=tuple(map(str, paths)), **fields)
    config = DataConfig(source="files", files=files, splits=splits, columns=columns or ColumnsConfig())
    return data.open_store(config, tmp_path / "stores")


def documents(store, split="teacher"):
    """The texts of a byte store, by its own document ends."""
    s = store.split(split)
    ends = s.document_ends().astype(int)
    return [
        s.read_span(start, stop).tobytes().removesuffix(b"\0").decode()
        for start, stop in zip(np.concatenate([[0], ends[:-1]]), ends)
    ]


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("compression", ["", ".gz", ".xz", ".zst"])
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_every_compression_of_text_and_jsonl(tmp_path, texts, kind, compression):
    plain = "\n\n".join(texts) if kind == "txt" else "".join(json.dumps({"text": t}) + "\n" for t in texts)
    press = {
        "": bytes,
        ".gz": gzip.compress,
        ".xz": lambda b: lzma.compress(b[:999]) + bytes(300 << 10) + lzma.compress(b[999:]),  # with padding
        # Two frames end to end, as parallel compressors write.
        ".zst": lambda b: b"".join(zstandard.ZstdCompressor().compress(p) for p in (b[:999], b[999:])),
    }[compression]
    path = tmp_path / f"x.{kind}{compression}"
    path.write_bytes(press(plain.encode()))
    assert documents(open_files(tmp_path, path, separator="\n\n")) == texts


def test_parquet_files(tmp_path, texts):
    pyarrow.parquet.write_table(
        pyarrow.table({"id": range(400), "body": texts}), tmp_path / "x.parquet", row_group_size=37
    )
    assert documents(open_files(tmp_path, tmp_path / "x.parquet", columns=ColumnsConfig(text="body"))) == texts


@pytest.mark.slow
def test_folders_of_hugging_face_datasets(tmp_path, texts):
    """Written by the library itself, in shards; what it cached beside them is no text."""
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_dict({"id": list(range(400)), "body": texts})
    saved.save_to_disk(str(tmp_path / "d"), num_shards=3)
    shutil.copyfile(tmp_path / "d" / "data-00000-of-00003.arrow", tmp_path / "d" / "cache-0123.arrow")
    assert documents(open_files(tmp_path, tmp_path / "d", columns=ColumnsConfig(text="body"))) == texts
    with pytest.raises(data.DataError, match="there is no column 'text', only 'id', 'body'"):
        open_files(tmp_path, tmp_path / "d")
    (tmp_path / "x.arrow").write_bytes((tmp_path / "d" / "data-00000-of-00003.arrow").read_bytes()[:2000])
    with pytest.raises(data.DataError, match="x.arrow: not an Arrow file, or damaged after row 0"):
        open_files(tmp_path / "s", tmp_path / "x.arrow", columns=ColumnsConfig(text="body"))


def test_sharegpt_records(tmp_path):
    """Records of ShareGPT's dialect: `conversations` of `from` and `value`; only what gpt says is trained."""
    turns = [{"from": "system", "value": "S"}, {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": "x", "conversations": turns}) + "\n")
    columns = ColumnsConfig(messages="conversations", chat="<{role}>{content}\n")
    store = open_files(tmp_path, tmp_path / "a.jsonl", columns=columns)
    (said,) = documents(store)
    assert said == "<system>S\n<user>Q\n<assistant>A\n"
    split = store.split("teacher")
    marked = bytes(np.asarray(split.read_span(0, split.tokens))[split.read_span(0, split.tokens, "mask") > 0])
    assert marked.rstrip(b"\0") == b"A\n"


def test_globs_folders_and_order(tmp_path):
    for name in ("b/2.txt", "a/deep/1.txt", "c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    store = open_files(tmp_path, f"{tmp_path}/**/*.txt", f"{tmp_path}/c.txt")
    assert documents(store) == ["a/deep/1.txt", "b/2.txt", "c.txt"]


def test_moving_a_corpus_does_not_change_what_it_is(tmp_path, texts):
    stores = []
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        write_jsonl(tmp_path / place / "x.jsonl", [{"text": t} for t in texts])
        stores.append(open_files(tmp_path, f"{tmp_path}/{place}/*.jsonl"))
    assert stores[0].path == stores[1].path


@pytest.fixture
def bucket():
    """A file system in memory that answers to gs://, so that the real epath code runs."""
    fsspec = importlib.import_module("fsspec")
    from fsspec.implementations.memory import MemoryFileSystem

    class Bucket(MemoryFileSystem):
        protocol = ("gs", "gcs")
        store: dict = {}
        pseudo_dirs = [""]

        @classmethod
        def _strip_protocol(cls, path):
            bare = path.removeprefix("gs://").removeprefix("gcs://").strip("/")
            return f"/{bare}" if bare else ""

    gcs.forget()
    for name in Bucket.protocol:
        fsspec.register_implementation(name, Bucket, clobber=True)
    yield importlib.import_module("etils.epath").Path("gs://bucket")
    for name in Bucket.protocol:
        del sys.modules["fsspec.registry"]._registry[name]
    gcs.forget()


def test_files_in_a_bucket(tmp_path, texts, bucket):
    (bucket / "deep").mkdir(parents=True, exist_ok=True)
    (bucket / "deep/a.txt").write_text(texts[0])
    (bucket / "deep/b.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": texts[1]}).encode()))
    (bucket / "deep/c.csv").write_text("not asked for")
    pyarrow.parquet.write_table(pyarrow.table({"text": texts[2:4]}), tmp_path / "d.parquet")
    (bucket / "deep/d.parquet").write_bytes((tmp_path / "d.parquet").read_bytes())
    store = open_files(tmp_path, "gs://bucket/deep/*.txt", "gs://bucket/*/b.jsonl.gz", "gs://bucket/deep/d.parquet")
    assert documents(store) == texts[:4]
    with pytest.raises(data.DataError, match="matches no file"):
        open_files(tmp_path, "gs://bucket/deep/*.md")


def test_a_text_file_larger_than_a_block_is_cut_at_a_line(tmp_path, monkeypatch):
    from distill.data.sources import files

    monkeypatch.setattr(files, "MAX_DOCUMENT", 1 << 20)
    lines = [f"line {i} " + "x" * 90 + "\n" for i in range(30_000)]
    (tmp_path / "x.txt").write_text("".join(lines))
    parts = documents(open_files(tmp_path, tmp_path / "x.txt"))
    assert len(parts) == 3 and "".join(parts) == "".join(lines) and all(p.endswith("\n") for p in parts)


def test_validation_files(tmp_path, texts):
    write_jsonl(tmp_path / "train.jsonl", [{"text": t} for t in texts[:300]])
    write_jsonl(tmp_path / "held.jsonl", [{"text": t} for t in texts[300:]])
    store = open_files(tmp_path, f"{tmp_path}/*.jsonl", validation=(f"{tmp_path}/held.jsonl",))
    assert documents(store, "validation") == texts[300:] and documents(store) == texts[:300]


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name {role}?"},
    {"role": "assistant", "content": "Anna."},
]


def test_messages_through_the_chat_template(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", [{"messages": CHAT}] * 3)
    columns = ColumnsConfig(messages="messages", chat="<{role}>{content}</{role}>\n")
    store = open_files(tmp_path, tmp_path / "x.jsonl", columns=columns)
    wanted = "<system>Be brief.</system>\n<user>Name {role}?</user>\n<assistant>Anna.</assistant>\n"
    assert documents(store)[0] == wanted
    split = store.split("teacher")
    mask = split.read_mask([0], len(wanted) + 1)[0]
    trained = bytes(b for b, m in zip(wanted.encode() + b"\0", mask) if m)
    assert trained == b"Anna.</assistant>\n\0"
    loader = data.Loader(store, split="teacher", batch_size=1, seq_len=16, completions_only=True)
    for step in range(loader.window_count):
        batch, start = loader.batch(step), loader.windows(step)[0] * 16
        assert np.array_equal(batch.weight[0], split.read_mask([start], 17)[0, 1:])


def test_prompt_and_completion_templates(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", [{"q": "2 + {q}?", "a": 4, "unused": None}])
    columns = ColumnsConfig(prompt="Q: {q}\nA:", completion=" {a}")
    store = open_files(tmp_path, tmp_path / "x.jsonl", columns=columns)
    assert documents(store) == ["Q: 2 + {q}?\nA: 4"]
    assert store.split("teacher").read_mask([0], 17)[0].tolist() == [0] * 14 + [1, 1, 1]


# --- bad input


def test_broken_utf8_policies(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"good\n\nbad \xff\xfe here\n\nalso good")
    store = open_files(tmp_path, tmp_path / "x.txt", separator="\n\n")
    assert documents(store) == ["good", "bad �� here", "also good"]
    assert store.manifest["counts"]["invalid_utf8"] == 1
    store = open_files(tmp_path, tmp_path / "x.txt", separator="\n\n", invalid_utf8="skip")
    assert documents(store) == ["good", "also good"] and store.manifest["counts"]["skipped"] == 1
    with pytest.raises(data.DataError, match="x.txt: not UTF-8 .*position 4.*'replace' or 'skip'"):
        open_files(tmp_path, tmp_path / "x.txt", separator="\n\n", invalid_utf8="error")


def test_broken_utf8_across_read_boundaries(tmp_path, monkeypatch):
    from distill.data.sources import files

    monkeypatch.setattr(files, "_PIECE", 3)
    text = "aé€😀 " * 50
    (tmp_path / "x.txt").write_text(text)
    store = open_files(tmp_path, tmp_path / "x.txt")
    assert documents(store) == [text] and store.manifest["counts"]["invalid_utf8"] == 0


def test_broken_utf8_in_jsonl(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "ok"}\n{"text": "b\xffd"}\n{"text": "half \\ud83d pair"}\n')
    store = open_files(tmp_path, tmp_path / "x.jsonl")
    assert documents(store) == ["ok", "b�d", "half � pair"] and store.manifest["counts"]["invalid_utf8"] == 2
    store = open_files(tmp_path, tmp_path / "x.jsonl", invalid_utf8="skip")
    assert documents(store)[0] == "ok" and store.manifest["counts"]["skipped"] >= 1


def test_empty_documents_and_nuls_are_counted(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", [{"text": t} for t in ("", "a\0b", None, "c")])
    store = open_files(tmp_path, tmp_path / "x.jsonl")
    assert documents(store) == ["ab", "c"]
    counts = store.manifest["counts"]
    assert (counts["documents"], counts["empty"], counts["nul_removed"]) == (4, 2, 1)


BAD = [
    ("x.jsonl", b'{"txt": "a"}\n', "no column 'text', only 'txt'; set data.columns. Did you mean 'txt'"),
    ("x.jsonl", b'{"text": "a"}\n{"text": \n', "x.jsonl, line 2: not a JSON object"),
    ("x.jsonl", b"[1, 2]\n", "x.jsonl, line 1: got list, wanted a JSON object"),
    ("x.jsonl", b'{"text": ["a"]}\n', r"x.jsonl, line 1: column 'text' holds \['a'\] \(list\), wanted text"),
    ("x.parquet", b"nonsense", "x.parquet: not a parquet file"),
    ("x.txt.gz", b"nonsense", "x.txt.gz: the file is cut off or not what its name says"),
    ("x.txt.gz", gzip.compress(b"some text " * 99, mtime=0)[:-20], "x.txt.gz: the file is cut off"),
    ("x.txt.xz", lzma.compress(b"some text " * 99)[:-20], "x.txt.xz: the file is cut off"),
    ("x.txt.xz", lzma.compress(b"some text", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]), "Memory"),
    ("x.txt.xz", lzma.compress(b"some text") + b"more", "x.txt.xz: the file is cut off or not"),
    ("x.txt.xz", b"nonsense", "x.txt.xz: the file is cut off or not what its name says"),
    ("x.txt.zst", zstandard.ZstdCompressor().compress(bytes(range(256)) * 99)[:-9], "x.txt.zst: the file is cut off"),
    ("x.txt.zst", b"nonsense", "x.txt.zst: the file is cut off or not what its name says"),
    ("x.csv", b"a,b\n", "x.csv: got a file of an unknown kind, wanted .txt, .jsonl, .parquet"),
    ("x.txt", b"", "the source held no text"),
]


@pytest.mark.parametrize("name, content, message", BAD)
def test_bad_files_say_what_is_wrong(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(data.DataError, match=message):
        open_files(tmp_path, tmp_path / name)
    assert not [p for p in (tmp_path / "stores").glob("*") if not p.name.startswith(".")]


def test_nothing_to_read(tmp_path):
    with pytest.raises(data.DataError, match="matches no file"):
        open_files(tmp_path, tmp_path / "*.txt")
    with pytest.raises(data.DataError, match="data.files.paths is empty"):
        data.open_store(DataConfig(source="files"), tmp_path)
    with pytest.raises(data.DataError, match="splits.validation is 1.5, wanted a fraction"):
        data.open_store(DataConfig(splits=SplitConfig(validation=1.5)), tmp_path)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "x.txt.zst").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(data.DataError, match="needs the package zstandard; `pip install zstandard`"):
        open_files(tmp_path, tmp_path / "x.txt.zst")


# --- finished stores


def test_tokens_and_mixture_by_config(store, tmp_path):
    same = data.open_store(DataConfig(source="tokens", tokens=str(store.path)), tmp_path)
    assert same.fingerprint == store.fingerprint
    other = DataConfig(source="tokens", tokens=str(store.path), tokenizer=TokenizerConfig(kind="bpe"))
    with pytest.raises(data.DataError, match="holds tokens of 'bytes': tokenizer.kind is 'bytes' there, 'bpe'"):
        data.open_store(other, tmp_path)

    mixture = MixtureConfig(stores=("embedded", str(store.path)), weights=(0.75, 0.25))
    mixed = data.open_store(DataConfig(source="mixture", mixture=mixture), tmp_path)
    assert mixed.weights == (0.75, 0.25) and [len(s.splits) for s in mixed.stores] == [len(SPLITS)] * 2
    with pytest.raises(data.DataError, match="no manifest.json"):
        data.open_store(DataConfig(source="tokens", tokens=str(tmp_path)), tmp_path)


def test_a_source_without_a_reader_is_refused():
    """The embedded text is no default for a name that nobody reads."""
    with pytest.raises(data.DataError, match="got 'web', which has no reader"):
        corpus.make_source(DataConfig(source="web"))
