"""Encodes documents as the token ids that a store keeps: the work of one build worker."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distill.data.documents import Document
from distill.data.tokenizers.tokenizer import Tokenizer, load
from distill.system import process


class Encoded(NamedTuple):
    """Concatenated documents, each ended by the tokenizer's end_of_text."""

    ids: NDArray  # [tokens], in the store's dtype
    lengths: NDArray[np.int64]  # [documents], in tokens
    mask: NDArray[np.uint8] | None  # [tokens], 1 in completions
    bytes: NDArray[np.int64]  # [documents], UTF-8 bytes of text
    token_bytes: NDArray[np.int64]  # [documents], bytes of text that the tokens represent


def encode(tokenizer: Tokenizer, documents: Sequence[Document], dtype: np.dtype, masked: bool) -> Encoded:
    """Encodes documents in order. The end of a document counts as trained text."""
    parts = [part for document in documents for part in document.parts]
    pieces = iter(tokenizer.encode(parts))
    end = [np.array([tokenizer.end_of_text], np.int32)] if tokenizer.end_of_text >= 0 else []
    runs: list[NDArray] = []
    masks: list[NDArray[np.uint8]] = []
    lengths, text_bytes, token_bytes = np.zeros((3, len(documents)), np.int64)
    sizes = tokenizer.byte_lengths.astype(np.int32)
    for i, document in enumerate(documents):
        here = [document.ids] if document.ids is not None else [next(pieces) for _ in document.parts] + end
        runs += [run.astype(dtype) for run in here]
        lengths[i] = sum(len(run) for run in here)
        token_bytes[i] = sum(int(sizes[run].sum()) for run in here)
        text_bytes[i] = sum(len(part.text.encode("utf-8")) for part in document.parts)
        if document.ids is not None:
            text_bytes[i] = token_bytes[i]
        if masked:
            masks += _masks(document, here)
    return Encoded(
        ids=np.concatenate(runs) if runs else np.zeros(0, dtype),
        lengths=lengths,
        mask=np.concatenate(masks) if masks else (np.zeros(0, np.uint8) if masked else None),
        bytes=text_bytes,
        token_bytes=token_bytes,
    )


def _masks(document: Document, runs: Sequence[NDArray]) -> list[NDArray[np.uint8]]:
    if document.trained is not None:
        return [document.trained]
    trained = [part.trained for part in document.parts] + [True]
    return [np.full(len(run), flag, np.uint8) for run, flag in zip(runs, trained)]


_worker: list[Tokenizer] = []


def start_worker(spec: tuple[str, ...]) -> None:
    """Loads the tokenizer once per worker process."""
    import os

    process.die_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # parallelism comes from the workers
    _worker[:] = [load(spec)]


def encode_in_worker(documents: Sequence[Document], dtype: np.dtype, masked: bool) -> Encoded:
    return encode(_worker[0], documents, dtype, masked)
