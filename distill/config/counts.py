"""Parameters and FLOPs: the only definition of N and of C in this project.

N counts non-embedding parameters: every weight and gain except the embedding and the head, tied or not. Of a mixture of
experts N is what a token uses: its router and experts_per_token experts a layer. So N means compute for every model,
C = 6 N D holds, and N of a law is that of a dense model of equal work; all non-embedding parameters are `stored`.
F counts forward FLOPs per token; a backward pass costs twice the forward (paper, Eq. 9 and Appendix H).
XLA's own cost analysis counts the body of a scan once, so it is never used as an x-axis.
"""

import dataclasses
from typing import Any

from distill.config import ExperimentConfig, ModelConfig


def non_embedding(model: ModelConfig) -> int:
    """N: attention, feed-forward, norms, QK-norm gains, biases and sinks of every layer, and the last norm."""
    d, f, k = model.d_model, model.ff_dim, model.head_dim
    q, kv = model.n_heads * k, model.kv_heads * k
    attention = d * q + 2 * d * kv + q * d
    norm = 2 * d if model.norm_kind == "layer" else d  # a gain, and a bias
    gains = norm * (4 if model.norms == "sandwich" else 2)
    if model.qk_norm:
        gains += 2 * k if model.qk_norm_width == "head" else q + kv
    biases = (q + 2 * kv if model.qkv_bias else 0) + (d if model.out_bias else 0)
    if model.experts:
        biases += model.experts + model.experts_per_token * _expert_biases(model) if model.feed_bias else 0
    else:
        biases += (feed_maps(model) - 1) * f + d if model.feed_bias else 0
    biases += model.n_heads if model.attention_sinks else 0
    feed = _experts(model, model.experts_per_token) if model.experts else feed_maps(model) * d * f
    return model.n_layers * (attention + feed + gains + biases) + norm


def _experts(model: ModelConfig, count: int) -> int:
    """Parameters of a layer's router and of so many of its experts."""
    return model.d_model * model.experts + count * feed_maps(model) * model.d_model * model.expert_dim


def stored(model: ModelConfig) -> int:
    """All non-embedding parameters: N, and the experts that a token does not use."""
    unused = model.experts - model.experts_per_token if model.experts else 0
    each = feed_maps(model) * model.d_model * model.expert_dim + _expert_biases(model)
    return non_embedding(model) + model.n_layers * unused * each


def _expert_biases(model: ModelConfig) -> int:
    """The biases of one expert."""
    return 2 * model.expert_dim + model.d_model if model.experts and model.feed_bias else 0


def feed_maps(model: ModelConfig) -> int:
    """The linear maps of a feed-forward: gate, up and down, or the last two."""
    return 3 if model.gated else 2


def total(model: ModelConfig) -> int:
    """All parameters: those `stored`, the embedding, and the head where it is not tied to the embedding."""
    return stored(model) + model.vocab_size * model.d_model * (1 if model.tied else 2)


def forward_flops(model: ModelConfig, seq_len: int) -> float:
    """F: forward FLOPs per token at a context of `seq_len`, exactly as Appendix H counts them.

    Per layer: projections 2 FLOPs a weight, causal attention 2 n_ctx per head dimension (scores and values), softmax
    2.5 n_heads n_ctx; plus 2 V D for the logits and 2 D for the embedding. Of experts those that a token uses count.
    """
    d, q, kv = model.d_model, model.n_heads * model.head_dim, model.kv_heads * model.head_dim
    feed = _experts(model, model.experts_per_token) if model.experts else feed_maps(model) * d * model.ff_dim
    projections = 2 * (2 * d * q + 2 * d * kv) + 2 * feed
    seen = len(model.global_layers) * seq_len  # keys that a query sees, in all layers
    seen += (model.n_layers - len(model.global_layers)) * min(seq_len, model.window or seq_len)
    attention = seen * (2 * q + 2.5 * model.n_heads)
    return float(model.n_layers * projections + attention + 2 * model.vocab_size * d + 2 * d)


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


def lora_parameters(model: ModelConfig) -> int:
    """The parameters of a model's adapters (model/lora.py), rank x (inputs + outputs) a map; 0 without."""
    sizes = map_sizes(model)
    return model.n_layers * model.lora.rank * sum(sum(sizes[name]) for name in model.lora.maps if name in sizes)


def map_sizes(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of a layer's linear maps (ModelConfig.linear_maps), by name."""
    d, f, q, kv = model.d_model, model.ff_dim, model.n_heads * model.head_dim, model.kv_heads * model.head_dim
    sizes = {"query": (d, q), "key": (d, kv), "value": (d, kv), "out": (q, d)}
    sizes |= {"gate": (d, f), "up": (d, f), "down": (f, d)}
    return {name: sizes[name] for name in model.linear_maps}


def run_flops(config: ExperimentConfig, teacher: ModelConfig | None = None, teacher_tokens: int = 0) -> RunFlops:
    """FLOPs of a run of whole steps; without a teacher both teacher terms are zero.

    A student with adapters has no gradient of its own weights: 2 F(N_S), and 3 times the forward of the adapters, which
    is 2 FLOPs a parameter. The student's cost includes the projections of feature losses: 2 D_S D_T per token and pair
    forward, twice that backward.
    """
    tokens = training_tokens(config)
    forward = forward_flops(teacher, config.seq_len) if teacher else 0.0
    passes = 2 if config.model.lora.rank else 3
    own = (passes + config.on_policy.fraction) * forward_flops(config.model, config.seq_len)
    own += (3 + config.on_policy.fraction) * 2 * lora_parameters(config.model)
    pairs = len(config.objective.features) if teacher else 0
    return RunFlops(
        student=(own + 6 * pairs * config.model.d_model * (teacher.d_model if teacher else 0)) * tokens,
        teacher_forward=forward * tokens,
        teacher_training=3 * forward * teacher_tokens,
    )


def training_tokens(config: ExperimentConfig) -> int:
    """D: the tokens that the run predicts, in whole steps of batch_size x seq_len."""
    return config.steps * config.batch_size * config.seq_len
