"""One sequence of somebody else's signals: its tokens, and what a teacher said about each of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distill.types import LOG_ZERO

ABSENT = -500.0  # tools mark an unused slot by a log-probability far below any that a float32 softmax gives
_SLOTS = 1 << 27  # entries of a row with its padding
_MOST = (1 << 16) - 1  # entries of a position: the spool counts them in two bytes
_ABOVE_ZERO = 1e-2  # by how much a sum of probabilities in float16 may exceed 1


class BadRow(ValueError):
    """What is wrong with a row, in words; the reader adds the file and the row's number."""


class Entry(NamedTuple):
    """One token that a teacher named at a position; `text` is what it decoded it to, '' where it is not told."""

    id: int
    log_prob: float
    rank: int = 0  # from 1; 0: not told
    text: str = ""


class Row(NamedTuple):
    """T tokens, and for each of them the likeliest tokens in its place, given those before it.

    A position without a signal has no entries: id -1, log-probability LOG_ZERO. Entries fall in probability.
    """

    ids: NDArray[np.int64]  # [T]
    top_ids: NDArray[np.int64]  # [T, K]
    log_probs: NDArray[np.float32]  # [T, K]
    own: NDArray[np.float32]  # [T]: log-probability of the token itself; NaN where it is not told
    trained: NDArray[np.bool_]  # [T]: whether a loss counts the token
    texts: dict[int, str]  # what the teacher's tokenizer decodes some ids to
    always_own: bool = False  # the tool adds the token itself to the K likeliest, so some positions have one more


def of_entries(ids: Sequence[int], positions: Sequence[Sequence[Entry]], always_own: bool = False) -> Row:
    """The row of tokens and of the entries at each of their positions."""
    if len(positions) != len(ids):
        raise BadRow(f"signals of {len(positions)} positions for {len(ids)} tokens, wanted one for each token")
    top_ids, log_probs = padded(
        [[entry.id for entry in entries] for entries in positions],
        [[entry.log_prob for entry in entries] for entries in positions],
    )
    texts = {entry.id: entry.text for entries in positions[:64] for entry in entries if entry.text}
    return of_arrays(np.asarray(ids, np.int64), top_ids, log_probs)._replace(texts=texts, always_own=always_own)


def padded(
    ids: Sequence[Sequence[int]], values: Sequence[Sequence[float]]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows of unequal lengths as arrays [T, K], the missing entries with id -1 and LOG_ZERO."""
    counts = np.array([len(row) for row in ids], np.int64)
    others = np.array([len(row) for row in values], np.int64)
    if not np.array_equal(counts, others):
        at = int(np.argmax(counts != others)) if len(counts) == len(others) else min(len(counts), len(others))
        got = f"{len(ids)} and {len(values)} positions" if len(counts) != len(others) else (
            f"{counts[at]} ids and {others[at]} log-probabilities at position {at}"
        )  # fmt: skip
        raise BadRow(f"{got}, wanted as many ids as log-probabilities")
    if len(counts) * int(counts.max(initial=0)) > _SLOTS:
        raise BadRow(
            f"{len(counts):,} positions of up to {counts.max():,} entries, wanted at most {_SLOTS:,} in a row: cut it"
        )
    inside = np.arange(counts.max(initial=0)) < counts[:, None]
    top_ids, log_probs = np.full(inside.shape, -1, np.int64), np.full(inside.shape, LOG_ZERO, np.float32)
    try:
        top_ids[inside] = whole(np.fromiter((i for row in ids for i in row), np.float64, int(counts.sum())), 1)
        log_probs[inside] = np.fromiter((x for row in values for x in row), np.float64, int(counts.sum()))
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRow(f"ids or log-probabilities that are no numbers ({error!s:.80})") from None
    return top_ids, log_probs


def whole(values: NDArray, dimensions: int) -> NDArray[np.int64]:
    """The numbers as int64. Raises ValueError where there are others than whole ones, or more or fewer dimensions."""
    if values.ndim != dimensions or values.dtype.kind not in "iufb":
        raise ValueError(f"got {values.dtype} of shape {values.shape}, wanted {dimensions} dimensions of whole numbers")
    if values.dtype.kind == "f" and not (np.isfinite(values) & (np.floor(values) == values)).all():
        raise ValueError("got fractions")
    if values.size and not -(2**53) <= float(values.min()) <= float(values.max()) <= 2**53:
        raise ValueError(f"got {values.max()}")
    return values.astype(np.int64)


def of_arrays(
    ids: NDArray[np.integer], top_ids: NDArray[np.integer], log_probs: NDArray[np.floating], logits: bool = False
) -> Row:
    """The row of arrays [T], [T, K], [T, K], sorted; entries without probability leave.

    logits: values that are no log-probabilities yet: they are normalised over the K that there are, whatever mass the
    others had.
    """
    values = np.asarray(log_probs, np.float64)
    absent = (np.asarray(top_ids) < 0) | ~(values > (LOG_ZERO / 2 if logits else ABSENT)) & ~np.isnan(values)
    values = np.where(absent, LOG_ZERO, values)
    if logits and values.size:
        peak = values.max(axis=1, keepdims=True)
        values = np.where(absent, LOG_ZERO, values - peak - np.log(np.exp(values - peak).sum(axis=1, keepdims=True)))
    order = np.argsort(-values, axis=1, kind="stable")
    kept = np.take_along_axis(np.where(absent, -1, top_ids).astype(np.int64), order, axis=1)
    sorted_values: NDArray[np.float32] = np.take_along_axis(values, order, axis=1).astype(np.float32)
    tokens: NDArray[np.int64] = np.asarray(ids, np.int64)
    own = np.full(len(tokens), np.nan, np.float32)
    rows, columns = np.nonzero(kept == tokens[:, None])
    own[rows] = sorted_values[rows, columns]
    return Row(tokens, kept, sorted_values, own, np.ones(len(tokens), bool), {})


def shifted(row: Row, by: int) -> Row:
    """The row with every signal moved `by` positions to the right (left if negative); those that leave are lost."""
    size = len(row.ids)
    source = np.arange(size) - by
    inside = (source >= 0) & (source < size)
    source = np.clip(source, 0, max(size - 1, 0))
    top_ids = np.where(inside[:, None], row.top_ids[source], -1)
    log_probs = np.where(inside[:, None], row.log_probs[source], np.float32(LOG_ZERO))
    return of_arrays(row.ids, top_ids, log_probs)._replace(trained=row.trained, texts=row.texts)


def check(row: Row, vocab_size: int) -> None:
    """Raises BadRow for the first thing in a row that no distribution over `vocab_size` tokens can have."""
    if len(row.ids) < 2:
        raise BadRow(f"{len(row.ids)} tokens, wanted at least 2: the first one is never predicted")
    _inside("token", row.ids[:, None], np.ones((len(row.ids), 1), bool), vocab_size)
    if row.top_ids.shape[1] > _MOST:
        raise BadRow(f"{row.top_ids.shape[1]:,} entries of a token, wanted at most {_MOST:,}")
    used = row.top_ids >= 0
    _inside("an entry's token", row.top_ids, used, vocab_size)
    wrong = used & ~(row.log_probs <= _ABOVE_ZERO)
    if wrong.any():
        at, i = (int(x[0]) for x in np.nonzero(wrong))
        raise BadRow(
            f"position {at} gives token {row.top_ids[at, i]} the log-probability {row.log_probs[at, i]:g}, wanted a "
            "number of at most 0; if these are logits, add --values=logits"
        )
    mass = np.where(used, np.exp(np.minimum(row.log_probs, 0).astype(np.float64)), 0).sum(axis=1)
    if (mass > 1 + _ABOVE_ZERO).any():
        at = int(np.argmax(mass > 1 + _ABOVE_ZERO))
        raise BadRow(
            f"the probabilities at position {at} sum to {mass[at]:.4g}, wanted at most 1; if these are logits, add "
            "--values=logits"
        )
    ids = np.sort(np.where(used, row.top_ids, -1 - np.arange(used.shape[1])), axis=1)
    twice = (np.diff(ids, axis=1) == 0).any(axis=1)
    if twice.any():
        raise BadRow(f"position {int(np.argmax(twice))} names a token twice, wanted distinct tokens")


def _inside(what: str, ids: NDArray[np.int64], used: NDArray[np.bool_], vocab_size: int) -> None:
    wrong = used & ((ids < 0) | (ids >= vocab_size))
    if wrong.any():
        at, i = (int(x[0]) for x in np.nonzero(wrong))
        raise BadRow(
            f"{what} at position {at} is {ids[at, i]}, wanted 0 to {vocab_size - 1}: there are "
            f"{vocab_size} tokens; give the tokenizer (and, where its head has more rows, the folder) of the teacher"
        )
