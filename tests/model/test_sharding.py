"""Meshes: made, refused with a reason, and batches laid out over them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from distill.config import ConfigError, MeshConfig, ModelConfig
from distill.model import sharding
from distill.model.transformer import Transformer


def test_axes_are_explicit_and_data_takes_what_the_others_leave():
    made = sharding.make(MeshConfig(data=-1, fsdp=2, tensor=2))
    assert dict(made.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert set(made.axis_types) == {AxisType.Explicit}
    abstract = sharding.abstract(MeshConfig(data=2, fsdp=16, tensor=4))
    assert dict(abstract.shape) == {"data": 2, "fsdp": 16, "tensor": 4}
    assert abstract.axis_types == made.axis_types


@pytest.mark.parametrize("config", [MeshConfig(data=3), MeshConfig(fsdp=16), MeshConfig(data=8, tensor=2)])
def test_axes_that_do_not_multiply_to_the_devices_are_refused(config):
    with pytest.raises(ConfigError, match=r"config.mesh: got data=.* for 8 devices") as error:
        sharding.make(config)
    assert f"fsdp={config.fsdp}" in str(error.value)


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a mesh asks of a device: two slices of sixteen v5e, or nodes of GPUs."""

    id: int
    slice_index: int
    coords: tuple[int, int, int] = (0, 0, 0)
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    process_index: int = 0
    core_on_chip: int = 0


# As unordered as JAX may list them.
SLICES = [Chip(100_000 * (s + 1) + x + 4 * y, s, (x, y, 0)) for y in range(4) for x in range(4) for s in (1, 0)]


def test_slices_follow_one_another_along_data_and_each_is_the_mesh_of_one_slice():
    """Failed while jax.make_mesh made the mesh, which refuses several slices."""
    made = sharding.make(MeshConfig(data=4, fsdp=8), SLICES)
    assert dict(made.shape) == {"data": 4, "fsdp": 8, "tensor": 1} and set(made.axis_types) == {AxisType.Explicit}
    assert [{chip.slice_index for chip in row.flat} for row in made.devices] == [{0}, {0}, {1}, {1}]
    for index in (0, 1):
        alone = sharding.make(MeshConfig(data=2, fsdp=8), [chip for chip in SLICES if chip.slice_index == index])
        np.testing.assert_array_equal(alone.devices, made.devices[2 * index : 2 * index + 2])


def test_only_data_crosses_from_slice_to_slice():
    with pytest.raises(ConfigError, match="data=1 on 2 slices of 16 devices; .* must be a multiple of 2"):
        sharding.make(MeshConfig(data=1, fsdp=32), SLICES)


def test_nodes_of_gpus_are_no_slices():
    """JAX gives each its slice_index, but fsdp may go over several."""
    nodes = [Chip(8 * s + i, s, platform="gpu", device_kind="NVIDIA H100") for i in range(8) for s in (1, 0)]
    made = sharding.make(MeshConfig(data=1, fsdp=16), nodes)
    assert [chip.id for chip in made.devices.flat] == [*range(16)]


@pytest.mark.parametrize(
    ("model", "batch", "shape", "message"),
    [
        (ModelConfig(), 6, (2, 2, 1), "batch_size=6 .* data x fsdp=4"),
        (ModelConfig(d_model=20), 8, (1, 8, 1), "model.d_model=20 .* fsdp x tensor=8"),
        (ModelConfig(n_heads=4, n_kv_heads=2), 4, (1, 1, 4), "model.n_kv_heads=2 .* tensor=4"),
        (ModelConfig(n_heads=4, d_ff=42), 4, (1, 1, 4), "model.d_ff=42 .* tensor=4"),
        (ModelConfig(n_heads=4, vocab_size=254), 4, (1, 1, 4), "model.vocab_size=254 .* tensor=4"),
    ],
)
def test_a_dimension_that_does_not_divide_is_named_with_its_axis(mesh_of, model, batch, shape, message):
    with pytest.raises(ConfigError, match=message):
        sharding.check(model, batch, mesh_of(*shape))
    sharding.check(ModelConfig(n_heads=4), 8, mesh_of(*shape))


def test_a_batch_is_split_over_data_and_fsdp_and_copied_over_tensor(mesh_of):
    made = mesh_of(2, 2, 2)
    array = np.arange(3 * 8 * 5).reshape(3, 8, 5)
    placed = sharding.place({"tokens": array}, made, leading=1)["tokens"]
    assert placed.sharding.spec == P(None, ("data", "fsdp"), None)
    np.testing.assert_array_equal(placed, array)
    rows = {}
    for shard in placed.addressable_shards:
        data, fsdp, _ = np.argwhere(made.devices == shard.device)[0]
        rows.setdefault((data, fsdp), []).append(np.asarray(shard.data))
    for i, key in enumerate(sorted(rows)):
        first, copy = rows[key]
        np.testing.assert_array_equal(first, array[:, 2 * i : 2 * i + 2])
        np.testing.assert_array_equal(first, copy)


def test_a_parameter_in_use_is_split_over_tensor_alone():
    assert sharding.without_fsdp(P("tensor", None, "fsdp")) == P("tensor", None, None)
    for name, spec in sharding.PARAM_SPECS.items():
        assert len(spec) == len(name.rsplit("_", 1)[1]), "one entry for each letter of the name"
        assert "fsdp" not in sharding.without_fsdp(spec) and "data" not in spec


def test_operations_under_a_mesh_know_their_places(mesh_of):
    with jax.set_mesh(mesh_of(2, 1, 4)):
        found = jax.jit(lambda: jax.sharding.reshard(jax.numpy.zeros((8, 4)), sharding.PARAM_SPECS["embed_vd"]))()
    assert found.addressable_shards[0].data.shape == (2, 4)


def test_a_residual_stream_may_be_split_along_the_sequence(mesh_of):
    config = ModelConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=4, d_ff_multiple=32, sequence=True)
    with jax.set_mesh(mesh_of(1, 2, 4)):
        assert (
            sharding.residual(config, 16) == sharding.ACT_SEQUENCE and sharding.residual(config, 1) == sharding.ACT_BSD
        )
        assert sharding.residual(dataclasses.replace(config, sequence=False), 16) == sharding.ACT_BSD
        tokens = jnp.zeros((8, 16), jnp.int32)
        split, whole = (
            str(jax.make_jaxpr(lambda key, c=c: Transformer(c, key).hidden(tokens))(jax.random.key(0)))
            for c in (config, dataclasses.replace(config, sequence=False))
        )
        one_norm = "f32[8@(data,fsdp),16@tensor,1]"  # of a part of the positions
        assert one_norm in split and one_norm not in whole
