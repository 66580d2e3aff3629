"""Tokenizers of the `tokenizers` library: any tokenizer.json, and a byte-level BPE trained by this project."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from distill.config import nearest
from distill.data.documents import Encoding, Part
from distill.data.tokenizers import gguf
from distill.data.tokenizers.special import AddedToken, SpecialTokens
from distill.errors import DataError
from distill.system.files import atomic_write

END_OF_TEXT = "<|endoftext|>"
# Names of the end-of-document token in published tokenizers, most common first.
_END_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "[SEP]")
_BYTE_ALPHABET = 256
_LARGEST = 1 << 22  # ids; a small file may claim any number


def _missing(path: str) -> str:
    """What to say of a place without a tokenizer.json: a model's folder, or the path of a config."""
    if not path or not Path(path).is_dir():
        return "there is no such file; set data.tokenizer.path"
    if (Path(path) / "tokenizer.model").exists():
        return (
            "this folder has a tokenizer.model (SentencePiece) and no tokenizer.json; put the model's tokenizer.json "
            "there: transformers' AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes it"
        )
    return "there is no tokenizer.json in this folder; put the model's own there"


def read(path: str) -> str:
    """The text of a tokenizer.json: a file, the one in a model's folder, or one made from a GGUF file's tokenizer."""
    file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    try:
        return gguf.tokenizer_json(file) if file.suffix == ".gguf" else file.read_text("utf-8")
    except FileNotFoundError:
        raise DataError(f"tokenizer {path}: {_missing(path)}") from None
    except ValueError as error:
        raise DataError(f"tokenizer {path}: not a tokenizer.json ({str(error):.200})") from None


class SubwordTokenizer:
    """A tokenizer.json. Documents are encoded as plain text: '<|endoftext|>' is characters, not the special token."""

    def __init__(self, path: str, end_of_text: str = ""):
        """path: see `read`. end_of_text: the token's name; '' tries the usual names, 'none' ends documents with no
        token."""
        from tokenizers import Tokenizer as Library

        self.spec: tuple[str, ...] = ("json", path, end_of_text)
        self.text = read(path)
        try:
            self._text, self._template = Library.from_str(self.text), Library.from_str(self.text)
        except BaseException as error:  # the library raises bare Exceptions, and panics outside Exception
            _unless_ended(error)
            raise DataError(f"tokenizer {path}: not a tokenizer.json ({str(error):.200})") from None
        for library in (self._text, self._template):
            library.no_truncation()
            library.no_padding()
        self._text.encode_special_tokens = True
        ids = self._text.get_vocab(with_added_tokens=True)
        self.vocab_size = max(ids.values(), default=-1) + 1
        # Checked before `to_str`, which needs memory for the largest id and ends the process where memory is short.
        if not 0 < self.vocab_size <= _LARGEST:
            raise DataError(f"tokenizer {path}: its ids end at {self.vocab_size - 1}, wanted 0 to {_LARGEST - 1}")
        canonical = json.loads(self._text.to_str())
        self.hash = hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()
        self.name = f"{_stem(Path(path))}-{self.vocab_size}-{self.hash[:8]}"
        self.end_of_text = _find_end(path, end_of_text, ids, canonical)
        self.byte_lengths = _byte_lengths(canonical, ids, self.vocab_size)
        self._special = SpecialTokens(
            self.text, path, canonical["added_tokens"], _unknown_token(canonical["model"]), self.vocab_size
        )

    def encode(self, parts: Sequence[Part]) -> list[NDArray[np.int32]]:
        encoded: list[NDArray[np.int32]] = [np.zeros(0, np.int32)] * len(parts)
        for library, template in ((self._text, False), (self._template, True)):
            places = [i for i, part in enumerate(parts) if part.template == template]
            if places:
                try:
                    texts = [parts[i].text for i in places]
                    encodings = library.encode_batch_fast(texts, add_special_tokens=False)
                except BaseException as error:
                    _unless_ended(error)
                    raise DataError(f"tokenizer {self.spec[1]}: cannot encode a text ({str(error):.200})") from None
                for i, encoding in zip(places, encodings):
                    encoded[i] = np.array(encoding.ids, np.int32)
        return encoded

    def encode_whole(self, documents: Sequence[Sequence[Part]]) -> list[Encoding]:
        """Raises DataError where a special token in the text can be told neither from control nor from text."""
        texts = ["".join(part.text for part in parts) for parts in documents]
        try:
            encodings = self._template.encode_batch(texts, add_special_tokens=False)
            found = [(np.array(e.ids, np.int32), np.array(e.offsets, np.int64).reshape(-1, 2)) for e in encodings]
            return [self._special.settle(parts, *encoded) for parts, encoded in zip(documents, found)]
        except DataError:
            raise
        except BaseException as error:
            _unless_ended(error)
            raise DataError(f"tokenizer {self.spec[1]}: cannot encode a text ({str(error):.200})") from None

    @property
    def special_tokens(self) -> dict[int, str]:
        """The special tokens by id, as text writes them."""
        return dict(self._special.names)

    def token(self, i: int) -> str:
        """The token as the vocabulary writes it; '' for an unknown id."""
        return self._text.id_to_token(i) or ""

    def decode(self, ids: Sequence[int]) -> str:
        return self._text.decode([int(i) for i in ids], skip_special_tokens=True)


def _unless_ended(error: BaseException) -> None:
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | MemoryError):
        raise error


def train_bpe(texts: Iterable[str], vocab_size: int, path: Path) -> None:
    """Trains a byte-level BPE (GPT-2's pre-tokenisation) and writes its tokenizer.json atomically."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocab_size <= _BYTE_ALPHABET:
        raise DataError(
            f"data.tokenizer.vocab_size={vocab_size}: a byte-level BPE needs at least {_BYTE_ALPHABET + 1} "
            f"({_BYTE_ALPHABET} bytes and {END_OF_TEXT}); use data.tokenizer.kind='bytes' for 256"
        )
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    atomic_write(path, library.to_str(pretty=True))


def _stem(path: Path) -> str:
    """A readable name: the folder's, if the file has the usual name or the path is a folder."""
    whole = path.resolve()
    folder = whole if whole.is_dir() else whole.parent if whole.name == "tokenizer.json" else None
    return folder.name if folder else whole.name.removesuffix(".json").removesuffix(".gguf")


class _Canonical(TypedDict, total=False):
    """The fields that are read of a tokenizer.json as the library writes it."""

    added_tokens: list[AddedToken]
    model: dict[str, Any]
    decoder: object
    pre_tokenizer: object


def _find_end(path: str, wanted: str, ids: dict[str, int], canonical: _Canonical) -> int:
    if wanted == "none":
        return -1
    special = [token["content"] for token in canonical["added_tokens"]]
    name = wanted or next((n for n in _END_NAMES if n in ids), "")
    if name in ids:
        return ids[name]
    problem = f"there is no token {wanted!r}" if wanted else "cannot tell which token ends a document"
    known = f"its added tokens are {', '.join(special[:20])}" if special else "it has no added tokens"
    raise DataError(
        f"tokenizer {path}: {problem}; {known}. Set data.tokenizer.end_of_text to one of them, or to 'none'."
        f"{nearest(wanted, special)}"
    )


def _unknown_token(model: dict[str, Any]) -> str:
    """The name of the token for unknown text; '' if there is none. Unigram models give its place in the vocabulary."""
    i = model.get("unk_id")
    return str(model.get("unk_token") or (model["vocab"][i][0] if i is not None else ""))


def _byte_lengths(canonical: _Canonical, ids: dict[str, int], vocab_size: int) -> NDArray[np.int64]:
    """Bytes of text per token. Exact for byte-level and byte-fallback vocabularies; others do not preserve text."""
    added = {token["id"]: token for token in canonical["added_tokens"]}
    byte_level = '"ByteLevel"' in json.dumps([canonical.get("decoder"), canonical.get("pre_tokenizer")])
    lengths = np.zeros(vocab_size, np.int64)
    for token, i in ids.items():
        if i in added:
            lengths[i] = 0 if added[i]["special"] else len(token.encode("utf-8"))
        elif byte_level:
            lengths[i] = len(token)  # GPT-2's alphabet writes each byte as one character
        else:
            lengths[i] = piece_bytes(token)
    return lengths


def piece_bytes(piece: str) -> int:
    """UTF-8 bytes of a SentencePiece-style piece: '▁' is a blank, '<0x0A>' is one byte."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return 1
    return len(piece.replace("▁", " ").removeprefix("##").encode("utf-8"))
