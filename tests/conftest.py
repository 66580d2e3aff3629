"""Strict numerics on eight fake CPU devices; every test runs under a 1x1x1 explicit mesh unless it makes its own."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest

from distill import mesh
from distill.config import MeshConfig

jax.config.update("jax_numpy_rank_promotion", "raise")
# The suite compiles the same small programs again and again: across tests, processes and runs.
jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/distill/xla-tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


@pytest.fixture(autouse=True)
def one_device_mesh():
    """A sharding that names axes means nothing outside a mesh."""
    with jax.set_mesh(mesh.make(MeshConfig(data=1), jax.devices()[:1])):
        yield


@pytest.fixture
def mesh_of():
    """mesh_of(data, fsdp, tensor): an explicit mesh over as many of the fake devices, to be entered by the test."""
    return lambda data, fsdp, tensor: mesh.make(
        MeshConfig(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor]
    )


def pytest_runtest_makereport(item, call):
    """With CI set, a skip is a failure: a tool that CI lacks must be installed there, not passed over."""
    if os.environ.get("CI") and call.excinfo is not None and call.excinfo.errisinstance(pytest.skip.Exception):
        call.excinfo = pytest.ExceptionInfo.from_exc_info(
            (AssertionError, AssertionError(f"skipped in CI: {call.excinfo.value}"), call.excinfo.tb)
        )
