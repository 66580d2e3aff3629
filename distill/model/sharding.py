"""The mesh with its three axes, and the table of every array's sharding.

data and fsdp split the batch; fsdp also splits what a step stores (parameters and optimiser); tensor splits heads,
feed-forward and vocabulary. Axes are Explicit: the sharding of a value is part of its type, and an operation with
several possible shardings of its result takes `out_sharding`.
"""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.sharding import AbstractMesh, AxisType, Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree
from numpy.typing import NDArray

from distill.config import ConfigError, MeshConfig, ModelConfig
from distill.types import Batch

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")

# Stored parameters, by role and dims; a stacked layer axis comes first and is never split.
PARAM_SPECS = {
    "embed_vd": P("tensor", "fsdp"),
    "head_vd": P("tensor", "fsdp"),
    "query_dhk": P("fsdp", "tensor", None),
    "key_dgk": P("fsdp", "tensor", None),
    "value_dgk": P("fsdp", "tensor", None),
    "out_hkd": P("tensor", None, "fsdp"),
    "gate_df": P("fsdp", "tensor"),
    "up_df": P("fsdp", "tensor"),
    "down_fd": P("tensor", "fsdp"),
    "router_dx": P("fsdp", None),
    "router_bias_x": P(None),
    "expert_bias_xf": P(None, "tensor"),
    "expert_bias_xd": P(None, None),
    "sink_h": P("tensor"),
    "expert_gate_xdf": P(None, "fsdp", "tensor"),  # of each expert as of one feed-forward: any number divides
    "expert_up_xdf": P(None, "fsdp", "tensor"),
    "expert_down_xfd": P(None, "tensor", "fsdp"),
    "project_de": P("fsdp", "tensor"),
    # Adapters (model/lora.py): A of maps from D, and from heads or F; B to heads or F, and to D. Small: not over fsdp.
    "lora_a_dr": P(None, None),
    "lora_a_fr": P("tensor", None),
    "lora_b_rf": P(None, "tensor"),
    "lora_b_rd": P(None, None),
    "bias_hk": P("tensor", None),
    "feed_bias_f": P("tensor"),
    "out_bias_d": P(None),
    "gain_d": P(None),
    "gain_k": P(None),
}

# Activations.
TOKENS_BS = P(BATCH, None)
ACT_BSD = P(BATCH, None, None)
ACT_SEQUENCE = P(BATCH, "tensor", None)
ACT_BSHK = P(BATCH, None, "tensor", None)
ACT_BSF = P(BATCH, None, "tensor")
LOGITS_BSV = P(BATCH, None, "tensor")


def without_fsdp(spec: P) -> P:
    """The sharding of a parameter in use: gathered over fsdp, still split over tensor."""
    return P(*(None if axis == "fsdp" else axis for axis in spec))


def gather_for_use(weight: Array, name: str) -> Array:
    """A stored parameter gathered over fsdp for use, as a matrix; it stays split over tensor.

    Its type marks it as reduced over the batch axes, so its gradient leaves the matmul unreduced and is then reduced by
    one reduce-scatter over fsdp and one all-reduce of the pieces over data. After a plain reshard the whole gradient
    would be summed on every device and then sliced. Heads and their width become one dimension, because the TPU
    compiler scatters pieces that do not fill a tile in two dimensions, but not in three.
    """
    spec = PARAM_SPECS[name]
    if "fsdp" not in spec:
        return weight
    if len(spec) == 3:
        wide = spec[0] == "fsdp"  # [D, H, K], or [H, K, D]
        inner = weight.shape[0] if wide else weight.shape[2]
        outer = weight.size // inner
        spec = P("fsdp", "tensor") if wide else P("tensor", "fsdp")
        weight = lax.reshape(weight, (inner, outer) if wide else (outer, inner), out_sharding=spec)
    pieces = jax.sharding.reshard(weight, P(*spec, reduced={"data"}))
    return jax.sharding.reshard(pieces, P(*without_fsdp(spec), reduced=set(BATCH)))


def residual(model: ModelConfig, length: int) -> P:
    """The sharding of the residual stream [B, S, D] between blocks.

    With `model.sequence` it is split over tensor along S, as are the norms and additions on it: memory and work are
    divided by the number of devices, and an all-gather before a block's products and a reduce-scatter after them
    replace one all-reduce (Korthikanti et al. 2205.05198). A length that does not divide evenly is not split, such as
    one decoded token.
    """
    split = model.sequence and length % jax.sharding.get_abstract_mesh().shape.get("tensor", 1) == 0
    return ACT_SEQUENCE if split else ACT_BSD


def save_all_but_gathered(primitive: Primitive, *_: object, **__: object) -> bool:
    """A policy of jax.checkpoint: saves everything except gathered weights, which the backward pass gathers again."""
    return primitive.name not in ("reshard", "all_gather")  # the second: of experts, inside a shard_map


def gather_rows(piece: Array) -> Array:
    """Inside a shard_map: this device's rows [V, D] of an embedding or a head, of which it stores some columns.

    Pieces are exchanged first, so that gather and scatter run over rows: columns are too few to fill a TPU's tiles, and
    its compiler would all-reduce the whole gradient. If the rows do not divide evenly, columns are gathered.
    """
    if piece.shape[0] % lax.axis_size("fsdp"):
        return lax.all_gather(piece, "fsdp", axis=1, tiled=True)
    piece = lax.all_to_all(piece, "fsdp", split_axis=0, concat_axis=1, tiled=True)
    return lax.all_gather(piece, "fsdp", axis=0, tiled=True)


def rows(table: Array, tokens: Array) -> Array:
    """The rows of a stored embedding [V, D] at `tokens` [B, S], as [B, S, D] split over tensor along D.

    For the lookup the table, too, is split over tensor along D, never along the vocabulary.
    """

    def local(table: Array, tokens: Array) -> Array:
        # Before it is gathered: then its gradient is scattered over fsdp first, and only pieces are summed over data.
        table = lax.pcast(table, "data", to="varying")
        return lax.all_to_all(gather_rows(table), "tensor", split_axis=1, concat_axis=0, tiled=True)[tokens]

    if jax.sharding.get_abstract_mesh().size == 1:
        table = jax.sharding.reshard(table, P(None, "tensor"))
        return table.at[tokens].get(out_sharding=P(BATCH, None, "tensor"))
    mapped = jax.shard_map(local, in_specs=(PARAM_SPECS["embed_vd"], TOKENS_BS), out_specs=P(BATCH, None, "tensor"))
    return mapped(jax.sharding.reshard(table, PARAM_SPECS["embed_vd"]), jax.sharding.reshard(tokens, TOKENS_BS))


def make(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over all devices, or over those given. Raises ConfigError if the axes' product is another number."""
    devices = list(jax.devices() if devices is None else devices)
    fixed = config.fsdp * config.tensor
    data = len(devices) // fixed if config.data == -1 else config.data
    if data * fixed != len(devices) or data < 1:
        raise ConfigError(
            f"config.mesh: got data={config.data}, fsdp={config.fsdp}, tensor={config.tensor} for {len(devices)} "
            "devices; their product must be the number of devices (data=-1 takes what the others leave)"
        )
    shape = (data, config.fsdp, config.tensor)
    return Mesh(_placed(devices, shape), AXES, axis_types=(AxisType.Explicit,) * 3)


def slices(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
    """Devices that a fast network connects, by slice: pods of TPUs; of GPUs, nodes."""
    found: dict[int, list[jax.Device]] = {}
    for device in devices:
        found.setdefault(getattr(device, "slice_index", None) or 0, []).append(device)
    return [found[index] for index in sorted(found)]


def _placed(devices: Sequence[jax.Device], shape: tuple[int, ...]) -> NDArray[np.object_]:
    """The devices in the mesh's shape, one slice after another along data, so that nothing else crosses between them.

    Raises ConfigError if data is no multiple of the number of a TPU's slices.
    """
    parts = slices(devices)
    if len(parts) > 1 and devices[0].platform != "tpu":  # nodes: any axis may go over several
        return np.array(sum(parts, [])).reshape(shape)
    if shape[0] % len(parts):
        raise ConfigError(
            f"config.mesh: got data={shape[0]} on {len(parts)} slices of {len(parts[0])} devices; only data may cross "
            f"from slice to slice, so it must be a multiple of {len(parts)}"
        )
    within = (shape[0] // len(parts), *shape[1:])
    return np.concatenate([jax.make_mesh(within, AXES, devices=part).devices for part in parts])


def abstract(config: MeshConfig) -> AbstractMesh:
    """The mesh without devices, to lower a pod's step on a laptop. Every axis must be given."""
    return AbstractMesh((config.data, config.fsdp, config.tensor), AXES, axis_types=(AxisType.Explicit,) * 3)


def check(model: ModelConfig, batch_size: int, mesh: Mesh | AbstractMesh, context: int = 1) -> None:
    """Raises ConfigError, naming field and axis, if a dimension does not divide over the mesh.

    Where `context` devices share a sequence, a microbatch of `batch_size` sequences has one for each such group.
    """
    size = dict(mesh.shape)
    rows = math.prod(size[axis] for axis in BATCH)
    if context > 1 and batch_size * context != rows:
        raise ConfigError(
            f"batch_size / microbatches={batch_size} sequences for mesh.context={context}: data x fsdp={rows} devices "
            f"share {rows // context} sequences at a time; set batch_size to {rows // context} x microbatches"
        )
    split = {
        "batch_size": (batch_size * context, rows, "data x fsdp"),
        "model.d_model": (model.d_model, size["fsdp"] * size["tensor"], "fsdp x tensor"),
        "model.n_kv_heads": (model.kv_heads, size["tensor"], "tensor"),
        **(
            {"model.expert_d_ff": (model.expert_dim, size["tensor"], "tensor")}
            if model.experts
            else {"model.d_ff": (model.ff_dim, size["tensor"], "tensor")}
        ),
        "model.vocab_size": (model.vocab_size, size["tensor"], "tensor"),
    }
    for name, (value, parts, axes) in split.items():
        if value % parts:
            raise ConfigError(f"{name}={value} does not divide over {axes}={parts} of the mesh; change one of them")


def place(tree: PyTree, mesh: Mesh, leading: int = 0) -> PyTree:
    """Puts host arrays on the mesh, with the batch on axis `leading` split over data and fsdp.

    Each process passes its own slice of the batch, of shared sequences (Batch.spans) all of it; axes before and after
    the batch are not split.
    """
    shared = isinstance(tree, Batch) and tree.spans > 1

    def put(array: NDArray[np.generic]) -> Array:
        spec = P(*([None] * leading), BATCH, *([None] * (array.ndim - leading - 1)))
        if shared:
            return jax.make_array_from_callback(array.shape, jax.NamedSharding(mesh, spec), lambda part: array[part])
        return jax.make_array_from_process_local_data(jax.NamedSharding(mesh, spec), array)

    return jax.tree.map(put, tree)
