"""What may be stored of a teacher, and which objectives it serves."""

import dataclasses
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distill.config import ConfigError, ObjectiveConfig
from distill.config.exactness import TABLE
from distill.errors import SignalError
from distill.types import LOG_ZERO

# The weight of a draw, where the proposal is not the teacher itself, is kept in this fraction of 1 / draws.
GRAIN = 16
_PARAMETERS = {
    "topk": ("top_k",),
    "topp": ("top_p", "floor", "top_k"),
    "sampled": ("draws", "proposal", "seed"),
    "hidden": ("dtype",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SignalSpec:
    """A kind of signal and its numbers; everything is what the teacher says at tau = 1.

    topk     the `top_k` likeliest tokens, and the mass of all others
    topp     the fewest likeliest tokens that hold `top_p` of the mass, but at least `floor` and at most `top_k`
    sampled  `draws` tokens drawn from q ~ p^proposal, each with its importance p / q (2503.16870); the cross-entropy
             under these weights, and its gradient, are the full ones on average
    hidden   the last hidden states, in `dtype`, and once the head: the whole distribution
    argmax   the likeliest token
    full     every log-probability, in float16: for tests and small vocabularies
    """

    kind: Literal["topk", "topp", "sampled", "hidden", "argmax", "full"] = "topk"
    top_k: int = 128
    top_p: float = 0.9
    floor: int = 1
    draws: int = 50
    proposal: float = 1.0
    seed: int = 0
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"

    def __post_init__(self):
        def expect(name: str, holds: bool, wanted: str) -> None:
            if not holds:
                raise ConfigError(f"{name}: got {getattr(self, name)!r}, wanted {wanted}")

        expect("top_k", 1 <= self.top_k < 2**16, "1 to 65535")
        expect("top_p", 0 < self.top_p <= 1, "a number above 0, at most 1")
        expect("floor", 1 <= self.floor <= self.top_k, f"1 to top_k = {self.top_k}")
        expect("draws", 1 <= self.draws < 4096, "1 to 4095")
        expect("proposal", 0.5 <= self.proposal <= 2, "0.5 to 2 (1 draws from the teacher itself)")

    @classmethod
    def of(cls, objective: ObjectiveConfig, **given: Any) -> "SignalSpec":
        """The signal that an objective's target reads, with what is `given` instead."""
        kind = "hidden" if objective.target == "soft" else objective.target
        read = {"top_k": objective.top_k, "top_p": objective.top_p, "draws": objective.draws}
        wanted = {"kind": kind} | {name: read[name] for name in _PARAMETERS.get(kind, ()) if name in read}
        return cls(**(given if given.get("kind", kind) != kind else wanted | given))

    @property
    def sparse(self) -> bool:
        return self.kind in ("topk", "topp", "sampled", "argmax")

    @property
    def label(self) -> str:
        """Kind and the numbers that it reads: enters a student's identity as config.teacher.stored."""
        return " ".join([self.kind, *(f"{name}={value}" for name, value in self.parameters.items())])

    @property
    def parameters(self) -> dict[str, Any]:
        """Those that this kind reads."""
        return {name: getattr(self, name) for name in _PARAMETERS.get(self.kind, ())}

    def check_serves(self, objective: ObjectiveConfig, where: str) -> None:
        """Raises SignalError, with both sides, unless this signal holds all that the objective's target reads."""
        target, k = objective.target, objective.top_k
        if self.kind in ("hidden", "full"):
            return
        kept = {
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
        if kept:
            return
        wanted = {
            "soft": f"the whole distribution at tau={objective.temperature:g}",
            "topk": f"top_k={k}",
            "topp": f"top_p={objective.top_p:g} of top_k={k}",
            "sampled": f"draws={objective.draws}",
            "argmax": "the likeliest token",
        }[target]
        why = f" ({cell.reason})" if cell.verdict == "refused" else ""
        raise SignalError(
            f"{where}: holds {self.label!r} at tau=1, but objective.target={target!r} reads {wanted}{why}; set "
            "config.objective to what the store holds, or store another signal"
        )

    def select(
        self, ids: NDArray[Any], log_probs: NDArray[Any], objective: ObjectiveConfig | None
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """The part of a sparse signal that an objective's target reads; all of it where they match."""
        target = objective.target if objective else self.kind
        if objective is None or target == "sampled" or self.kind == "argmax":
            return ids, log_probs
        same = target == self.kind and objective.top_k == self.top_k
        if same and (target == "topk" or (objective.top_p == self.top_p and self.floor == 1)):
            return ids, log_probs
        k = 1 if target == "argmax" else min(objective.top_k, ids.shape[-1])
        falling = np.argsort(-log_probs, axis=-1, kind="stable")[..., :k]
        ids, log_probs = (np.take_along_axis(x, falling, axis=-1) for x in (ids, log_probs))
        if target == "argmax":
            return ids, np.zeros_like(log_probs)
        if target == "topp":
            mass = np.exp(log_probs)
            log_probs = np.where(np.cumsum(mass, axis=-1) - mass < objective.top_p, log_probs, np.float32(LOG_ZERO))
        return ids, log_probs
