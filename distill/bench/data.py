"""Data at speed: tokenizing beside `tokenizers`' own batch encoding, the loader, and a store of 10 billion tokens.

    python -m launch.bench data [--megabytes=24] [--vocab_size=8192] [--repeats=3] [--workers=2]

The two tokenizers alternate in one process tree: the library's `encode_batch` on texts that lie in memory, with its
own threads on all cores, against a whole build from a file (start the workers, read, split, encode, hash, write).
Both are given in wall time and in seconds of CPU, which a busy machine disturbs less.
"""

import hashlib
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from distill import data
from distill.config.data import DataConfig, FilesConfig, TokenizerConfig
from distill.config.flags import Parser
from distill.data.corpus import make_recipe, open_at
from distill.data.sources import embedded
from distill.data.store.blocks import BLOCK, BlockWriter, hash_path
from distill.data.store.split import DOCUMENT_DTYPE
from distill.data.store.store import FORMAT, MANIFEST, VOCABULARY
from distill.data.tokenizers.subword import train_bpe


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("bench data", __doc__)
    parser.add_argument("--megabytes", type=float, default=24.0)
    parser.add_argument("--vocab_size", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    flags = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        tokenizing(Path(folder), flags.megabytes, flags.vocab_size, flags.repeats, flags.workers)
        loading(Path(folder))
        opening(Path(folder))
    return 0


def tokenizing(folder: Path, megabytes: float, vocab_size: int, repeats: int, workers: int) -> None:
    from tokenizers import Tokenizer

    texts = list(_texts(int(megabytes * 1e6)))
    size = sum(len(text.encode("utf-8")) for text in texts)
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train_bpe(texts[:2000], vocab_size, folder / "tokenizer.json")
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    recipe = make_recipe(
        DataConfig(
            source="files",
            files=FilesConfig(paths=(str(folder / "texts.jsonl"),)),
            tokenizer=TokenizerConfig(kind="json", path=str(folder / "tokenizer.json")),
        )
    )
    wall: dict[str, list[float]] = {"theirs": [], "ours": []}
    cpu: dict[str, list[float]] = {"theirs": [], "ours": []}
    for repeat in range(repeats):
        for name, work in (
            ("theirs", lambda: library.encode_batch(texts, add_special_tokens=False)),
            ("ours", lambda out=folder / f"store{repeat}": open_at(out, recipe, workers=workers)),
        ):
            before = _cpu_seconds()
            wall[name].append(_seconds(work))
            cpu[name].append(_cpu_seconds() - before)
    print(f"tokenizing {size / 1e6:.1f} MB, BPE {vocab_size}, {workers} workers, {repeats} alternated runs:")
    for title, seconds in (("wall time", wall), ("CPU time", cpu)):
        theirs, ours = (size / 1e6 / statistics.median(seconds[name]) for name in ("theirs", "ours"))
        ratios = sorted(a / b for a, b in zip(seconds["theirs"], seconds["ours"]))
        print(f"  {title:<10} tokenizers.encode_batch {theirs:6.2f} MB/s, store from a jsonl file {ours:6.2f} MB/s, "
              f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")  # fmt: skip


def _texts(size: int) -> Iterator[str]:
    """Paragraph-sized documents from the embedded corpus; later passes prefix each document with the pass's number."""
    sentences = [text for address in embedded.addresses() for text in address.text.split(". ")]
    done, turn = 0, 0
    while done < size:
        for start in range(0, len(sentences), 8):
            text = (f"{turn}: " if turn else "") + ". ".join(sentences[start : start + 8])
            done += len(text)
            yield text
        turn += 1


def loading(folder: Path) -> None:
    """Million tokens per second from a memory map in the page cache, one thread."""
    store = data.open_store(DataConfig(), folder / "embedded")
    store.verify()
    print("loader, embedded corpus, bytes, one thread:")
    for packing in ("windows", "segments", "documents"):
        for batch, length, stacked in ((4, 128, 16), (32, 1024, 1), (32, 1024, 8), (16, 4096, 4)):
            loader = data.Loader(store, split="student", batch_size=batch, seq_len=length, packing=packing)
            calls = min(max(2, 40_000_000 // (batch * length * stacked)), 400)
            loader.batches(0, stacked)
            cpu = time.process_time()
            wall = _seconds(lambda: [loader.batches(k * stacked, stacked) for k in range(calls)])
            cpu = time.process_time() - cpu
            tokens = calls * batch * length * stacked / 1e6
            sizes = f"batch {batch:>2} x {length:>4}, {stacked:>2} stacked"
            print(f"  {packing:<10}{sizes}{tokens / wall:8.1f} Mtok/s, {tokens / cpu:8.1f} a second of CPU")


def opening(folder: Path) -> None:
    sparse_store(folder / "sparse", tokens=10**10)
    opened: list[data.TokenStore] = []
    seconds = _seconds(lambda: opened.append(data.TokenStore(folder / "sparse")))
    loader = data.Loader(opened[0], split="student", batch_size=32, seq_len=1024)
    first = _seconds(lambda: loader.batch(0))
    sampling = _seconds(lambda: [loader.batch(step) for step in range(1, 101)]) / 100
    print("a store of 10 billion tokens (20 GB, sparse):")
    print(f"  opens in {seconds * 1e3:.0f} ms; first batch of 32 x 1024 {first * 1e3:.1f} ms,")
    print(f"  then {sampling * 1e3:.2f} ms a batch while every block is new and hashed: "
          f"{32 * 1024 / sampling / 1e6:.0f} Mtok/s")  # fmt: skip


def sparse_store(path: Path, tokens: int) -> None:
    """A valid store whose student split is a hole in the disk: all zeros, with their hashes."""
    path.mkdir(parents=True)
    lengths = BlockWriter(path / VOCABULARY)
    lengths.append(np.ones(1 << 16, np.int64).tobytes())
    entries = {}
    for name, count in (("teacher", 0), ("student", tokens), ("validation", 0)):
        size = 2 * count
        file = path / f"{name}.bin"
        with open(file, "wb") as hole:
            hole.truncate(size)
        whole, rest = divmod(size, BLOCK)
        hashes = hashlib.sha256(bytes(BLOCK)).digest() * whole
        hashes += hashlib.sha256(bytes(rest)).digest() if rest else b""
        hash_path(file).write_bytes(hashes)
        documents = BlockWriter(path / f"{name}.docs")
        documents.append(np.array([(count, 0)] * bool(count), DOCUMENT_DTYPE).tobytes())
        entries[name] = {
            "tokens": count,
            "documents": int(count > 0),
            "bytes": count,
            "token_bytes": count,
            "files": {
                "bin": {"size": size, "sha256": hashlib.sha256(hashes).hexdigest()},
                "docs": documents.finish(),
            },
        }
    manifest = {
        "format": FORMAT,
        "fingerprint": "sparse",
        "recipe": {},
        "tokenizer": {"name": "zeros", "hash": "zeros", "vocab_size": 1 << 16, "end_of_text": -1, "kind": "bytes"},
        "dtype": "uint16",
        "counts": {},
        "splits": entries,
        "vocabulary": lengths.finish(),
    }
    (path / MANIFEST).write_text(json.dumps(manifest))


def _cpu_seconds() -> float:
    """CPU seconds of this process with its threads, and of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
