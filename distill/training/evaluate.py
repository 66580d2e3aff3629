"""A model's scores on a fixed validation set: cross-entropy with its error, calibration, distance to its teacher."""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float
from numpy.typing import NDArray

from distill.data import spans
from distill.data.store.store import Evaluation
from distill.errors import DistillError
from distill.losses import divergences, targets
from distill.model import sharding
from distill.system import distributed
from distill.teacher.observe import Teacher, teacher_signal
from distill.types import Batch, StoredSignal, TeacherSignal

ECE_BINS = 21  # as in the paper's appendix on calibration
AHEAD = 4  # programs that run on while the next is prepared

Result = TypeVar("Result")

# From window ids [...] to the signals of these windows [..., S, ...], as a batch carries them.
SignalReader = Callable[[NDArray[np.int64]], StoredSignal]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """loss and kl in nats per token; loss_se is the loss's standard error over windows; None without a teacher."""

    loss: float
    loss_se: float
    bits_per_byte: float
    ece: float
    kl: float | None = None
    agreement: float | None = None


@jax.jit
def eval_step(params: Teacher, teacher: Teacher | None, batch: Batch) -> dict[str, Float[Array, "..."]]:
    """Sums per window [B] (loss, weight, kl, agreement) and per calibration bin [21] (count, hits, confidence)."""
    logits = params(batch.inputs, batch.segment, batch.position, batch.spans)
    logits = jax.sharding.reshard(logits, sharding.ACT_BSD)  # argmax and bins need whole rows of the vocabulary
    weight = batch.weight
    loss = divergences.cross_entropy(logits, batch.labels)
    guess = divergences.argmax_token(logits)
    confidence = jnp.exp(jnp.max(logits, axis=-1) - jax.nn.logsumexp(logits, axis=-1))
    bins = jnp.clip((confidence * ECE_BINS).astype(jnp.int32), 0, ECE_BINS - 1)
    member = weight[..., None] * (bins[..., None] == jnp.arange(ECE_BINS)[None, None])
    hit = (guess == batch.labels).astype(jnp.float32)
    sums = {
        "loss": jnp.sum(jnp.where(weight == 0, 0, loss * weight), axis=1),
        "weight": jnp.sum(weight, axis=1),
        "bin_count": jnp.sum(member, axis=(0, 1)),
        "bin_hits": jnp.sum(member * hit[..., None], axis=(0, 1)),
        "bin_confidence": jnp.sum(member * confidence[..., None], axis=(0, 1)),
    }
    signal = teacher_signal(teacher, batch)
    if isinstance(signal, TeacherSignal):
        log_probs = targets.align(signal.log_probs, params.config.vocab_size, params.config.tokens)
        log_probs = jax.sharding.reshard(log_probs, sharding.ACT_BSD)
        same = (divergences.argmax_token(log_probs) == guess).astype(jnp.float32)
        sums["kl"] = jnp.sum(divergences.kl_divergence(logits, log_probs) * weight, axis=1)
        sums["agreement"] = jnp.sum(same * weight, axis=1)
    # Replicated, for every process reads all of them; those of windows whose spans are rows, added up.
    sums = {name: jax.sharding.reshard(value, P()) for name, value in sums.items()}
    whole = lambda name, value: value if name.startswith("bin_") else value.reshape(-1, batch.spans).sum(axis=1)
    return {name: whole(name, value) for name, value in sums.items()}


def evaluate(
    params: Teacher,
    evaluation: Evaluation,
    batch_size: int,
    teacher: Teacher | None = None,
    signal: SignalReader | None = None,
    context: int = 1,
) -> Scores:
    """Scores of a model on the current mesh, compared with an online `teacher`, or with the `signal` of its windows.

    `context` devices share a window (MeshConfig.context).
    Raises DistillError, naming the first window, where the model or its teacher gives values that are not finite.
    """
    device_mesh = jax.sharding.get_mesh()
    windows = np.asarray(evaluation.windows)

    def run(rows: NDArray[np.int64], batch: Batch) -> dict[str, Float[Array, "..."]]:
        if signal is not None:
            batch = dataclasses.replace(batch, signal=signal(windows[rows]))
        return eval_step(params, teacher, sharding.place(spans.split(batch, context), device_mesh))

    sums = list(in_turn(run(*each) for each in batches(evaluation, batch_size, context)))
    found = {name: [np.asarray(one[name], np.float64) for one in sums] for name in sums[0]}
    for name, who in (("loss", "model"), ("kl", "teacher")):
        bad = ~np.isfinite(np.concatenate(found[name])) if name in found else np.zeros(1, bool)
        if bad.any():
            raise DistillError(
                f"validation window {windows[np.argmax(bad)]}: the {who}'s output is not finite (NaN or "
                "inf), so it has no scores"
            )
    return _score(found, evaluation)


def batches(evaluation: Evaluation, batch_size: int, context: int = 1) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """The set in batches of one size, of which this process holds its part on the current mesh.

    Yields the rows of the set and their batch. The last batch is filled up with repeated rows of weight zero, so that
    one shape is compiled; batch_size is rounded up to what divides over the mesh. Where `context` devices share a
    window, a batch is one window for each such group, and every process holds all of it.
    """
    device_mesh = jax.sharding.get_mesh()
    index, count = distributed.batch_slice(device_mesh) if context == 1 else (0, 1)
    parts = device_mesh.shape["data"] * device_mesh.shape["fsdp"] // context
    batch_size = -(-batch_size // parts) * parts if context == 1 else parts
    part = slice(index * batch_size // count, (index + 1) * batch_size // count)  # of this process
    arrays, structure = jax.tree.flatten(evaluation.batch)
    for start in range(0, len(evaluation.windows), batch_size):
        rows = np.arange(start, min(start + batch_size, len(evaluation.windows)))
        filled = np.resize(rows, batch_size)[part]
        batch = jax.tree.unflatten(structure, [np.asarray(array)[filled] for array in arrays])
        is_own = (np.arange(batch_size) < len(rows))[part, None]
        yield filled, dataclasses.replace(batch, weight=batch.weight * is_own)


def in_turn(results: Iterable[Result]) -> Iterator[Result]:
    """Yields results of independent programs that were dispatched, at most AHEAD of which run beyond the one yielded.

    XLA takes 32 programs for each device of a CPU. Where a device is at that limit and the others wait for it in a
    collective of an earlier program, none goes on: eight devices on two busy cores did so within 64 programs.
    """
    running: collections.deque[Result] = collections.deque()
    for result in results:
        running.append(result)
        if len(running) > AHEAD:
            yield jax.block_until_ready(running.popleft())
    yield from running


def _score(sums: dict[str, list[NDArray[np.float64]]], evaluation: Evaluation) -> Scores:
    loss_w, weight_w = np.concatenate(sums["loss"]), np.concatenate(sums["weight"])
    weight = weight_w.sum()
    loss = loss_w.sum() / weight
    # The standard error of a ratio of sums over windows, which are the independent units here, not tokens.
    n = np.count_nonzero(weight_w)
    loss_se = math.sqrt(np.sum((loss_w - loss * weight_w) ** 2) * n / max(n - 1, 1)) / weight
    hits, confidence = sum(sums["bin_hits"]), sum(sums["bin_confidence"])
    teacher = {name: float(np.concatenate(sums[name]).sum() / weight) for name in ("kl", "agreement") if name in sums}
    return Scores(
        loss=float(loss),
        loss_se=float(loss_se),
        bits_per_byte=float(loss_w.sum() / math.log(2) / evaluation.bytes),
        ece=float(np.abs(hits - confidence).sum() / weight),
        **teacher,
    )
