"""Losses per token, [B, S] in nats: what the paper's objective is made of (section 6; Eqs. 5-7).

Logits come in float32 and may be split along the vocabulary, so a label's logit is a masked sum, never a gather.
Weights, sums and the one division belong to the caller.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def cross_entropy(logits: Float[Array, "B S V"], labels: Int[Array, "B S"]) -> Float[Array, "B S"]:
    """-log softmax(logits)[label]: the next-token loss L_NTP."""
    vocabulary = jax.lax.broadcasted_iota(labels.dtype, (1, 1, logits.shape[-1]), 2)
    chosen = jnp.sum(jnp.where(labels[..., None] == vocabulary, logits, 0), axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def soft_cross_entropy(
    logits: Float[Array, "B S V"], log_probs: Float[Array, "B S V"], temperature: float | Float[Array, ""] = 1.0
) -> Float[Array, "B S"]:
    """-tau^2 sum_v p_T(v; tau) log p_S(v; tau): the distillation loss L_KD.

    `log_probs` are the teacher's at tau = 1 (its logits serve as well). The gradient is that of tau^2 KL(p_T || p_S);
    tau^2 keeps its size independent of tau.
    """
    teacher = jax.nn.softmax(log_probs.astype(logits.dtype) / temperature, axis=-1)
    student = logits / temperature
    return temperature**2 * (jax.nn.logsumexp(student, axis=-1) - jnp.sum(teacher * student, axis=-1))


def kl_divergence(logits: Float[Array, "B S V"], log_probs: Float[Array, "B S V"]) -> Float[Array, "B S"]:
    """KL(p_T || p_S) at tau = 1, from the student's logits and the teacher's log-probabilities or logits."""
    teacher = jax.nn.log_softmax(log_probs.astype(logits.dtype), axis=-1)
    return jnp.sum(jnp.exp(teacher) * (teacher - jax.nn.log_softmax(logits, axis=-1)), axis=-1)


def z_loss(logits: Float[Array, "B S V"]) -> Float[Array, "B S"]:
    """logsumexp(logits)^2: keeps the normaliser of the softmax near one (paper, section 6)."""
    return jnp.square(jax.nn.logsumexp(logits, axis=-1))
