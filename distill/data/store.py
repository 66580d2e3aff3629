"""The token store: a folder of memory-mapped tokens and a manifest that vouches for every byte of it.

    manifest.json    format, fingerprint of the recipe, tokenizer, counts, and the sha256 of every hash file
    SPLIT.bin        token ids (uint8, uint16 or uint32), documents end to end
    SPLIT.docs       where each document ends, and the digest of its text
    SPLIT.mask       1 where a token belongs to a completion (only where the source knows)
    vocabulary.bytes the bytes of text that each token id stands for
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.config import DistillError, nearest
from distill.data.blocks import BlockReader
from distill.data.split import Split
from distill.data.windows import Windows
from distill.types import Batch

FORMAT = 1
MANIFEST = "manifest.json"
VOCABULARY = "vocabulary.bytes"


class DataError(DistillError):
    """Data that cannot be read, built or used as asked: where, got, wanted, what to do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A fixed set of windows: the batch [n, S+1], its ids, and the bytes of text that its predicted tokens stand for.

    bits per byte = (summed loss in nats) / (ln 2 * bytes); exact when `exact_bytes`, i.e. when the tokens of the
    whole split add up to its text. (A lossy tokenizer's bytes are scaled by the split's ratio instead.)
    """

    batch: Batch
    windows: NDArray[np.int64]
    bytes: float
    exact_bytes: bool

    @property
    def tokens(self) -> int:
        """How many tokens are predicted (those of weight 0 are not)."""
        return int(np.count_nonzero(np.asarray(self.batch.weight)))


class TokenStore:
    """An open store. Reading is lazy: opening looks at the manifest and the hash files only."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self.fingerprint: str = self.manifest["fingerprint"]
        self.tokenizer_name: str = self.manifest["tokenizer"]["name"]
        self.tokenizer_hash: str = self.manifest["tokenizer"]["hash"]
        self.vocab_size: int = self.manifest["tokenizer"]["vocab_size"]
        self.splits = {
            name: Split(self.path, name, self.manifest["dtype"], entry)
            for name, entry in self.manifest["splits"].items()
        }
        self.byte_lengths: NDArray[np.int64] = self._vocabulary()

    def _vocabulary(self) -> NDArray[np.int64]:
        reader = BlockReader(self.path / VOCABULARY, self.manifest["vocabulary"], np.int64)
        reader.check_all()
        return np.asarray(reader.array)

    def split(self, name: str) -> Split:
        if name not in self.splits:
            raise DataError(
                f"{self.path}: there is no split {name!r}, only {', '.join(self.splits)}.{nearest(name, self.splits)}"
            )
        return self.splits[name]

    def windows(
        self, split: str, seq_len: int, *, packing: str = "windows", completions_only: bool = False
    ) -> Windows:
        """The split as rows of seq_len + 1 tokens; DataError when it is too short for one."""
        found = self.split(split)
        view = Windows(found, seq_len, packing == "segments", completions_only)
        if not view.count:
            raise DataError(
                f"{self.path}: split {split!r} has {found.tokens} tokens, wanted at least seq_len + 1 = {seq_len + 1}; "
                "shorten seq_len or add text"
            )
        return view

    def evaluation(
        self, split: str, seq_len: int, n_tokens: int, *, packing: str = "windows", completions_only: bool = False
    ) -> Evaluation:
        """About n_tokens predicted tokens in evenly spaced windows, the same on every call and host."""
        view = self.windows(split, seq_len, packing=packing, completions_only=completions_only)
        n = min(max(n_tokens // seq_len, 1), view.count)
        ids = np.arange(n, dtype=np.int64) * view.count // n
        batch = view.read(ids)
        labels, weight = np.asarray(batch.labels), np.asarray(batch.weight)
        found = self.split(split)
        exact = found.bytes == found.token_bytes
        ratio = 1.0 if exact else found.bytes / max(found.token_bytes, 1)
        counted = int(self.byte_lengths[labels][weight > 0].sum())
        return Evaluation(batch=batch, windows=ids, bytes=counted * ratio, exact_bytes=exact)

    def check_vocabulary(self, vocab_size: int) -> None:
        """DataError unless a model with this vocabulary can read every token of the store."""
        if vocab_size < self.vocab_size:
            raise DataError(
                f"model.vocab_size is {vocab_size}, but the store {self.path} holds tokens of {self.tokenizer_name!r} "
                f"with a vocabulary of {self.vocab_size}; set model.vocab_size={self.vocab_size}"
            )

    def verify(self) -> None:
        """Reads and checks every byte; DamageError names the first that differs."""
        for split in self.splits.values():
            split.verify()


def read_manifest(path: Path) -> dict:
    """The manifest of a store; DataError when there is none, or it is of another format."""
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path}: there is no {MANIFEST}, so this is no token store; `python -m launch.tokenize` builds one"
        ) from None
    except (ValueError, OSError) as error:
        raise DataError(f"{file}: cannot be read ({error}); delete the store and build it again") from None
    if manifest.get("format") != FORMAT:
        raise DataError(f"{file}: got format {manifest.get('format')!r}, wanted {FORMAT}; build the store again")
    return manifest
