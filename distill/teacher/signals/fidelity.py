"""How closely a stored signal approximates the teacher's whole distribution, measured on a few windows in float64."""

import math
from typing import TypedDict

import jax
import numpy as np
from numpy.typing import NDArray

from distill.types import LOG_ZERO, SparseSignal, TeacherSignal

# Gradients are compared for a student that is the teacher at this temperature: same ranking, less confidence.
STUDENT_TAU = 2.0


class FidelityResult(TypedDict):
    """The measures of `Fidelity` in a store's manifest; None where a measure is infinite or undefined."""

    tokens: int
    kl: float | None
    kl_back: float | None
    gradient_cosine: float | None


class Coverage(TypedDict):
    """What is known of signals that others wrote: the whole distribution is not."""

    tokens: int  # with a signal
    covered: float  # mean of the mass of the stored tokens
    covered_p05: float  # 5 % of the tokens have less
    tail_kl_most: float  # at most so far may the truth be from the tail spread evenly, KL in nats a token
    codec_kl: float  # KL(given, stored), in nats a token


def dense(
    signal: SparseSignal | TeacherSignal, vocab_size: int, tail: bool
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The probabilities [T, V] that a signal of T tokens represents, and a mask of the tokens it does not store.

    tail: the missing mass is spread evenly over the tokens that are not stored.
    """
    if isinstance(signal, TeacherSignal):
        p = softmax(np.asarray(signal.log_probs, np.float64).reshape(-1, vocab_size))
        return p, np.zeros(p.shape, bool)
    ids = np.asarray(signal.ids).reshape(-1, np.shape(signal.ids)[-1])
    values = np.asarray(signal.log_probs, np.float64).reshape(ids.shape)
    p, unseen = np.zeros((len(ids), vocab_size)), np.ones((len(ids), vocab_size), bool)
    rows, columns = np.nonzero(values > LOG_ZERO / 2)
    np.add.at(p, (rows, ids[rows, columns]), np.exp(values[rows, columns]))
    unseen[rows, ids[rows, columns]] = False
    if tail:
        rest = np.maximum(1 - p.sum(axis=1, keepdims=True), 1e-9) / np.maximum(unseen.sum(axis=1, keepdims=True), 1)
        p = np.where(unseen, rest, p)
    return p, unseen


def gradient(
    p: NDArray[np.float64], unseen: NDArray[np.bool_], q: NDArray[np.float64], tail: bool
) -> NDArray[np.float64]:
    """d KL / d logits [T, V] of a student q.

    A tail is a single outcome, so its mass is shared among its tokens in proportion to q.
    """
    if not tail:
        return q - p
    mass = np.where(unseen, p, 0).sum(axis=1, keepdims=True)
    inside = np.where(unseen, q, 0)
    return q - np.where(unseen, inside * mass / np.maximum(inside.sum(axis=1, keepdims=True), 1e-300), p)


def kl(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """KL(p || q) in nats, the mean over T; inf where q is 0 and p is not."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * (np.log(p) - np.log(q)), 0)
    return float(terms.sum(axis=1).mean())


def cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Cosine similarity of two gradients, each flattened to one vector."""
    return float(np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b)))


class Fidelity:
    """Accumulates a store's fidelity window by window.

    kl               KL(whole || stored), the tail spread evenly; None where the stored signal gives a token no mass
    kl_back          KL(stored || whole), likewise
    gradient_cosine  of d KL / d logits, for a student that is the whole distribution at tau = STUDENT_TAU
    """

    def __init__(self, tail: bool):
        self._tail, self._tokens = tail, 0
        self._sums = np.zeros(5)  # kl, kl_back, <a, b>, <a, a>, <b, b>

    def add(self, whole: NDArray[np.floating], signal: SparseSignal | TeacherSignal, part: int = 128) -> None:
        """Adds T tokens: `whole` holds their log-probabilities [T, V]. `part` tokens at a time bound the memory."""
        size = whole.shape[-1]
        whole = whole.reshape(-1, size)
        arrays = [np.asarray(x).reshape(len(whole), -1) for x in jax.tree.leaves(signal)]
        structure = jax.tree.structure(signal)
        for start in range(0, len(whole), part):
            rows = slice(start, start + part)
            p = softmax(whole[rows].astype(np.float64))
            q = softmax(whole[rows].astype(np.float64) / STUDENT_TAU)
            stored, unseen = dense(jax.tree.unflatten(structure, [x[rows] for x in arrays]), size, self._tail)
            a, b = q - p, gradient(stored, unseen, q, self._tail)
            self._sums += [len(p) * kl(p, stored), len(p) * kl(stored, p), np.sum(a * b), np.sum(a * a), np.sum(b * b)]
            self._tokens += len(p)

    def result(self) -> FidelityResult:
        """The measures over all tokens that were added."""
        forward, back, ab, aa, bb = self._sums.tolist()
        mean = lambda total: total / self._tokens if np.isfinite(total) else None
        return {
            "tokens": self._tokens,
            "kl": mean(forward),
            "kl_back": mean(back),
            "gradient_cosine": ab / math.sqrt(aa * bb) if aa > 0 and bb > 0 else None,
        }


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)
