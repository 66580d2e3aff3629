"""Text of strangers: .txt, .jsonl and .parquet, compressed, with chats and prompts in them."""

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from distill.config.data import ColumnsConfig, FilesConfig
from distill.data.sources.columns import Columns
from distill.data.sources.files import Files
from distill.teacher.generation import journal
from tests.fuzz.harness import Reader

Prepared = tuple[Callable[[bytes], Any], list[bytes]]
_TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
_RECORDS: list[dict[str, Any]] = [
    {"text": "one\ntwo", "q": "why", "messages": _TALK},
    {"text": None, "q": 3, "messages": []},
    {"text": "naïve \U0001f600", "q": "", "messages": [{"role": "system", "content": "c"}]},
]
_COLUMNS = (ColumnsConfig(), ColumnsConfig(messages="messages"), ColumnsConfig(prompt="{q}:", completion="{text}"))


def _files(suffix: str, seeds: list[bytes]) -> Callable[[Path], Prepared]:
    """The first byte chooses columns and what happens to bytes that are not UTF-8."""

    def prepare(folder: Path) -> Prepared:
        file = folder / f"case{suffix}"

        def call(case: bytes) -> Any:
            which = case[0] if case else 0
            file.write_bytes(case[1:])
            policy: Any = ("replace", "skip", "error")[which // 4 % 3]
            config = FilesConfig(paths=(str(file),), separator="\n\n" if which & 64 else "", invalid_utf8=policy)
            source = Files(config, Columns(_COLUMNS[which % 4 % 3]))
            source.describe()
            found = list(source.read(0))
            for document in found:
                "".join(part.text for part in document.parts).encode("utf-8")
            return len(found), source.share

        return call, [bytes([i]) + seed for i in (0, 1, 2, 8) for seed in seeds]

    return prepare


def _lines() -> bytes:
    return "".join(json.dumps(record) + "\n" for record in _RECORDS).encode()


def _parquet() -> bytes:
    stream = io.BytesIO()
    records = [record | {"q": str(record["q"])} for record in _RECORDS]
    pq.write_table(pa.Table.from_pylist(records), stream, compression="zstd")
    return stream.getvalue()


def _unpacked(case: bytes) -> int:
    """How much a case decompresses to, at most; what is cut off or damaged counts as far as it goes."""
    total = 0
    openers = (zlib.decompressobj(31), lzma.LZMADecompressor(), zstandard.ZstdDecompressor().decompressobj())
    for opened in openers:
        try:
            total = max(total, len(opened.decompress(case[1:])))
        except Exception:  # whatever a library says of what is not its own
            continue
    return len(case) + total


def _journal(folder: Path) -> Prepared:
    file = folder / "completions.jsonl"

    def call(case: bytes) -> Any:
        file.write_bytes(case)
        return len(list(journal.read(file)))

    return call, [b'{"prompt": "a", "text": "b"}\n{"prompt": "c", "text": "d"}\n']


_TEXT = "first\n\nsecond, naïve\n\nthird \U0001f600\n".encode()
_WORDS = (b'"text"', b'"messages"', b'"role"', b'"content"', b"null", b"\\ud800", b"\xff", b"\xed\xa0\x80", b"\n")

READERS = (
    Reader(name="text_txt", prepare=_files(".txt", [_TEXT]), named=("case",), words=_WORDS),
    Reader(name="text_jsonl", prepare=_files(".jsonl", [_lines()]), named=("case",), words=_WORDS),
    Reader(name="text_parquet", prepare=_files(".parquet", [_parquet()]), named=("case",)),
    Reader(name="text_gz", prepare=_files(".jsonl.gz", [gzip.compress(_lines())]), named=("case",), size=_unpacked),
    Reader(name="text_xz", prepare=_files(".txt.xz", [lzma.compress(_TEXT)]), named=("case",), size=_unpacked),
    Reader(
        name="text_zst",
        prepare=_files(".jsonl.zst", [zstandard.compress(_lines())]),
        named=("case",),
        size=_unpacked,
    ),
    Reader(name="completions", prepare=_journal, named=("completions.jsonl",), words=_WORDS),
)
