"""What a student minimises: (1 - lambda) L_NTP + lambda L_KD + w L_F + lambda_z Z, as sums over tokens.

Paper, section 6; L_F are feature losses (distill/losses/features.py).
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from distill.config import ModelConfig, ObjectiveConfig
from distill.losses import divergences, fused, targets
from distill.losses import sums as metrics
from distill.losses.fused import FusedShape
from distill.losses.sums import Sum
from distill.training.optim import Hyper
from distill.types import Batch, HiddenSignal, MixedSignal, Signal, SparseSignal, TeacherSignal


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveShape:
    """What of an objective is compiled in; its numbers travel in Hyper.

    A temperature of exactly 1 is compiled in, for then the soft and the hard loss share one logsumexp.
    """

    target: str
    tempered: bool
    row: str = "full"  # of the exactness table
    divergence: str = "forward"
    top_k: int = 0
    top_p: float = 0.0
    draws: int = 0
    schedule: str = "constant"
    tokens: int = 0  # columns of the head that are tokens; 0: all of them
    fused: bool = False  # computed in chunks from hidden states, without whole logits
    features: tuple[tuple[int, int], ...] = ()  # compared layers: (student's, teacher's)
    feature_loss: Literal["mse", "cosine"] = "mse"


def shape(config: ObjectiveConfig, model: ModelConfig | None = None) -> ObjectiveShape:
    """The static part of an objective; a number that its target does not read is left out, to share executables.

    `model` is the student, where its head may have columns of padding.
    """
    return ObjectiveShape(
        target=config.target,
        tempered=config.tempered,
        row=config.signal,
        divergence=config.divergence,
        top_k=config.top_k if config.target in ("topk", "topp") else 0,
        top_p=config.top_p if config.target == "topp" else 0.0,
        draws=config.draws if config.target == "sampled" else 0,
        schedule=config.schedule,
        tokens=model.valid_vocab if model else 0,
        fused=is_fused(config, model.vocab_size if model else 0),
        features=config.feature_pairs,
        feature_loss=config.feature_loss if config.features else "mse",
    )


# 'auto' goes over to the fused losses here, where they take less time and less memory (docs/results/objectives.md).
FUSED_VOCABULARY = 4096


def is_fused(config: ObjectiveConfig, vocab_size: int) -> bool:
    """Whether the objective is computed in chunks."""
    return config.implementation == "fused" or (config.implementation == "auto" and vocab_size >= FUSED_VOCABULARY)


def at(objective: ObjectiveShape, h: Hyper, step: Any) -> Hyper:
    """The numbers of `step` (from 0): lambda, temperature and beta on their way to their final values."""
    if objective.schedule == "constant":
        return h
    way = jnp.clip(step / jnp.maximum(h.steps - 1, 1.0), 0.0, 1.0)
    if objective.schedule == "cosine":
        way = (1 - jnp.cos(jnp.pi * way)) / 2
    between = lambda start, end: start + way * (end - start)
    return dataclasses.replace(
        h,
        lambda_=between(h.lambda_, h.lambda_final),
        temperature=between(h.temperature, h.temperature_final),
        beta=between(h.beta, h.beta_final),
    )


def evaluate(
    objective: ObjectiveShape,
    h: Hyper,
    logits: Float[Array, "B S V"],
    signal: Signal | None,
    batch: Batch,
    step: Any = 0,
    features: Float[Array, "B S"] | None = None,
) -> tuple[Any, dict[str, Sum]]:
    """The sum of the weighted losses of all tokens, to differentiate, and its parts as Sums.

    Without a signal the run is supervised: L_NTP + lambda_z Z, whatever lambda is. `step` only seeds sampled targets.
    `features` is L_F of every token, where there is one.
    """
    parts = {"ntp": divergences.cross_entropy(logits, batch.labels), "z": divergences.z_loss(logits)}
    if features is not None:
        parts["features"] = features
    if signal is not None:
        parts["kd"] = _distillation(objective, h, logits, signal, batch, step)
    return combine(h, parts, batch)


def evaluate_fused(
    objective: ObjectiveShape,
    h: Hyper,
    hidden: Float[Array, "B S D"],
    head: Float[Array, "V D"],
    signal: Signal | None,
    batch: Batch,
    step: Any = 0,
    features: Float[Array, "B S"] | None = None,
) -> tuple[Any, dict[str, Sum]]:
    """`evaluate` from the student's hidden states and its head as it is stored: neither model's logits ever exist.

    A target that cuts the teacher's distribution down reads it a few positions at a time.
    """
    size = head.shape[0]
    whole = isinstance(signal, TeacherSignal | HiddenSignal | MixedSignal) and objective.row == "full"
    if isinstance(signal, TeacherSignal):
        signal = TeacherSignal(log_probs=targets.align(signal.log_probs, size, objective.tokens or size))
    elif isinstance(signal, HiddenSignal | MixedSignal):
        signal = targets.align_heads(signal, size)
    if signal is not None and not whole:
        signal = cut(objective, h, signal, batch, step)
    ids = batch.labels[..., None]
    if isinstance(signal, SparseSignal):
        ids = jnp.concatenate([ids, signal.ids.astype(ids.dtype)], axis=-1)
    temperature = h.temperature if objective.tempered else 1.0
    kind = objective.divergence if whole else ""
    shape = FusedShape(kind=kind, tempered=objective.tempered, tokens=objective.tokens or size)
    dense = None if isinstance(signal, SparseSignal) else signal
    found = fused.read(shape, hidden, head, ids, dense, temperature, h.beta)
    parts = {"ntp": found.normaliser - found.picked[..., 0], "z": jnp.square(found.normaliser)}
    if features is not None:
        parts["features"] = features
    if isinstance(signal, SparseSignal):
        normaliser = found.softened if objective.tempered else found.normaliser
        log_q = found.picked[..., 1:] / temperature - normaliser[..., None]
        parts["kd"] = divergences.sparse_divergence(
            objective.divergence, objective.row, log_q, signal, temperature, h.beta
        )
    elif signal is not None:
        parts["kd"] = temperature**2 * found.divergence
    return combine(h, parts, batch)


def combine(h: Hyper, parts: dict[str, Float[Array, "B S"]], batch: Batch) -> tuple[Any, dict[str, Sum]]:
    """The loss of every token from its parts (ntp, z and, with a teacher, kd and features), and the sums of all."""
    loss = parts["ntp"]
    if "kd" in parts:
        loss = (1 - h.lambda_) * parts["ntp"] + h.lambda_ * parts["kd"]
    if "features" in parts:
        loss = loss + h.feature_weight * parts["features"]
    parts = parts | {"loss": loss + h.z_loss * parts["z"]}
    sums = {name: metrics.total(values, batch.weight) for name, values in parts.items()}
    return sums["loss"].value, sums


def _distillation(
    objective: ObjectiveShape,
    h: Hyper,
    logits: Float[Array, "B S V"],
    signal: Signal,
    batch: Batch,
    step: Any,
) -> Float[Array, "B S"]:
    temperature = h.temperature if objective.tempered else 1.0
    if isinstance(signal, HiddenSignal | MixedSignal):
        signal = targets.whole(signal)
    if isinstance(signal, TeacherSignal):
        size = logits.shape[-1]
        signal = TeacherSignal(log_probs=targets.align(signal.log_probs, size, objective.tokens or size))
        if objective.row == "full":
            return divergences.divergence(objective.divergence, logits, signal.log_probs, temperature, h.beta)
    signal = cut(objective, h, signal, batch, step)
    normaliser = jax.nn.logsumexp(logits / temperature, axis=-1)[..., None]
    log_q = targets.gather(logits, signal.ids) / temperature - normaliser
    return divergences.sparse_divergence(objective.divergence, objective.row, log_q, signal, temperature, h.beta)


def cut(objective: ObjectiveShape, h: Hyper, signal: Signal, batch: Batch, step: Any) -> SparseSignal:
    """The part of a whole distribution that the objective's target asks for; a sparse one is passed on."""
    if isinstance(signal, SparseSignal):
        return signal
    uniform = targets.uniform(batch, max(objective.draws, 1), h.seed, jnp.asarray(step))

    def part(log_probs: Any, uniform: Any) -> SparseSignal:
        if objective.target == "topk":
            return targets.top_k(log_probs, objective.top_k)
        if objective.target == "topp":
            return targets.top_p(log_probs, objective.top_p, objective.top_k)
        if objective.target == "argmax":
            return targets.argmax(log_probs)
        return targets.sample(log_probs, objective.draws, uniform)

    if isinstance(signal, TeacherSignal):
        return part(signal.log_probs, uniform)
    head = signal.head if isinstance(signal, HiddenSignal) else signal.parts[0].head
    return targets.by_positions(part, signal, uniform, objective.tokens or head.shape[0])
