"""A teacher: its config, its record and its parameters, found in the workdir of a run or in a published model."""

import dataclasses
from pathlib import Path

import jax

from distill.config import ConfigError, ExperimentConfig, from_text
from distill.model.quantize import Precision, lower
from distill.model.transformer import Transformer
from distill.records.checkpoints import CheckpointError, Checkpoints
from distill.records.runs import RunRecord, load_record
from distill.system import cloud
from distill.teacher import pretrained


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of a model that teaches, whether or not it is loaded."""

    config: ExperimentConfig
    record: RunRecord


@dataclasses.dataclass(frozen=True)
class Teacher(Known):
    """A trained model that teaches."""

    params: Transformer


def find(source: str | Path) -> tuple[ExperimentConfig, RunRecord]:
    """The config and the record of the finished run, or the published model, in `source`; ConfigError for neither."""
    if pretrained.is_model(source):
        return pretrained.find(source)
    path = cloud.pulled(source)
    record = load_record(path / "result.json")
    if record is None or not (path / "config.txt").exists():
        raise ConfigError(
            f"{str(source)!r}: there is no finished run (no result.json) and no Hugging Face "
            "model (no config.json); give the workdir of a run, a model's directory or a GGUF file"
        )
    return from_text(ExperimentConfig, (path / "config.txt").read_text(), str(path / "config.txt")), record


def load(source: str | Path, dtype: Precision = "float32") -> Teacher:
    """The teacher in `source`, with its parameters placed on the current mesh, rounded to `dtype`."""
    config, record = find(source)
    if pretrained.is_model(source):
        return Teacher(config=config, record=record, params=lower(pretrained.load(source), dtype))
    abstract = jax.eval_shape(lambda key: Transformer(config.model, key), jax.random.key(0))
    device_mesh = jax.sharding.get_mesh()
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=jax.NamedSharding(device_mesh, leaf.sharding.spec)
        ),
        abstract,
    )
    with Checkpoints(cloud.Workdir(source).checkpoints, readonly=True) as checkpoints:
        if config.steps not in checkpoints.steps():
            raise CheckpointError(
                f"{checkpoints.directory}: the last checkpoint (step {config.steps}) is gone, only "
                f"{checkpoints.steps()} are left; delete {source}/result.json to train it again"
            )
        params = checkpoints.restore(config.steps, {"params": like})["params"]
    return Teacher(config=config, record=record, params=lower(params, dtype))
