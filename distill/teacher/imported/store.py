"""Makes a token store and a store of signals of files that other tools wrote.

OUT/recipe.json   what the import was asked for; another import does not go into the same folder
OUT/spool/        the rows as plain arrays, until the import is complete
OUT/tokens/       the sequences: --config.data.source=tokens --config.data.tokens=OUT/tokens
OUT/signals/      the signals of their windows: --config.teacher.store=OUT/signals
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, cast

import jax
import numpy as np
from numpy.typing import NDArray

from distill import config as configs
from distill.config import ConfigError, EvalConfig, ExperimentConfig, ModelConfig
from distill.config.data import SplitConfig
from distill.data.corpus import copy_tokenizer, open_at
from distill.data.documents import Part as Text
from distill.data.store.build import StoreRecipe
from distill.data.store.packing import PackedDocuments
from distill.data.store.store import TokenStore
from distill.data.tokenizers.spec import Spec, spec_of
from distill.data.tokenizers.tokenizer import Tokenizer, load
from distill.errors import SignalError
from distill.interop.source import is_model, open_source
from distill.records.runs import RunRecord
from distill.system import process
from distill.system.progress import Progress
from distill.teacher import pretrained
from distill.teacher.imported import containers, measure
from distill.teacher.imported.dialects import Columns, Describes, Reading, Values, rows_of
from distill.teacher.imported.rows import BadRow, Row
from distill.teacher.imported.source import TRAIN, VALIDATION, SignalText
from distill.teacher.imported.spool import Part, Spool, write_part
from distill.teacher.signals import codec, extract, manifest, writer
from distill.teacher.signals.manifest import SignalManifest, SignalRecipe, TeacherEntry
from distill.teacher.signals.reader import SignalStore
from distill.teacher.signals.shard import FORMAT
from distill.teacher.signals.spec import SignalSpec
from distill.types import LOG_ZERO, SparseSignal

TOKENS, SIGNALS, SPOOL = "tokens", "signals", "spool"
PACKING: Final = "documents"
LONGEST = 4096  # seq_len where the longest row would give a larger one
SHARD_TOKENS = 2**18
PROBED = 1024  # tokens whose codec error is measured
_UNLIKELY = 0.5  # share of ids that decode to another text than the file says: another tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Import:
    """What to import: files, the teacher's tokenizer, and how the files are to be understood.

    tokenizer: a model's folder, a tokenizer.json, a SentencePiece model, a GGUF file, or 'bytes'. teacher: its folder,
    or any name. seq_len 0: as long as the longest row, at most 4096. top_k 0: as many as the files have for each token.
    samples: a file of numpy.save with the tokens of Megatron-LM's samples, which its shards lack.
    """

    paths: tuple[str, ...]
    tokenizer: str
    teacher: str = ""
    seq_len: int = 0
    top_k: int = 0
    validation: float = 0.05
    columns: Columns | None = None
    values: Values | None = None
    describes: Describes | None = None
    samples: str = ""


def import_signals(
    wanted: Import, out: str | Path, on_progress: Callable[[Progress], None] = lambda _: None
) -> SignalManifest:
    """Writes the two stores into `out`, or completes them; returns the manifest of the signals.

    Raises DistillError for files that are no signals, for a row that holds none (with its file and number), for another
    tokenizer than the files were written with, and for an `out` with something else. Nothing half written looks whole.
    """
    out = Path(out)
    if "://" in str(out):
        raise ConfigError(f"--out={out}: a store is written to a local disk; copy the finished folder to a bucket")
    files = containers.find(wanted.paths)
    if wanted.samples and not Path(wanted.samples).is_file():
        raise ConfigError(f"--samples={wanted.samples}: there is no such file")
    tokenizer = load(Spec("bytes") if wanted.tokenizer == "bytes" else spec_of(wanted.tokenizer))
    with process.folder_lock(out):
        writer.claim(out, _settings(wanted, files, tokenizer))
        if (out / SIGNALS / manifest.MANIFEST).exists():
            return manifest.read(out / SIGNALS)
        spool = _spool(wanted, files, tokenizer, out / SPOOL, on_progress)
        written = _Writer(wanted, spool, tokenizer, out).write(on_progress)
        shutil.rmtree(out / SPOOL)
        return written


def _settings(wanted: Import, files: Sequence[Path], tokenizer: Tokenizer) -> dict[str, object]:
    settings = {
        name: value
        for name, value in dataclasses.asdict(wanted).items()
        if name not in ("paths", "tokenizer") and (value or name != "samples")
    }
    settings["columns"] = None if wanted.columns is None else list(wanted.columns)
    named = [*files, Path(wanted.samples)] if wanted.samples else files
    return {
        "import": settings,
        "tokenizer_hash": tokenizer.hash,
        "files": [f"{file.name} of {file.stat().st_size} bytes" for file in named],
    }


def _spool(
    wanted: Import, files: Sequence[Path], tokenizer: Tokenizer, folder: Path, on_progress: Callable[[Progress], None]
) -> Spool:
    """Reads the files that are not read yet. Raises SignalError for rows, and for signs of another tokenizer."""
    folder.mkdir(exist_ok=True)
    texts = {i: piece.text.decode("utf-8", "replace") for i, piece in enumerate(tokenizer.pieces()) if piece.text}
    tokenize = lambda text: [int(i) for i in (*tokenizer.around.before, *tokenizer.encode([Text(text)])[0])]
    sizes = [file.stat().st_size for file in files]
    for i, file in enumerate(files):
        part = folder / f"rows-{i:06d}"
        if not part.exists():
            reading = Reading(wanted.columns, wanted.values, wanted.describes, containers.codec_beside(file), tokenize)
            rows = _rows(file, reading, Path(wanted.samples) if wanted.samples else None)
            write_part(part, str(file), rows, texts, _columns(wanted, tokenizer))
        on_progress(Progress(done=sum(sizes[: i + 1]) / max(sum(sizes), 1), total=1, unit="reading"))
    spool = Spool([folder / f"rows-{i:06d}" for i in range(len(files))])
    _check_tokenizer(spool, wanted.tokenizer)
    _check_aligned(spool)
    return spool


def _columns(wanted: Import, tokenizer: Tokenizer) -> int:
    """Columns of the teacher's head, where its folder is given: it may have more than there are tokens."""
    named = wanted.teacher and is_model(wanted.teacher)
    return max(tokenizer.vocab_size, open_source(wanted.teacher)[1].tokens if named else 0)


def _rows(file: Path, reading: Reading, samples: Path | None) -> Iterator[tuple[int, Row]]:
    for number, record in containers.read(file, samples):
        try:
            for row in rows_of(record, reading):
                yield number, row
        except BadRow as error:
            raise SignalError(f"{file}, row {number}: {error}") from None


def _check_tokenizer(spool: Spool, name: str) -> None:
    compared, equal = (sum(part.meta[key] for part in spool.parts) for key in ("compared", "equal"))
    if compared and equal < _UNLIKELY * compared:
        raise SignalError(
            f"--tokenizer={name}: of {compared} ids whose text the files tell, {equal} are the same text here, so the "
            "files were written with another tokenizer; give the teacher's"
        )


def _check_aligned(spool: Spool) -> None:
    """Raises SignalError where the signals fit the neighbouring tokens far better than those that they should be of."""
    if not max(part.meta["most"] for part in spool.parts):
        raise SignalError("the files hold rows without any signal; wanted the likeliest ids with log-probabilities")
    here, after, before = (sum(part.meta["hits"][i] for part in spool.parts) for i in range(3))
    tokens = sum(part.meta["tokens"] for part in spool.parts)
    better = max(after, before)
    if better > 2 * here and better > 0.05 * tokens and tokens >= 64:
        which, other = ("after", "next") if after > before else ("before", "token")
        raise SignalError(
            f"the signals give the token {which} theirs {better / tokens:.2f} of the mass and their own token "
            f"{here / tokens:.2f}: they seem to be one position off; add --describes={other} if row i of a column is "
            f"about token {'i' if other == 'token' else 'i + 1'}"
        )


class _Writer:
    """Writes both stores of a spool."""

    def __init__(self, wanted: Import, spool: Spool, tokenizer: Tokenizer, out: Path):
        self._wanted, self._spool, self._tokenizer, self._out = wanted, spool, tokenizer, out
        least = min(part.meta["least"] for part in spool.parts if part.meta["most"])
        most = max(part.meta["most"] for part in spool.parts)
        given = least if any(part.meta["always_own"] for part in spool.parts) else most
        if wanted.top_k > most:
            raise ConfigError(
                f"--top_k={wanted.top_k}: the files have at most {most} entries for a token; leave it out"
            )
        self._k, self._size = wanted.top_k or given, _columns(wanted, tokenizer)
        self._signal = SignalSpec(kind="topk", top_k=self._k)
        self._text = SignalText(spool, wanted.validation)
        longest = max(int(np.diff(part.ends, prepend=0).max(initial=0)) for part in spool.parts)
        self._seq_len = wanted.seq_len or min(-(-(longest - 1) // 64) * 64, LONGEST)

    def write(self, on_progress: Callable[[Progress], None]) -> SignalManifest:
        store = self._tokens(on_progress)
        self._view = self._packed(store, TRAIN)
        windows = np.arange(self._view.count)
        recipe = self._recipe(store, len(windows))
        out = self._out / SIGNALS
        writer.claim(out, recipe)
        rank = self._ranks(out)
        shards = writer.write(
            out,
            manifest.digest(recipe),
            windows,
            per_shard=recipe["shard_windows"],
            per_chunk=max(SHARD_TOKENS // self._seq_len // 16, 1),
            compute=lambda ids: [self._window(i) for i in ids.tolist()],
            pack=lambda chunk, row, window: extract.record(self._signal, rank, chunk[row], window),
            on_progress=lambda done, _: on_progress(Progress(done=done, total=len(windows), unit="window")),
        )
        tree: SignalManifest = {
            "format": FORMAT,
            "recipe": recipe,
            "files": {manifest.ORDER: {"sha256": hashlib.sha256((out / manifest.ORDER).read_bytes()).hexdigest()}},
            "shards": shards,
            "bytes_per_token": sum(s["size"] for s in shards) / (len(windows) * self._seq_len),
            "teacher": self._teacher(store, recipe["teacher"]["run"]),
        }
        tree["coverage"] = measure.coverage(self._spool.spans(self._k), self._size)
        tree["coverage"]["codec_kl"] = self._codec_kl(SignalStore(out, unwritten=tree), windows)
        manifest.write(out, tree)
        (out / writer.RECIPE).unlink()
        return tree

    def _tokens(self, on_progress: Callable[[Progress], None]) -> TokenStore:
        """The token store of the sequences."""
        tokenizer = self._tokenizer
        description = {
            "source": self._text.describe(),
            "tokenizer": {"name": tokenizer.name, "hash": tokenizer.hash},
        }
        recipe = StoreRecipe(
            source=self._text,
            tokenizer=lambda folder, _: copy_tokenizer(tokenizer, folder),
            splits=SplitConfig(),
            description=description,
            fingerprint=hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest(),
        )
        store = open_at(self._out / TOKENS, recipe, on_progress=on_progress)
        for split, rows in self._text.rows.items():
            if store.split(split).documents != len(rows):
                raise SignalError(f"{self._out / TOKENS}: is damaged; delete {self._out} and import again")
        return store

    def _packed(self, store: TokenStore, split: str) -> PackedDocuments:
        return PackedDocuments(store.split(split), self._seq_len, self._text.masked)

    def _recipe(self, store: TokenStore, count: int) -> SignalRecipe:
        data = configs.DataConfig(split=TRAIN, packing=PACKING, completions_only=self._text.masked)
        config = ExperimentConfig(seq_len=self._seq_len, data=data)
        return {
            "signal": {"kind": "topk", **self._signal.parameters},
            "codec": codec.CONSTANTS,
            "tau": 1.0,
            "teacher": {
                "run": self._run(),
                "checkpoint": self._spool.digest,
                "vocab_size": self._size,
                "d_model": 0,
            },
            "data": manifest.data_of(config, store),
            "windows": {"count": count, "of": count, "samples": 0, "seed": 0},
            "shard_windows": max(SHARD_TOKENS // self._seq_len, 1),
        }

    def _run(self) -> str:
        """The teacher's fingerprint: that of its model where its folder is given, else one of what it said."""
        if self._wanted.teacher and is_model(self._wanted.teacher):
            return pretrained.describe(self._wanted.teacher)[1].run
        named = f"{self._wanted.teacher}\n{self._tokenizer.hash}\n{self._spool.digest}"
        return hashlib.sha256(named.encode()).hexdigest()[:12]

    def _teacher(self, store: TokenStore, run: str) -> TeacherEntry:
        """The teacher in a student's record; its size is 0 where only its name is known."""
        record = RunRecord(
            run=run, kind="supervised", N=0, trunk=run, model=self._wanted.teacher or "imported",
            tokenizer=store.tokenizer_name,
        )  # fmt: skip
        config = ExperimentConfig(model=ModelConfig(vocab_size=self._size))
        if self._wanted.teacher and is_model(self._wanted.teacher):
            config, record = pretrained.describe(self._wanted.teacher)
            record = dataclasses.replace(record, tokenizer=store.tokenizer_name)
        entry: TeacherEntry = {"config": configs.to_text(config), "record": dataclasses.asdict(record)}
        loss = self._loss(store)
        if loss is not None:
            entry["validation"] = {"tokens": EvalConfig().tokens, "loss": loss}
        return entry

    def _loss(self, store: TokenStore) -> float | None:
        """The teacher's own loss on the validation set of a default eval.tokens; None where it did not tell it."""
        view = self._packed(store, VALIDATION)
        if not view.count:
            return None
        evaluation = store.evaluation(
            VALIDATION, self._seq_len, EvalConfig().tokens, packing=PACKING, completions_only=self._text.masked
        )
        own = np.full(np.shape(evaluation.batch.weight), np.nan, np.float32)
        for row, window in enumerate(evaluation.windows.tolist()):
            for at, begin, length in _placed(view.pieces(window)):
                part, start = self._origin(VALIDATION, view, begin)
                own[row, at : at + length - 1] = part.own(start + 1, start + length)
        losses = -own[np.asarray(evaluation.batch.weight) > 0]
        return float(losses.mean(dtype=np.float64)) if len(losses) and np.isfinite(losses).all() else None

    def _origin(self, split: str, view: PackedDocuments, begin: int) -> tuple[Part, int]:
        """The part of the spool, and the token there, of a token of a split."""
        ends = view.split.document_ends()
        document = int(np.searchsorted(ends, begin, "right"))
        part, start, _ = self._spool.place(int(self._text.rows[split][document]))
        return part, start + begin - (int(ends[document - 1]) if document else 0)

    def _window(self, window: int) -> SparseSignal:
        """The signal of a window [S, K]; what has no signal and no weight gives all mass to token 0."""
        ids = np.zeros((self._seq_len, self._k), np.int32)
        log_probs = np.full(ids.shape, np.float32(LOG_ZERO))
        for at, begin, length in _placed(self._view.pieces(window)):
            part, start = self._origin(TRAIN, self._view, begin)
            span = part.span(start + 1, start + length, self._k)
            ids[at : at + length - 1] = np.maximum(span.top_ids, 0)
            log_probs[at : at + length - 1] = span.log_probs
        log_probs[log_probs[:, 0] <= LOG_ZERO / 2, 0] = 0
        return SparseSignal(ids=cast(jax.Array, ids), log_probs=cast(jax.Array, log_probs))

    def _ranks(self, out: Path) -> NDArray[np.int64]:
        """The rank of each id; writes ORDER, the ids by how often they are named."""
        size = self._size
        often = np.zeros(size, np.int64)
        for span in self._spool.spans(self._k):
            often += np.bincount(span.top_ids[span.top_ids >= 0], minlength=size)
        if not (out / manifest.ORDER).exists():
            writer.write_order(out, often)
        return writer.ranks(out, size)

    def _codec_kl(self, opened: SignalStore, windows: NDArray[np.int64]) -> float:
        """KL(given, stored) in nats a token, on windows spread over the store."""
        total, tokens = 0.0, 0
        for window in windows[np.arange(min(len(windows), 8)) * len(windows) // min(len(windows), 8)]:
            stored = opened.read(np.array([window]))
            assert isinstance(stored, SparseSignal)
            ids, values = np.asarray(stored.ids)[0], np.asarray(stored.log_probs)[0]
            for at, begin, length in _placed(self._view.pieces(int(window))):
                part, start = self._origin(TRAIN, self._view, begin)
                size = min(length - 1, PROBED - tokens)
                given = part.span(start + 1, start + 1 + size, self._k)
                total += measure.codec_kl(given, ids[at : at + size], values[at : at + size])
                tokens += size
        return total / max(tokens, 1)


def _placed(pieces: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """For each piece of a row: where it stands in it, its first token of the split, its length."""
    at = 0
    for begin, length in pieces:
        yield at, begin, length
        at += length
