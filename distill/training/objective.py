"""What a student minimises: (1 - lambda) L_NTP + lambda L_KD + w_F L_F + lambda_z Z, as sums over tokens.

Paper, section 6; L_F are feature losses (distill/losses/features.py). A student with experts adds the losses of its
routers (distill/model/experts.py). `loss` computes it from logits, `fused_loss` from
hidden states and heads without ever holding whole logits; both give the same numbers up to rounding.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from distill.config import ModelConfig, ObjectiveConfig
from distill.losses import cross_tokenizer, divergences, fused, targets
from distill.losses.fused import FusedSpec
from distill.losses.sums import WeightedSum, weighted_sum
from distill.model.experts import RouterLosses
from distill.training.optim import Hyperparams
from distill.types import (
    Batch,
    CellSignal,
    ChunkSignal,
    HiddenSignal,
    MixedSignal,
    Signal,
    SparseSignal,
    TeacherSignal,
    TokenSignal,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveSpec:
    """The compiled part of an objective; its numbers are traced (Hyperparams).

    A temperature of exactly 1 is compiled in, for then the soft and the hard loss share one logsumexp.
    """

    target: str
    tempered: bool
    exactness_row: str = "full"
    divergence: str = "forward"
    top_k: int = 0
    top_p: float = 0.0
    draws: int = 0
    schedule: str = "constant"
    tokens: int = 0  # columns of the head that are tokens; 0: all of them
    cross_tokenizer: str = "none"  # of a teacher with another tokenizer
    logit_cap: float = 0.0  # of the student's logits (layers.capped)
    fused: bool = False  # computed in chunks from hidden states, without whole logits
    features: tuple[tuple[int, int], ...] = ()  # compared layers: (student's, teacher's)
    feature_loss: Literal["mse", "cosine"] = "mse"
    router: tuple[tuple[str, float], ...] = ()  # the losses of a student's routers by name, with their weights


def objective_spec(config: ObjectiveConfig, model: ModelConfig | None = None) -> ObjectiveSpec:
    """The compiled part of an objective. Values that its target does not use are left out, to share executables.

    `model` is the student's config: its head may have padding columns.
    """
    return ObjectiveSpec(
        target=config.target,
        tempered=config.tempered,
        exactness_row=config.exactness_row,
        divergence=config.divergence,
        top_k=config.top_k if config.target in ("topk", "topp") else 0,
        top_p=config.top_p if config.target == "topp" else 0.0,
        draws=config.draws if config.target == "sampled" else 0,
        schedule=config.schedule,
        tokens=model.valid_vocab if model else 0,
        cross_tokenizer=config.cross_tokenizer,
        logit_cap=model.logit_cap if model else 0.0,
        fused=is_fused(config, model.vocab_size if model else 0),
        features=config.feature_pairs,
        feature_loss=config.feature_loss if config.features else "mse",
        router=(("balance", config.balance), ("router_z", config.router_z)) if model and model.experts else (),
    )


# From here on 'auto' uses the fused losses, which then take less time and memory (docs/results/objectives.md).
FUSED_VOCABULARY = 4096


def is_fused(config: ObjectiveConfig, vocab_size: int) -> bool:
    """Whether the objective is computed in chunks. A projection between vocabularies needs whole logits."""
    if config.cross_tokenizer == "projection":
        return False
    return config.implementation == "fused" or (config.implementation == "auto" and vocab_size >= FUSED_VOCABULARY)


def scheduled(spec: ObjectiveSpec, hyper: Hyperparams, step: Int[Array, ""]) -> Hyperparams:
    """The hyperparameters of `step` (from 0): lambda, temperature and beta on their way to their final values."""
    if spec.schedule == "constant":
        return hyper
    progress = jnp.clip(step / jnp.maximum(hyper.steps - 1, 1.0), 0.0, 1.0)
    if spec.schedule == "cosine":
        progress = (1 - jnp.cos(jnp.pi * progress)) / 2
    between = lambda start, end: start + progress * (end - start)
    return dataclasses.replace(
        hyper,
        lambda_=between(hyper.lambda_, hyper.lambda_final),
        temperature=between(hyper.temperature, hyper.temperature_final),
        beta=between(hyper.beta, hyper.beta_final),
    )


def loss(
    spec: ObjectiveSpec,
    hyper: Hyperparams,
    logits: Float[Array, "B S V"],
    signal: Signal | None,
    batch: Batch,
    step: Int[Array, ""] | int = 0,
    features: Float[Array, "B S"] | None = None,
    router: RouterLosses | None = None,
) -> tuple[Float[Array, ""], dict[str, WeightedSum]]:
    """The sum of the weighted losses of all tokens, to differentiate, and the sums of its parts.

    Without a signal the run is supervised: L_NTP + lambda_z Z, whatever lambda is. `step` only seeds sampled targets.
    `features` is L_F of every token, if the objective has it; `router` the losses of its routers (spec.router).
    """
    parts = {"ntp": divergences.cross_entropy(logits, batch.labels), "z": divergences.z_loss(logits)}
    if features is not None:
        parts["features"] = features
    if isinstance(signal, ChunkSignal | CellSignal):
        parts |= _of_chunks(spec, hyper, parts["ntp"], logits, signal, batch)
    elif signal is not None:
        parts["kd"] = _distillation(spec, hyper, logits, signal, batch, step)
    return combine(spec, hyper, parts | (router or {}), batch)


def fused_loss(
    spec: ObjectiveSpec,
    hyper: Hyperparams,
    hidden: Float[Array, "B S D"],
    head: Float[Array, "V D"],
    signal: Signal | None,
    batch: Batch,
    step: Int[Array, ""] | int = 0,
    features: Float[Array, "B S"] | None = None,
    router: RouterLosses | None = None,
) -> tuple[Float[Array, ""], dict[str, WeightedSum]]:
    """`loss` from the student's last hidden states and its head as stored: neither model's whole logits ever exist.

    A target that is a part of the teacher's distribution is taken from it a few positions at a time.
    """
    vocab_size = head.shape[0]
    tokens = spec.tokens or vocab_size
    crossed: ChunkSignal | CellSignal | None = None
    if isinstance(signal, ChunkSignal | CellSignal):
        crossed, signal = signal, None
    is_full = isinstance(signal, TeacherSignal | HiddenSignal | MixedSignal) and spec.exactness_row == "full"
    if isinstance(signal, TeacherSignal):
        signal = TeacherSignal(log_probs=targets.align(signal.log_probs, vocab_size, tokens))
    elif isinstance(signal, HiddenSignal | MixedSignal):
        signal = targets.align_heads(signal, vocab_size)
    if signal is not None and not is_full:
        signal = to_target(spec, hyper, signal, batch, step)
    ids = batch.labels[..., None]
    if isinstance(signal, SparseSignal):
        ids = jnp.concatenate([ids, signal.ids.astype(ids.dtype)], axis=-1)
    tau = hyper.temperature if spec.tempered else 1.0
    divergence = spec.divergence if is_full else ""
    fused_spec = FusedSpec(divergence=divergence, tempered=spec.tempered, tokens=tokens, cap=spec.logit_cap)
    dense = None if isinstance(signal, SparseSignal) else signal
    losses = fused.fused_losses(fused_spec, hidden, head, ids, dense, tau, hyper.beta)
    parts = {"ntp": losses.log_z - losses.id_logits[..., 0], "z": jnp.square(losses.log_z)}
    if features is not None:
        parts["features"] = features
    if crossed is not None:
        parts |= _of_chunks(spec, hyper, parts["ntp"], None, crossed, batch)
    elif isinstance(signal, SparseSignal):
        log_z = losses.log_z_tau if spec.tempered else losses.log_z
        log_q = losses.id_logits[..., 1:] / tau - log_z[..., None]
        parts["kd"] = divergences.sparse_divergence(spec.divergence, spec.exactness_row, log_q, signal, tau, hyper.beta)
    elif signal is not None:
        parts["kd"] = tau**2 * losses.divergence
    return combine(spec, hyper, parts | (router or {}), batch)


def combine(
    spec: ObjectiveSpec, hyper: Hyperparams, parts: dict[str, Float[Array, "B S"]], batch: Batch
) -> tuple[Float[Array, ""], dict[str, WeightedSum]]:
    """The loss of every token from its parts, and the sums of all.

    Parts are ntp, z, with a teacher kd and features, and with experts balance and router_z.
    """
    total = parts["ntp"]
    if "kd" in parts:
        total = (1 - hyper.lambda_) * parts["ntp"] + hyper.lambda_ * parts["kd"]
    if "features" in parts:
        total = total + hyper.feature_weight * parts["features"]
    for name, factor in spec.router:
        total = total + factor * parts[name]
    parts = parts | {"loss": total + hyper.z_loss * parts["z"]}
    sums = {name: weighted_sum(values, batch.weight) for name, values in parts.items()}
    return sums["loss"].value, sums


def _of_chunks(
    spec: ObjectiveSpec,
    hyper: Hyperparams,
    ntp: Float[Array, "B S"],
    logits: Float[Array, "B S V"] | None,
    signal: ChunkSignal | CellSignal,
    batch: Batch,
) -> dict[str, Float[Array, "B S"]]:
    """L_KD from a teacher with another tokenizer, and the share of tokens that are in a chunk."""
    tau = hyper.temperature if spec.tempered else 1.0
    aligned = (signal.chunk > 0).astype(ntp.dtype)
    if isinstance(signal, ChunkSignal):
        kd = cross_tokenizer.likelihood(spec.divergence, -ntp, signal, tau, hyper.beta)
    else:
        assert logits is not None  # `is_fused`
        kd = cross_tokenizer.projection(spec.divergence, logits, batch.labels, signal, tau, hyper.beta)
    return {"kd": kd, "aligned": aligned}


def _distillation(
    spec: ObjectiveSpec,
    hyper: Hyperparams,
    logits: Float[Array, "B S V"],
    signal: TokenSignal,
    batch: Batch,
    step: Int[Array, ""] | int,
) -> Float[Array, "B S"]:
    """L_KD of every token, tau^2 included."""
    tau = hyper.temperature if spec.tempered else 1.0
    if isinstance(signal, HiddenSignal | MixedSignal):
        signal = targets.whole_signal(signal)
    if isinstance(signal, TeacherSignal):
        vocab_size = logits.shape[-1]
        signal = TeacherSignal(log_probs=targets.align(signal.log_probs, vocab_size, spec.tokens or vocab_size))
        if spec.exactness_row == "full":
            return divergences.divergence(spec.divergence, logits, signal.log_probs, tau, hyper.beta)
    signal = to_target(spec, hyper, signal, batch, step)
    log_z = jax.nn.logsumexp(logits / tau, axis=-1)[..., None]
    log_q = targets.gather(logits, signal.ids) / tau - log_z
    return divergences.sparse_divergence(spec.divergence, spec.exactness_row, log_q, signal, tau, hyper.beta)


def to_target(
    spec: ObjectiveSpec, hyper: Hyperparams, signal: TokenSignal, batch: Batch, step: Int[Array, ""] | int
) -> SparseSignal:
    """The tokens of a whole distribution that the objective's target keeps; a sparse signal is returned unchanged."""
    if isinstance(signal, SparseSignal):
        return signal
    uniform = targets.uniform(batch, max(spec.draws, 1), hyper.seed, jnp.asarray(step))

    def target(log_probs: Float[Array, "B S V"], uniform: Float[Array, "B S K"]) -> SparseSignal:
        if spec.target == "topk":
            return targets.top_k(log_probs, spec.top_k)
        if spec.target == "topp":
            return targets.top_p(log_probs, spec.top_p, spec.top_k)
        if spec.target == "argmax":
            return targets.argmax(log_probs)
        return targets.sample(log_probs, spec.draws, uniform)

    if isinstance(signal, TeacherSignal):
        return target(signal.log_probs, uniform)
    head = signal.head if isinstance(signal, HiddenSignal) else signal.parts[0].head
    return targets.by_positions(target, signal, uniform, spec.tokens or head.shape[0])
