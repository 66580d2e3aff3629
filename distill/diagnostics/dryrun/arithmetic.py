"""Estimates a step's cost from its shapes: the least traffic of FSDP, and a model of its memory.

Standard library only. Weights are sent in the dtype of the activations. Letters as in distill/types.py; t is the number
of tokens of one device in one microbatch.
"""

import dataclasses
import math

from distill.config import ExperimentConfig, MeshConfig, ModelConfig, counts

STATE_BYTES = 12  # a parameter and Adam's two moments, float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a student's step on a mesh."""

    mesh: MeshConfig
    chips: int
    tokens: int  # of one device in one microbatch
    rows: int  # sequences of the same microbatch, shared ones whole
    microbatches: int


def shape(config: ExperimentConfig) -> Shape:
    """The sizes of a config whose mesh has no open axis."""
    m = config.mesh
    rows = config.batch_size * m.context // config.microbatches // (m.data * m.fsdp)
    return Shape(
        mesh=m,
        chips=m.data * m.fsdp * m.tensor,
        tokens=rows * config.seq_len // m.context,
        rows=rows,
        microbatches=config.microbatches,
    )


def _width(model: ModelConfig) -> int:
    return 2 if model.dtype == "bfloat16" else 4


def _matrices(model: ModelConfig) -> int:
    """Weights of one layer that are split over fsdp."""
    d, q, kv = model.d_model, model.n_heads * model.head_dim, model.kv_heads * model.head_dim
    feed = model.experts * (d + 3 * d * model.expert_dim) if model.experts else 3 * d * model.ff_dim
    return 2 * d * q + 2 * d * kv + feed


def _units(model: ModelConfig) -> int:
    """Values of a token between the maps of a feed-forward: all experts of a token together."""
    return model.experts_per_token * model.expert_dim if model.experts else model.ff_dim


def fsdp_bytes(config: ExperimentConfig, teacher: ModelConfig | None = None, slices: int = 1) -> dict[str, float]:
    """The least bytes that one device sends per step inside its slice for its weights, by kind; ring algorithms.

    Layers: gathered once forward and once backward, reduce-scattered once, per microbatch. Embedding and head: each
    gathered once, because the loss computes its gradient in the same place. The teacher: gathered once. Pieces of
    gradients are then all-reduced over what a slice has of data.
    """
    s = shape(config)
    n, t, d, g = s.mesh.fsdp, s.mesh.tensor, s.mesh.data // slices, s.microbatches
    share, width = (n - 1) / n / t, _width(config.model)
    layers, ends = _gradient_bytes(config.model)
    table = config.model.vocab_size * config.model.d_model * width
    gathered = (2 * layers + 2 * table) * g * share
    if teacher is not None:
        own = teacher.n_layers * _matrices(teacher) + 2 * teacher.vocab_size * teacher.d_model
        gathered += own * _width(teacher) * g * share
    if config.model.lora.rank:  # the weights that are gathered have no gradient, and adapters are not split
        return {"all-gather": gathered} if gathered else {}
    sent = {"all-gather": gathered, "reduce-scatter": (layers + ends) * g * share}
    if d > 1:
        sent["all-reduce"] = 2 * (d - 1) / d * (layers + ends) / n / t * g
    return {kind: value for kind, value in sent.items() if value}


def _gradient_bytes(model: ModelConfig) -> tuple[float, float]:
    """Bytes of the gradients of layers, and of embedding and head, in the dtype of the activations."""
    ends = 1 if model.tied else 2  # a tied table is scattered once, its gradients added first
    width = _width(model)
    return float(model.n_layers * _matrices(model) * width), float(ends * model.vocab_size * model.d_model * width)


def slice_bytes(config: ExperimentConfig, slices: int) -> float:
    """The least bytes that one device sends to other slices per step: all chips of a slice share its gradients.

    Each sums its piece with those of the chips that hold the same piece elsewhere, as a ring.
    """
    if config.model.lora.rank:
        return 0.0
    s = shape(config)
    piece = sum(_gradient_bytes(config.model)) / (s.chips / slices)
    return 2 * (slices - 1) / slices * piece * s.microbatches


def tensor_bytes(config: ExperimentConfig, teacher: ModelConfig | None = None) -> float:
    """Bytes that one device sends per step to split heads and feed-forward over tensor: all-reduces of [t, D].

    Two per layer forward, two each in recomputation and backward; two per layer of the teacher.
    """
    s = shape(config)
    share = 2 * (s.mesh.tensor - 1) / s.mesh.tensor
    passes = 3 if config.model.remat == "full" else 2  # the others keep what linear maps give
    sent = 2 * passes * config.model.n_layers * config.model.d_model * _width(config.model)
    if teacher is not None:
        sent += 2 * teacher.n_layers * teacher.d_model * _width(teacher)
    return share * sent * s.tokens * s.microbatches


def ring_bytes(config: ExperimentConfig, teacher: ModelConfig | None = None) -> float:
    """Bytes that one device sends per step to show its keys and values to those that share its sequences.

    Once round forward, in recomputation and backward, and backward their gradients too, in float32.
    """
    s = shape(config)
    if s.mesh.context == 1:
        return 0.0
    numbers = lambda model: 2 * model.n_layers * model.kv_heads * model.head_dim / s.mesh.tensor
    again = 1 if config.model.remat in ("full", "dots", "offload") else 0
    sent = numbers(config.model) * ((2 + again) * _width(config.model) + 4)
    if teacher is not None:
        sent += numbers(teacher) * _width(teacher)
    return sent * s.mesh.context * s.tokens * s.microbatches


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one device while a step runs, beyond those it holds between steps."""

    activations: float  # kept from the forward to the backward pass
    temporaries: float


def memory(config: ExperimentConfig, teacher: ModelConfig | None = None) -> Memory:
    """A model of the compiler's memory, for chips whose compiler is not available.

    Kept: the input of each layer, and what config.remat does not compute again. Temporaries: the gradients, and the
    largest of one layer backward, one layer of the teacher, and the loss with both heads.
    """
    s, model = shape(config), config.model
    kept = float(s.tokens * model.d_model * _width(model)) + _kept(model, s, config.seq_len)
    trained = counts.lora_parameters(model) or counts.total(model) / (s.mesh.fsdp * s.mesh.tensor)
    gradients = 4 * trained * (2 if s.microbatches > 1 else 1)
    loss = 6 * model.vocab_size * model.d_model / s.mesh.tensor + 16 * s.tokens * model.d_model
    work = [_layer(model, s, config.seq_len, backward=True), loss]
    if teacher is not None:
        work[1] += 2 * teacher.vocab_size * teacher.d_model / s.mesh.tensor
        work.append(_layer(teacher, s, config.seq_len, backward=False) + 2 * 2 * _matrices(teacher) / s.mesh.tensor)
    return Memory(activations=float(model.n_layers * kept), temporaries=gradients + max(work))


def _kept(model: ModelConfig, s: Shape, seq_len: int) -> float:
    """Bytes of a layer's intermediate values that stay on the device until the backward pass."""
    match model.remat:
        case "none":
            return _layer(model, s, seq_len, backward=False)
        case "attention":
            return s.tokens * _between(model, s) * _width(model)
        case "dots":
            heads = (model.n_heads + 2 * model.kv_heads) * model.head_dim
            return s.tokens * (model.d_model + (heads + 2 * _units(model)) / s.mesh.tensor) * _width(model)
    return 0.0


def _between(model: ModelConfig, s: Shape) -> float:
    """Values of a token in one layer, attention's scores apart."""
    copies = 2 * model.experts_per_token if model.experts else 0  # of a token, into its experts and out of them
    split = (3 * _units(model) + 3 * model.n_heads * model.head_dim) / s.mesh.tensor
    return (4 + copies) * model.d_model + split


def _layer(model: ModelConfig, s: Shape, seq_len: int, backward: bool) -> float:
    """One layer: scores in float32 and in the activations' dtype, what is between maps, and weights whole.

    A kernel that the config names keeps no scores.
    """
    width, split = _width(model), s.mesh.tensor
    plain = model.attention in ("auto", "xla") and s.mesh.context == 1  # shared sequences are read in blocks
    scores = s.rows * model.n_heads * seq_len**2 / split if plain else 0.0
    once = scores * (4 + width) + s.tokens * _between(model, s) * width
    if not backward:
        return once
    return 2 * once + 3 * width * _matrices(model) / split


def state_bytes(config: ExperimentConfig) -> float:
    """Bytes of parameters and optimiser on a device, exact except for arrays that are not split.

    Under adapters (config.model.lora) the rest is held in the dtype that it is computed with, without moments.
    """
    split, adapters = math.prod((config.mesh.fsdp, config.mesh.tensor)), counts.lora_parameters(config.model)
    each = _width(config.model) if adapters else STATE_BYTES
    return each * counts.total(config.model) / split + STATE_BYTES * adapters


def teacher_bytes(config: ExperimentConfig, teacher: ModelConfig | None) -> float:
    """Bytes of an online teacher's weights on a device, in config.teacher.dtype."""
    if teacher is None:
        return 0.0
    width = {"float32": 4, "bfloat16": 2}.get(config.teacher.dtype, 1)
    return width * counts.total(teacher) / math.prod((config.mesh.fsdp, config.mesh.tensor))


def total_bytes(config: ExperimentConfig, teacher: ModelConfig | None = None) -> float:
    """Bytes of one device while a step runs: state, teacher, activations and temporaries, by the model of `memory`."""
    working = memory(config, teacher)
    return state_bytes(config) + teacher_bytes(config, teacher) + working.activations + working.temporaries
