"""The record of a finished run: a row of runs.csv."""

import datetime
import math
import os
import platform
from collections.abc import Sequence

import jax

from distill import config as configs
from distill.config import ExperimentConfig, counts
from distill.data.mixture import Mixture
from distill.data.store.store import TokenStore
from distill.errors import DistillError
from distill.model.transformer import Transformer
from distill.records.runs import RunRecord
from distill.system import process
from distill.teacher.load import TeacherInfo
from distill.training.evaluate import evaluate
from distill.training.inputs import make_loader, validation_set
from distill.training.teachers import TeacherSource


def now() -> str:
    """This moment in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def run_record(
    config: ExperimentConfig,
    params: Transformer,
    store: TokenStore | Mixture,
    teacher: TeacherSource | None,
    start: str,
) -> RunRecord:
    """Evaluates the trained student beside its teacher, and counts its tokens, parameters and FLOPs.

    A run on text that a model generated names that model as its teacher.
    """
    evaluation = validation_set(config, store)
    batch_size, shared = config.eval.batch_size, config.mesh.context
    scores = teacher.scores(params, evaluation) if teacher else evaluate(params, evaluation, batch_size, context=shared)
    check_learned(config, scores.loss)
    teachers = teacher.teachers if teacher else ()
    maker = getattr(store, "maker", {})
    sized = [t for t in teachers if t.record.N]  # of one whose signals others wrote only the name may be known
    flops = [counts.run_flops(config, t.config.model, t.record.D) for t in sized] or [counts.run_flops(config)]
    reads = teacher.tokens_per_token if teacher else 1.0
    return RunRecord(
        run=configs.fingerprint(config),
        kind="distillation" if teacher else "generated" if maker else "supervised",
        N=counts.non_embedding(config.model),
        D=counts.training_tokens(config),
        D_unique=make_loader(config, store, config.data.split).unique_tokens(config.steps),
        loss=scores.loss,
        loss_se=scores.loss_se,
        L_T=teacher.loss(evaluation, config) if teacher else None,
        teacher=teacher.run if teacher else maker.get("teacher"),
        N_T=(sum(t.record.N for t in teachers) or None) if teachers else maker.get("N"),
        D_T=(sum(t.record.D for t in teachers) if teachers else maker.get("D")) or None,  # 0: a published model's
        flops_student=flops[0].student,
        flops_teacher=sum(cost.teacher_forward for cost in flops) * reads + maker.get("flops", 0.0),
        lambda_=config.objective.lambda_ if teacher else None,
        tau=config.objective.temperature if teacher else None,
        seed=config.seed,
        trunk=configs.trunk_fingerprint(config),
        model=f"{config.model.d_model}x{config.model.n_layers}",
        tokenizer=store.tokenizer_name,
        bits_per_byte=scores.bits_per_byte,
        kl=scores.kl,
        agreement=scores.agreement,
        ece=scores.ece,
        start=start,
        end=now(),
        machine=f"{jax.device_count()} x {jax.devices()[0].device_kind} {platform.machine()}, {os.cpu_count()} cores",
        commit=process.commit(),
        N_total=counts.stored(config.model) if config.model.experts else None,
        N_T_total=_stored(teachers),
    )


def _stored(teachers: Sequence[TeacherInfo]) -> int | None:
    """All non-embedding parameters of teachers of which some have experts; None where none has."""
    each = [teacher.record for teacher in teachers]
    return sum(one.N_total or one.N for one in each) if any(one.N_total for one in each) else None


def check_learned(config: ExperimentConfig, loss: float) -> None:
    """Raises DistillError for a validation loss far above that of the uniform distribution, ln V: no model came of it.

    A model that was never trained is at about ln V; one that diverged, but stayed finite, is anywhere above.
    """
    uniform = math.log(config.model.tokens)
    if loss > max(2 * uniform, uniform + 3):
        raise DistillError(
            f"the run ended with a validation loss of {loss:.4g} nats a token, and guessing among its "
            f"{config.model.tokens} tokens has {uniform:.4g}: it diverged, and there is no result; lower "
            f"optim.learning_rate={config.optim.learning_rate:g} and use another workdir"
        )
