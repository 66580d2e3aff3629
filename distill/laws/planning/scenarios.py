"""Who pays for the teacher: the paper's four scenarios, F(N), Eq. 9, prices and stored signals.

Units: compute in FLOPs, data in tokens, sizes in non-embedding parameters. Everything here is closed-form;
`distill.laws.planning.allocation` searches for the best split.
"""

import dataclasses
from collections.abc import Iterable
from types import ModuleType
from typing import cast

import jax
import numpy as np

from distill.config import DistillError, counts, nearest
from distill.config.chips import CHIPS
from distill.laws.forms.arrays import Values
from distill.laws.planning.signatures import ForwardFlops

PETAFLOPS_DAY = 1e15 * 86_400
REPEAT_DECAY = 15.387756  # R*_D of Muennighoff et al. 2023 (2305.16264): the half-life of repeated tokens
UNLIMITED = 1e30  # tokens; a finite "no limit" keeps gradients finite


class PlanError(DistillError):
    """A plan that is impossible: what was asked, why it is impossible, what to change."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenario:
    """Weights of the teacher's two costs in Eq. 9: FLOPs = 3 F_S D_S + F_T (logits D_S + 3 pretraining D_T)."""

    name: str
    logits: float
    pretraining: float

    def shared(self, students: int, stored: bool = False) -> "Scenario":
        """The scenario of one of `students` students that share a teacher; stored signals are computed once for all."""
        if students < 1:
            raise PlanError(f"students={students}: wanted at least 1")
        if students == 1:
            return self
        return Scenario(
            name=self.name,
            logits=self.logits / students if stored else self.logits,
            pretraining=self.pretraining / students,
        )


SCENARIOS = {
    s.name: s
    for s in (
        Scenario(name="best_case", logits=0.0, pretraining=0.0),
        Scenario(name="teacher_inference", logits=1.0, pretraining=0.0),
        Scenario(name="teacher_pretraining", logits=0.0, pretraining=1.0),
        Scenario(name="pretraining_and_inference", logits=1.0, pretraining=1.0),
    )
}


def find(name: str | Scenario) -> Scenario:
    """One of the paper's four scenarios by name. Raises PlanError that names the nearest valid one."""
    if isinstance(name, Scenario):
        return name
    if name not in SCENARIOS:
        raise PlanError(f"scenario={name!r}: wanted one of {', '.join(SCENARIOS)}.{nearest(name, SCENARIOS)}")
    return SCENARIOS[name]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Flops:
    """F(N) = 2N (1 + context N^(-1/3) + vocabulary N^(-2/3)), forward FLOPs per token (Appendix H).

    `Flops.closed()` is the paper's ladder at a context of 4096; `Flops.through` fits the two numbers to a study's own
    models, whose attention and logits take another share.
    """

    context: float
    vocabulary: float

    def __call__(self, N: Values) -> Values:
        return 2 * N * (1 + self.context * N ** (-1 / 3) + self.vocabulary * N ** (-2 / 3))

    @classmethod
    def closed(cls, n_ctx: int = 4096, n_vocab: int = 32768, rho: float = 128.0, omega: float = 12.0) -> "Flops":
        """The two numbers of `counts.forward_flops_closed`, from its value at N = 1 (each term is linear)."""
        context = counts.forward_flops_closed(1.0, n_ctx, 0, rho, omega) / 2 - 1
        vocabulary = counts.forward_flops_closed(1.0, 0, n_vocab, rho, omega) / 2 - 1
        return cls(context, vocabulary)

    @classmethod
    def through(cls, N: Iterable[float], F: Iterable[float]) -> "Flops":
        """Least relative squares through models of known N and F; non-negative, so that F stays increasing in N."""
        from scipy.optimize import nnls  # takes 0.1 s to import, and only a study's own models need it

        n, f = np.asarray(list(N), float), np.asarray(list(F), float)
        scale = 2 * n / f
        design = np.stack([n ** (-1 / 3), n ** (-2 / 3)], axis=1) * scale[:, None]
        (context, vocabulary), _ = nnls(design, 1 - scale)
        return cls(float(context), float(vocabulary))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bill:
    """FLOPs of one student by purpose (the terms of Eq. 9 under a scenario), plus those of serving it.

    Each term is a number, or an array where `bill` got arrays.
    """

    student: float
    logits: float
    teacher: float
    serving: float = 0.0

    @property
    def total(self) -> float:
        return self.student + self.logits + self.teacher + self.serving


def bill(
    scenario: Scenario, flops: ForwardFlops, N_S: Values, D_S: Values, N_T: Values, D_T: Values, served: float = 0.0
) -> Bill:
    """The terms of Eq. 9; arrays broadcast. A weight of zero makes its term zero for any teacher."""
    F_S, F_T = flops(N_S), flops(N_T)
    terms: dict[str, Values] = {
        "student": 3 * F_S * D_S,
        "logits": scenario.logits * F_T * D_S if scenario.logits else 0.0,
        "teacher": scenario.pretraining * 3 * F_T * D_T if scenario.pretraining else 0.0,
        "serving": F_S * served,
    }
    return Bill(**cast(dict[str, float], terms))


def effective_tokens(D: Values, unique: Values, xp: ModuleType = np) -> Values:
    """The effective tokens of D tokens with only `unique` distinct: U (1 + R (1 - exp(-(D/U - 1)/R))) beyond one epoch.

    Muennighoff et al. 2023, Eq. 5, R = 15.39: four epochs are nearly as good as fresh text, forty are not.
    `xp` is numpy or jax.numpy.
    """
    repeated = unique * (1 + REPEAT_DECAY * (1 - xp.exp(-(D / unique - 1) / REPEAT_DECAY)))
    return xp.where(unique < D, repeated, D)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """An existing teacher, whose training is already paid: its size and its cross-entropy on the data."""

    name: str
    N: float
    L: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prices:
    """Converts FLOPs to GPU-hours, days and money.

    peak_flops: of one accelerator in the training precision; mfu: the share of it that training reaches;
    hourly: money per accelerator-hour in `currency` (nan: unknown); accelerators: how many run at once; chip: its
    name, if one was chosen; source: where the price is from.
    """

    peak_flops: float = CHIPS["h100"].flops
    mfu: float = 0.4
    hourly: float = 2.0
    accelerators: int = 64
    currency: str = "USD"
    chip: str = "h100"
    source: str = "an assumption"

    def __post_init__(self) -> None:
        if not 0 < self.mfu <= 1:
            raise PlanError(f"mfu={self.mfu}: wanted a share of the peak, above 0 and at most 1")
        if self.peak_flops <= 0 or self.hourly < 0 or self.accelerators < 1:
            raise PlanError(
                f"prices: got peak_flops={self.peak_flops:g}, hourly={self.hourly:g}, "
                f"accelerators={self.accelerators}; wanted a positive peak, no negative price, at least one accelerator"
            )

    def flops(self, hours: float) -> float:
        """The training FLOPs of this many accelerator-hours."""
        return hours * 3600 * self.peak_flops * self.mfu

    def hours(self, flops: float) -> float:
        """Accelerator-hours."""
        return flops / (self.peak_flops * self.mfu * 3600)

    def days(self, flops: float) -> float:
        """Wall-clock days on all the accelerators."""
        return self.hours(flops) / (24 * self.accelerators)

    def money(self, flops: float) -> float:
        return self.hours(flops) * self.hourly


def petaflops_days(flops: float) -> float:
    """Compute in petaFLOP/s-days."""
    return flops / PETAFLOPS_DAY


def signal_bytes(D_S: float, entries: int = 12, bytes_per_entry: int = 4) -> float:
    """Bytes of stored teacher signals: `entries` sampled tokens a position, each an id and a weight of 2 bytes.

    About 12 importance samples a position leave the student unharmed (sparse logit sampling, 2503.16870).
    """
    return D_S * entries * bytes_per_entry
