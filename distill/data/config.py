"""What the data pipeline needs to know: frozen dataclasses, standard library only.

Nothing here is imported from the rest of `distill`, so that `distill.config` can hold a `DataConfig`.
"""

import dataclasses
from typing import Literal

# Read by distill.config.fingerprint: how a run is carried out is no part of what it is.
_EXCLUDED = {"identity": False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How text becomes tokens.

    bytes          UTF-8, vocabulary 256; a NUL (stripped from text, and counted) ends each document
    bpe            a byte-level BPE of `vocab_size` tokens, trained on the training splits only
    json           a `tokenizer.json` at `path`
    sentencepiece  a SentencePiece model at `path`
    """

    kind: Literal["bytes", "bpe", "json", "sentencepiece"] = "bytes"
    path: str = ""
    vocab_size: int = 8192  # bpe only
    train_bytes: int = 100_000_000  # bpe only: text read to learn the merges
    end_of_text: str = ""  # json and sentencepiece: the token that ends a document; '': the model's own


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Fractions of the documents, assigned by a hash of each document's text.

    The embedded corpus has its own documented split; sources with validation files of their own use `validation`
    only for what is left.
    """

    validation: float = 0.05
    teacher: float = 0.5  # of what is not validation; the student takes the rest
    duplicates: Literal["across", "all"] = "across"  # drop exact copies across splits only, or within them too


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the text comes from, how it becomes tokens, and which split this run reads."""

    source: Literal["embedded"] = "embedded"
    tokenizer: TokenizerConfig = TokenizerConfig()
    splits: SplitConfig = SplitConfig()
    split: Literal["teacher", "student"] = "student"
    packing: Literal["windows", "segments", "documents"] = "windows"
    seed: int = 0  # of the order of windows
    cache: str = dataclasses.field(default="", metadata=_EXCLUDED)  # where stores are built and kept
