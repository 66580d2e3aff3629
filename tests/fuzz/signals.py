"""Stores of signals and of tokens, and the seals of checkpoints: formats that carry checksums."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from distill.data.store.store import TokenStore
from distill.errors import SignalError
from distill.system import checksums
from distill.teacher.signals import codec, manifest
from distill.teacher.signals.reader import SignalStore
from distill.teacher.signals.shard import Name, Shard
from tests.fuzz.harness import FIRST, Reader

Prepared = tuple[Callable[[bytes], Any], list[bytes]]


def _files(folder: Path, names: Sequence[str], read: Callable[[], Any]) -> Prepared:
    """Cases whose first byte says which file the rest replaces while it is read."""
    whole = {name: (folder / name).read_bytes() for name in names}

    def call(case: bytes) -> Any:
        name = names[case[0] % len(names)] if case else names[0]
        (folder / name).write_bytes(case[1:])
        try:
            return read()
        finally:
            (folder / name).write_bytes(whole[name])

    return call, [bytes([i]) + whole[name] for i, name in enumerate(names)]


def _digest(*arrays: Any) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def _read_signals(folder: Path) -> str:
    store = SignalStore(folder)
    store.verify()
    windows = np.concatenate([store._shard(i).index["window"] for i in range(len(store._names))]).astype(np.int64)
    found = store.read(windows)
    values = [x for x in (getattr(found, n, None) for n in ("ids", "log_probs", "hidden")) if x is not None]
    return _digest(windows, *values, *([] if store.head is None else [store.head]))


def _signal_store(kind: str) -> Callable[[Path], Prepared]:
    def prepare(folder: Path) -> Prepared:
        shutil.copytree(FIRST / f"signals-{kind}", folder / "s")
        names = sorted(path.name for path in (folder / "s").iterdir() if path.name != "shard-000002.signal")
        return _files(folder / "s", names, lambda: _read_signals(folder / "s"))

    return prepare


def _signal_manifest(folder: Path) -> Prepared:
    """Manifests that a stranger has sealed: whatever they say, an answer or a SignalError."""
    shutil.copytree(FIRST / "signals-topk", folder / "s")
    whole = (folder / "s" / manifest.MANIFEST).read_bytes()

    def call(case: bytes) -> Any:
        with contextlib.suppress(ValueError, RecursionError):
            tree = json.loads(case)
            if isinstance(tree, dict) and tree.pop("seal", None) is not None:
                body = manifest.text(tree).removeprefix("{\n")
                case = manifest._sealed(manifest._seal(body), body).encode()
        (folder / "s" / manifest.MANIFEST).write_bytes(case)
        store = SignalStore(folder / "s")
        return store.read(np.array([2])).ids.sum(), store.missing(np.array([2, 3]))

    return call, [whole]


def _payload(folder: Path) -> Prepared:
    """Records that a stranger has keyed: payloads of any content."""

    def call(case: bytes) -> Any:
        kind, case = (case[0] % 2, case[1:]) if case else (0, b"")
        if kind:
            return codec.unpack_dense(case, (4, 6), np.dtype(np.float16)).sum()
        window = codec.unpack(case, 8, 5)
        codec.log_probs(window.symbols, window.rest) if window.symbols is not None and window.rest is not None else 0
        return window.ranks.sum()

    chance = np.random.default_rng(0)
    lengths = np.array([5, 5, 3, 5, 4, 1, 5, 2])
    ranks = np.sort(chance.permuted(np.tile(np.arange(300), (8, 1)), axis=1)[:, :5], axis=1)
    symbols, rest = chance.integers(1, 160, (8, 5)), chance.integers(0, 1023, 8)
    return call, [
        b"\x00" + codec.pack(codec.Ragged(lengths, ranks, symbols, rest)),
        b"\x00" + codec.pack(codec.Ragged(np.full(8, 5), ranks)),
        b"\x01" + codec.pack_dense(chance.normal(size=(4, 6)).astype(np.float16)),
    ]


def _shard(folder: Path) -> Prepared:
    """One shard by itself, with every record that it claims."""
    name = Name(manifest.digest(manifest.read(FIRST / "signals-topk")["recipe"]), 0)

    def call(case: bytes) -> Any:
        (folder / name.file).write_bytes(case)
        shard = Shard(folder / name.file, name)
        return _digest(shard.index, *(np.frombuffer(p, np.uint8) for p in shard.read(range(len(shard.index)))))

    return call, [(FIRST / "signals-topk" / name.file).read_bytes()]


def _read_tokens(folder: Path) -> str:
    store = TokenStore(folder)
    store.verify()
    parts = [store.byte_lengths]
    for split in store.splits.values():
        parts += [split.read_span(0, split.tokens), split.read_span(0, split.tokens, "mask"), split.digests()]
        parts += [split.document_ends()]
    return _digest(*parts)


def _token_files(folder: Path) -> Prepared:
    shutil.copytree(FIRST / "store", folder / "s")
    names = sorted(path.name for path in (folder / "s").iterdir() if path.suffix != ".json")
    return _files(folder / "s", names, lambda: _read_tokens(folder / "s"))


def _token_manifest(folder: Path) -> Prepared:
    """A manifest is what vouches for the rest; of its own content it can only be sensible or refused."""
    shutil.copytree(FIRST / "store", folder / "s")
    file = folder / "s" / "manifest.json"
    TokenStore(folder / "s").tokenizer()  # imports its library, whose files are not what a case opens

    def call(case: bytes) -> Any:
        file.write_bytes(case)
        store = TokenStore(folder / "s")
        store.verify()
        for name in store.splits:
            view = store.views(name, 16)[0]
            view.read(np.arange(min(view.count, 3)))
        store.evaluation("validation", 16, 64)
        return store.tokenizer().decode([3, 4]), store.maker

    return call, [file.read_bytes()]


def _seal(folder: Path) -> Prepared:
    """The hashes of a checkpoint: what is not as it was is always told."""
    here = epath.Path(folder / "c")
    here.mkdir()
    (here / "a").write_bytes(bytes(range(200)))
    (here / "b").write_bytes(b"x" * 50)
    checksums.write_checksums(here)

    def read() -> Any:
        if wrong := checksums.first_mismatch(here):
            raise SignalError(wrong)
        return (here / "a").read_bytes(), (here / "b").read_bytes()

    return _files(folder / "c", ("a", "b", checksums.NAME), read)


READERS = (
    *(Reader(name=f"signals_{kind}", prepare=_signal_store(kind), named=("/s",), true=True)
      for kind in ("topk", "sampled", "hidden")),
    Reader(name="signal_manifest", prepare=_signal_manifest, named=("/s", "record", "stream"), tree=True),
    Reader(name="signal_shard", prepare=_shard, named=(".signal",), true=True),
    Reader(name="signal_payload", prepare=_payload),
    Reader(name="token_store", prepare=_token_files, named=("/s",), true=True),
    Reader(name="token_manifest", prepare=_token_manifest, named=("/s",), tree=True),
    Reader(name="checkpoint_seal", prepare=_seal, true=True),
)  # fmt: skip
