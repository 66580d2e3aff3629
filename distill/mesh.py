"""One mesh, three axes, and the one table that says where every array lies.

data and fsdp split the batch; fsdp also splits what a step stores (parameters and optimiser); tensor splits heads,
feed-forward and vocabulary. Axes are Explicit: the sharding of a value is part of its type, and an operation that
does not know its result's place must be told.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh
from jax.sharding import PartitionSpec as P

from distill.config import ConfigError, MeshConfig, ModelConfig

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")

# Parameters as they are stored, by role and dims; a stacked layer axis comes in front and is never split.
STORED = {
    "embed_vd": P("tensor", "fsdp"),
    "head_vd": P("tensor", "fsdp"),
    "query_dhk": P("fsdp", "tensor", None),
    "key_dgk": P("fsdp", "tensor", None),
    "value_dgk": P("fsdp", "tensor", None),
    "out_hkd": P("tensor", None, "fsdp"),
    "gate_df": P("fsdp", "tensor"),
    "up_df": P("fsdp", "tensor"),
    "down_fd": P("tensor", "fsdp"),
    "project_de": P("fsdp", "tensor"),
    "bias_hk": P("tensor", None),
    "out_bias_d": P(None),
    "gain_d": P(None),
    "gain_k": P(None),
}

# Activations.
TOKENS_BS = P(BATCH, None)
ACT_BSD = P(BATCH, None, None)
ACT_BSHK = P(BATCH, None, "tensor", None)
ACT_BSF = P(BATCH, None, "tensor")
LOGITS_BSV = P(BATCH, None, "tensor")


def without_fsdp(spec: P) -> P:
    """The place of a parameter while it is used: gathered over fsdp, still split over tensor."""
    return P(*(None if axis == "fsdp" else axis for axis in spec))


def make(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over all devices, or over those given. Raises ConfigError where the axes do not multiply to them."""
    devices = list(jax.devices() if devices is None else devices)
    fixed = config.fsdp * config.tensor
    data = len(devices) // fixed if config.data == -1 else config.data
    if data * fixed != len(devices) or data < 1:
        raise ConfigError(
            f"config.mesh: got data={config.data}, fsdp={config.fsdp}, tensor={config.tensor} for {len(devices)} "
            "devices; their product must be the number of devices (data=-1 takes what the others leave)"
        )
    shape = (data, config.fsdp, config.tensor)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Explicit,) * 3, devices=devices)


def abstract(config: MeshConfig) -> AbstractMesh:
    """The same mesh without devices: enough to lower a pod's step on a laptop. Every axis must be given."""
    return AbstractMesh((config.data, config.fsdp, config.tensor), AXES, axis_types=(AxisType.Explicit,) * 3)


def check(model: ModelConfig, batch_size: int, mesh: Mesh | AbstractMesh) -> None:
    """Raises ConfigError, naming field and axis, where a dimension does not divide over the mesh."""
    size = dict(mesh.shape)
    split = {
        "batch_size": (batch_size, math.prod(size[axis] for axis in BATCH), "data x fsdp"),
        "model.d_model": (model.d_model, size["fsdp"] * size["tensor"], "fsdp x tensor"),
        "model.n_kv_heads": (model.kv_heads, size["tensor"], "tensor"),
        "model.d_ff": (model.ff_dim, size["tensor"], "tensor"),
        "model.vocab_size": (model.vocab_size, size["tensor"], "tensor"),
    }
    for name, (value, parts, axes) in split.items():
        if value % parts:
            raise ConfigError(f"{name}={value} does not divide over {axes}={parts} of the mesh; change one of them")


def place(tree: Any, mesh: Mesh, leading: int = 0) -> Any:
    """Host arrays with the global batch on axis `leading`, spread over data and fsdp.

    Each process passes its own slice of the batch; axes before and after the batch are not split.
    """

    def put(array: Any) -> jax.Array:
        spec = P(*([None] * leading), BATCH, *([None] * (array.ndim - leading - 1)))
        return jax.make_array_from_process_local_data(jax.NamedSharding(mesh, spec), array)

    return jax.tree.map(put, tree)
