"""One split of a token store on disk: tokens, ends of documents, and marks of completions."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from distill.data.store.blocks import BlockReader, BlockWriter

Sizes = Callable[[], NDArray[np.int64]]
# Per document: its end in the token stream, and the digest of its text.
DOCUMENT_DTYPE = np.dtype([("end", "<u8"), ("digest", "<u8")])


class SplitWriter:
    """Appends documents to one split; everything before the last `sizes()` survives a kill."""

    def __init__(self, folder: Path, name: str, dtype: DTypeLike, masked: bool, sizes: dict[str, int] | None = None):
        sizes = sizes or {}
        self.dtype = np.dtype(dtype)
        kinds = ("bin", "docs", "mask") if masked else ("bin", "docs")
        self._files = {kind: BlockWriter(folder / f"{name}.{kind}", sizes.get(kind, 0)) for kind in kinds}

    @property
    def tokens(self) -> int:
        return self._files["bin"].size // self.dtype.itemsize

    @property
    def documents(self) -> int:
        return self._files["docs"].size // DOCUMENT_DTYPE.itemsize

    def append(
        self, ids: NDArray, lengths: NDArray[np.integer], digests: NDArray[np.uint64], mask: NDArray[np.uint8] | None
    ) -> None:
        """Appends whole documents: their concatenated token ids, and the length and digest of each."""
        documents = np.empty(len(lengths), DOCUMENT_DTYPE)
        documents["end"] = self.tokens + np.cumsum(lengths)
        documents["digest"] = digests
        self._files["bin"].append(np.ascontiguousarray(ids, self.dtype).tobytes())
        self._files["docs"].append(documents.tobytes())
        if mask is not None:
            self._files["mask"].append(mask.tobytes())

    def sizes(self) -> dict[str, int]:
        return {kind: file.size for kind, file in self._files.items()}

    def flush(self) -> None:
        for file in self._files.values():
            file.flush()

    def finish(self) -> dict:
        """Closes the files and returns the split's entry of the manifest."""
        tokens, documents = self.tokens, self.documents
        files = {kind: file.finish() for kind, file in self._files.items()}
        return {"tokens": tokens, "documents": documents, "files": files}

    def close(self) -> None:
        for file in self._files.values():
            file.close()


class Split:
    """Reads one split through memory maps; checks each block against its hash on the first read."""

    def __init__(self, folder: Path, name: str, dtype: DTypeLike, entry: dict, counted: Sizes | None = None):
        """counted: the bytes of each id [vocabulary] that the entry counts as text although they are special tokens."""
        self.name, self.tokens, self.documents = name, entry["tokens"], entry["documents"]
        self.bytes, self.token_bytes = entry["bytes"], entry["token_bytes"]
        self._counted = counted
        dtypes = {"bin": dtype, "docs": DOCUMENT_DTYPE, "mask": np.uint8}
        self._readers = {
            kind: BlockReader(folder / f"{name}.{kind}", file, dtypes[kind]) for kind, file in entry["files"].items()
        }

    @functools.cached_property
    def text_bytes(self) -> int:
        """UTF-8 bytes of the text, without special tokens. Reads the split where the entry counts them as text."""
        if self._counted is None:
            return self.bytes
        sizes, step = self._counted(), 1 << 24
        spans = ((start, min(start + step, self.tokens)) for start in range(0, self.tokens, step))
        special = sum(int(sizes[self.read_span(*span)].sum()) for span in spans)
        ends = self.document_ends().astype(np.int64) - 1  # the builder's own ends of documents were not counted
        last = self._readers["bin"].array[ends]
        return self.bytes - special + int(sizes[last].sum())

    @property
    def masked(self) -> bool:
        """Whether the store marks which tokens are completions."""
        return "mask" in self._readers

    def read(self, starts: ArrayLike, length: int) -> NDArray:
        """Tokens [n, length]; row i begins at starts[i]."""
        return self._rows("bin", starts, length)

    def read_mask(self, starts: ArrayLike, length: int) -> NDArray[np.uint8]:
        """1 where a token belongs to a completion [n, length]."""
        return self._rows("mask", starts, length)

    def read_span(self, start: int, stop: int, kind: str = "bin") -> NDArray:
        """Tokens start..stop in file order; with kind='mask', their completion marks."""
        reader = self._readers[kind]
        if stop > start:
            reader.check([start], [stop - 1])
        return reader.array[start:stop]

    def document_ends(self) -> NDArray[np.uint64]:
        """End of each document, in tokens [documents]; a checked memory map."""
        self._readers["docs"].check_all()
        return self._readers["docs"].array["end"]

    def digests(self) -> NDArray[np.uint64]:
        self._readers["docs"].check_all()
        return self._readers["docs"].array["digest"]

    def verify(self) -> None:
        """Reads and checks every byte. Raises DataError that names the first mismatch."""
        for reader in self._readers.values():
            reader.check_all()

    def _rows(self, kind: str, starts: ArrayLike, length: int) -> NDArray:
        reader = self._readers[kind]
        starts = np.asarray(starts, np.int64)
        reader.check(starts, starts + length - 1)
        array = reader.array
        # A strided view whose row i begins at element i: indexing copies each row as one contiguous run.
        step = array.strides[0]
        rows = np.lib.stride_tricks.as_strided(array, (len(array) - length + 1, length), (step, step), writeable=False)
        return rows[starts]
