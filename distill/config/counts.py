"""Parameters and FLOPs: the only definition of N and of C in this project.

N counts non-embedding parameters: every weight and gain except the embedding and the head, tied or not.
F counts forward FLOPs per token; a backward pass costs twice the forward (paper, Eq. 9 and Appendix H).
XLA's own cost analysis counts the body of a scan once, so it is never used as an x-axis.
"""

import dataclasses
from typing import Any

from distill.config import ExperimentConfig, ModelConfig


def non_embedding(model: ModelConfig) -> int:
    """N: attention, feed-forward, norm gains, QK-norm gains and biases of every layer, and the last norm."""
    d, k = model.d_model, model.head_dim
    q, kv = model.n_heads * k, model.kv_heads * k
    attention = d * q + 2 * d * kv + q * d
    gains = 2 * d + (2 * k if model.qk_norm else 0)
    biases = (q + 2 * kv if model.qkv_bias else 0) + (d if model.out_bias else 0)
    return model.n_layers * (attention + 3 * d * model.ff_dim + gains + biases) + d


def total(model: ModelConfig) -> int:
    """All parameters: N, the embedding, and the head where it is not tied to the embedding."""
    return non_embedding(model) + model.vocab_size * model.d_model * (1 if model.tied else 2)


def forward_flops(model: ModelConfig, seq_len: int) -> float:
    """F: forward FLOPs per token at a context of `seq_len`, exactly as Appendix H counts them.

    Per layer: projections 2 FLOPs a weight, causal attention 2 n_ctx per head dimension (scores and values), softmax
    2.5 n_heads n_ctx; plus 2 V D for the logits and 2 D for the embedding.
    """
    d, q, kv = model.d_model, model.n_heads * model.head_dim, model.kv_heads * model.head_dim
    projections = 2 * (2 * d * q + 2 * d * kv) + 6 * d * model.ff_dim
    context = min(seq_len, model.window or seq_len)
    attention = 2 * context * q + 2.5 * model.n_heads * context
    return float(model.n_layers * (projections + attention) + 2 * model.vocab_size * d + 2 * d)


def forward_flops_closed(
    N: Any, n_ctx: int = 4096, n_vocab: int = 32768, rho: float = 128.0, omega: float = 12.0
) -> Any:
    """F(N) = 2N (1 + s1 n_ctx N^(-1/3) + s2 n_vocab N^(-2/3)), Appendix H's closed form for the paper's ladder.

    rho = d_model / n_layers and omega = N / (n_layers d_model^2) fix s1 and s2. N may be any array; pure arithmetic.
    """
    s1 = (1 / (rho * omega**2)) ** (1 / 3)
    s2 = (rho / omega) ** (1 / 3)
    return 2 * N * (1 + s1 * n_ctx * N ** (-1 / 3) + s2 * n_vocab * N ** (-2 / 3))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFlops:
    """The FLOPs of one run, with the teacher's two parts separate (the terms of Eq. 9)."""

    student: float  # 3 F(N_S) D_S, and F(N_S) for each token of the batches that the student writes itself
    teacher_forward: float  # F(N_T) D_S
    teacher_training: float  # 3 F(N_T) D_T


def run_flops(config: ExperimentConfig, teacher: ModelConfig | None = None, teacher_tokens: int = 0) -> RunFlops:
    """FLOPs of a run of whole steps; without a teacher both teacher terms are zero.

    The student's cost includes the projections of feature losses: 2 D_S D_T per token and pair forward, twice that
    backward.
    """
    tokens = training_tokens(config)
    forward = forward_flops(teacher, config.seq_len) if teacher else 0.0
    own = (3 + config.on_policy.fraction) * forward_flops(config.model, config.seq_len)
    pairs = len(config.objective.features) if teacher else 0
    return RunFlops(
        student=(own + 6 * pairs * config.model.d_model * (teacher.d_model if teacher else 0)) * tokens,
        teacher_forward=forward * tokens,
        teacher_training=3 * forward * teacher_tokens,
    )


def training_tokens(config: ExperimentConfig) -> int:
    """D: the tokens that the run predicts, in whole steps of batch_size x seq_len."""
    return config.steps * config.batch_size * config.seq_len
