"""The kinds of teacher signal that can be stored, and which objectives each one is sufficient for."""

import dataclasses
from typing import Literal, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from distill.config import ConfigError, ObjectiveConfig
from distill.config.exactness import TABLE
from distill.errors import SignalError
from distill.types import LOG_ZERO

# Where the proposal is not the teacher itself, a draw's weight is stored in units of 1 / (GRAIN * draws).
GRAIN = 16
_PARAMETERS = {
    "topk": ("top_k",),
    "topp": ("top_p", "floor", "top_k"),
    "sampled": ("draws", "proposal", "seed"),
    "hidden": ("dtype",),
}
CROSSING = {"likelihood": "chunks", "projection": "cells"}  # by objective.cross_tokenizer
Kind = Literal["topk", "topp", "sampled", "hidden", "argmax", "full", "chunks", "cells"]
Dtype = Literal["float16", "bfloat16", "float32"]


class SpecFields(TypedDict, total=False):
    """Any subset of the fields of `SignalSpec`."""

    kind: Kind
    top_k: int
    top_p: float
    floor: int
    draws: int
    proposal: float
    seed: int
    dtype: Dtype


@dataclasses.dataclass(frozen=True, kw_only=True)
class SignalSpec:
    """A kind of signal and its parameters. All kinds store the teacher's distribution at tau = 1.

    topk     the `top_k` most likely tokens, and the total mass of the others
    topp     the smallest set of most likely tokens with mass `top_p`, at least `floor` and at most `top_k` of them
    sampled  `draws` tokens drawn from q ~ p^proposal, each with its importance p / q (arXiv 2503.16870); the
             cross-entropy under these weights and its gradient are unbiased estimates of the full ones
    hidden   the last hidden states in `dtype`, and the head once per store: the whole distribution
    argmax   the most likely token
    full     every log-probability, in float16: for tests and small vocabularies
    chunks   of a teacher with another tokenizer: the log-probability of every chunk of equal bytes, in float32
    cells    of such a teacher: those of all common cells at every chunk, in float16: for small vocabularies

    Raises ConfigError for a parameter outside its range.
    """

    kind: Kind = "topk"
    top_k: int = 128
    top_p: float = 0.9
    floor: int = 1
    draws: int = 50
    proposal: float = 1.0
    seed: int = 0
    dtype: Dtype = "float16"

    def __post_init__(self) -> None:
        def expect(name: str, holds: bool, wanted: str) -> None:
            if not holds:
                raise ConfigError(f"{name}: got {getattr(self, name)!r}, wanted {wanted}")

        expect("top_k", 1 <= self.top_k < 2**16, "1 to 65535")
        expect("top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        expect("floor", 1 <= self.floor <= self.top_k, f"1 to top_k = {self.top_k}")
        expect("draws", 1 <= self.draws < 4096, "1 to 4095")
        expect("proposal", 0.5 <= self.proposal <= 2, "0.5 to 2 (1 draws from the teacher itself)")

    @classmethod
    def of(cls, objective: ObjectiveConfig, **overrides: Unpack[SpecFields]) -> "SignalSpec":
        """The signal that an objective's target reads, with these fields overridden.

        A kind other than the target's takes no parameters from the objective.
        """
        kind: Kind = "hidden" if objective.target == "soft" else objective.target
        if objective.cross_tokenizer != "none":
            kind = "chunks" if objective.cross_tokenizer == "likelihood" else "cells"
        if overrides.get("kind", kind) != kind:
            return cls(**overrides)
        fields: SpecFields = {"kind": kind}
        if kind in ("topk", "topp"):
            fields["top_k"] = objective.top_k
        if kind == "topp":
            fields["top_p"] = objective.top_p
        if kind == "sampled":
            fields["draws"] = objective.draws
        return cls(**(fields | overrides))

    @property
    def sparse(self) -> bool:
        return self.kind in ("topk", "topp", "sampled", "argmax")

    @property
    def crossing(self) -> bool:
        """Whether it is of a teacher with another tokenizer than the text's."""
        return self.kind in CROSSING.values()

    @property
    def label(self) -> str:
        """Kind and parameters as text: part of a student's identity, as config.teacher.stored."""
        return " ".join([self.kind, *(f"{name}={value}" for name, value in self.parameters.items())])

    @property
    def parameters(self) -> dict[str, int | float | str]:
        """The parameters that this kind reads."""
        return {name: getattr(self, name) for name in _PARAMETERS.get(self.kind, ())}

    def check_serves(self, objective: ObjectiveConfig, where: str) -> None:
        """Raises SignalError, naming what is stored and what is needed, unless this signal suffices for the target."""
        target, k = objective.target, objective.top_k
        if self.crossing and self.kind != CROSSING.get(objective.cross_tokenizer):
            raise SignalError(
                f"{where}: holds {self.label!r} of a teacher with another tokenizer; set objective.cross_tokenizer="
                f"{next(name for name, kind in CROSSING.items() if kind == self.kind)}"
            )
        if self.crossing:
            return
        if self.kind in ("hidden", "full"):
            return
        sufficient = {
            "topk": (target == "topk" and k <= self.top_k)
            or (target == "topp" and k <= self.top_k)
            or target == "argmax",
            "topp": (target == "topp" and objective.top_p <= self.top_p and k <= self.top_k)
            or (target == "topk" and k <= self.floor)
            or target == "argmax",
            "sampled": target == "sampled" and objective.draws == self.draws,
            "argmax": target == "argmax",
        }[self.kind]
        row = {"sampled": "sampled", "argmax": "argmax"}.get(self.kind, "truncated")
        cell = TABLE[objective.divergence, row, not objective.tempered]
        if sufficient:
            return
        needed = {
            "soft": f"the whole distribution at tau={objective.temperature:g}",
            "topk": f"top_k={k}",
            "topp": f"top_p={objective.top_p:g} of top_k={k}",
            "sampled": f"draws={objective.draws}",
            "argmax": "the most likely token",
        }[target]
        why = f" ({cell.reason})" if cell.verdict == "refused" else ""
        raise SignalError(
            f"{where}: holds {self.label!r} at tau=1, but objective.target={target!r} reads {needed}{why}; set "
            "config.objective to what the store holds, or store another signal"
        )

    def select(
        self, ids: NDArray[np.integer], log_probs: NDArray[np.floating], objective: ObjectiveConfig | None
    ) -> tuple[NDArray[np.integer], NDArray[np.floating]]:
        """The part of a sparse signal [..., K] that an objective's target reads; the whole signal where they match."""
        target = objective.target if objective else self.kind
        if objective is None or target == "sampled" or self.kind == "argmax":
            return ids, log_probs
        same = target == self.kind and objective.top_k == self.top_k
        if same and (target == "topk" or (objective.top_p == self.top_p and self.floor == 1)):
            return ids, log_probs
        k = 1 if target == "argmax" else min(objective.top_k, ids.shape[-1])
        falling = np.argsort(-log_probs, axis=-1, kind="stable")[..., :k]
        ids, log_probs = np.take_along_axis(ids, falling, axis=-1), np.take_along_axis(log_probs, falling, axis=-1)
        if target == "argmax":
            return ids, np.zeros_like(log_probs)
        if target == "topp":
            mass = np.exp(log_probs)
            log_probs = np.where(np.cumsum(mass, axis=-1) - mass < objective.top_p, log_probs, np.float32(LOG_ZERO))
        return ids, log_probs
