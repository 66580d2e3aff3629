"""Fills a store of signals from a server: `launch.cache` with config.teacher.server.

Each segment of a window is one prompt, so that the server sees what a teacher of our own would: no document beside it.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import jax
import numpy as np
from numpy.typing import NDArray

from distill import config as configs
from distill.config import ConfigError, ExperimentConfig, ModelConfig
from distill.data.mixture import Mixture
from distill.data.store.store import TokenStore
from distill.errors import SignalError
from distill.model import sharding
from distill.records.runs import RunRecord
from distill.system import process
from distill.system.progress import Progress, Rate
from distill.teacher.imported import measure
from distill.teacher.imported.rows import Row
from distill.teacher.imported.spool import Span
from distill.teacher.server import AT_ONCE, Server
from distill.teacher.signals import codec, extract, manifest, writer
from distill.teacher.signals.manifest import SignalManifest, SignalRecipe, TeacherEntry
from distill.teacher.signals.reader import SignalStore
from distill.teacher.signals.shard import FORMAT
from distill.teacher.signals.spec import SignalSpec
from distill.training.cache import SHARD_TOKENS, online, windows_of
from distill.training.inputs import make_loader, open_store, validation_set
from distill.types import LOG_ZERO, Batch, SparseSignal

_PROBED = 32  # windows whose covered mass is measured


def cache_served(
    config: ExperimentConfig,
    signal: SignalSpec,
    out: str | Path,
    *,
    every: bool = False,
    shard_tokens: int = SHARD_TOKENS,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> SignalManifest:
    """Writes the store at `out` from the server of config.teacher, or completes it; returns its manifest.

    Raises DistillError for a signal other than top-k, for a server that does not answer or reads other tokens, and for
    an `out` with other contents.
    """
    if "://" in str(out):
        raise ConfigError(f"--out={out}: a store is written to a local disk; copy the finished folder to a bucket")
    if signal.kind != "topk":
        raise ConfigError(f"--kind={signal.kind}: a server tells the likeliest tokens; give --kind=topk, with --top_k")
    out = Path(out)
    config = online(config)
    store = open_store(config, out.parent)
    with process.folder_lock(out), jax.set_mesh(sharding.make(config.mesh)):
        server = Server(config.teacher.server, signal.top_k, _columns(config, store))
        return _Filler(config, signal, store, server, out).fill(every, shard_tokens, on_progress)


class _Filler:
    """Writes one store."""

    def __init__(
        self, config: ExperimentConfig, signal: SignalSpec, store: TokenStore | Mixture, server: Server, out: Path
    ):
        self._config, self._signal, self._store, self._server, self._out = config, signal, store, server, out
        self._loader, self._size = make_loader(config, store, config.data.split), _columns(config, store)
        self._run = hashlib.sha256(f"server {server.model}".encode()).hexdigest()[:12]

    def fill(self, every: bool, shard_tokens: int, on_progress: Callable[[Progress], None]) -> SignalManifest:
        out, seq_len = self._out, self._loader.seq_len
        windows, extent = windows_of(self._config, self._loader, every)
        recipe: SignalRecipe = {
            "signal": {"kind": "topk", **self._signal.parameters},
            "codec": codec.CONSTANTS,
            "tau": 1.0,
            "teacher": {
                "run": self._run,
                "checkpoint": self._server.model,
                "vocab_size": self._size,
                "d_model": 0,
            },
            "data": manifest.data_of(self._config, self._store),
            "windows": extent,
            "shard_windows": max(shard_tokens // seq_len, 1),
        }
        if (out / manifest.MANIFEST).exists():
            written = manifest.read(out)
            writer.same(out, written["recipe"], recipe)
            return written
        writer.claim(out, recipe)
        shards = writer.write(
            out,
            manifest.digest(recipe),
            windows,
            per_shard=recipe["shard_windows"],
            per_chunk=AT_ONCE,
            compute=self._first(windows),
            pack=lambda chunk, row, window: extract.record(
                self._signal, writer.ranks(out, self._size), chunk[row], window
            ),
            on_progress=_reporter(len(windows), seq_len, on_progress),
        )
        tree: SignalManifest = {
            "format": FORMAT,
            "recipe": recipe,
            "files": {manifest.ORDER: {"sha256": hashlib.sha256((out / manifest.ORDER).read_bytes()).hexdigest()}},
            "shards": shards,
            "bytes_per_token": sum(s["size"] for s in shards) / (len(windows) * seq_len),
            "teacher": self._teacher(),
        }
        self._measure(tree, windows)
        manifest.write(out, tree)
        (out / writer.RECIPE).unlink()
        return tree

    def _first(self, windows: NDArray[np.int64]) -> Callable[[NDArray[np.int64]], list[SparseSignal]]:
        """Computes chunks. The very first one ranks the ids, before anything is packed, and shows the tokenizer."""
        computed: dict[int, list[SparseSignal]] = {}
        if not (self._out / manifest.ORDER).exists():
            batch = self._loader.read(windows[:AT_ONCE])
            rows = self._server.score([prompt for _, _, prompt in _prompts(batch)])
            self._check_tokenizer(rows)
            first = computed[int(windows[0])] = self._placed(batch, rows)
            often = sum(extract.count(signal, self._size) for signal in first)
            writer.write_order(self._out, np.asarray(often))
        return lambda ids: computed.pop(int(ids[0]), None) or self._signals(self._loader.read(ids))

    def _signals(self, batch: Batch) -> list[SparseSignal]:
        return self._placed(batch, self._server.score([prompt for _, _, prompt in _prompts(batch)]))

    def _placed(self, batch: Batch, rows: list[Row]) -> list[SparseSignal]:
        """The signal [S, K] of each window; padding gives all mass to token 0."""
        k, shape = self._signal.top_k, np.shape(batch.weight)
        ids, log_probs = np.zeros((*shape, k), np.int32), np.full((*shape, k), np.float32(LOG_ZERO))
        log_probs[..., 0] = 0
        for (window, start, prompt), row in zip(_prompts(batch), rows, strict=True):
            here = slice(start, start + len(prompt) - 1)
            ids[window, here], log_probs[window, here] = row.top_ids[1:, :k], row.log_probs[1:, :k]
        return [
            SparseSignal(ids=cast(jax.Array, i), log_probs=cast(jax.Array, values)) for i, values in zip(ids, log_probs)
        ]

    def _check_tokenizer(self, rows: list[Row]) -> None:
        """Raises SignalError where the server's ids decode to other texts than those of the text's tokenizer."""
        pieces = self._store.tokenizer().pieces()
        ours = {i: pieces[i].text.decode("utf-8", "replace").strip() for i in range(len(pieces))}
        told = {
            i: text.strip() for row in rows for i, text in row.texts.items() if "\ufffd" not in text and text.strip()
        }
        equal = sum(ours.get(i) == text for i, text in told.items())
        if equal < 0.5 * len(told):
            raise SignalError(
                f"{self._server.url}: of {len(told)} ids whose text the server tells, {equal} are the same text in "
                f"{self._store.tokenizer_name!r}, so its model reads other tokens; tokenize the text with its "
                "tokenizer (data.tokenizer)"
            )

    def _teacher(self) -> TeacherEntry:
        """The server's model in a student's record; of its size nothing is known. Asks for its loss, L_T."""
        model = ModelConfig(vocab_size=self._size)
        record = RunRecord(
            run=self._run, kind="supervised", N=0, trunk=self._run, model=self._server.model,
            tokenizer=self._store.tokenizer_name,
        )  # fmt: skip
        batch = validation_set(self._config, self._store).batch
        own = np.zeros(np.shape(batch.weight))
        prompts = list(_prompts(batch))
        for (window, start, prompt), row in zip(prompts, self._server.score([p for _, _, p in prompts]), strict=True):
            own[window, start : start + len(prompt) - 1] = row.own[1:]
        loss = float(-own[np.asarray(batch.weight) > 0].mean())
        return {
            "config": configs.to_text(ExperimentConfig(model=model)),
            "record": dataclasses.asdict(record),
            "validation": {"tokens": self._config.eval.tokens, "loss": loss},
        }

    def _measure(self, tree: SignalManifest, windows: NDArray[np.int64]) -> None:
        """Measures the covered mass on some windows, and asks for the first one again: what storing costs."""
        opened, count = SignalStore(self._out, unwritten=tree), min(len(windows), _PROBED)
        probed = windows[np.arange(count) * len(windows) // count]
        stored = opened.read(probed)
        assert isinstance(stored, SparseSignal)
        used = np.asarray(self._loader.read(probed).weight) > 0
        ids, log_probs = np.asarray(stored.ids)[used], np.asarray(stored.log_probs)[used]
        falling = np.argsort(-log_probs, axis=1)
        ids, log_probs = np.take_along_axis(ids, falling, axis=1), np.take_along_axis(log_probs, falling, axis=1)
        kept = Span(np.where(log_probs > LOG_ZERO / 2, ids, -1).astype(np.int64), log_probs)
        tree["coverage"] = measure.coverage([kept], self._size)
        (again,) = self._signals(self._loader.read(probed[:1]))
        given = Span(np.asarray(again.ids, np.int64)[used[0]], np.asarray(again.log_probs)[used[0]])
        first = (np.asarray(x)[0][used[0]] for x in (stored.ids, stored.log_probs))
        tree["coverage"]["codec_kl"] = measure.codec_kl(given, *first) / max(int(used[0].sum()), 1)


def _columns(config: ExperimentConfig, store: TokenStore | Mixture) -> int:
    """Columns of the server's head: as many as the students have, for a head may have more than the text has tokens."""
    return max(store.vocab_size, config.model.tokens)


def _prompts(batch: Batch) -> Iterator[tuple[int, int, list[int]]]:
    """(window, first position, tokens) of each segment of a batch with its last label; padding is left out."""
    tokens = np.asarray(batch.tokens)
    segments = np.ones(np.shape(batch.weight), np.int32) if batch.segment is None else np.asarray(batch.segment)
    for window, segment in enumerate(segments):
        edges = np.flatnonzero(np.diff(segment, prepend=-1, append=-1))
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist()):
            if segment[start] > 0:
                yield window, start, tokens[window, start : stop + 1].tolist()


def _reporter(windows: int, seq_len: int, on_progress: Callable[[Progress], None]) -> Callable[[int, int], None]:
    speed = Rate()

    def report(done: int, kept: int) -> None:
        rate = speed.update(done * seq_len)
        text = f"{rate:,.0f} tokens/s" if rate else ""
        on_progress(Progress(done=done * seq_len, total=windows * seq_len, unit="token", text=text))

    return report
