"""What a student minimises: (1 - lambda) L_NTP + lambda L_KD + lambda_z Z, as sums over tokens (paper, section 6)."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from distill import losses, metrics
from distill.config import ObjectiveConfig
from distill.metrics import Sum
from distill.optim import Hyper
from distill.types import Batch, TeacherSignal


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveShape:
    """What of an objective is compiled in; its numbers travel in Hyper.

    A temperature of exactly 1 is compiled in, for then the soft and the hard loss share one logsumexp.
    """

    target: str
    tempered: bool


def shape(config: ObjectiveConfig) -> ObjectiveShape:
    return ObjectiveShape(target=config.target, tempered=config.temperature != 1.0)


def evaluate(
    objective: ObjectiveShape,
    h: Hyper,
    logits: Float[Array, "B S V"],
    signal: TeacherSignal | None,
    batch: Batch,
) -> tuple[Any, dict[str, Sum]]:
    """The sum of the weighted losses of all tokens, to differentiate, and its parts as Sums.

    Without a signal the run is supervised: L_NTP + lambda_z Z, whatever lambda is.
    """
    parts = {"ntp": losses.cross_entropy(logits, batch.labels), "z": losses.z_loss(logits)}
    loss = parts["ntp"]
    if signal is not None:
        parts["kd"] = _distillation(objective, h, logits, signal)
        loss = (1 - h.lambda_) * parts["ntp"] + h.lambda_ * parts["kd"]
    parts["loss"] = loss + h.z_loss * parts["z"]
    sums = {name: metrics.total(values, batch.weight) for name, values in parts.items()}
    return sums["loss"].value, sums


def _distillation(
    objective: ObjectiveShape, h: Hyper, logits: Float[Array, "B S V"], signal: TeacherSignal
) -> Float[Array, "B S"]:
    if objective.target == "argmax":
        return losses.cross_entropy(logits, jnp.argmax(signal.log_probs, axis=-1))
    return losses.soft_cross_entropy(logits, signal.log_probs, h.temperature if objective.tempered else 1.0)
