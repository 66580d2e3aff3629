"""Reads the header of a GGUF file with bounds checks (ggml-org/ggml, docs/gguf.md), and its tokenizer."""

import dataclasses
import mmap
import struct
from pathlib import Path
from typing import Any

from distill.data.tokenizers.around import Around
from distill.errors import DataError

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
Field = bool | int | float | str | list["Field"]  # the value of a field
_STRING, _ARRAY = 8, 9
_CONTROL, _USER_DEFINED = 3, 4  # of tokenizer.ggml.token_type


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in the file: its shape (rows first), ggml's number of its type, and the offset of its bytes."""

    shape: tuple[int, ...]
    kind: int
    offset: int


class GgufFile:
    """The fields and the tensor table of a GGUF file; tensor data are not read.

    Raises DataError for a file that is not GGUF, is truncated, or claims more data than it holds.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.fields: dict[str, Any] = {}
        self.tensors: dict[str, Stored] = {}
        try:
            with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self.size = len(data)
                self._read(data)
        except FileNotFoundError:
            raise DataError(f"{path}: there is no such file") from None
        except (struct.error, UnicodeDecodeError, ValueError) as error:
            raise DataError(f"{path}: the GGUF file is cut off or damaged in its head ({error})") from None

    def _read(self, data: mmap.mmap) -> None:
        if data[:4] != b"GGUF":
            raise DataError(f"{self.path}: not a GGUF file; its first bytes are {data[:4]!r}, wanted b'GGUF'")
        version, tensors, fields = struct.unpack_from("<IQQ", data, 4)
        if version not in (2, 3):
            raise DataError(f"{self.path}: GGUF version {version}, wanted 2 or 3 (little-endian)")
        at = 24
        for _ in range(self._fits(fields, 13, at)):
            name, at = self._string(data, at)
            (kind,) = struct.unpack_from("<I", data, at)
            self.fields[name], at = self._value(data, kind, at + 4)
        for _ in range(self._fits(tensors, 24, at)):
            name, at = self._string(data, at)
            (dims,) = struct.unpack_from("<I", data, at)
            shape = struct.unpack_from(f"<{self._fits(dims, 8, at)}Q", data, at + 4)
            kind, offset = struct.unpack_from("<IQ", data, at + 4 + 8 * dims)
            at += 16 + 8 * dims
            self.tensors[name] = Stored(tuple(reversed(shape)), kind, offset)
        alignment = self.fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"general.alignment is {alignment!r}")
        begin = -(-at // alignment) * alignment
        self.tensors = {n: dataclasses.replace(t, offset=begin + t.offset) for n, t in self.tensors.items()}

    def _fits(self, count: int, each: int, at: int) -> int:
        """Returns the count if the file has room for that many items of at least `each` bytes from `at` on."""
        if count * each > self.size - at:
            raise ValueError(f"at byte {at} it claims {count} items, but only {self.size - at} bytes follow")
        return count

    def _string(self, data: mmap.mmap, at: int) -> tuple[str, int]:
        (length,) = struct.unpack_from("<Q", data, at)
        end = at + 8 + self._fits(length, 1, at + 8)
        return data[at + 8 : end].decode("utf-8"), end

    def _value(self, data: mmap.mmap, kind: int, at: int) -> tuple[Field, int]:
        if kind == _STRING:
            return self._string(data, at)
        if kind == _ARRAY:
            inner, count = struct.unpack_from("<IQ", data, at)
            at += 12
            if inner in _SCALARS:
                code = _SCALARS[inner][1]
                size = struct.calcsize("<" + code)
                self._fits(count, size, at)
                return list(struct.unpack_from(f"<{count}{code}", data, at)), at + count * size
            values = []
            for _ in range(self._fits(count, 8, at)):
                value, at = self._value(data, inner, at)
                values.append(value)
            return values, at
        if kind not in _SCALARS:
            raise ValueError(f"a field of unknown type {kind} at byte {at}")
        return struct.unpack_from(_SCALARS[kind], data, at)[0], at + struct.calcsize(_SCALARS[kind])


# Regular expressions that split the text before byte-level BPE merges it, by llama.cpp's name for them.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CUTS = {
    "gpt-2": "",
    "smollm": "",
    "llama-bpe": rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"{_WORDS}|\p{{N}}|{_REST}",
}


def cuts() -> tuple[str, ...]:
    """llama.cpp's names of the cuts before byte-level BPE that are known here."""
    return tuple(_CUTS)


def around(path: str | Path) -> Around:
    """The tokens around a text that a GGUF file asks for, as llama.cpp reads it: BOS is the rule for Llama 3 alone.

    Raises DataError where it asks for a token that it does not name.
    """
    fields = GgufFile(path).fields
    usual = {"bos": fields.get("tokenizer.ggml.pre") == "llama-bpe", "eos": False}
    found: dict[str, tuple[int, ...]] = {}
    for name, default in usual.items():
        found[name] = ()
        if fields.get(f"tokenizer.ggml.add_{name}_token", default) is True:
            i = fields.get(f"tokenizer.ggml.{name}_token_id")
            if type(i) is not int:
                raise DataError(
                    f"{path}: it puts a token {name.upper()} at every text, and tokenizer.ggml.{name}_token_id is "
                    f"{i!r:.40}; set data.tokenizer.special to 'none', or to the tokens around a text"
                )
            found[name] = (i,)
    return Around(found["bos"], found["eos"])


def end_of_text(path: str | Path) -> str:
    """The name of the token that ends a text; '' where the file says none."""
    fields = GgufFile(path).fields
    tokens, i = fields.get("tokenizer.ggml.tokens"), fields.get("tokenizer.ggml.eos_token_id")
    return str(tokens[i]) if isinstance(tokens, list) and type(i) is int and 0 <= i < len(tokens) else ""


def tokenizer_json(path: str | Path) -> str:
    """The tokenizer of a GGUF file as the text of a tokenizer.json. Raises DataError unless it is byte-level BPE."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    fields = GgufFile(path).fields
    for name, inner in (("tokens", str), ("token_type", int), ("merges", str)):
        items = fields.get(f"tokenizer.ggml.{name}", [])
        if not isinstance(items, list) or not all(type(item) is inner for item in items):
            raise DataError(f"{path}: tokenizer.ggml.{name} is {items!r:.60}, wanted a list of {inner.__name__}")
    kind, cut = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind != "gpt2" or not isinstance(cut, str) or cut not in _CUTS:
        raise DataError(
            f"{path}: its tokenizer is of kind {kind!r} ({cut!r}), wanted byte-level BPE ('gpt2') cut like "
            f"{', '.join(_CUTS)}; take the model's own tokenizer.json (data.tokenizer.path; in convert, --tokenizer)"
        )
    tokens, kinds = fields.get("tokenizer.ggml.tokens", []), fields.get("tokenizer.ggml.token_type", [])
    if not tokens or len(tokens) != len(kinds):
        raise DataError(f"{path}: its tokenizer has {len(tokens)} tokens and {len(kinds)} types of tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in fields.get("tokenizer.ggml.merges", [])]
    try:
        library = Tokenizer(
            models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges, ignore_merges=cut == "llama-bpe")
        )
    except Exception as error:  # the library raises bare Exceptions
        raise DataError(f"{path}: its tokenizer cannot be made ({str(error):.200})") from None
    steps: list[Any] = []
    if cut == "smollm":
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    elif _CUTS[cut]:
        steps.append(pre_tokenizers.Split(Regex(_CUTS[cut]), "isolated"))
    prefix = bool(fields.get("tokenizer.ggml.add_space_prefix", False))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=not _CUTS[cut]))
    library.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if cut == "qwen2":
        library.normalizer = normalizers.NFC()
    library.decoder = decoders.ByteLevel()
    library.post_processor = processors.ByteLevel(trim_offsets=False)
    for special in (True, False):
        wanted = _CONTROL if special else _USER_DEFINED
        added = [AddedToken(t, special=special, normalized=not special) for t, k in zip(tokens, kinds) if k == wanted]
        (library.add_special_tokens if special else library.add_tokens)(added)
    return library.to_str()
