"""Batches that the student writes, for the teacher to judge (generalised distillation, Agarwal et al. 2306.13649).

Whether a step is the student's own, and what is drawn in it, depend on the run's seed and the step alone.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, PRNGKeyArray

from distill.config import DecodeConfig, ExperimentConfig
from distill.model import decode, sharding
from distill.model.transformer import Transformer
from distill.training.optim import Hyper
from distill.types import Batch

# Sets these keys apart from those that drew the weights from the same seed.
_TAG = 0x6F776E


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnPolicyShape:
    """What of on-policy training is compiled in; the fraction travels in Hyper."""

    prompt_tokens: int
    decode: DecodeConfig


def shape(config: ExperimentConfig) -> OnPolicyShape | None:
    """The static part, or None where every batch is data: such a step is compiled without any of this."""
    c = config.on_policy
    if not c.fraction:
        return None
    drawn = DecodeConfig(
        new_tokens=config.seq_len + 1 - c.prompt_tokens,
        temperature=c.temperature,
        top_k=c.top_k,
        top_p=c.top_p,
        stop=c.stop,
    )
    return OnPolicyShape(prompt_tokens=c.prompt_tokens, decode=drawn)


def _key(h: Hyper, step: Any) -> PRNGKeyArray:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(h.seed), _TAG), step)


def chosen(h: Hyper, step: Any) -> Bool[Array, ""]:
    """Whether the batch of `step` is the student's own: a coin with the fraction's bias (their Algorithm 1)."""
    return jax.random.uniform(_key(h, step)) < h.on_policy


def write(shape: OnPolicyShape, h: Hyper, step: Any, student: Transformer, batch: Batch) -> Batch:
    """The batch of `step`: as it is, or its rows' first tokens continued by the student, whose words alone count.

    What it draws does not depend on microbatches; over devices, up to the rounding of its logits.
    """

    def own(student: Transformer) -> tuple[Any, Any]:
        size, prompt = batch.tokens.shape[0], shape.prompt_tokens
        keys = jax.random.split(jax.random.fold_in(_key(h, step), 1), size)
        found = decode.generate(shape.decode, student, batch.tokens[:, :prompt], keys)
        nothing = jnp.zeros((size, prompt - 1), out_sharding=sharding.TOKENS_BS)
        return found.tokens, jnp.concatenate([nothing, found.weight], axis=1)

    student = lax.stop_gradient(student)
    tokens, weight = lax.cond(chosen(h, step), own, lambda _: (batch.tokens, batch.weight), student)
    return dataclasses.replace(batch, tokens=tokens, weight=weight)
