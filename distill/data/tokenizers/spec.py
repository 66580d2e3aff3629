"""What names a tokenizer: its kind, its files and its settings; and what its tokens stand for."""

from pathlib import Path
from typing import Literal, NamedTuple

from distill.data.tokenizers.around import MODEL

END_OF_TEXT = "<|endoftext|>"
JSON, SENTENCEPIECE = "tokenizer.json", "tokenizer.model"  # in a model's folder


class Spec(NamedTuple):
    """What `load` makes a tokenizer of, here or in another process; `special` as data.tokenizer.special."""

    kind: str
    path: str = ""
    option: str = ""  # the end of text of a tokenizer.json, the number of symbols
    special: str = MODEL


class Piece(NamedTuple):
    """What a token stands for: text in UTF-8, one byte of a byte-fallback vocabulary, or a special token."""

    kind: Literal["text", "byte", "special", "none"]  # none: no token has this id
    text: bytes = b""


def spec_of(path: str | Path, special: str = MODEL) -> Spec:
    """The tokenizer of the model or file at `path`: tokenizer.json if it is there, as in transformers, else
    tokenizer.model."""
    folder = Path(path)
    if folder.suffix == ".model" or not (folder / JSON).exists() and (folder / SENTENCEPIECE).exists():
        return Spec("sentencepiece", str(path), special=special)
    return Spec("json", str(path), special=special)
