"""A trained model as a teacher: config, record and parameters, from a run's workdir or a published model."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from distill.config import ConfigError, ExperimentConfig, from_text
from distill.interop import advice
from distill.model.quantize import Precision, cast
from distill.model.transformer import Transformer, parameter_name
from distill.records.checkpoints import CheckpointError, Checkpoints
from distill.records.runs import RunRecord, load_record
from distill.system import cloud
from distill.teacher import pretrained


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherInfo:
    """A trained model without its parameters: its source, its config, and the record of its training."""

    source: str
    config: ExperimentConfig
    record: RunRecord


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedTeacher(TeacherInfo):
    """A trained model with its parameters."""

    params: Transformer


def read_info(source: str | Path) -> TeacherInfo:
    """The config and the record of the finished run, or of the published model, in `source`; no parameters.

    Raises ConfigError where `source` holds neither.
    """
    if pretrained.is_model(source):
        config, published = pretrained.describe(source)
        return TeacherInfo(source=str(source), config=config, record=published)
    path = cloud.local_copy_of_run(source)
    record = load_record(path / "result.json")
    if record is None or not (path / "config.txt").exists():
        raise ConfigError(
            f"{str(source)!r}: there is no finished run (no result.json) and no Hugging Face "
            "model (no config.json); give the workdir of a run, a model's directory or a GGUF file"
            f"{advice.about_path(source)}"
        )
    config = from_text(ExperimentConfig, (path / "config.txt").read_text(), str(path / "config.txt"))
    return TeacherInfo(source=str(source), config=config, record=record)


def load(source: str | Path, dtype: Precision = "float32") -> LoadedTeacher:
    """The trained model in `source`, with its parameters on the current mesh in `dtype`.

    Raises ConfigError where there is none, CheckpointError where a run's last checkpoint is gone.
    """
    info = read_info(source)
    params = load_parameters(info, dtype)
    return LoadedTeacher(source=info.source, config=info.config, record=info.record, params=params)


def load_parameters(info: TeacherInfo, dtype: Precision = "float32") -> Transformer:
    """The parameters of a known model, placed on the current mesh and rounded to `dtype`.

    Raises CheckpointError where a run's last checkpoint is gone, or holds values that are not finite.
    """
    if pretrained.is_model(info.source):
        return cast(pretrained.load(info.source), dtype)
    config = info.config
    abstract = jax.eval_shape(lambda key: Transformer(config.model, key), jax.random.key(0))
    device_mesh = jax.sharding.get_mesh()
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=jax.NamedSharding(device_mesh, leaf.sharding.spec)
        ),
        abstract,
    )
    with Checkpoints(cloud.Workdir(info.source).checkpoints, readonly=True) as checkpoints:
        if config.steps not in checkpoints.steps():
            raise CheckpointError(
                f"{checkpoints.directory}: the last checkpoint (step {config.steps}) is gone, only "
                f"{checkpoints.steps()} are left; delete {info.source}/result.json to train it again"
            )
        params = checkpoints.restore(config.steps, {"params": like})["params"]
        check_finite(f"{checkpoints.directory}/{config.steps}", params)
    return cast(params, dtype)


def check_finite(where: str, params: Transformer) -> None:
    """Raises CheckpointError that names the first tensor (and its layer) with a NaN or an infinite value."""
    for path, found in jax.tree_util.tree_flatten_with_path(_finite(params))[0]:
        layers = np.atleast_1d(np.asarray(found))
        if not layers.all():
            layer = f" of layer {int(np.argmin(layers))}" if np.ndim(found) else ""
            raise CheckpointError(
                f"{where}: tensor {parameter_name(path)!r}{layer} holds values that are not finite (NaN or inf); no "
                "model can be made of it"
            )


@jax.jit
def _finite(params: Transformer) -> Transformer:
    """Whether all values of a parameter are finite; of a parameter with layers, one answer each."""

    def judge(path: jax.tree_util.KeyPath, leaf: jax.Array) -> jax.Array:
        stacked = parameter_name(path).startswith("blocks.")
        answer = jnp.all(jnp.isfinite(leaf), axis=tuple(range(1 if stacked else 0, leaf.ndim)))
        return jax.sharding.reshard(answer, jax.P(*[None] * answer.ndim))

    return jax.tree_util.tree_map_with_path(judge, params)
