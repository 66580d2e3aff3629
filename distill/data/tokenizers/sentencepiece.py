"""SentencePiece models."""

import hashlib
import importlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.data.documents import Encoding, Part
from distill.data.tokenizers.around import MODEL, Around, read_around, write_around
from distill.data.tokenizers.spec import SENTENCEPIECE, Piece, Spec
from distill.data.tokenizers.subword import piece, piece_bytes, read_config
from distill.errors import DataError


class SentencePieceTokenizer:
    """A SentencePiece .model file, or the tokenizer.model of a model's folder; its </s> ends a document.

    A model that prepends a blank to each text or normalises it loses the exact bytes. The store then scales bytes by
    the split's ratio of text to tokens, and sets `exact_bytes` to false.
    """

    rules = steps = ""

    def __init__(self, path: str, around: str = MODEL):
        """around: as data.tokenizer.special; 'model' reads add_bos_token and add_eos_token of tokenizer_config.json."""
        self.file = Path(path) / SENTENCEPIECE if Path(path).is_dir() else Path(path)
        try:
            library = importlib.import_module("sentencepiece")
        except ImportError:
            raise DataError(f"tokenizer {path}: needs the package sentencepiece; `pip install sentencepiece`") from None
        try:
            content = self.file.read_bytes()
            self._model = library.SentencePieceProcessor(model_proto=content)
        except FileNotFoundError:
            raise DataError(f"tokenizer {path}: there is no such file; set data.tokenizer.path") from None
        except RuntimeError as error:
            raise DataError(f"tokenizer {path}: not a SentencePiece model ({str(error):.200})") from None
        self.hash = hashlib.sha256(content).hexdigest()
        self.vocab_size = self._model.vocab_size()
        stem = self.file.resolve().parent.name if Path(path).is_dir() else self.file.name.removesuffix(".model")
        self.name = f"{stem}-{self.vocab_size}-{self.hash[:8]}"
        self.end_of_text = self._model.eos_id()
        pieces = [self._model.id_to_piece(i) for i in range(self.vocab_size) if self._model.is_control(i)]
        self._control = [piece for piece in pieces if piece]
        self.byte_lengths = np.array(
            [
                0 if self._model.is_control(i) or self._model.is_unknown(i) else piece_bytes(self._model.id_to_piece(i))
                for i in range(self.vocab_size)
            ],
            np.int64,
        )

        self.around = self._read(around)
        self.spec = Spec("sentencepiece", path, "", write_around(self.around, self.token))

    def _read(self, wanted: str) -> Around:
        if wanted != MODEL:
            ids = {self._model.id_to_piece(i): i for i in range(self.vocab_size)}
            return read_around(wanted, ids, f"tokenizer {self.file}")
        said = read_config(self.file.parent) if self.file.name == SENTENCEPIECE else {}
        ends = {"add_bos_token": self._model.bos_id(), "add_eos_token": self._model.eos_id()}
        before, after = ((i,) if said.get(name) is True and i >= 0 else () for name, i in ends.items())
        return Around(before, after)

    def token(self, i: int) -> str:
        return self._model.id_to_piece(i) if 0 <= i < self.vocab_size else ""

    def pieces(self) -> list[Piece]:
        found = []
        for i in range(self.vocab_size):
            name = self._model.id_to_piece(i)
            control = self._model.is_control(i) or self._model.is_unknown(i)
            found.append(Piece("special", name.encode("utf-8", "replace")) if control else piece(name))
        return found

    def encode(self, parts: Sequence[Part]) -> list[NDArray[np.int32]]:
        ids = self._model.encode([part.text for part in parts], out_type=int)
        return [np.array(run, np.int32) for run in ids]

    def encode_whole(self, documents: Sequence[Sequence[Part]]) -> list[Encoding]:
        """Raises DataError where a template writes a control piece, such as </s>, which the library cannot encode."""
        for part in (part for parts in documents for part in parts if part.template):
            if found := next((piece for piece in self._control if piece in part.text), ""):
                raise DataError(
                    f"tokenizer {self.spec.path}: the template writes the control token {found!r}, which SentencePiece "
                    "does not recognise in text; take the model's tokenizer.json (data.tokenizer.kind=json)"
                )
        return [self._whole("".join(part.text for part in parts)) for parts in documents]

    def _whole(self, text: str) -> Encoding:
        if hasattr(self._model, "encode_as_offset_mapping"):
            found = self._model.encode_as_offset_mapping(text)
            ids, spans = found["ids"], found["offsets"]
        else:  # before version 0.2.2
            pieces = self._model.encode(text, out_type="immutable_proto").pieces
            ids, spans = [piece.id for piece in pieces], [(piece.begin, piece.end) for piece in pieces]
        return Encoding(np.array(ids, np.int32), np.array(spans, np.int64).reshape(-1, 2), np.zeros(len(ids), bool))

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode([int(i) for i in ids])
