"""How close a stored signal comes to the teacher's whole distribution, a few windows at a time, in float64."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.types import LOG_ZERO, SparseSignal, TeacherSignal

# The student whose gradients are compared: one that has the teacher's order right and is too unsure of it.
STUDENT_TAU = 2.0


def dense(signal: SparseSignal | TeacherSignal, vocab_size: int, tail: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    """The probabilities [T, V] that a signal of T tokens stands for, and where it says nothing of its own.

    tail: the mass that is missing lies evenly on the tokens that were not kept; the signal says no more of them.
    """
    if isinstance(signal, TeacherSignal):
        p = softmax(np.asarray(signal.log_probs, np.float64).reshape(-1, vocab_size))
        return p, np.zeros(p.shape, bool)
    ids = np.asarray(signal.ids).reshape(-1, np.shape(signal.ids)[-1])
    values = np.asarray(signal.log_probs, np.float64).reshape(ids.shape)
    p, unseen = np.zeros((len(ids), vocab_size)), np.ones((len(ids), vocab_size), bool)
    rows, places = np.nonzero(values > LOG_ZERO / 2)
    np.add.at(p, (rows, ids[rows, places]), np.exp(values[rows, places]))
    unseen[rows, ids[rows, places]] = False
    if tail:
        rest = np.maximum(1 - p.sum(axis=1, keepdims=True), 1e-9) / np.maximum(unseen.sum(axis=1, keepdims=True), 1)
        p = np.where(unseen, rest, p)
    return p, unseen


def gradient(
    p: NDArray[np.float64], unseen: NDArray[np.bool_], q: NDArray[np.float64], tail: bool
) -> NDArray[np.float64]:
    """d KL / d logits [T, V] of a student q; a tail is one outcome, so its mass pulls its tokens in proportion to q."""
    if not tail:
        return q - p
    mass = np.where(unseen, p, 0).sum(axis=1, keepdims=True)
    inside = np.where(unseen, q, 0)
    return q - np.where(unseen, inside * mass / np.maximum(inside.sum(axis=1, keepdims=True), 1e-300), p)


def kl(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """KL(p || q) in nats, the mean over T; inf where q has nothing and p has some."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * (np.log(p) - np.log(q)), 0)
    return float(terms.sum(axis=1).mean())


def cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Of two gradients by all their entries, as one vector each."""
    return float(np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b)))


class Fidelity:
    """Gathers a store's fidelity window by window.

    kl               KL(whole || stored), the tail spread evenly; None where the stored signal rules tokens out
    kl_back          KL(stored || whole), likewise
    gradient_cosine  of d KL / d logits of a student that is the whole distribution at tau = STUDENT_TAU
    """

    def __init__(self, tail: bool):
        self._tail, self._tokens = tail, 0
        self._sums = np.zeros(5)  # kl, kl_back, <a, b>, <a, a>, <b, b>

    def add(self, whole: NDArray[np.floating], signal: SparseSignal | TeacherSignal, part: int = 128) -> None:
        """`whole` holds log-probabilities [T, V] of the T tokens of `signal`, which are looked at `part` at a time."""
        size = whole.shape[-1]
        whole = whole.reshape(-1, size)
        flat: list[Any] = [np.asarray(x).reshape(len(whole), -1) for x in _arrays(signal)]
        for start in range(0, len(whole), part):
            rows = slice(start, start + part)
            few = type(signal)(*(x[rows] for x in flat))
            p = softmax(whole[rows].astype(np.float64))
            q = softmax(whole[rows].astype(np.float64) / STUDENT_TAU)
            stored, unseen = dense(few, size, self._tail)
            a, b = q - p, gradient(stored, unseen, q, self._tail)
            found = [len(p) * kl(p, stored), len(p) * kl(stored, p), np.sum(a * b), np.sum(a * a), np.sum(b * b)]
            self._sums += found
            self._tokens += len(p)

    def result(self) -> dict[str, Any]:
        forward, back, ab, aa, bb = self._sums.tolist()
        number = lambda total: total / self._tokens if np.isfinite(total) else None
        return {
            "tokens": self._tokens,
            "kl": number(forward),
            "kl_back": number(back),
            "gradient_cosine": ab / math.sqrt(aa * bb) if aa > 0 and bb > 0 else None,
        }


def _arrays(signal: SparseSignal | TeacherSignal) -> Iterable[Any]:
    return (signal.log_probs,) if isinstance(signal, TeacherSignal) else (signal.ids, signal.log_probs)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)
