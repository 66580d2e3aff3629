"""Runs of one compiled shape that take their steps together, in one vmapped step (flag --pack).

Seeds, rates and objective weights are traced numbers of a step: runs that differ in them alone can share a program that
has one more axis. Each run remains a run of its own, in its own thread, with its own checkpoints, metrics and end; the
runs meet only where they take their next steps.
"""

import dataclasses
import functools
import operator
import threading
from collections.abc import Hashable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Int

from distill.system import preemption
from distill.teacher.observe import StepTeacher
from distill.training import step as steps
from distill.training.step import Metrics, StepSpec, TrainState
from distill.types import Batch


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def vmapped_steps(
    spec: StepSpec,
    states: Sequence[TrainState],
    teacher: StepTeacher | None,
    batches: Sequence[Batch],
    count: Int[Array, ""] | int,
) -> list[tuple[TrainState, Metrics]]:
    """`train_steps` for several runs that share a teacher (or have none), each with its own state and batches."""
    stack = lambda *leaves: jnp.stack(leaves)
    vmapped = jax.vmap(functools.partial(steps.train_steps, spec), in_axes=(0, None, 0, None))
    answers = vmapped(jax.tree.map(stack, *states), teacher, jax.tree.map(stack, *batches), count)
    return [jax.tree.map(operator.itemgetter(i), answers) for i in range(len(states))]


@dataclasses.dataclass
class _Call:
    """The call of `train_steps` that a run waits for."""

    spec: StepSpec
    state: TrainState
    teacher: StepTeacher | None
    batches: Batch
    count: int
    mesh: Mesh
    answer: tuple[TrainState, Metrics] | None = None
    error: BaseException | None = None

    @property
    def key(self) -> Hashable:
        """What calls must share to be one program; runs that were interrupted may be at other steps for a while."""
        tree, shapes = jax.tree.structure((self.state, self.batches)), jax.tree.map(jnp.shape, self.batches)
        return self.spec, self.count, id(self.teacher), tree, tuple(jax.tree.leaves(shapes))


class VmappedRuns:
    """Where `size` runs meet. Each calls `train_steps` in place of step.train_steps and, when it ends, `leave`.

    `flag` is the caller's as it was when the runs last met, so that all of them stop at the same step.
    """

    def __init__(self, size: int, flag: preemption.PreemptionFlag):
        self._size, self._turn = size, threading.Condition()
        self._calls: list[_Call] = []
        self._caller_flag, self.flag = flag, preemption.PreemptionFlag()

    def train_steps(
        self, spec: StepSpec, state: TrainState, teacher: StepTeacher | None, batches: Batch, count: int
    ) -> tuple[TrainState, Metrics]:
        """The steps of one run, taken when every run has asked for its own. `state` is donated."""
        call = _Call(spec, state, teacher, batches, count, jax.sharding.get_mesh())
        with self._turn:
            self._calls.append(call)
            self._run_if_complete()
            self._turn.wait_for(lambda: call.answer is not None or call.error is not None)
        if call.answer is None:
            assert call.error is not None
            raise call.error
        return call.answer

    def leave(self) -> None:
        """Ends one run's part; the others continue without it."""
        with self._turn:
            self._size -= 1
            self._run_if_complete()

    def _run_if_complete(self) -> None:
        if len(self._calls) < self._size:
            return
        groups: dict[Hashable, list[_Call]] = {}
        for call in self._calls:
            groups.setdefault(call.key, []).append(call)
        for group in groups.values():
            _run(group)
        self.flag.signal = self._caller_flag.signal
        self._calls = []
        self._turn.notify_all()


def _run(group: list[_Call]) -> None:
    """Answers all calls of one program, or gives each of them the error."""
    first = group[0]
    try:
        # The runs' mesh: this thread may have left its mesh context already (`leave`).
        with jax.set_mesh(first.mesh):
            if len(group) == 1:
                answers = [steps.train_steps(first.spec, first.state, first.teacher, first.batches, first.count)]
            else:
                states, batches = [call.state for call in group], [call.batches for call in group]
                answers = vmapped_steps(first.spec, states, first.teacher, batches, first.count)
        for call, answer in zip(group, answers, strict=True):
            call.answer = answer
    except BaseException as error:  # raised again by every call, in its own thread
        for call in group:
            call.error = error
