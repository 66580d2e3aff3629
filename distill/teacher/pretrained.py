"""A model that somebody else made as a teacher: what a record of a run would say of it, as far as anybody knows."""

from pathlib import Path

from distill import interop
from distill.config import ExperimentConfig, counts
from distill.data.tokenizers.subword import SubwordTokenizer
from distill.errors import DataError
from distill.interop.source import fingerprint, open_source
from distill.model.transformer import Transformer
from distill.records.runs import RunRecord

is_model = interop.is_model


def find(path: str | Path) -> tuple[ExperimentConfig, RunRecord]:
    """Its config and its record, heads read and no weights.

    N follows from the shapes. How many tokens it saw is not known: D is 0. Its losses are NaN until they are measured
    on somebody's text (L_T is, on the student's).
    """
    source, model = open_source(path)
    run, nan = fingerprint(source, model), float("nan")
    record = RunRecord(
        run=run,
        kind="supervised",
        N=counts.non_embedding(model),
        D=0,
        D_unique=0,
        loss=nan,
        loss_se=nan,
        L_T=None,
        teacher=None,
        N_T=None,
        D_T=None,
        flops_student=0.0,
        flops_teacher=0.0,
        lambda_=None,
        tau=None,
        seed=0,
        trunk=run,
        model=f"{model.d_model}x{model.n_layers}",
        tokenizer=_tokenizer(path),
        bits_per_byte=nan,
        kl=None,
        agreement=None,
        ece=nan,
        start="",
        end="",
        machine="",
        commit="",
    )
    return ExperimentConfig(model=model), record


def load(path: str | Path) -> Transformer:
    """Its parameters on the current mesh."""
    return interop.load(path).params


def _tokenizer(path: str | Path) -> str:
    """The name that a store of its tokens has; '' where it came without a tokenizer that can be read."""
    try:
        return SubwordTokenizer(str(path), "none").name
    except DataError:
        return ""
