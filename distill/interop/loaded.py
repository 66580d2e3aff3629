"""A published model, loaded: config, parameters on the current mesh, tokenizer."""

import dataclasses
import functools
from pathlib import Path

from distill.config import ModelConfig
from distill.data.tokenizers.subword import SubwordTokenizer
from distill.interop import parameters
from distill.interop.source import ModelSource, fingerprint, open_source
from distill.model.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model from a Hugging Face directory or a GGUF file.

    Its parameters are the published ones: no factor of muP is in this project's forward pass, which muP enters only
    by initial scales and learning rates, so an imported model needs nothing folded in or out.
    """

    source: ModelSource
    config: ModelConfig
    params: Transformer

    @functools.cached_property
    def run(self) -> str:
        """What names this model where a run of ours has its fingerprint."""
        return fingerprint(self.source, self.config)

    @property
    def context(self) -> int:
        """Positions that the model was made for; 0: it does not say."""
        return int(self.source.tree.get("max_position_embeddings") or 0)

    @functools.cached_property
    def tokenizer(self) -> SubwordTokenizer:
        """The tokenizer that came with the model. Raises DataError where there is none that can be read."""
        return SubwordTokenizer(str(self.source.path))


def load(path: str | Path, *, dtype: str = "float32", on_progress: parameters.OnTensor = lambda _: None) -> LoadedModel:
    """The model at `path` on the current mesh, its parameters stored in `dtype`.

    Raises InteropError, naming tensor, got and wanted, before anything is allocated.
    """
    source, config = open_source(path)
    return LoadedModel(source, config, parameters.load(config, source, dtype, on_progress))
