"""What imported signals are worth: the mass that they cover, and what the unknown rest may hide."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from distill.teacher.imported.spool import Span
from distill.teacher.signals.fidelity import Coverage
from distill.types import LOG_ZERO


def coverage(spans: Iterable[Span], vocab_size: int) -> Coverage:
    """The covered mass of all tokens with a signal, and the tail's bound, in nats a token; `codec_kl` is 0 here."""
    covered: list[NDArray[np.float64]] = []
    bound = 0.0
    for span in spans:
        given = span.top_ids[:, 0] >= 0
        p = np.where(span.top_ids >= 0, np.exp(span.log_probs.astype(np.float64)), 0)[given]
        covered.append(np.minimum(p.sum(axis=1), 1))
        counts = (p > 0).sum(axis=1)
        least = np.take_along_axis(p, np.maximum(counts - 1, 0)[:, None], axis=1)[:, 0]
        bound += float(tail_bound(1 - covered[-1], least, vocab_size - counts).sum())
    mass = np.concatenate(covered)
    return {
        "tokens": len(mass),
        "covered": float(mass.mean()),
        "covered_p05": float(np.quantile(mass, 0.05)),
        "tail_kl_most": bound / len(mass),
        "codec_kl": 0.0,
    }


def tail_bound(
    rest: NDArray[np.float64], least: NDArray[np.float64], others: NDArray[np.integer]
) -> NDArray[np.float64]:
    """The most that KL(true, spread evenly) can be, in nats, where `rest` lies on `others` tokens of at most `least`.

    The entropy of a tail is least where as few tokens as can be have it: floor(rest / least) of them `least` each, and
    one what is left. That is the farthest from the even spread.
    """
    rest, least = np.maximum(rest, 0), np.maximum(least, 1e-300)
    even = rest / np.maximum(others, 1)
    full = np.floor(np.minimum(rest / least, others))
    left = np.maximum(rest - full * least, 0)
    term = lambda mass: np.where(
        (mass > 1e-12) & (even > 0), mass * (np.log(np.maximum(mass, 1e-300)) - np.log(np.maximum(even, 1e-300))), 0
    )
    return np.maximum(full * term(np.minimum(least, rest)) + term(left), 0)


def codec_kl(given: Span, ids: NDArray[np.integer], log_probs: NDArray[np.floating]) -> float:
    """The sum over tokens of KL(given, stored), in nats, the rest being one outcome of both."""
    total = 0.0
    for top, values, kept, stored in zip(given.top_ids, given.log_probs, ids, log_probs):
        here = {int(i): float(x) for i, x in zip(kept, stored) if x > LOG_ZERO / 2}
        used = top >= 0
        p = np.exp(values[used].astype(np.float64))
        q = np.exp(np.array([here[int(i)] for i in top[used]]))
        rest = np.maximum([1 - p.sum(), 1 - q.sum()], 1e-9)
        total += float((p * np.log(p / q)).sum() + rest[0] * np.log(rest[0] / rest[1]))
    return total
