"""Pods on a laptop: the whole ladder is laid out and lowered on abstract meshes, with no devices at all."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from configs import smollm2
from distill.config import ExperimentConfig, MeshConfig, ModelConfig, ObjectiveConfig, TeacherConfig, build
from distill.config.data import DataConfig
from distill.config.ladder import PAPER_LADDER, SEQ_LEN, paper_model
from distill.model import sharding as mesh
from distill.model.transformer import Transformer
from distill.training import step
from distill.types import Batch


@pytest.fixture(autouse=True)
def one_device_mesh():
    """No concrete mesh here: an abstract one cannot be entered inside it."""


GROUPED = ModelConfig(d_model=16, n_heads=4, n_kv_heads=2, qkv_bias=True, out_bias=True, tied=False)


def test_every_parameter_lies_where_the_one_table_says():
    """On a pod that is never there: the specs of shapes alone. A stacked layer axis comes in front, unsplit."""
    with jax.sharding.use_abstract_mesh(mesh.abstract(MeshConfig(data=2, fsdp=2, tensor=2))):
        model = jax.eval_shape(lambda: Transformer(GROUPED, jax.random.key(0)))
    roles = {name.rsplit("_", 1)[0]: spec for name, spec in mesh.PARAM_SPECS.items()}
    leaves, _ = jax.tree_util.tree_flatten_with_path(model)
    for path, leaf in leaves:
        name = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)][-2]
        role = name if name in roles else "bias" if name.endswith("bias") else "gain"
        stacked = "blocks" in jax.tree_util.keystr(path)
        want = [*([None] * stacked), *roles[role]]
        assert [*leaf.sharding.spec] == want[: len(leaf.sharding.spec)], name
        assert not any(want[len(leaf.sharding.spec) :]), name


def lower(config: ExperimentConfig, teacher: ModelConfig | None = None) -> str:
    """The StableHLO of train_steps, for a TPU, on the config's mesh."""
    made = mesh.abstract(config.mesh)
    mesh.check(config.model, config.batch_size // config.microbatches, made)

    def stacked(length, dtype):
        sharding = jax.NamedSharding(made, jax.P(None, mesh.BATCH, None))
        return jax.ShapeDtypeStruct((2, config.batch_size, length), dtype, sharding=sharding)

    with jax.sharding.use_abstract_mesh(made):
        state = jax.eval_shape(lambda: step.init_state(config))
        taught = jax.eval_shape(lambda: Transformer(teacher, jax.random.key(0))) if teacher else None
        batches = Batch(stacked(config.seq_len + 1, jnp.int32), stacked(config.seq_len, jnp.float32))
        count = jax.ShapeDtypeStruct((), jnp.int32)
        traced = step.train_steps.trace(step.step_spec(config), state, taught, batches, count)
        return traced.lower(lowering_platforms=("tpu",)).as_text()


def pod(model: ModelConfig, **changes) -> ExperimentConfig:
    """256 chips and a batch of half a million tokens; tensor takes the part of 8 that divides the heads."""
    tensor = max(n for n in (1, 2, 4, 8) if model.n_heads % n == 0)
    return ExperimentConfig(
        model=model,
        mesh=MeshConfig(data=16 // tensor, fsdp=16, tensor=tensor),
        batch_size=256,
        seq_len=SEQ_LEN,
        tokens=10 * 256 * SEQ_LEN,
        **changes,
    )


@pytest.mark.parametrize("name", PAPER_LADDER)
def test_every_model_of_the_ladder_lowers_on_a_pod(name):
    model = paper_model(name)
    text = lower(pod(model))
    # The embedding comes in pieces, over tensor by rows and over fsdp by columns, and is donated.
    table = f"tensor<{model.vocab_size}x{model.d_model}xf32> {{jax.buffer_donor = true, sdy.sharding = "
    assert f'{table}#sdy.sharding<@mesh, [{{"tensor"}}, {{"fsdp"}}]>' in text


def test_distillation_in_microbatches_lowers_on_a_pod():
    config = pod(paper_model("546M"), microbatches=2, objective=ObjectiveConfig(lambda_=0.5, temperature=2.0))
    text = lower(config, teacher=paper_model("7.75B"))
    assert "tensor<32768x4352xf32>" in text  # the teacher is an argument, not a constant


@pytest.mark.parametrize(
    ("data", "fsdp", "tensor"), [(1, 1, 1), (8, 1, 1), (2, 16, 1), (2, 2, 2), (1, 2, 4), (4, 1, 2), (1, 1, 4)]
)
def test_micro_models_lower_on_any_mesh(data, fsdp, tensor):
    model = ModelConfig(d_model=64, n_layers=2, n_heads=4)
    config = ExperimentConfig(model=model, mesh=MeshConfig(data=data, fsdp=fsdp, tensor=tensor), batch_size=32)
    assert "func.func public @main" in lower(config)


@pytest.mark.parametrize("preset", smollm2.PRESETS)
def test_the_students_of_smollm2_lower_with_their_teacher(preset):
    """Its teacher in the step, as the presets' stored signal stands for it."""
    config = build(ExperimentConfig, smollm2.get_config(preset).to_dict())
    teacher = dataclasses.replace(config.model, d_model=576, n_layers=30, n_heads=9, n_kv_heads=3, d_ff=1536)
    config = dataclasses.replace(
        config,
        mesh=MeshConfig(data=4, fsdp=2, tensor=1),
        batch_size=8,
        objective=dataclasses.replace(config.objective, target="soft"),
        teacher=TeacherConfig(),
        data=DataConfig(),
    )
    assert "tensor<49152x576xf32>" in lower(config, teacher) or preset == "data"
