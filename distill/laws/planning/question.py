"""The question that a plan answers: the student, one constraint, who pays for the teacher. Checked when built."""

import dataclasses

import numpy as np

from distill.laws.planning.scenarios import UNLIMITED, PlanError, Scenario, Teacher


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """One student, one constraint: total `compute` (FLOPs), student `tokens`, or a target `loss` (nats per token).

    N_S is the student's size, or its range (least, most). `teachers` exist already. `students` share the teacher, and
    with `store` its signals. `unique`: distinct tokens of teacher and of student. `served`: tokens that each student
    will generate in its life. Raises PlanError for an impossible or contradictory question.
    """

    scenario: Scenario
    N_S: float | tuple[float, float]
    compute: float | None = None
    tokens: float | None = None
    loss: float | None = None
    teachers: tuple[Teacher, ...] = ()
    students: int = 1
    store: bool = False
    unique: float = UNLIMITED
    served: float = 0.0

    def __post_init__(self) -> None:
        given = {"compute": self.compute, "tokens": self.tokens, "loss": self.loss}
        named = [name for name, value in given.items() if value is not None]
        if len(named) != 1:
            raise PlanError(
                f"constraint: got {' and '.join(named) or 'none'}; wanted exactly one of {', '.join(given)}"
            )
        sizes = self.N_S if isinstance(self.N_S, tuple) else (self.N_S,)
        more = [("unique", self.unique), ("students", self.students), *(("N_S", n) for n in sizes)]
        for name, value in [*given.items(), *more]:
            if value is not None and not (np.isfinite(value) and value > 0):
                raise PlanError(f"{name}={value!r}: wanted a positive number")
        if self.served < 0:
            raise PlanError(f"served={self.served!r}: wanted a number of tokens, zero or more")
        if len(sizes) > 1 and not sizes[0] < sizes[1]:
            raise PlanError(f"N_S={self.N_S}: wanted (least, most) with least < most")
        if self.tokens is not None and self.tokens < 1:
            raise PlanError(f"tokens={self.tokens!r}: wanted at least one token")
        if len(sizes) > 1 and self.tokens is not None:
            raise PlanError(
                "N_S is a range but tokens are fixed: the largest student always wins; give compute or loss"
            )
        if self.teachers and self.scenario.pretraining:
            usable = "best_case or teacher_inference"
            raise PlanError(
                f"scenario={self.scenario.name!r} pays for training, but the given teachers exist; use {usable}"
            )

    @property
    def constraint(self) -> str:
        """Which of the three is given: 'compute', 'tokens' or 'loss'."""
        return next(name for name in ("compute", "tokens", "loss") if getattr(self, name) is not None)

    @property
    def sizes(self) -> tuple[float, float] | None:
        """The range (least, most) to choose N_S from; None where N_S is given."""
        return self.N_S if isinstance(self.N_S, tuple) else None

    @property
    def smallest(self) -> float:
        """The smallest size that the student may have."""
        return float(np.min(self.N_S))
