"""Any kind of model by its path: a finished run, a Hugging Face directory, a GGUF file."""

import dataclasses
from pathlib import Path

from distill import data
from distill.config import ConfigError, DistillError
from distill.data.tokenizers import tokenizer as tokenizers
from distill.data.tokenizers.spec import Spec, spec_of
from distill.data.tokenizers.tokenizer import Tokenizer
from distill.interop import card, tokenizer_files
from distill.interop.source import is_model, open_source
from distill.interop.tokenizer_files import TokenizerFiles
from distill.teacher import load as teachers
from distill.teacher.load import LoadedTeacher


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(LoadedTeacher):
    """A model with what travels beside its weights; `published` is true of a model that is no run of this project."""

    published: bool

    def tokenizer_files(self, tokenizer: str = "") -> TokenizerFiles:
        """The tokenizer's files: its own, or those of the tokenizer that its run was trained with.

        tokenizer: a tokenizer.json to use instead.
        """
        if tokenizer:
            return tokenizer_files.of_tokenizer(tokenizers.load(Spec("json", tokenizer)))
        origin = self.source if self.published else self.origin
        return tokenizer_files.of_source(open_source(origin)[0]) if origin else tokenizer_files.of_tokenizer(
            self.tokenizer()
        )  # fmt: skip

    @property
    def origin(self) -> str:
        """The published model whose tokenizer, and with it chat template and settings, a run has; '': none."""
        config = self.config
        for place in (config.data.tokenizer.path, config.init.source, *(path for path, _ in config.teacher.sources)):
            if place and is_model(place):
                try:
                    if tokenizers.load(spec_of(place)).hash == self.tokenizer().hash:
                        return place
                except DistillError:  # a file that is gone, or none that can be read
                    continue
        return ""

    @property
    def licence(self) -> str:
        """The licence that the card of its teacher, or of the model that it begins with, names; '' where none does."""
        config = self.config
        own = (self.source,) if self.published else (config.init.source, *(path for path, _ in config.teacher.sources))
        return next((found for place in own if place and (found := card.licence(place))), "")

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises ConfigError where that of a run is gone."""
        if self.published:
            return tokenizers.load(spec_of(self.source))
        kind = self.config.data.tokenizer.kind
        if kind == "bytes" and self.config.data.source in ("embedded", "files", "tfds"):
            return tokenizers.load(Spec("bytes"))
        return self.store().tokenizer()

    def store(self) -> data.TokenStore:
        """The token store of a run."""
        store = data.open_store(self.config.data, self.config.data.cache or Path(self.source) / "data")
        return store.stores[0] if isinstance(store, data.Mixture) else store

    @property
    def context(self) -> int:
        """Positions that the model was trained on."""
        if self.published:
            return _positions(self.source)
        start = self.config.init.source  # a run that goes on from a published model keeps its positions
        return max(self.config.seq_len, _positions(start) if start and is_model(start) else 0)


def _positions(path: str) -> int:
    return int(open_source(path)[0].tree.get("max_position_embeddings") or 2048)


def load(source: str) -> Model:
    """The model at `source`, on the current mesh. Raises DistillError."""
    if not source:
        raise ConfigError("no model was given; wanted a finished run's workdir, a model's directory or a GGUF file")
    model = teachers.load(source)
    return Model(
        source=source, config=model.config, record=model.record, params=model.params, published=is_model(source)
    )
