"""Batches that the student writes and the teacher scores: on-policy distillation (Agarwal et al. 2306.13649).

Whether a step is on-policy, and what is drawn in it, depend on the run's seed and the step alone.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from distill.config import DecodeConfig, ExperimentConfig
from distill.model import decode, sharding
from distill.model.transformer import Transformer
from distill.training.optim import Hyperparams
from distill.types import Batch

# Keeps these keys apart from those that drew the weights from the same seed.
_TAG = 0x6F776E


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnPolicySpec:
    """The compiled part of on-policy training; the fraction is traced (Hyperparams.on_policy)."""

    prompt_tokens: int
    decode: DecodeConfig


def on_policy_spec(config: ExperimentConfig) -> OnPolicySpec | None:
    """The compiled part, or None where every batch is data: such a step is compiled without decoding."""
    c = config.on_policy
    if not c.fraction:
        return None
    decoding = DecodeConfig(
        new_tokens=config.seq_len + 1 - c.prompt_tokens,
        temperature=c.temperature,
        top_k=c.top_k,
        top_p=c.top_p,
        stop=c.stop,
    )
    return OnPolicySpec(prompt_tokens=c.prompt_tokens, decode=decoding)


def is_on_policy(hyper: Hyperparams, step: Int[Array, ""] | int) -> Bool[Array, ""]:
    """Whether the student writes the batch of `step`: with probability `on_policy.fraction` (their Algorithm 1)."""
    return jax.random.uniform(_key(hyper, step)) < hyper.on_policy


def student_batch(
    spec: OnPolicySpec, hyper: Hyperparams, step: Int[Array, ""], student: Transformer, batch: Batch
) -> Batch:
    """The batch of `step`: unchanged, or its rows' first tokens continued by the student; only continuations count.

    The draws do not depend on microbatches; over devices, they agree up to the rounding of the logits.
    """

    def written(student: Transformer) -> tuple[Int[Array, "B T"], Float[Array, "B S"]]:
        size, prompt = batch.tokens.shape[0], spec.prompt_tokens
        keys = jax.random.split(jax.random.fold_in(_key(hyper, step), 1), size)
        completions = decode.generate(spec.decode, student, batch.tokens[:, :prompt], keys)
        prompt_weight = jnp.zeros((size, prompt - 1), out_sharding=sharding.TOKENS_BS)
        return completions.tokens, jnp.concatenate([prompt_weight, completions.weight], axis=1)

    student = lax.stop_gradient(student)
    tokens, weight = lax.cond(is_on_policy(hyper, step), written, lambda _: (batch.tokens, batch.weight), student)
    return dataclasses.replace(batch, tokens=tokens, weight=weight)


def _key(hyper: Hyperparams, step: Int[Array, ""] | int) -> PRNGKeyArray:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(hyper.seed), _TAG), step)
