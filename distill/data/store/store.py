"""The token store: a folder of memory-mapped tokens, and a manifest whose hashes cover every byte.

manifest.json    format, fingerprint of the recipe, tokenizer, counts, and the sha256 of every hash file
SPLIT.bin        token ids (uint8, uint16 or uint32), documents concatenated
SPLIT.docs       end of each document, and the digest of its text
SPLIT.mask       1 where a token belongs to a completion (only if the source marks completions)
vocabulary.bytes the number of bytes of text that each token id represents
*.sha256         a hash for every 64 KiB of the file beside it
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.config import ModelConfig, nearest
from distill.data.store.blocks import BlockReader
from distill.data.store.evaluation import Evaluation, Share, View, evaluation_set
from distill.data.store.packing import PackedDocuments
from distill.data.store.split import DOCUMENT_DTYPE, Split
from distill.data.store.windows import Windows
from distill.data.tokenizers.around import NONE
from distill.data.tokenizers.spec import Spec
from distill.data.tokenizers.tokenizer import Tokenizer, load
from distill.errors import DataError
from distill.system.files import loads

FORMAT = 1
MANIFEST = "manifest.json"
VOCABULARY = "vocabulary.bytes"


class TokenStore:
    """An open store. Reading is lazy: opening reads the manifest and the hash files only."""

    weights: tuple[float, ...] = (1.0,)

    def __init__(self, path: str | Path):
        """Raises DataError where `path` holds no complete store of this format."""
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        tokenizer = self.manifest["tokenizer"]
        self.fingerprint: str = self.manifest["fingerprint"]
        # For generated completions: the teacher's run, its N and D, and the FLOPs of the generation; else empty.
        self.maker: dict[str, Any] = self.manifest["recipe"].get("source", {}).get("maker", {})
        self.tokenizer_name: str = tokenizer["name"]
        self.tokenizer_hash: str = tokenizer["hash"]
        self.vocab_size: int = tokenizer["vocab_size"]
        self.end_of_text: int = tokenizer["end_of_text"]
        # What stands around the text of every document; stores from before 2026-12 record nothing and have nothing.
        self.special: str = tokenizer.get("special", NONE)
        self.splits = {
            name: Split(
                self.path, name, self.manifest["dtype"], entry, self._special_bytes if self.turn_by_turn else None
            )
            for name, entry in self.manifest["splits"].items()
        }
        vocabulary = BlockReader(self.path / VOCABULARY, self.manifest["vocabulary"], np.int64)
        vocabulary.check_all()
        self.byte_lengths: NDArray[np.int64] = np.asarray(vocabulary.array)

    @property
    def turn_by_turn(self) -> bool:
        """Whether the turns of a document were encoded apart, as earlier versions did."""
        columns = self.manifest["recipe"].get("columns")
        in_parts = isinstance(columns, dict) and bool({"chat", "prompt"} & set(columns))
        return in_parts and "encoding" not in self.manifest["recipe"]

    def _special_bytes(self) -> NDArray[np.int64]:
        """UTF-8 bytes of each special token's name, 0 for other tokens [vocabulary]."""
        tokenizer, sizes = self.tokenizer(), np.zeros(self.vocab_size, np.int64)
        for i, name in getattr(tokenizer, "special_tokens", {}).items():
            if i < len(sizes):  # a damaged manifest may claim fewer
                sizes[i] = len(name.encode("utf-8"))
        return sizes

    @property
    def note(self) -> str:
        """A remark on how the text was split; '' where whole documents were assigned to splits."""
        recipe = self.manifest["recipe"]
        if self.turn_by_turn:
            return (
                "an earlier version built it: each turn was encoded as a text of its own, and the end of a document "
                "without a reply is trained; delete it to build it anew, under another fingerprint"
            )
        inside = recipe.get("source", {}).get("inside")
        if not isinstance(inside, dict):
            return ""
        tokens = ", ".join(f"{name} {split.tokens:,}" for name, split in self.splits.items() if split.tokens)
        return (
            "so few documents that each is cut into contiguous blocks, one for each split, in place of whole documents "
            f"({tokens} tokens); set data.files.separator or data.files.validation to choose otherwise"
        )

    def split(self, name: str) -> Split:
        if name not in self.splits:
            raise DataError(
                f"{self.path}: there is no split {name!r}, only {', '.join(self.splits)}.{nearest(name, self.splits)}"
            )
        return self.splits[name]

    def views(
        self, split: str, seq_len: int, *, packing: str = "windows", completions_only: bool = False
    ) -> list[View]:
        """The split as rows of seq_len + 1 tokens (one view; a mixture has several).

        Raises DataError where it is too short for one row, or completions are requested but not marked.
        """
        part = self.split(split)
        if completions_only and not part.masked:
            raise DataError(
                f"{self.path}: completions_only is set, but this store was made from plain text and knows no "
                "completions; build it from records with data.columns.messages or data.columns.prompt"
            )
        view: View
        if packing == "documents":
            view = PackedDocuments(part, seq_len, completions_only)
        else:
            view = Windows(part, seq_len, packing == "segments", completions_only)
        if not view.count:
            advice = "shorten seq_len or add text"
            if not part.tokens:
                sizes = ", ".join(f"{name} {other.documents}" for name, other in self.splits.items())
                advice = (
                    f"its documents are in other splits ({sizes} documents); give more documents (data.files.separator "
                    "cuts a file into several) or files of their own (data.files.validation)"
                )
            raise DataError(
                f"{self.path}: split {split!r} has {part.tokens} tokens, too few for one row of seq_len + 1 = "
                f"{seq_len + 1}; {advice}"
            )
        return [view]

    def evaluation(
        self, split: str, seq_len: int, n_tokens: int, *, packing: str = "windows", completions_only: bool = False
    ) -> Evaluation:
        """About n_tokens predicted tokens of a split in evenly spaced windows; the same for every call and host."""
        views = self.views(split, seq_len, packing=packing, completions_only=completions_only)
        return evaluation_set([Share(view, 1.0, self.byte_lengths) for view in views], n_tokens)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of this store, from the store's own copy."""
        kind = self.manifest["tokenizer"]["kind"]
        name = {"json": "tokenizer.json", "sentencepiece": "tokenizer.model"}.get(kind, "")
        option = str(self.vocab_size) if kind == "symbols" else "none"
        tokenizer = load(Spec(kind, str(self.path / name), option, self.special))
        if kind == "json" and self.end_of_text >= 0:
            tokenizer.end_of_text = self.end_of_text
            tokenizer.spec = tokenizer.spec._replace(option=tokenizer.token(self.end_of_text))
        return tokenizer

    def check_vocabulary(self, model: ModelConfig) -> None:
        """Raises DataError unless a model covers every token of the store, with the setting that would."""
        if model.tokens < self.vocab_size:
            name = "valid_vocab" if self.vocab_size <= model.vocab_size else "vocab_size"
            also = " and model.valid_vocab=0" if name == "vocab_size" and model.valid_vocab else ""
            raise DataError(
                f"model.{name} is {getattr(model, name)}, but the store {self.path} holds tokens of "
                f"{self.tokenizer_name!r} with a vocabulary of {self.vocab_size}; "
                f"set model.{name}={self.vocab_size}{also}"
            )

    def verify(self) -> None:
        """Reads and checks every byte. Raises DataError that names the first mismatch."""
        for split in self.splits.values():
            split.verify()


def read_manifest(path: Path) -> dict:
    """The manifest of a store. Raises DataError where it is missing or of another format."""
    file = path / MANIFEST
    try:
        manifest = loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{path}: there is no {MANIFEST}, so this is no token store; `python -m launch.tokenize` builds one"
        ) from None
    except (ValueError, OSError) as error:
        raise DataError(f"{file}: cannot be read ({error}); delete the store and build it again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        got = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise DataError(f"{file}: got format {got!r}, wanted {FORMAT}; build the store again")
    try:
        _check(manifest)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{file}: describes no store ({error!r:.100}); build the store again") from None
    return manifest


def _check(manifest: Mapping[str, Any]) -> None:
    """Raises ValueError or a similar error for a manifest with impossible values."""

    def expect(holds: bool, what: str) -> None:
        if not holds:
            raise ValueError(what)

    def number(value: Any) -> int:
        expect(type(value) is int and 0 <= value < 2**62, f"a count of {value!r:.40}")
        return value

    tokenizer, source = manifest["tokenizer"], manifest["recipe"].get("source", {})
    texts = (
        manifest["fingerprint"],
        *(tokenizer[name] for name in ("name", "hash", "kind")),
        tokenizer.get("special", NONE),
    )
    expect(all(isinstance(text, str) for text in texts), "names that are no text")
    expect(isinstance(source.get("maker", {}), dict), "a maker that is none")
    expect(-1 <= number(tokenizer["end_of_text"] + 1) - 1 < tokenizer["vocab_size"], "an end of text beyond the tokens")
    expect(manifest["dtype"] in ("uint8", "uint16", "uint32"), f"tokens of {manifest['dtype']!r:.40}")
    width, splits = np.dtype(manifest["dtype"]).itemsize, manifest["splits"]
    files = [(manifest["vocabulary"], 8 * number(tokenizer["vocab_size"]))]
    for name, entry in splits.items():
        expect(name.isidentifier(), f"a split of the name {name!r:.40}")  # it becomes part of a path
        tokens, documents = number(entry["tokens"]), number(entry["documents"])
        number(entry["bytes"]), number(entry["token_bytes"])
        sizes = {"bin": tokens * width, "docs": documents * DOCUMENT_DTYPE.itemsize, "mask": tokens}
        expect({"bin", "docs"} <= set(entry["files"]) <= set(sizes), f"files of kinds {sorted(entry['files'])!r:.60}")
        files += [(file, sizes[kind]) for kind, file in entry["files"].items()]
    for file, size in files:
        expect(number(file["size"]) == size, f"a file of {file['size']} bytes, where its counts make {size}")
        expect(isinstance(file["sha256"], str), "a file without its sha256")
