"""Runs of one shape that take their steps together, under one vmapped step.

Seeds, rates and objectives are numbers of a step, not its shape: runs that differ in them alone can share a program
with one more axis. Each run stays a run of its own, in a thread of its own, with its checkpoints, its log and its end;
only where it would take its next steps it meets the others.
"""

import dataclasses
import functools
import operator
import threading
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from distill.system import preemption
from distill.training import step as steps
from distill.types import Batch


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_together(
    structure: steps.StepShape, states: Sequence[steps.TrainState], teacher: Any, batches: Sequence[Batch], count: Any
) -> list[tuple[steps.TrainState, dict[str, Any]]]:
    """`train_steps` for several runs that share a teacher (or have none), each with its own state and batches."""
    stack = lambda *leaves: jnp.stack(leaves)
    together = jax.vmap(functools.partial(steps.train_steps, structure), in_axes=(0, None, 0, None))
    answers = together(jax.tree.map(stack, *states), teacher, jax.tree.map(stack, *batches), count)
    return [jax.tree.map(operator.itemgetter(i), answers) for i in range(len(states))]


@dataclasses.dataclass
class _Call:
    """A member that waits for its steps."""

    structure: steps.StepShape
    state: steps.TrainState
    teacher: Any
    batches: Batch
    count: int
    mesh: Any
    answer: Any = None
    error: BaseException | None = None

    @property
    def key(self) -> Any:
        """What calls must share to be one program; runs that were interrupted may be at other steps for a while."""
        tree, shapes = jax.tree.structure((self.state, self.batches)), jax.tree.map(jnp.shape, self.batches)
        return self.structure, self.count, id(self.teacher), tree, tuple(jax.tree.leaves(shapes))


class Pack:
    """Where `size` runs meet. Each calls `train_steps` in place of step.train_steps, and at its end `leave`.

    `flag` is the caller's as it was when the members last met, so that all of them stop at the same step.
    """

    def __init__(self, size: int, flag: preemption.PreemptionFlag):
        self._members, self._turn = size, threading.Condition()
        self._calls: list[_Call] = []
        self._caller_flag, self.flag = flag, preemption.PreemptionFlag()

    def train_steps(
        self, structure: steps.StepShape, state: steps.TrainState, teacher: Any, batches: Batch, count: int
    ) -> tuple[steps.TrainState, dict[str, Any]]:
        """The steps of one member, taken when every member has asked for its own. `state` is donated."""
        call = _Call(structure, state, teacher, batches, count, jax.sharding.get_mesh())
        with self._turn:
            self._calls.append(call)
            self._go()
            self._turn.wait_for(lambda: call.answer is not None or call.error is not None)
        if call.error is not None:
            raise call.error
        return call.answer

    def leave(self) -> None:
        """The others go on without this member."""
        with self._turn:
            self._members -= 1
            self._go()

    def _go(self) -> None:
        if len(self._calls) < self._members:
            return
        groups: dict[Any, list[_Call]] = {}
        for call in self._calls:
            groups.setdefault(call.key, []).append(call)
        for group in groups.values():
            _take(group)
        self.flag.signal = self._caller_flag.signal
        self._calls = []
        self._turn.notify_all()


def _take(group: list[_Call]) -> None:
    first = group[0]
    try:
        with jax.set_mesh(first.mesh):  # that of the members: who leaves last has none any more
            if len(group) == 1:
                answers = [steps.train_steps(first.structure, first.state, first.teacher, first.batches, first.count)]
            else:
                states, batches = [call.state for call in group], [call.batches for call in group]
                answers = train_together(first.structure, states, first.teacher, batches, first.count)
        for call, answer in zip(group, answers, strict=True):
            call.answer = answer
    except BaseException as error:  # each member hears of it, in its own thread
        for call in group:
            call.error = error
