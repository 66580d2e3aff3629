"""Writes a store of a teacher's signals, once, for all students that will read it.

The windows are those that a run of the same config reads (or all of the split). The teacher's forward pass of a chunk
runs while the previous chunk is packed and written. An interrupted call is resumed by the next one.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from distill import config as configs
from distill.config import ConfigError, ExperimentConfig
from distill.data import Loader
from distill.data.mixture import Mixture
from distill.data.store.store import TokenStore
from distill.errors import SignalError
from distill.model import sharding
from distill.model.transformer import Transformer
from distill.system import checksums, cloud, files, process
from distill.system.progress import Progress, Rate
from distill.teacher.signals import codec, extract, manifest, writer
from distill.teacher.signals.extract import Fetched
from distill.teacher.signals.fidelity import Fidelity, FidelityResult
from distill.teacher.signals.manifest import (
    FileEntry,
    RecipeTeacher,
    RecipeWindows,
    SignalManifest,
    SignalRecipe,
    TeacherEntry,
    data_of,
)
from distill.teacher.signals.reader import SignalStore
from distill.teacher.signals.shard import FORMAT, ShardEntry
from distill.teacher.signals.spec import CROSSING, SignalSpec
from distill.training.cross_teacher import CrossTokenizerTeacher
from distill.training.inputs import ResolvedRun, check_tokens, make_loader, open_store, resolve, validation_set
from distill.training.teachers import OnlineTeacher, is_crossing
from distill.types import Batch, HiddenStates, SparseSignal, StoredSignal, TeacherSignal

CHUNK_TOKENS = 8192  # of one forward pass of the teacher, on one device
CHUNK_LOGITS = 2**25  # that may exist at once
SHARD_TOKENS = 2**18
PROBE_TOKENS = 1024  # of the windows whose fidelity is measured, and of one of them at most
PROBE_POSITIONS = 256


def cache_signals(
    config: ExperimentConfig,
    signal: SignalSpec,
    out: str | Path,
    *,
    every: bool = False,
    shard_tokens: int = SHARD_TOKENS,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> SignalManifest:
    """Writes the store at `out`, or completes it; returns its manifest, also if it was complete already.

    `every` stores all windows of config.data.split instead of those that config.tokens of training read.
    Raises DistillError for a teacher that is missing or has another tokenizer, and for an `out` with other contents.
    """
    if "://" in str(out):
        raise ConfigError(f"--out={out}: a store is written to a local disk; copy the finished folder to a bucket")
    out = Path(out)
    if jax.process_count() > 1:
        raise ConfigError("a store of signals is made by one process, on all its devices; read it from any number")
    if not config.teacher.source:
        raise ConfigError("config.teacher.source: got '', wanted the workdir of the one finished run that teaches")
    config = online(config)
    store = open_store(config, out.parent)
    run = resolve(config, store)
    check_tokens(run, store)
    config = run.config
    with process.folder_lock(out), jax.set_mesh(sharding.make(config.mesh)):
        source = _source(run, store, signal)
        teacher = source.model
        assert isinstance(teacher, Transformer)  # config.teacher.source names one
        if signal.kind == "hidden" and teacher.config.logit_cap:
            raise ConfigError(
                f"signal.kind='hidden': logits of {config.teacher.source} are capped at {teacher.config.logit_cap}, "
                "which a store of hidden states does not hold; wanted kind='topk' or 'full'"
            )
        loader = make_loader(config, store, config.data.split)
        windows, extent = windows_of(config, loader, every)
        recipe = _recipe(config, signal, store, source, extent, max(shard_tokens // config.seq_len, 1))
        if (out / manifest.MANIFEST).exists():
            written = manifest.read(out)
            writer.same(out, written["recipe"], recipe)
            return written
        writer.claim(out, recipe)
        shards = _write(out, recipe, signal, source, loader, windows, on_progress)
        tree: SignalManifest = {
            "format": FORMAT,
            "recipe": recipe,
            "files": _files(out, signal, source),
            "shards": shards,
            "bytes_per_token": sum(s["size"] for s in shards) / (len(windows) * config.seq_len),
            "teacher": _teacher(config, store, source),
        }
        opened = SignalStore(out, unwritten=tree)
        tree["fidelity"] = UNMEASURED if signal.crossing else _fidelity(opened, teacher, loader, windows)
        manifest.write(out, tree)
        (out / writer.RECIPE).unlink()
        return tree


def online(config: ExperimentConfig) -> ExperimentConfig:
    """The config with its teacher itself in place of a store: it may be that of a student of this very store."""
    return dataclasses.replace(
        config, teacher=dataclasses.replace(config.teacher, signal="online", store="", stored="")
    )


# Chunks are stored as they are, and there is no distribution over common tokens to compare.
UNMEASURED: FidelityResult = {"tokens": 0, "kl": None, "kl_back": None, "gradient_cosine": None}


def _source(run: ResolvedRun, store: TokenStore | Mixture, signal: SignalSpec) -> OnlineTeacher | CrossTokenizerTeacher:
    """The teacher. Raises SignalError for a kind of signal that belongs to the other case."""
    crossing = is_crossing(run, store)
    if crossing != signal.crossing:
        kinds = " or ".join(CROSSING.values())
        raise SignalError(
            f"--kind={signal.kind}: the teacher in {run.config.teacher.source} reads "
            + (f"other tokens than the text's; wanted {kinds}" if crossing else
               f"the text's own tokens, and {kinds} is of one that does not; set objective.cross_tokenizer=none")
        )  # fmt: skip
    return CrossTokenizerTeacher(run, store) if crossing else OnlineTeacher(run, store)


def windows_of(config: ExperimentConfig, loader: Loader, every: bool) -> tuple[NDArray[np.int64], RecipeWindows]:
    """The windows to store, in rising order, and how the recipe describes them."""
    total = loader.window_count
    windows = np.arange(total) if every else loader.distinct(config.steps)
    if len(windows) == total:
        return windows, {"count": total, "of": total, "samples": 0, "seed": 0}
    samples = config.steps * config.batch_size
    extent: RecipeWindows = {"count": len(windows), "of": total, "samples": samples, "seed": config.data.seed}
    if config.data.unique:  # stores from before it name none
        extent["unique"] = config.data.unique
    return windows, extent


def _recipe(
    config: ExperimentConfig,
    signal: SignalSpec,
    store: TokenStore | Mixture,
    source: OnlineTeacher | CrossTokenizerTeacher,
    extent: RecipeWindows,
    shard_windows: int,
) -> SignalRecipe:
    taught = source.teachers[0].config
    teacher: RecipeTeacher = {
        "run": config.teacher.run,
        "checkpoint": _checkpoint(config, source),
        "vocab_size": taught.model.tokens,
        "d_model": taught.model.d_model,
    }
    if config.teacher.dtype != "float32":  # stores from before teachers had a precision name none
        teacher["dtype"] = config.teacher.dtype
    if isinstance(source, CrossTokenizerTeacher):
        teacher |= {"tokenizer_hash": source.aligner.teacher.hash, "seq_len": source.length}
        if source.cells:
            teacher["cells"] = source.cells.count
    return {
        "signal": {"kind": signal.kind, **signal.parameters},
        "codec": codec.CONSTANTS,
        "tau": 1.0,
        "teacher": teacher,
        "data": data_of(config, store),
        "windows": extent,
        "shard_windows": shard_windows,
    }


def _checkpoint(config: ExperimentConfig, source: OnlineTeacher | CrossTokenizerTeacher) -> str:
    """Identifies the teacher's weights: the hash of its checkpoint's checksums, or a published model's fingerprint."""
    steps = source.teachers[0].config.steps
    sealed = cloud.Workdir(config.teacher.source).checkpoints / str(steps) / "params" / checksums.NAME
    return hashlib.sha256(sealed.read_bytes()).hexdigest() if sealed.exists() else source.run


def _teacher(
    config: ExperimentConfig, store: TokenStore | Mixture, source: OnlineTeacher | CrossTokenizerTeacher
) -> TeacherEntry:
    """The teacher's entry in a student's record: the student itself may never load the teacher."""
    evaluation = validation_set(config, store)
    return {
        "config": configs.to_text(source.teachers[0].config),
        "record": dataclasses.asdict(source.teachers[0].record),
        "validation": {"tokens": config.eval.tokens, "loss": source.loss(evaluation, config)},
    }


def _chunk(seq_len: int, vocab_size: int, windows: int) -> int:
    """Windows of one forward pass."""
    shape = jax.sharding.get_mesh().shape
    devices = shape["data"] * shape["fsdp"]
    tokens = min(CHUNK_TOKENS, max(CHUNK_LOGITS // vocab_size, 1) if vocab_size < extract.WHOLE_VOCABULARY else 2**30)
    return min(max(tokens // seq_len, 1), -(-windows // devices)) * devices


def _write(
    out: Path,
    recipe: SignalRecipe,
    signal: SignalSpec,
    source: OnlineTeacher | CrossTokenizerTeacher,
    loader: Loader,
    windows: NDArray[np.int64],
    on_progress: Callable[[Progress], None],
) -> list[ShardEntry]:
    teacher = source.model
    assert isinstance(teacher, Transformer)
    device_mesh, size = jax.sharding.get_mesh(), _chunk(loader.seq_len, teacher.config.vocab_size, len(windows))
    computed: dict[int, Fetched] = {}  # the first chunk, which ranks the ids before anything is packed

    def compute(ids: NDArray[np.int64]) -> Fetched:
        if int(ids[0]) in computed:
            return computed.pop(int(ids[0]))
        filled = np.resize(ids, size)  # one shape is compiled
        numbers = extract.uniform(signal, filled, loader.seq_len)
        with jax.set_mesh(device_mesh):  # each thread has its own
            if isinstance(source, CrossTokenizerTeacher):
                aligned = sharding.place(source.align(loader.read(filled), (size,)), device_mesh)
                found = extract.extract_chunks(source.step_argument, aligned)
                return jax.tree.map(lambda x: np.asarray(x)[: len(ids)], found)
            batch, placed = sharding.place((loader.read(filled), numbers), device_mesh)
            return jax.tree.map(lambda x: np.asarray(x)[: len(ids)], extract.extract(signal, teacher, batch, placed))

    if signal.sparse and not (out / manifest.ORDER).exists():
        computed[int(windows[0])] = first = compute(windows[:size])
        assert isinstance(first, SparseSignal)
        writer.write_order(out, extract.count(first, teacher.config.tokens))
    rank = writer.ranks(out, teacher.config.tokens) if signal.sparse else np.zeros(0, np.int64)
    speed, seq_len = Rate(), loader.seq_len

    def report(done: int, kept: int) -> None:
        rate = speed.update(done * seq_len)
        text = f"{rate:,.0f} tokens/s" if rate else ""
        on_progress(Progress(done=done * seq_len, total=len(windows) * seq_len, unit="token", text=text))

    return writer.write(
        out,
        manifest.digest(recipe),
        windows,
        per_shard=recipe["shard_windows"],
        per_chunk=size,
        compute=compute,
        pack=lambda chunk, row, window: extract.record(signal, rank, jax.tree.map(lambda x: x[row], chunk), window),
        on_progress=report,
    )


def _files(out: Path, signal: SignalSpec, source: OnlineTeacher | CrossTokenizerTeacher) -> dict[str, FileEntry]:
    """The files beside the shards, with their digests; writes the head that hidden states need, and cells."""
    digest = lambda name: hashlib.sha256((out / name).read_bytes()).hexdigest()
    if isinstance(source, CrossTokenizerTeacher) and source.cells:
        files.atomic_write(out / manifest.CELLS, np.asarray(source.cells.student).astype("<i4").tobytes())
        return {manifest.CELLS: {"sha256": digest(manifest.CELLS)}}
    if signal.kind == "hidden":
        teacher = source.model
        assert isinstance(teacher, Transformer)
        dtype = teacher.config.dtype
        head = np.asarray(teacher.head_vd.astype(dtype))
        files.atomic_write(out / manifest.HEAD, head.tobytes())
        return {manifest.HEAD: {"dtype": dtype, "shape": list(head.shape), "sha256": digest(manifest.HEAD)}}
    return {manifest.ORDER: {"sha256": digest(manifest.ORDER)}} if signal.sparse else {}


@jax.jit
def _whole(teacher: Transformer, batch: Batch) -> Float[Array, "B S V"]:
    """The first positions' log-probabilities, in float32."""
    hidden = teacher.hidden(batch.inputs, segment=batch.segment, position=batch.position)
    logits = jax.sharding.reshard(teacher.logits(hidden[:, :PROBE_POSITIONS]), sharding.ACT_BSD)
    return jax.nn.log_softmax(logits[..., : teacher.config.tokens], axis=-1)


def _fidelity(opened: SignalStore, teacher: Transformer, loader: Loader, windows: NDArray[np.int64]) -> FidelityResult:
    """Compares stored records with the teacher's whole distribution, in windows spread over the store."""
    device_mesh = jax.sharding.get_mesh()
    positions = min(loader.seq_len, PROBE_POSITIONS)
    count = min(max(PROBE_TOKENS // positions, 1), len(windows))
    fidelity = Fidelity(tail=opened.signal.kind in ("topk", "topp"))
    rows = device_mesh.shape["data"] * device_mesh.shape["fsdp"]
    head = None if opened.head is None else opened.head.astype(np.float32)
    for window in windows[np.arange(count) * len(windows) // count]:
        batch = sharding.place(loader.read(np.full(rows, window)), device_mesh)
        whole = np.asarray(_whole(teacher, batch))[0]
        signal: StoredSignal = opened.read(np.array([window]))
        if isinstance(signal, HiddenStates):
            assert head is not None
            logits = signal.hidden[:, :positions].astype(np.float32) @ head.T
            signal = TeacherSignal(log_probs=logits[..., : teacher.config.tokens])
        fidelity.add(whole, jax.tree.map(lambda x: x[0, :positions], signal))
    return fidelity.result()
