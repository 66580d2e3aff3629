"""The letters of every shape in this project, and the pytrees that a step reads: batches and teacher signals.

B batch (sequences)   S sequence (tokens)      D d_model            F ff_dim          V vocabulary
H query heads         G key-value heads        K head_dim           L layers          M microbatches
X experts             J experts of a token
In signals K is the number of tokens kept of the vocabulary, and T tokens are those of a teacher with another tokenizer.
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
    """The teacher's last normalised hidden states and its head, which give its whole distribution; no logits.

    Its logits are hidden head', and where `cap` is not 0 cap tanh(of those / cap).
    """

    hidden: Float[Array, "B S D"]
    head: Float[Array, "V D"]
    cap: float = dataclasses.field(default=0.0, metadata={"static": True})


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Alignment:
    """A batch's text in the tokens of a teacher with another tokenizer, and which tokens of both are the same bytes.

    A chunk is named by 1 + the position, among the student's S predicted tokens, of its first one; 0 is no chunk.
    """

    tokens: Int[Array, "B T+1"]
    chunk: Int[Array, "B S"]  # of each token that the student predicts
    teacher_chunk: Int[Array, "B T"]  # of each token that the teacher predicts
    segment: Int[Array, "B T"] | None = None
    position: Int[Array, "B T"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ChunkSignal:
    """A teacher's log-probabilities of chunks (`Alignment`), at the position of the first token of each."""

    chunk: Int[Array, "B S"]
    log_probs: Float[Array, "B S"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CellSignal:
    """A teacher's log-probabilities of C cells, and of the chunk itself as outcome C (losses/cross_tokenizer.py).

    At the position of each chunk's first token, at tau = 1; `cells` is the cell of each of the student's tokens.
    """

    chunk: Int[Array, "B S"]
    log_probs: Float[Array, "B S C+1"]
    cells: Int[Array, " V"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StoredCells:
    """A `CellSignal` as a batch carries it, in the dtype of the store; the cells are apart, without a batch axis."""

    chunk: Int[Array, "B S"]
    log_probs: Float[Array, "B S C+1"]


CrossSignal = ChunkSignal | CellSignal  # of a teacher with another tokenizer
TokenSignal = TeacherSignal | SparseSignal | HiddenSignal | MixedSignal  # of a teacher with the student's tokens
Signal = TokenSignal | CrossSignal  # what an objective reads
StoredSignal = (
    TeacherSignal | SparseSignal | HiddenStates | Alignment | ChunkSignal | StoredCells
)  # what a batch carries


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Token windows: tokens[:, :-1] is read, tokens[:, 1:] is predicted.

    weight is 0 where a predicted token must not count. segment and position (both of the S tokens that are read) are
    None for plain windows; in packed ones attention stays inside a segment. signal is None where the teacher, if any,
    runs inside the step. With spans > 1 each row is one of so many spans of a sequence (distill/data/spans.py).
    """

    tokens: Int[Array, "B S+1"]
    weight: Float[Array, "B S"]
    segment: Int[Array, "B S"] | None = None
    position: Int[Array, "B S"] | None = None
    signal: StoredSignal | None = None
    spans: int = dataclasses.field(default=1, metadata={"static": True})

    @property
    def inputs(self) -> Int[Array, "B S"]:
        return self.tokens[:, :-1]

    @property
    def labels(self) -> Int[Array, "B S"]:
        return self.tokens[:, 1:]
