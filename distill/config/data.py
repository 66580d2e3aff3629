"""The configuration of the data pipeline: frozen dataclasses. Standard library only."""

import dataclasses
from typing import Literal

from distill.config.tree import ConfigError, Identity


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilesConfig:
    """Text files: .txt, .jsonl and .parquet, the first two also as .gz, .xz or .zst; local or gs://.

    A .txt file is one document, or several separated by `separator`. Documents of `validation` files belong to the
    validation split regardless of their hash.
    """

    paths: tuple[str, ...] = dataclasses.field(default=(), metadata=Identity.excluded)  # files, folders, globs
    validation: tuple[str, ...] = dataclasses.field(default=(), metadata=Identity.excluded)  # globs
    separator: str = ""  # cuts a .txt file into documents; '': a file is one
    invalid_utf8: Literal["replace", "skip", "error"] = "replace"  # with U+FFFD; replaced and skipped are counted


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColumnsConfig:
    """Which columns of a record are text, for jsonl, parquet and TFDS. The first of these fields that is set is used.

    messages    a column of [{"role", "content"}, ...]; each turn is written through `chat`, or all, with the columns
                tools, documents and chat_template_kwargs, through the chat template of the model's folder or GGUF file
                (or the .jinja file) that `template` names
    prompt      a template, '{column}' standing for that column's text, followed by the `completion` template
    text        a column of plain text

    `completions_only` trains on the assistant's replies and on completions.
    """

    text: str = "text"  # column of plain text
    messages: str = ""  # column of [{role, content}, ...], in place of text
    chat: str = "<|im_start|>{role}\n{content}<|im_end|>\n"  # how a turn of messages is written
    # folder, GGUF or .jinja file whose chat template is used instead
    template: str = dataclasses.field(default="", metadata=Identity.excluded)
    today: str = ""  # date of a template that writes one, as 2026-07-01
    prompt: str = ""  # template of a prompt, in place of text: '{column}'
    completion: str = ""  # template of what follows the prompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfdsConfig:
    """A TensorFlow Datasets text dataset, read through `data_source` (array_record) without TensorFlow."""

    name: str = ""  # e.g. 'c4/en'; '': data_dir is one prepared dataset, version folder included
    data_dir: str = dataclasses.field(default="", metadata=Identity.excluded)  # '': TFDS's own default
    train: str = "train"  # TFDS split, sub-splits as 'train[:10%]' included
    validation: str = ""  # TFDS split; '': by document hash


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratedConfig:
    """A random language whose entropy rate is known exactly.

    markov  the next symbol depends on the last `depth` symbols (depth + 1 gram)
    hidden  a hidden Markov model of `states` states; state and symbol determine the next state (unifilar), which
            makes the entropy rate exact, and memory may reach back arbitrarily far
    """

    kind: Literal["markov", "hidden"] = "markov"  # of the random language
    symbols: int = 8  # of the alphabet
    depth: int = 2  # markov only [symbols]
    states: int = 16  # hidden only
    concentration: float = 0.3  # of the Dirichlet of each state's next symbol: smaller is more predictable
    seed: int = 0  # of the language and of its text
    tokens: int = 2_000_000  # of training text, both halves together [tokens]
    validation_tokens: int = 131_072  # of validation text [tokens]
    document_tokens: int = 65_536  # each document starts afresh from the stationary distribution [tokens]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """Finished token stores, sampled in proportion to weights; 'embedded' is the shipped corpus."""

    stores: tuple[str, ...] = dataclasses.field(default=(), metadata=Identity.excluded)  # folders of finished stores
    weights: tuple[float, ...] = ()  # one a store, in proportion


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How text becomes tokens.

    bytes          UTF-8, vocabulary 256; a NUL (removed from text, and counted) ends each document
    bpe            a byte-level BPE of `vocab_size` tokens, trained on the training splits only
    json           a `tokenizer.json` at `path`, which may also be a model's folder or a GGUF file that holds one
    sentencepiece  a SentencePiece model at `path`, or in the folder of a model there
    """

    kind: Literal["bytes", "bpe", "json", "sentencepiece"] = "bytes"  # how text becomes tokens
    # of a tokenizer.json, a model's folder, a GGUF file or a SentencePiece model
    path: str = dataclasses.field(default="", metadata=Identity.excluded)
    vocab_size: int = 8192  # bpe only [tokens]
    train_bytes: int = 100_000_000  # bpe only: text read to learn the merges [bytes]
    end_of_text: str = ""  # json only: the token that ends a document; '': found by its usual names
    # what stands around a text: 'model' (as the tokenizer's files say), 'none', or tokens such as '<s> $A'
    special: str = dataclasses.field(default="model", metadata=Identity.excluded)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Fractions of the documents, assigned by a hash of each document's text.

    A source with splits of its own (embedded, generated, validation files) keeps them; fractions apply to the rest.
    """

    validation: float = 0.05  # fraction of the documents
    teacher: float = 0.5  # of what is not validation; the student takes the rest
    duplicates: Literal["across", "all"] = "across"  # drop exact copies across splits only, or within them too


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the text comes from, how it becomes tokens, and which split this run reads.

    packing: 'windows' cuts the token stream into rows that cross document ends; 'segments' cuts it likewise but
    attention and prediction stay inside a document; 'documents' packs whole documents into rows.
    Paths are not part of a run's identity: text from outside the package enters the fingerprint through `store`.
    """

    # where the text comes from
    source: Literal["embedded", "files", "tfds", "generated", "tokens", "mixture"] = "embedded"
    files: FilesConfig = FilesConfig()
    columns: ColumnsConfig = ColumnsConfig()
    tfds: TfdsConfig = TfdsConfig()
    generated: GeneratedConfig = GeneratedConfig()
    tokens: str = dataclasses.field(default="", metadata=Identity.excluded)  # the folder of a finished store
    mixture: MixtureConfig = MixtureConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    splits: SplitConfig = SplitConfig()
    split: Literal["teacher", "student"] = "student"  # whose half of the training text this run reads
    packing: Literal["windows", "segments", "documents"] = "windows"  # how documents become rows
    completions_only: bool = False  # only replies and completions are predicted
    seed: int = 0  # of the order of windows
    # draw from at most so many tokens of the split (a random choice of windows), as often as it takes; 0: all [tokens]
    unique: int = 0
    store: str = ""  # the store's own fingerprint, filled in where the config alone does not say what the text is
    cache: str = dataclasses.field(default="", metadata=Identity.excluded)  # folder of built stores; '': WORKDIR/data

    def __post_init__(self):
        if self.files.paths and self.source == "embedded":
            raise ConfigError(
                f"data.files.paths: got {self.files.paths[0]!r}, and data.source='embedded' reads no files; "
                "add data.source=files"
            )

    def identified(self, store: str) -> "DataConfig":
        """This config with the fingerprint of its opened store; unchanged if its own fields determine the text."""
        known = self.source in ("embedded", "generated") and not self.tokenizer.path
        return self if known else dataclasses.replace(self, store=store)
