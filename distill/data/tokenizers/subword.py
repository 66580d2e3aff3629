"""Tokenizers of the `tokenizers` library: any tokenizer.json, and a byte-level BPE trained by this project."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from distill.config import nearest
from distill.data.documents import Encoding, Part
from distill.data.tokenizers import gguf
from distill.data.tokenizers.around import MODEL, TEXT, Around, read_around, write_around
from distill.data.tokenizers.spec import END_OF_TEXT as END_OF_TEXT
from distill.data.tokenizers.spec import Piece, Spec
from distill.data.tokenizers.special import AddedToken, SpecialTokens
from distill.errors import DataError
from distill.system.files import atomic_write, loads

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

CONFIG = "tokenizer_config.json"
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
            "this folder has a tokenizer.model (SentencePiece) and no tokenizer.json; "
            "set data.tokenizer.kind=sentencepiece"
        )
    return "there is no tokenizer.json in this folder; put the model's own there, or set data.tokenizer.path"


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

    def __init__(self, path: str, end_of_text: str = "", around: str = MODEL):
        """path: see `read`. end_of_text: the token's name; '' tries the usual names and then the one that the model's
        files name, 'none' ends documents with no token. around: as data.tokenizer.special; 'model' reads the
        post-processor, or what a GGUF file says of BOS and EOS."""
        from tokenizers import Tokenizer as Library

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
        self.around = self._read(path, around, ids)
        self.spec = Spec("json", path, end_of_text, write_around(self.around, self.token))
        self.rules, self.steps = _rules(canonical), _steps(canonical)
        self._canonical, self._ids = canonical, ids
        self._special = SpecialTokens(
            self.text, path, canonical["added_tokens"], _unknown_token(canonical["model"]), self.vocab_size
        )

    def _read(self, path: str, wanted: str, ids: dict[str, int]) -> Around:
        if wanted != MODEL:
            return read_around(wanted, ids, f"tokenizer {path}")
        found = gguf.around(path) if path.endswith(".gguf") else _of_post_processor(self._template, path)
        if max((*found.before, *found.after), default=0) >= self.vocab_size:
            raise DataError(
                f"tokenizer {path}: puts tokens {[*found.before, *found.after]} around a text and has ids up to "
                f"{self.vocab_size - 1}; repair it, or set data.tokenizer.special='none'"
            )
        return found

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
                    raise DataError(f"tokenizer {self.spec.path}: cannot encode a text ({str(error):.200})") from None
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
            raise DataError(f"tokenizer {self.spec.path}: cannot encode a text ({str(error):.200})") from None

    @property
    def special_tokens(self) -> dict[int, str]:
        """The special tokens by id, as text writes them."""
        return dict(self._special.names)

    def token(self, i: int) -> str:
        return self._text.id_to_token(i) or ""

    def decode(self, ids: Sequence[int]) -> str:
        return self._text.decode([int(i) for i in ids], skip_special_tokens=True)

    def pieces(self) -> list[Piece]:
        added = {token["id"]: token for token in self._canonical["added_tokens"]}
        letters = {letter: i for i, letter in byte_letters().items()} if _byte_level(self._canonical) else {}
        found = [Piece("none")] * self.vocab_size
        for token, i in self._ids.items():
            if i in added:
                found[i] = Piece("special" if added[i]["special"] else "text", token.encode("utf-8", "replace"))
            elif letters and all(letter in letters for letter in token):
                found[i] = Piece("text", bytes(letters[letter] for letter in token))
            else:
                found[i] = piece(token)
        return found

    def saying(self) -> str:
        """The tokenizer.json with a post-processor that puts `around` around a text, and nothing else."""
        from tokenizers import Tokenizer as Library
        from tokenizers import processors

        library = Library.from_str(self.text)
        if _of_post_processor(library, self.spec.path) == self.around:
            return self.text
        names = {i: self.token(i) for i in (*self.around.before, *self.around.after)}
        form = [*(names[i] for i in self.around.before), TEXT, *(names[i] for i in self.around.after)]
        trim = processors.ByteLevel(trim_offsets=False)
        around = processors.TemplateProcessing(single=form, special_tokens=[(name, i) for i, name in names.items()])
        library.post_processor = processors.Sequence([trim, around] if names else [trim])
        return library.to_str()


def _unless_ended(error: BaseException) -> None:
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | MemoryError):
        raise error


def _of_post_processor(library: "Library", path: str) -> Around:
    """What the post-processor of a tokenizer.json puts around a text. Raises DataError where it does more."""
    found = []
    for text in ("a", "b c"):
        try:
            whole = library.encode(text, add_special_tokens=True)
            bare = library.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            _unless_ended(error)
            raise DataError(f"tokenizer {path}: cannot encode a text ({str(error):.200})") from None
        at = next((i for i, added in enumerate(whole.special_tokens_mask) if not added), len(whole.ids))
        found.append(Around(tuple(whole.ids[:at]), tuple(whole.ids[at + len(bare) :])))
        if whole.ids[at : at + len(bare)] != bare or found[0] != found[-1]:
            raise DataError(
                f"tokenizer {path}: its post-processor makes {whole.ids} of the tokens {bare}, wanted tokens before "
                "and after them; set data.tokenizer.special to 'none', or to the tokens around a text, such as '<s> $A'"
            )
    return found[0]


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
    normalizer: object
    pre_tokenizer: object


def _find_end(path: str, wanted: str, ids: dict[str, int], canonical: _Canonical) -> int:
    if wanted == "none":
        return -1
    added = [token["content"] for token in canonical["added_tokens"]]
    name = wanted or next((n for n in _END_NAMES if n in ids), "") or _named_end(path)
    if name in ids:
        return ids[name]
    problem = f"there is no token {wanted!r}" if wanted else "cannot tell which token ends a document"
    known = f"its added tokens are {', '.join(added[:20])}" if added else "it has no added tokens"
    raise DataError(
        f"tokenizer {path}: {problem}; {known}. Set data.tokenizer.end_of_text to one of them, or to 'none'."
        f"{nearest(wanted, added)}"
    )


def _named_end(path: str) -> str:
    """The end of text that the model's own files name; '' where they name none."""
    if path.endswith(".gguf"):
        return gguf.end_of_text(path)
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    token = read_config(folder).get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else ""


def read_config(folder: Path) -> dict[str, object]:
    """The tokenizer_config.json of a model's folder; empty where there is none that can be read."""
    try:
        tree = loads((folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _rules(canonical: _Canonical) -> str:
    """A digest of what the model merges, or how it weighs pieces; '' for models that need no such list."""
    model = canonical["model"]
    if model.get("type") not in ("BPE", "Unigram"):
        return ""
    content = model["merges"] if model["type"] == "BPE" else model["vocab"]
    return f"{model['type']} {hashlib.sha256(json.dumps(content).encode()).hexdigest()}"


def _steps(canonical: _Canonical) -> str:
    """A digest of normaliser, pre-tokenizer, added tokens, and of the model's options beside vocabulary and merges."""
    model = {name: value for name, value in canonical["model"].items() if name not in ("vocab", "merges")}
    content = [canonical.get("normalizer"), canonical.get("pre_tokenizer"), canonical["added_tokens"], model]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _unknown_token(model: dict[str, Any]) -> str:
    """The name of the token for unknown text; '' if there is none. Unigram models give its place in the vocabulary."""
    i = model.get("unk_id")
    return str(model.get("unk_token") or (model["vocab"][i][0] if i is not None else ""))


def _byte_lengths(canonical: _Canonical, ids: dict[str, int], vocab_size: int) -> NDArray[np.int64]:
    """Bytes of text per token. Exact for byte-level and byte-fallback vocabularies; others do not preserve text."""
    added = {token["id"]: token for token in canonical["added_tokens"]}
    byte_level = _byte_level(canonical)
    lengths = np.zeros(vocab_size, np.int64)
    for token, i in ids.items():
        if i in added:
            lengths[i] = 0 if added[i]["special"] else len(token.encode("utf-8"))
        elif byte_level:
            lengths[i] = len(token)  # GPT-2's alphabet writes each byte as one character
        else:
            lengths[i] = piece_bytes(token)
    return lengths


def _byte_level(canonical: _Canonical) -> bool:
    return '"ByteLevel"' in json.dumps([canonical.get("decoder"), canonical.get("pre_tokenizer")])


def byte_letters() -> dict[int, str]:
    """GPT-2's letter for each byte: the character itself if printable, else one from U+0100 on."""
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [i for i in range(256) if i not in printing]
    return {i: chr(i) for i in printing} | {i: chr(256 + n) for n, i in enumerate(others)}


def piece(token: str) -> Piece:
    """A SentencePiece-style token: '▁' is a blank, '<0x0A>' is one byte."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return Piece("byte", bytes.fromhex(token[3:5]))
        except ValueError:
            return Piece("byte", token.encode())
    return Piece("text", token.replace("▁", " ").encode("utf-8", "replace"))


def piece_bytes(token: str) -> int:
    """UTF-8 bytes of a SentencePiece-style token; '##' before a part of a word stands for none."""
    made = piece(token)
    return 1 if made.kind == "byte" else len(made.text.removeprefix(b"##"))
