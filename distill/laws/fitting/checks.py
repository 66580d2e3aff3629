"""Checks of a table of runs for duplicate runs, sizes in the wrong unit (N in millions) and losses in bits.

Raises an error if a fit would be wrong, and adds a note, which the report prints, if the user has to decide.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from distill.laws.forms.law import Law, LawError

DUPLICATES = ("error", "mean", "keep")
LOSS_UNITS = ("nats", "bits", "perplexity")
_HIGHEST_LOSS = 11.0  # nats per token: an untrained model of 60,000 tokens
_HIGHEST_E = 2.4  # nats per token: published laws have 1.5 to 2.2 on text in subwords, less on bytes
# Columns that say how a run ended, and what they call one that did not.
_STATES = ("state", "status", "run.state", "run_status")
_UNFINISHED = ("crashed", "failed", "killed", "running", "preempted", "preempting", "aborted", "canceled", "cancelled")
_HASHED = re.compile(r".*-([0-9a-f]{8})")
_ADVICE = "Convert it ({}), or accept it as it is (--units=asis, units=False in Python)."


class Lines(Protocol):
    """The part of a table that this module reads."""

    @property
    def source(self) -> str: ...
    @property
    def lines(self) -> np.ndarray: ...
    @property
    def columns(self) -> Mapping[str, np.ndarray]: ...


def refuse_duplicates(table: Lines, arrays: Mapping[str, np.ndarray], run: str | None) -> None:
    """Raises LawError for duplicates: rows equal in all that the law reads, or with the same name in column `run`."""
    advice = "keep one of them; if they are runs of their own, such as seeds, use --duplicates=mean or keep"
    pair = _repeated(table.lines, zip(*(array.tolist() for array in arrays.values())))
    if pair:
        names = ", ".join(arrays)
        raise LawError(
            f"{table.source}: rows {pair[0]} and {pair[1]} are the same run twice, equal in {names}; {advice}."
        )
    if run is not None:
        pair = _repeated(table.lines, (name for name in table.columns[run].tolist()))
        if pair:
            raise LawError(
                f"{table.source}: rows {pair[0]} and {pair[1]} are the same run twice, of one name in the column "
                f"{run!r}; {advice}."
            )


def _repeated(lines: np.ndarray, keys: Iterable[object]) -> tuple[int, int] | None:
    """The lines of the first two rows with the same key; empty and nan keys are ignored."""
    seen: dict[object, int] = {}
    for line, key in zip(lines.tolist(), keys):
        if key in seen:
            return seen[key], line
        if key != "" and key == key:
            seen[key] = line
    return None


def groups(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The index of each row's group of equal inputs, numbered by first appearance: [rows]."""
    numbers: dict[tuple, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in zip(*(a.tolist() for a in arrays))], np.int64)


def unfinished_note(table: Lines) -> tuple[str, ...]:
    """A note if a column of states, as trackers export it, calls some rows crashed, failed, killed or running."""
    for name, column in table.columns.items():
        if name.strip().lower() not in _STATES or column.dtype.kind not in "UO":
            continue
        words = np.char.lower(column.astype(str))
        bad = np.isin(words, _UNFINISHED)
        if bad.any():
            first, kept = int(np.flatnonzero(bad)[0]), [str(word) for word in column[~bad].tolist()]
            rule = f"--rows='{name} == {kept[0]}'" if kept else f"--rows='{name} != {column[first]}'"
            return (
                f"{int(bad.sum())} of {len(column)} rows are not finished by their column {name} (row "
                f"{int(table.lines[first])}: {column[first]}), and fitted as they are; {rule} leaves them out",
            )
    return ()


def tokenizers_note(table: Lines) -> tuple[str, ...]:
    """A note if the rows' losses are per token of several tokenizers: such losses do not compare.

    One of ours has a name for people and the start of a hash of what it does ('bpe-512-f9bb7cc9'): the hash decides.
    """
    for name, column in table.columns.items():
        if name.strip().lower() != "tokenizer" or column.dtype.kind not in "UO":
            continue
        words = [word for word in column.astype(str).tolist() if word]
        kinds = {word: _HASHED.sub(r"\1", word) for word in words}
        count = len(set(kinds.values()))
        if count > 1:
            most = max(kinds, key=words.count)
            return (
                f"losses per token of {count} tokenizers by the column {name} ({', '.join(kinds)}) do not compare, and "
                f"are fitted as one; --rows='{name} == \"{most}\"' keeps one of them",
            )
    return ()


def repeats_note(inputs: Sequence[str], arrays: Sequence[np.ndarray], losses: np.ndarray) -> tuple[str, ...]:
    """A note if several runs share all inputs: seeds, or a sweep of which only the best should be fitted."""
    index = groups(arrays)
    counts = np.bincount(index, minlength=1)
    repeated = np.flatnonzero(counts > 1)
    if not len(repeated):
        return ()
    spread = max(float(losses[index == group].max() / losses[index == group].min() - 1) for group in repeated)
    names = ",".join(inputs)
    return (
        f"{len(repeated)} of {len(counts)} ({', '.join(inputs)}) have several runs ({int(counts[repeated].sum())} in "
        f"all, losses up to {spread:.1%} apart), fitted as they are; fit the best of each with --best-of={names}, "
        "their mean with --duplicates=mean",
    )


def refuse_units(table: Lines, words: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> None:
    """Raises LawError for implausible counts of parameters or tokens, and for losses that are not nats per token."""
    model = next((n for n in ("N", "N_S") if n in arrays), None)
    data = next((n for n in ("D", "D_S") if n in arrays), None)
    if model and data:
        ratio = float(np.median(arrays[data] / arrays[model]))
        if not 1e-4 < ratio < 1e6:
            name = model if ratio >= 1 else data
            raise LawError(
                f"{table.source}: the median run has {ratio:.2g} tokens per parameter: is {words[name]} in millions or "
                f"billions? {_ADVICE.format(f'--scale={name}=1e6')}"
            )
    for count, least in ((model, 2000), (data, 100)):  # sizes of 70 to 7000 are in millions
        if count and np.median(arrays[count]) < least:
            low, high = arrays[count].min(), arrays[count].max()
            unit = "1e9" if high <= 2000 else "1e6"
            raise LawError(
                f"{table.source}: column {words[count]!r} runs from {low:g} to {high:g}; wanted a plain count, "
                f"not millions or billions. {_ADVICE.format(f'--scale={count}={unit}')}"
            )
    for name in arrays:
        if name.startswith("L") and not 0.01 < np.median(arrays[name]) < 30:
            raise LawError(
                f"{table.source}: the median of column {words[name]!r} is {np.median(arrays[name]):g}; wanted a "
                f"cross-entropy in nats per token. {_ADVICE.format('--loss-unit=bits or perplexity')}"
            )


def loss_doubts(law: Law, losses: np.ndarray) -> list[str]:
    """Warnings where losses or the fitted E are implausible for nats per token; losses [rows]."""
    doubts = []
    if losses.max() > _HIGHEST_LOSS:
        doubts.append(
            f"the largest loss, {losses.max():.4g}, is that of no trained model in nats per token: diverged, or in "
            "another unit (--loss-unit=bits or perplexity)?"
        )
    E = law.values().get("E")
    if E is not None and E > _HIGHEST_E:
        doubts.append(
            f"E = {E:.4g} is high for nats per token (published laws of text have 1.5 to 2.2): are the losses in bits "
            "(--loss-unit=bits)?"
        )
    return doubts
