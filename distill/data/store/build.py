"""Builds a token store: streaming, parallel, resumable, and complete when it appears under its final name.

The store grows in `.NAME.building` beside its final path. Every few seconds all files are synced, and `progress.json`
is replaced, which records how much of the source they cover. A killed build truncates its files to that point and
reads on from there, so that no document is lost or duplicated. A lock makes a second process wait for the first, and
the finished folder is renamed atomically. Memory is bounded by the chunks in flight, not by the corpus.
"""

import collections
import contextlib
import dataclasses
import errno
import fcntl
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distill.config.data import SplitConfig
from distill.data.documents import SPLITS, Document, TextSource, assign
from distill.data.store.blocks import BlockWriter
from distill.data.store.encode import Encoded, encode, encode_in_worker, start_worker
from distill.data.store.split import DOCUMENT_DTYPE, SplitWriter
from distill.data.store.store import FORMAT, MANIFEST, VOCABULARY
from distill.data.tokenizers.tokenizer import Tokenizer
from distill.errors import DataError
from distill.system import process
from distill.system.files import atomic_write
from distill.system.progress import Progress, Rate

CHUNK_BYTES = 1 << 20  # text that one worker encodes at a time
CHUNK_DOCUMENTS = 4096
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


OnProgress = Callable[[Progress], None]


# Documents read; of these, dropped as empty, unreadable or duplicate; kept with bytes replaced or NULs removed.
COUNTS = ("documents", "empty", "skipped", "duplicates_across", "duplicates_within", "invalid_utf8", "nul_removed")


@dataclasses.dataclass
class State:
    """The content of `progress.json`: all that a killed build needs to resume."""

    fingerprint: str
    shard: int = 0
    document: int = 0  # documents of that shard read so far
    counts: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    bytes: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    token_bytes: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    sizes: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreRecipe:
    """Everything that determines the content of a store."""

    source: TextSource
    tokenizer: Callable[[Path, OnProgress], Tokenizer]  # loads it, or trains it in the given folder
    splits: SplitConfig
    description: dict[str, Any]
    fingerprint: str


class Chunk(NamedTuple):
    """Documents that are encoded together, and the state of the source after them."""

    documents: list[Document]
    splits: list[str]
    digests: list[int]
    shard: int
    document: int
    counts: dict[str, int]


def build_store(
    path: Path,
    recipe: StoreRecipe,
    *,
    workers: int = 0,
    on_progress: OnProgress = lambda _: None,
    commit_seconds: float = 5.0,
) -> None:
    """Builds the store at `path`, or resumes an interrupted build; returns when it is complete.

    workers = 0 encodes in this process. Waits for another process that builds the same store. Raises DataError where
    the disk is full (the next call resumes from what was written) or the source cannot be read.
    """
    # Checked first, so that a finished store may be on a read-only disk.
    if (path / MANIFEST).exists():
        return
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DataError(f"{path}: exists and is no token store; give another path, or move it away")
    with _errors_in_a_line(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            if not (path / MANIFEST).exists():
                _build(path, recipe, workers, on_progress, commit_seconds)


@contextlib.contextmanager
def _errors_in_a_line(path: Path) -> Iterator[None]:
    """Turns errors of the system and of lost workers into a DataError."""
    try:
        yield
    except BrokenProcessPool:
        raise DataError(
            f"{path}: a worker process died: killed for want of memory, or the script that builds this store has "
            "no `if __name__ == '__main__':` guard. Run the same command again: it continues where it stopped"
        ) from None
    except OSError as error:
        if error.errno in _FULL:
            raise DataError(
                f"{path}: the disk is full ({error.strerror}); nothing there looks finished. Free some space and run "
                "the same command again: it continues where it stopped"
            ) from None
        raise DataError(f"{error.filename or path}: {error.strerror or error} (while building {path})") from None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the store's lock; the system releases it when the process ends for any reason."""
    with open(path.parent / f".{path.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(path: Path, recipe: StoreRecipe, workers: int, on_progress: OnProgress, commit_seconds: float) -> None:
    folder = path.parent / f".{path.name}.building"
    folder.mkdir(exist_ok=True)
    state = _restore(folder, recipe.fingerprint)
    tokenizer = recipe.tokenizer(folder, on_progress)
    dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
    masked = recipe.source.masked
    writers = {name: SplitWriter(folder, name, dtype, masked, state.sizes.get(name)) for name in SPLITS}
    try:
        seen = _restore_seen(folder, recipe, state)
        committed, speed = time.monotonic(), Rate()
        chunks = _chunks(recipe, state, seen)
        for chunk, encoded in _encoded(chunks, tokenizer, dtype, masked, workers):
            _append(writers, state, chunk, encoded)
            size, tokens = sum(state.bytes.values()), sum(writer.tokens for writer in writers.values())
            on_progress(build_progress("tokenizing", recipe.source.share, size, tokens, speed.update(size)))
            if time.monotonic() - committed >= commit_seconds:
                _commit(folder, state, writers)
                committed = time.monotonic()
        entries = {name: writer.finish() for name, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.close()
    _finish(path, folder, recipe, tokenizer, dtype, state, entries)


def _restore(folder: Path, fingerprint: str) -> State:
    """The state of an interrupted build of the same recipe, or a fresh one."""
    try:
        state = State(**json.loads((folder / "progress.json").read_text("utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return State(fingerprint)
    return state if state.fingerprint == fingerprint else State(fingerprint)


def _restore_seen(folder: Path, recipe: StoreRecipe, state: State) -> dict[int, str]:
    """Maps the digest of earlier documents to their split, to find duplicates."""
    names = SPLITS if recipe.splits.duplicates == "all" else recipe.source.explicit
    seen: dict[int, str] = {}
    for name in names:
        size = state.sizes.get(name, {}).get("docs", 0)
        if size:
            with open(folder / f"{name}.docs", "rb") as file:
                digests = np.frombuffer(file.read(size), DOCUMENT_DTYPE)["digest"]
            seen.update(dict.fromkeys(digests.tolist(), name))
    return seen


def _chunks(recipe: StoreRecipe, state: State, seen: dict[int, str]) -> Iterator[Chunk]:
    """Reads the source from the state on, assigns splits, and drops empty documents and duplicates."""
    keep_all = recipe.splits.duplicates == "all"
    for shard in range(state.shard, len(recipe.source.shards)):
        read = state.document if shard == state.shard else 0
        stream = recipe.source.read(shard, read)
        while True:
            chunk = Chunk([], [], [], shard, 0, dict.fromkeys(COUNTS, 0))
            size = 0
            for raw in itertools.islice(stream, CHUNK_DOCUMENTS):
                read += 1
                document = _clean(raw, chunk.counts)
                if document is None:
                    continue
                digest = document.digest()
                split = document.split or assign(digest, recipe.splits)
                first = seen.get(digest)
                if first is not None and (first != split or keep_all):
                    chunk.counts["duplicates_within" if first == split else "duplicates_across"] += 1
                    continue
                if document.split or keep_all:
                    seen[digest] = split
                chunk.documents.append(document)
                chunk.splits.append(split)
                chunk.digests.append(digest)
                size += document.size
                if size >= CHUNK_BYTES:
                    break
            if not chunk.counts["documents"]:
                break
            yield chunk._replace(document=read)
        yield Chunk([], [], [], shard + 1, 0, dict.fromkeys(COUNTS, 0))


def _clean(document: Document, counts: dict[str, int]) -> Document | None:
    """Counts the document; returns None if it has no text to keep."""
    counts["documents"] += 1
    counts["invalid_utf8"] += document.broken
    nul = sum(part.text.count("\0") for part in document.parts)
    if nul:
        counts["nul_removed"] += nul
        document = document._replace(parts=tuple(p._replace(text=p.text.replace("\0", "")) for p in document.parts))
    if not document.size:
        counts["skipped" if document.broken else "empty"] += 1
        return None
    return document


def _encoded(
    chunks: Iterator[Chunk], tokenizer: Tokenizer, dtype: np.dtype, masked: bool, workers: int
) -> Iterator[tuple[Chunk, Encoded]]:
    """Yields the chunks in order with their tokens; at most two chunks per worker are in flight."""
    if not workers:
        for chunk in chunks:
            yield chunk, encode(tokenizer, chunk.documents, dtype, masked)
        return
    pool = ProcessPoolExecutor(
        workers, mp_context=process.worker_context(), initializer=start_worker, initargs=(tokenizer.spec,)
    )
    with pool:
        flying: collections.deque[tuple[Chunk, Future[Encoded]]] = collections.deque()
        try:
            for chunk in chunks:
                flying.append((chunk, pool.submit(encode_in_worker, chunk.documents, dtype, masked)))
                if len(flying) > 2 * workers:
                    done, future = flying.popleft()
                    yield done, future.result()
            for done, future in flying:
                yield done, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _append(writers: dict[str, SplitWriter], state: State, chunk: Chunk, encoded: Encoded) -> None:
    """Writes a chunk's documents to their splits and advances the state past it."""
    names = np.array(chunk.splits, dtype=str)
    digests = np.array(chunk.digests, np.uint64)
    for name in dict.fromkeys(chunk.splits):
        here = names == name
        tokens = np.repeat(here, encoded.lengths)
        mask = encoded.mask[tokens] if encoded.mask is not None else None
        writers[name].append(encoded.ids[tokens], encoded.lengths[here], digests[here], mask)
        state.bytes[name] += int(encoded.bytes[here].sum())
        state.token_bytes[name] += int(encoded.token_bytes[here].sum())
    for key, count in chunk.counts.items():
        state.counts[key] += count
    state.shard, state.document = chunk.shard, chunk.document


def _commit(folder: Path, state: State, writers: dict[str, SplitWriter]) -> None:
    """Makes everything written so far survive a kill or a power loss."""
    for name, writer in writers.items():
        writer.flush()
        state.sizes[name] = writer.sizes()
    atomic_write(folder / "progress.json", json.dumps(dataclasses.asdict(state), indent=1))


def build_progress(stage: str, share: float, size: int, tokens: int, rate: float | None) -> Progress:
    """The progress of a build, as 'tokenizing 40%  12.3 MB of text, 3.1 Mtok, 4.5 MB/s'.

    share: fraction of the source, 0 to 1; size: bytes of text so far; rate: bytes per second.
    """
    parts = [f"{size / 1e6:.1f} MB of text"]
    parts += [f"{tokens / 1e6:.1f} Mtok"] if tokens else []
    parts += [f"{rate / 1e6:.1f} MB/s"] if rate else []
    return Progress(done=share, total=1, unit=stage, text=", ".join(parts))


def _finish(
    path: Path, folder: Path, recipe: StoreRecipe, tokenizer: Tokenizer, dtype: np.dtype, state: State, entries: dict
) -> None:
    """Writes the manifest and renames the folder to its final name."""
    if not any(entry["tokens"] for entry in entries.values()):
        raise DataError(f"{path}: the source held no text ({state.counts['documents']} documents); nothing was built")
    vocabulary = BlockWriter(folder / VOCABULARY)
    vocabulary.append(np.asarray(tokenizer.byte_lengths, np.int64).tobytes())
    for name, entry in entries.items():
        entry |= {"bytes": state.bytes[name], "token_bytes": state.token_bytes[name]}
    manifest = {
        "format": FORMAT,
        "fingerprint": recipe.fingerprint,
        "recipe": recipe.description,
        "tokenizer": {
            "name": tokenizer.name,
            "hash": tokenizer.hash,
            "vocab_size": tokenizer.vocab_size,
            "end_of_text": tokenizer.end_of_text,
            "kind": tokenizer.spec.kind,
            "special": tokenizer.spec.special,
        },
        "dtype": dtype.name,
        "counts": state.counts,
        "splits": entries,
        "vocabulary": vocabulary.finish(),
    }
    atomic_write(folder / MANIFEST, json.dumps(manifest, indent=1))
    (folder / "progress.json").unlink(missing_ok=True)
    os.replace(folder, path)
