"""Encodes documents as the token ids that a store keeps: the work of one build worker."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distill.data.documents import Document, Encoding, Part
from distill.data.tokenizers.around import Around
from distill.data.tokenizers.spec import Spec
from distill.data.tokenizers.tokenizer import Tokenizer, load
from distill.system import process


class Encoded(NamedTuple):
    """Concatenated documents, each in the tokens that its tokenizer puts around a text, and ended by end_of_text."""

    ids: NDArray  # [tokens], in the store's dtype
    lengths: NDArray[np.int64]  # [documents], in tokens
    mask: NDArray[np.uint8] | None  # [tokens], 1 in completions
    bytes: NDArray[np.int64]  # [documents], UTF-8 bytes of text, without special tokens that a template wrote
    token_bytes: NDArray[np.int64]  # [documents], bytes of text that the tokens represent


class _Tokens(NamedTuple):
    """One document as tokens."""

    ids: NDArray
    mask: NDArray[np.uint8]
    bytes: int


def encode(tokenizer: Tokenizer, documents: Sequence[Document], dtype: np.dtype, masked: bool) -> Encoded:
    """Encodes documents in order, each as one text. A token is trained where it holds a character that is.

    The end of a document is trained where the text before it is, and is not written where a template wrote it.
    """
    plain = [document.parts[0] for document in documents if _is_plain(document)]
    joined = [document.parts for document in documents if document.ids is None and not _is_plain(document)]
    ids, encodings = iter(tokenizer.encode(plain)), iter(tokenizer.encode_whole(joined))
    found: list[_Tokens] = []
    sizes = tokenizer.byte_lengths.astype(np.int32)
    for document in documents:
        if document.ids is not None:
            trained = np.ones(len(document.ids), np.uint8) if document.trained is None else document.trained
            found.append(_Tokens(document.ids, trained, int(sizes[document.ids].sum())))
        elif _is_plain(document):
            run = next(ids)
            size = len(document.parts[0].text.encode("utf-8"))
            found.append(_ended(_Tokens(run, np.full(len(run), document.parts[0].trained), size), document, tokenizer))
        else:
            found.append(_ended(_marked(document.parts, next(encodings)), document, tokenizer))
    return Encoded(
        ids=np.concatenate([f.ids.astype(dtype) for f in found]) if found else np.zeros(0, dtype),
        lengths=np.array([len(f.ids) for f in found], np.int64),
        mask=np.concatenate([np.zeros(0, np.uint8), *(f.mask.astype(np.uint8) for f in found)]) if masked else None,
        bytes=np.array([f.bytes for f in found], np.int64),
        token_bytes=np.array([sizes[f.ids].sum() for f in found], np.int64),
    )


def _is_plain(document: Document) -> bool:
    return document.ids is None and len(document.parts) == 1 and not document.parts[0].template


def _marked(parts: Sequence[Part], encoding: Encoding) -> _Tokens:
    """The tokens of the parts' whole text, with the marks of those that overlap a trained part."""
    text = "".join(part.text for part in parts)
    trained = np.repeat([part.trained for part in parts], [len(part.text) for part in parts])
    before = np.concatenate([[0], np.cumsum(trained)])  # trained characters before each character
    start, end = encoding.spans.T
    # A token without characters is trained inside of a trained part.
    mask = np.where(
        end > start,
        before[end] > before[start],
        before[np.minimum(end + 1, len(text))] - before[np.maximum(start - 1, 0)] == 2,
    )
    control = sum(len(text[a:b].encode("utf-8")) for a, b in encoding.spans[encoding.control].tolist())
    return _Tokens(encoding.ids, mask, len(text.encode("utf-8")) - control)


def _ended(tokens: _Tokens, document: Document, tokenizer: Tokenizer) -> _Tokens:
    """With what stands around a text, unless a template wrote it, and with the token that ends a document.

    What comes after is trained after trained text; blanks do not count.
    """
    around = Around() if any(part.template for part in document.parts) else tokenizer.around
    written = not around.after and len(tokens.ids) and tokens.ids[-1] == tokenizer.end_of_text
    after = () if written else closing(around.after, tokenizer.end_of_text)
    trained = next((part.trained for part in reversed(document.parts) if part.text.strip()), False)
    return tokens._replace(
        ids=np.concatenate([np.array(around.before, np.int32), tokens.ids, np.array(after, np.int32)]),
        mask=np.concatenate([np.zeros(len(around.before), bool), tokens.mask, np.full(len(after), trained)]),
    )


def closing(after: tuple[int, ...], end_of_text: int) -> tuple[int, ...]:
    """The tokens that close a document: what its tokenizer puts after a text, and one end of text (-1: none)."""
    return after if end_of_text < 0 or after[-1:] == (end_of_text,) else (*after, end_of_text)


_worker: list[Tokenizer] = []


def start_worker(spec: Spec) -> None:
    """Loads the tokenizer once per worker process."""
    import os

    process.die_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # parallelism comes from the workers
    _worker[:] = [load(spec)]


def encode_in_worker(documents: Sequence[Document], dtype: np.dtype, masked: bool) -> Encoded:
    return encode(_worker[0], documents, dtype, masked)
