"""A teacher's signal for a batch: stored with the batch, or computed in one forward pass. Pure and jit-compatible."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from distill.model.transformer import Transformer
from distill.teacher.cross_tokenizer import Cells, CrossTeacher
from distill.teacher.mixture import TeacherMixture
from distill.types import (
    Alignment,
    Batch,
    CellSignal,
    Head,
    HiddenSignal,
    HiddenStates,
    Signal,
    StoredCells,
    TeacherSignal,
)

Teacher = Transformer | TeacherMixture  # what takes a student's tokens
StepTeacher = Teacher | CrossTeacher | Cells | Head  # what a step takes beside a batch


def teacher_signal(teacher: StepTeacher | None, batch: Batch, fused: bool = False) -> Signal | None:
    """The teacher's signal for a batch, under stop_gradient: stored with it, computed now, or None (supervised).

    Computed, it is the teacher's distribution [B, S, V]; with `fused`, the hidden states and the head that give it.
    """
    return observe(teacher, batch, fused, ())[0]


def observe(
    teacher: StepTeacher | None, batch: Batch, fused: bool, layers: tuple[int, ...]
) -> tuple[Signal | None, tuple[Float[Array, "B S D"], ...]]:
    """`teacher_signal`, and the teacher's residual stream after each of `layers`, from the same forward pass.

    A stored signal and a mixture of teachers come without hidden states.
    """
    if isinstance(batch.signal, Alignment):
        assert isinstance(teacher, CrossTeacher)
        return teacher.signal(batch.signal), ()
    if isinstance(batch.signal, StoredCells):
        assert isinstance(teacher, Cells)
        stored = batch.signal
        return CellSignal(chunk=stored.chunk, log_probs=stored.log_probs, cells=teacher.student), ()
    if isinstance(batch.signal, HiddenStates):
        assert isinstance(teacher, Head)
        # At least float32, whatever the stored dtype: a product of two such numbers is then exact.
        hidden = batch.signal.hidden.astype(jnp.promote_types(batch.signal.hidden.dtype, jnp.float32))
        return HiddenSignal(hidden=hidden, head=teacher.head_vd), ()
    if batch.signal is not None or teacher is None or isinstance(teacher, Head | CrossTeacher | Cells):
        return batch.signal, ()
    inputs = batch.inputs, batch.segment, batch.position, batch.spans
    if isinstance(teacher, TeacherMixture):
        mixed = teacher.hidden_signal(*inputs) if fused else None
        return lax.stop_gradient(mixed or TeacherSignal(log_probs=teacher(*inputs))), ()
    hidden, states = teacher.states(layers, *inputs)
    if fused:
        signal = HiddenSignal(hidden=hidden, head=teacher.head_vd, cap=teacher.config.logit_cap)
        return lax.stop_gradient((signal, states))
    log_probs = jax.nn.log_softmax(teacher.logits(hidden), axis=-1)
    return lax.stop_gradient((TeacherSignal(log_probs=log_probs), states))
