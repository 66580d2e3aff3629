"""Losses of a plan where text repeats: D tokens of which only U are distinct.

A law that reads U (or U_S) says itself what repetition does. For the others repeated tokens are worth their effective
tokens (scenarios.effective_tokens). A law with U may rise with more epochs: nobody has to read on, so the loss of D
tokens is the lowest of reading some of them, and does not rise. Searches may then go on as if more text never hurt.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Protocol, cast

import jax
import numpy as np

from distill.laws.forms.arrays import Floats, Values
from distill.laws.planning.scenarios import UNLIMITED, effective_tokens
from distill.laws.planning.signatures import StudentLaw, SupervisedLaw
from distill.system.numbers import si

_REPEATS = np.concatenate([[0.0], np.geomspace(0.05, 2048.0, 31)])  # at which reading may stop, factors of 1.43


class _Repeated(Protocol):
    """L(N, D, U), or L_S(N_S, D_S, L_T, U_S)."""

    def __call__(self, *inputs: Values) -> Values: ...


def reads_unique(law: SupervisedLaw | StudentLaw) -> bool:
    """Whether a law has the unique tokens among its inputs."""
    return bool({"U", "U_S"} & set(getattr(law, "inputs", ())))


def alone(law: SupervisedLaw, N: Values, D: Values, unique: Values, xp: ModuleType = np) -> Values:
    """Supervised loss of N parameters on D tokens, `unique` of them distinct; `xp` is numpy or jax.numpy."""
    if not reads_unique(law):
        return law(N, effective_tokens(D, unique, xp))
    of = cast(_Repeated, law)
    return _stopped(lambda d: of(N, d, xp.minimum(d, unique)), D, unique, xp)


def taught(law: StudentLaw, N_S: Values, D_S: Values, L_T: Values, unique: Values, xp: ModuleType = np) -> Values:
    """Loss of a student of N_S parameters on D_S tokens, `unique` of them distinct, from a teacher of loss L_T."""
    if not reads_unique(law):
        return law(N_S, effective_tokens(D_S, unique, xp), L_T)
    of = cast(_Repeated, law)
    return _stopped(lambda d: of(N_S, d, L_T, xp.minimum(d, unique)), D_S, unique, xp)


def _stopped(loss: Callable[[Values], Values], D: Values, unique: Values, xp: ModuleType) -> Values:
    """The lowest loss of reading D tokens, or of stopping before at some number of repetitions."""

    def stopping(repeats: Values) -> Values:
        stop = unique * (1.0 + repeats)
        return xp.where(stop < D, loss(xp.minimum(stop, D)), xp.inf)

    # One trace for all stops: the searches of a plan are compiled, and a loop here would be unrolled in each of them.
    stops = np.stack([stopping(r) for r in _REPEATS]) if xp is np else jax.vmap(stopping)(xp.asarray(_REPEATS))
    return xp.minimum(loss(D), xp.min(stops, axis=0))


def enough(law: SupervisedLaw | StudentLaw, N: float, unique: float, *L_T: float) -> float:
    """The tokens of the lowest loss for N parameters when `unique` repeat; inf where more repetitions always help.

    Only a law that reads its unique tokens can say that too many hurt. `L_T` is the teacher's loss of a student.
    """
    if not reads_unique(law) or unique >= UNLIMITED:
        return float("inf")
    D: Floats = unique * (1.0 + np.concatenate([[0.0], np.geomspace(1e-2, 1e4, 600)]))
    at = int(np.argmin(np.asarray(cast(_Repeated, law)(N, D, *L_T, np.minimum(D, unique)))))
    return float(D[at]) if at < len(D) - 1 else float("inf")


def useless(D: float, most: float, unique: float) -> list[str]:
    """A warning where D tokens are far more than `most`, the useful ones."""
    if 1.5 * most > D:
        return []
    return [
        f"{D / unique:.3g} epochs of {si(unique)} distinct tokens are more than this law finds useful: stop at about "
        f"{si(most)} (the loss is that); the rest of the compute buys nothing"
    ]
