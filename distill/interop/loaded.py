"""Loads a published model: config, parameters on the current mesh, tokenizer."""

import dataclasses
import functools
from pathlib import Path

from distill.config import ModelConfig
from distill.data.tokenizers.spec import spec_of
from distill.data.tokenizers.tokenizer import Tokenizer
from distill.data.tokenizers.tokenizer import load as load_tokenizer
from distill.interop import parameters
from distill.interop.source import ModelSource, fingerprint, open_source
from distill.model.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model from a Hugging Face directory or a GGUF file.

    The parameters are the published ones. muP enters this project only by initial scales and learning rates, not by
    factors in the forward pass, so an import rescales nothing.
    """

    source: ModelSource
    config: ModelConfig
    params: Transformer

    @functools.cached_property
    def run(self) -> str:
        """The name of this model in the fingerprints of our runs."""
        return fingerprint(self.source, self.config)

    @property
    def context(self) -> int:
        """Number of positions that the model was made for; 0 if unknown."""
        return int(self.source.tree.get("max_position_embeddings") or 0)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model. Raises DataError where it is missing or unreadable."""
        return load_tokenizer(spec_of(self.source.path))


def load(path: str | Path, *, dtype: str = "float32", on_progress: parameters.OnTensor = lambda _: None) -> LoadedModel:
    """Loads the model at `path` on the current mesh, with parameters stored in `dtype`.

    Raises InteropError, naming the tensor, the value found and the value wanted, before anything is allocated.
    """
    source, config = open_source(path)
    return LoadedModel(source, config, parameters.load(config, source, dtype, on_progress))
