"""A published model (Hugging Face, GGUF) as a teacher, with the record of training that a run would have."""

from pathlib import Path

from distill import interop
from distill.config import ExperimentConfig, counts
from distill.data.tokenizers.around import NONE
from distill.data.tokenizers.spec import spec_of
from distill.data.tokenizers.tokenizer import load as load_tokenizer
from distill.errors import DataError
from distill.interop.source import fingerprint, open_source
from distill.model.transformer import Transformer
from distill.records.runs import RunRecord

is_model = interop.is_model


def describe(path: str | Path) -> tuple[ExperimentConfig, RunRecord]:
    """The model's config and record, from the headers of its files: no weights are read.

    N follows from the shapes. The number of training tokens is not known: D is 0. Losses are NaN, for they depend on
    the text; L_T is measured on the student's validation set. Raises InteropError for files that cannot be read.
    """
    source, model = open_source(path)
    run = fingerprint(source, model)
    record = RunRecord(
        run=run,
        kind="supervised",
        N=counts.non_embedding(model),
        trunk=run,
        model=f"{model.d_model}x{model.n_layers}",
        tokenizer=_tokenizer(path),
        N_total=counts.stored(model) if model.experts else None,
    )
    return ExperimentConfig(model=model), record


def context(path: str | Path) -> int:
    """The number of positions that the model was made for; 0 where its files do not tell."""
    found = open_source(path)[0].tree.get("max_position_embeddings")
    return found if type(found) is int else 0


def load(path: str | Path) -> Transformer:
    """The model's parameters, on the current mesh."""
    return interop.load(path).params


def _tokenizer(path: str | Path) -> str:
    """The name of its tokenizer, as a token store has it; '' where there is no tokenizer that can be read."""
    try:
        return load_tokenizer(spec_of(path, NONE)._replace(option=NONE)).name
    except DataError:
        return ""
