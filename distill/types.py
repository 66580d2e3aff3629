"""The letters of every shape in this project, and the pytrees that a step reads: batches and teacher signals.

B batch (sequences)   S sequence (tokens)      D d_model            F ff_dim          V vocabulary
H query heads         G key-value heads        K head_dim           L layers          M microbatches
In signals K is the number of tokens kept of the vocabulary.
"""

import dataclasses

import jax
from jaxtyping import Array, Float, Int

# The log of no probability at all. Finite, because 0 * inf is not a number.
LOG_ZERO = -1e30


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TeacherSignal:
    """A teacher's log-probabilities over the vocabulary, for each of the B S predicted tokens."""

    log_probs: Float[Array, "B S V"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SparseSignal:
    """K tokens of the vocabulary for each position, and the teacher's log-probabilities of them at tau = 1.

    LOG_ZERO or less marks an unused slot. For sampled targets the exponentials are the draws' weights: 1/K each for
    plain draws; an id may occur twice.
    """

    ids: Int[Array, "B S K"]
    log_probs: Float[Array, "B S K"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HiddenSignal:
    """The teacher's last normalised hidden states and its head, which give its whole distribution; no logits."""

    hidden: Float[Array, "B S D"]
    head: Float[Array, "V D"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HiddenStates:
    """Stored last hidden states, in the dtype of the store; their head (`Head`) is apart, for it has no batch axis."""

    hidden: Float[Array, "B S D"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Head:
    """The head of a teacher whose hidden states are stored."""

    head_vd: Float[Array, "V D"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MixedSignal:
    """Several teachers' hidden states and heads, whose distributions are mixed.

    log p(v) = logsumexp over i of hidden_i . head_i[v] + offset_i; an offset is the log of the teacher's weight less
    its own normaliser.
    """

    parts: tuple[HiddenSignal, ...]
    offsets: tuple[Float[Array, "B S 1"], ...]


Signal = TeacherSignal | SparseSignal | HiddenSignal | MixedSignal  # what an objective reads
StoredSignal = TeacherSignal | SparseSignal | HiddenStates  # what a batch carries


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Token windows: tokens[:, :-1] is read, tokens[:, 1:] is predicted.

    weight is 0 where a predicted token must not count. segment and position (both of the S tokens that are read) are
    None for plain windows; in packed ones attention stays inside a segment. signal is None where the teacher, if any,
    runs inside the step.
    """

    tokens: Int[Array, "B S+1"]
    weight: Float[Array, "B S"]
    segment: Int[Array, "B S"] | None = None
    position: Int[Array, "B S"] | None = None
    signal: StoredSignal | None = None

    @property
    def inputs(self) -> Int[Array, "B S"]:
        return self.tokens[:, :-1]

    @property
    def labels(self) -> Int[Array, "B S"]:
        return self.tokens[:, 1:]
