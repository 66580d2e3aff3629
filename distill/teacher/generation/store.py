"""Builds the token store of completions that a student trains on; only the completions have weight."""

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypedDict

import numpy as np

from distill.config.data import SplitConfig
from distill.config.generation import GenerationConfig
from distill.data.corpus import open_at
from distill.data.documents import Document
from distill.data.store.build import OnProgress, StoreRecipe
from distill.data.store.store import TokenStore
from distill.data.tokenizers.tokenizer import Tokenizer, load
from distill.errors import DistillError
from distill.teacher.generation import journal
from distill.teacher.generation.journal import Record

Filter = Callable[[Record], bool]


class Maker(TypedDict):
    """The origin of the completions: the teacher's run, its N and D, and the FLOPs of the generation."""

    teacher: str
    N: int
    D: int
    flops: float


class CompletionSource:
    """A source of documents: the validation text of the prompts' store, then the kept completions.

    A document is a prompt and its completion with the token ids as drawn; only the completion has weight.
    Raises DistillError where no completion passes min_log_prob and the filter.
    """

    masked = True

    def __init__(self, path: Path, config: GenerationConfig, prompts: TokenStore, keep: Filter | None, maker: Maker):
        self._path, self._prompts, self._maker = path, prompts, maker
        self._text = config.held_out == "text" and "validation" in prompts.splits
        self.shards = ["validation", "completions"]
        self.explicit: tuple[str, ...] = ("validation", config.data.split)
        self.kept, self._of, digest = set[int](), 0, hashlib.sha256()
        for i, record in enumerate(journal.read(path)):
            self._of = i + 1
            if _passes(record, config.min_log_prob, keep, f"{path}, line {i + 1}"):
                self.kept.add(i)
                digest.update(json.dumps([record["prompt_ids"], record["ids"], record["split"]]).encode())
        if not self.kept:
            raise DistillError(
                f"{path}: none of the {self._of} completions passes min_log_prob={config.min_log_prob} and the filter; "
                "loosen them and run the same command again: the completions are kept"
            )
        self._digest, self._read = digest.hexdigest(), 0

    @property
    def share(self) -> float:
        return self._read / max(self._of, 1)

    def describe(self) -> dict[str, object]:
        held_out = self._prompts.fingerprint if self._text else "completions"
        return {"source": "completions", "content": self._digest, "validation": held_out, "maker": self._maker}

    def read(self, shard: int, skip: int = 0) -> Iterator[Document]:
        # Validation documents come first, so that a training completion equal to one of them is dropped.
        held_out = self._validation() if self._text else self._completions(True)
        yield from itertools.islice(held_out if shard == 0 else self._completions(False), skip, None)

    def _validation(self) -> Iterator[Document]:
        split = self._prompts.split("validation")
        begin = 0
        for end in split.document_ends().astype(np.int64).tolist():
            trained = split.read_span(begin, end, "mask") if split.masked else None
            yield Document(ids=np.asarray(split.read_span(begin, end)), trained=trained, split="validation")
            begin = end

    def _completions(self, held_out: bool) -> Iterator[Document]:
        for i, record in enumerate(journal.read(self._path)):
            self._read = i
            if i in self.kept and (record["split"] == "validation") == held_out:
                ids = np.array(record["prompt_ids"] + record["ids"], np.int64)
                trained = (np.arange(len(ids)) >= len(record["prompt_ids"])).astype(np.uint8)
                yield Document(ids=ids, trained=trained, split=record["split"])


def _passes(record: Record, least: float, keep: Filter | None, where: str) -> bool:
    if least < 0 and record["log_prob"] < least:
        return False
    if keep is None:
        return True
    try:
        return bool(keep(record))
    except Exception as error:  # user code may raise anything: report where it failed
        raise DistillError(f"{where}: the filter raised {type(error).__name__}: {error}") from None


def build(
    path: Path, completions: CompletionSource, prompts: TokenStore, on_progress: OnProgress = lambda _: None
) -> TokenStore:
    """Builds the token store of the completions at `path`; replaces one of other completions, which can be rebuilt."""
    description = {
        "source": completions.describe(),
        "tokenizer": {"name": prompts.tokenizer_name, "hash": prompts.tokenizer_hash},
    }
    text = json.dumps(description, sort_keys=True, separators=(",", ":"))
    recipe = StoreRecipe(
        source=completions,
        tokenizer=lambda folder, report: _copy(prompts, folder),
        splits=SplitConfig(),
        description=description,
        fingerprint=hashlib.sha256(text.encode()).hexdigest(),
    )
    if path.exists() and TokenStore(path).fingerprint != recipe.fingerprint:
        shutil.rmtree(path)
    return open_at(path, recipe, on_progress=on_progress)


def _copy(prompts: TokenStore, folder: Path) -> Tokenizer:
    """The prompts' tokenizer, with its file copied into the folder of the new store."""
    spec = prompts.tokenizer().spec
    if spec.path and Path(spec.path).is_file():
        copied = folder / Path(spec.path).name
        shutil.copyfile(spec.path, copied)
        spec = spec._replace(path=str(copied))
    tokenizer = load(spec)
    tokenizer.name, tokenizer.hash, tokenizer.end_of_text = (
        prompts.tokenizer_name,
        prompts.tokenizer_hash,
        prompts.end_of_text,
    )
    tokenizer.vocab_size, tokenizer.byte_lengths = prompts.vocab_size, prompts.byte_lengths
    return tokenizer
