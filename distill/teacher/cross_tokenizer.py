"""A teacher with another tokenizer than its student: what it says of the chunks of a batch's text."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int
from numpy.typing import NDArray

from distill.data.align import Aligner
from distill.data.documents import Part
from distill.data.tokenizers.tokenizer import Tokenizer
from distill.losses import cross_tokenizer, fused
from distill.losses.cross_tokenizer import chunk_starts, chunk_sums, outcomes, rows_at
from distill.losses.fused import FusedSpec
from distill.model import sharding
from distill.model.transformer import Transformer
from distill.types import LOG_ZERO, Alignment, CellSignal, ChunkSignal

POSITIONS = 16  # whose logits exist at once


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cells:
    """The cell of each token of the student and of the teacher; `count` is the number of cells."""

    student: Int[Array, " V"]
    teacher: Int[Array, " W"]
    count: int = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CrossTeacher:
    """A teacher that reads its own tokens of a student's batch; with cells, it gives their distribution too."""

    model: Transformer
    cells: Cells | None = None

    def signal(self, alignment: Alignment) -> ChunkSignal | CellSignal:
        """The signal of a batch, under stop_gradient."""
        return lax.stop_gradient(self._signal(alignment))

    def _signal(self, a: Alignment) -> ChunkSignal | CellSignal:
        labels, size = a.tokens[:, 1:], a.chunk.shape[1]
        hidden = self.model.hidden(a.tokens[:, :-1], segment=a.segment, position=a.position)
        c = self.model.config
        spec = FusedSpec(divergence="", tempered=False, tokens=c.tokens, cap=c.logit_cap)
        found = fused.fused_losses(spec, hidden, self.model.head_vd, labels[..., None], None)
        log_p = found.id_logits[..., 0] - found.log_z
        whole = chunk_sums(log_p, a.teacher_chunk, size)
        if self.cells is None:
            return ChunkSignal(chunk=a.chunk, log_probs=whole)
        first = chunk_starts(a.teacher_chunk, size)
        number = lambda chunk: chunk_sums(jnp.ones(chunk.shape, jnp.int32), chunk, size)
        several = (number(a.chunk) > 1) | (number(a.teacher_chunk) > 1)
        log_rest = jnp.where(several, whole - rows_at(log_p, first), LOG_ZERO)
        log_probs = self._cells(rows_at(hidden, first), rows_at(labels, first), log_rest, self.cells)
        return CellSignal(chunk=a.chunk, log_probs=log_probs, cells=self.cells.student)

    def _cells(
        self, hidden: Float[Array, "B S D"], token: Int[Array, "B S"], log_rest: Float[Array, "B S"], cells: Cells
    ) -> Float[Array, "B S C"]:
        """The outcomes after the hidden states before chunks, a few positions at a time."""
        length = token.shape[1]
        size = max(n for n in range(1, POSITIONS + 1) if length % n == 0)

        def one(i: Int[Array, ""]) -> Float[Array, "B N C"]:
            few = lambda x: lax.dynamic_slice_in_dim(x, i * size, size, axis=1)
            logits = jax.sharding.reshard(self.model.logits(few(hidden)), sharding.ACT_BSD)
            log_probs = jax.nn.log_softmax(logits[..., : self.model.config.tokens], axis=-1)
            return outcomes(log_probs, few(token), few(log_rest), cells.teacher, cells.count)

        parts = lax.map(one, jnp.arange(length // size))
        return jnp.moveaxis(parts, 0, 1).reshape(parts.shape[1], length, parts.shape[-1])


def cells_of(aligner: Aligner, columns: int, teacher_tokens: int) -> Cells:
    """The common cells of two vocabularies; the student's head has `columns` columns, the teacher `teacher_tokens`."""
    student, teacher = aligner.names
    student, teacher = _sized(student, columns), _sized(teacher, teacher_tokens)
    both = set(student) & set(teacher)
    firsts = (
        _firsts(student, both, aligner.teacher, teacher),
        _firsts(teacher, both, aligner.student, student),
    )
    mine, theirs, count = cross_tokenizer.cell_numbers(
        student, teacher, (lambda i: int(firsts[0][i]), lambda i: int(firsts[1][i]))
    )
    return Cells(student=jnp.asarray(mine), teacher=jnp.asarray(theirs), count=count)


def _sized(names: list[bytes], size: int) -> list[bytes]:
    return [*names[:size], *[b""] * (size - len(names))]


def _firsts(names: list[bytes], both: set[bytes], other: Tokenizer, pieces: list[bytes]) -> NDArray[np.int64]:
    """The first token that another tokenizer makes of each token's bytes, -1 for none.

    Where its first token is no prefix of these bytes (a normaliser), and where they are no text by themselves, the
    longest of its tokens that is one.
    """
    ids = {piece: i for i, piece in reversed(list(enumerate(pieces))) if piece}
    found = np.full(len(names), -1, np.int64)
    wanted = [i for i, name in enumerate(names) if name and name not in both]
    texts = {i: text for i in wanted if (text := names[i].decode("utf-8", "ignore")).encode() == names[i]}
    encoded = dict(zip(texts, other.encode([Part(text) for text in texts.values()])))
    for i in wanted:
        name, first = names[i], encoded.get(i)
        if first is not None and len(first) and pieces[first[0]] and name.startswith(pieces[int(first[0])]):
            found[i] = first[0]
        else:
            found[i] = next((ids[name[:n]] for n in range(len(name), 0, -1) if name[:n] in ids), -1)
    return found
