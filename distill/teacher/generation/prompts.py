"""Prompts from a token store: their positions, and batches of prompts of one width."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from distill.config.generation import GenerationConfig
from distill.data.store.encode import closing
from distill.data.store.split import Split
from distill.data.store.store import TokenStore
from distill.errors import DataError

_NARROWEST = 16


@dataclasses.dataclass(frozen=True)
class PromptPosition:
    """Positions of the prompts of one split, each [n]: document, first token in the split, length in tokens."""

    split: str
    document: NDArray[np.int64]
    start: NDArray[np.int64]
    length: NDArray[np.int64]


class Prompts:
    """All prompts of a generation, numbered from 0; `left_out` counts those that were too long or empty.

    Raises DataError where the store yields no prompt.
    """

    def __init__(self, store: TokenStore, config: GenerationConfig):
        names = [config.data.split] + ["validation"] * (config.held_out == "completions")
        self._store, self._width = store, config.prompt_tokens
        self.left_out = 0
        self._positions = [self._find(store.split(name), config) for name in names]
        self._first = np.cumsum([0] + [len(position.start) for position in self._positions])
        if not len(self):
            raise DataError(
                f"{store.path}: split {config.data.split!r} gave no prompt ({self.left_out} left out); wanted documents"
                f" with prompts of 1 to prompt_tokens={config.prompt_tokens} tokens"
            )

    def __len__(self) -> int:
        return int(self._first[-1])

    def where(self, prompt: int) -> tuple[str, int, int, int]:
        """(split, document, first token, length) of a prompt."""
        part = int(np.searchsorted(self._first, prompt, "right")) - 1
        position, i = self._positions[part], prompt - self._first[part]
        return position.split, int(position.document[i]), int(position.start[i]), int(position.length[i])

    def read(self, prompt: int) -> NDArray[np.int32]:
        """The tokens of a prompt [length]."""
        split, _, start, length = self.where(prompt)
        return self._store.split(split).read_span(start, start + length).astype(np.int32)

    def batches(self, size: int, per_prompt: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """(width, [(prompt, sample), ...]) of every batch, in a fixed order; at most `size` items each.

        Prompts of similar length share a batch, padded to a power of two, so that few shapes are compiled.
        """
        lengths = np.concatenate([position.length for position in self._positions])
        widths = np.minimum(np.maximum(2 ** np.ceil(np.log2(lengths)).astype(int), _NARROWEST), self._width)
        for width in np.unique(widths).tolist():
            items = [(prompt, i) for prompt in np.flatnonzero(widths == width).tolist() for i in range(per_prompt)]
            for start in range(0, len(items), size):
                yield width, items[start : start + size]

    def _find(self, split: Split, config: GenerationConfig) -> PromptPosition:
        ends = split.document_ends().astype(np.int64)
        begins = np.concatenate([[0], ends[:-1]])
        ends = ends - self._closed(split, begins, ends)
        if split.masked:
            lengths = _before_completions(split, begins, ends)
            good = (lengths >= 1) & (lengths <= config.prompt_tokens)
            document = np.arange(len(ends))
        else:
            document, begins = _starts(begins, ends, config)
            lengths = np.minimum(ends[document] - begins, config.prompt_tokens)
            good = lengths >= 1
        self.left_out += int((~good).sum())
        keep = np.flatnonzero(good)[: config.prompts or None]
        return PromptPosition(split.name, document[keep], begins[keep], lengths[keep])

    def _closed(self, split: Split, begins: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many tokens at the end of each document close it, which are never part of a prompt."""
        closed, open_ = np.zeros(len(ends), np.int64), np.ones(len(ends), bool)
        for token in reversed(closing(self._store.tokenizer().around.after, self._store.end_of_text)):
            places = np.maximum(ends - 1 - closed, 0)
            open_ &= (places >= begins) & (split.read(places, 1)[:, 0] == token) if len(ends) else open_
            closed += open_
        return closed


def _before_completions(split: Split, begins: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number of tokens of each document before its first completion."""
    marks = split.read_span(0, split.tokens, "mask")
    first = np.flatnonzero(marks)
    at = np.searchsorted(first, begins)
    here = np.where(at < len(first), first[np.minimum(at, len(first) - 1)] if len(first) else 0, split.tokens)
    return np.minimum(here, ends) - begins


def _starts(
    begins: NDArray[np.int64], ends: NDArray[np.int64], config: GenerationConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Document and first token of every prompt: at a document's beginning, then every `every` tokens if one fits."""
    document, starts = [], []
    for i, (begin, end) in enumerate(zip(begins.tolist(), ends.tolist())):
        last = max(end - config.prompt_tokens, begin) if config.every else begin
        here = np.arange(begin, last + 1, config.every or 1)
        document.append(np.full(len(here), i, np.int64))
        starts.append(here)
    return np.concatenate(document or [np.zeros(0, np.int64)]), np.concatenate(starts or [np.zeros(0, np.int64)])
