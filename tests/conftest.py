"""Strict numerics on eight fake CPU devices; every test runs under a 1x1x1 mesh unless it makes its own.

Shape annotations of the numeric modules are checked at run time (jaxtyping with beartype). Golden numbers are read
through `golden`; `pytest --update-golden` writes them anew.
"""

# ruff: noqa: E402 - devices and the import hook must be set before JAX and distill are imported.

import dataclasses
import json
import os
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jaxtyping

from tests.checked_modules import CHECKED

jaxtyping.install_import_hook(list(CHECKED), "beartype.beartype")

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill import data
from distill.config import ExperimentConfig, MeshConfig, ModelConfig, OptimConfig
from distill.config.data import DataConfig, GeneratedConfig
from distill.model import sharding
from distill.system import process
from distill.training import step
from distill.types import Batch
from tests import cost

jax.config.update("jax_numpy_rank_promotion", "raise")
# The suite compiles the same small programs again and again: across tests, processes and runs.
jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/distill/xla-tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

GOLDEN = Path(__file__).parent / "golden"


def pytest_configure(config):
    config.pluginmanager.register(cost)


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="write tests/golden anew from what the tests got")


@pytest.fixture(autouse=True)
def one_device_mesh():
    """A sharding that names axes means nothing outside a mesh."""
    with jax.set_mesh(sharding.make(MeshConfig(data=1), jax.devices()[:1])):
        yield


@pytest.fixture
def one_device_loop(monkeypatch):
    """A run whose mesh has data=-1 takes one of the eight fake devices."""
    make = sharding.make
    monkeypatch.setattr(sharding, "make", lambda config, *devices: make(config, *(devices or (jax.devices()[:1],))))


@pytest.fixture(scope="module", autouse=True)
def room_for_programs():
    """Two thousand tests compile more than one process may hold."""
    yield
    process.clear_jit_caches()


@pytest.fixture(scope="session")
def mesh_of():
    """mesh_of(data, fsdp, tensor): an explicit mesh over as many of the fake devices, to be entered by the test."""
    return lambda data, fsdp, tensor: sharding.make(
        MeshConfig(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor]
    )


@pytest.fixture(scope="session")
def tiny():
    """The experiment that most tests share, and with it its compiled step: 20 steps of 4 x 16 tokens."""
    return ExperimentConfig(
        model=ModelConfig(vocab_size=32, d_model=16, n_layers=2, n_heads=2, d_ff_multiple=16),
        optim=OptimConfig(warmup_steps=4),
        data=DataConfig(
            source="generated", generated=GeneratedConfig(tokens=20_000, validation_tokens=4096, document_tokens=40)
        ),
        batch_size=4,
        seq_len=16,
        tokens=20 * 4 * 16,
    )


@pytest.fixture(scope="session")
def store(tiny, tmp_path_factory):
    """A generated language of 8 symbols: the text of `tiny`."""
    return data.open_store(tiny.data, tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def make_batch():
    """make_batch(count, seed): `count` stacked batches of random tokens with random weights, some of them zero."""

    def make(count=1, seed=0, *, batch=4, seq=16, vocab=32, weighted=True):
        rng = np.random.default_rng(seed)
        weight = rng.choice([0.0, 0.5, 1.0, 2.0], (count, batch, seq)) if weighted else np.ones((count, batch, seq))
        return Batch(rng.integers(0, vocab, (count, batch, seq + 1), np.int32), weight.astype(np.float32))

    return make


@pytest.fixture(scope="session")
def run_steps():
    """run_steps(config, batches, ...): (state, metrics summed over steps) after the stacked batches, on this mesh."""

    def run(config, batches, *, teacher=None, state=None, count=None):
        state = step.init_state(config) if state is None else state
        placed = sharding.place(batches, jax.sharding.get_mesh(), leading=1)
        count = batches.tokens.shape[0] if count is None else count
        return step.train_steps(step.step_spec(config), state, teacher, placed, count)

    return run


@pytest.fixture(scope="session")
def gradient_of(run_steps):
    """gradient_of(config, batches, ...): the gradient of the first step by parameter, read off Adam's first moment."""

    def gradient(config, batches, **kwargs):
        config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, clip=1e9))
        state, _ = run_steps(config, batches, count=1, **kwargs)
        is_adam = lambda node: isinstance(node, optax.ScaleByAdamState)
        (adam,) = (node for node in jax.tree.leaves(state.opt_state, is_leaf=is_adam) if is_adam(node))
        leaves, _ = jax.tree_util.tree_flatten_with_path(adam.mu)
        return {jax.tree_util.keystr(path): np.asarray(leaf) / (1 - config.optim.b1) for path, leaf in leaves}

    return gradient


@pytest.fixture(scope="session")
def assert_trees_equal():
    """Every leaf of two trees, bit for bit, named where it differs."""

    def check(got, want):
        got, want = (jax.tree_util.tree_flatten_with_path(tree)[0] for tree in (got, want))
        assert [path for path, _ in got] == [path for path, _ in want]
        for (path, a), (_, b) in zip(got, want):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path))

    return check


@pytest.fixture(scope="session")
def relative_error():
    """The norm of the difference of two dicts of arrays over the norm of the second."""

    def error(got, want):
        assert got.keys() == want.keys()
        flat = lambda tree: np.concatenate([np.ravel(tree[name]).astype(np.float64) for name in sorted(tree)])
        return np.linalg.norm(flat(got) - flat(want)) / np.linalg.norm(flat(want))

    return error


@pytest.fixture
def golden(request):
    """golden(name, {key: number or text}, rtol): compares with tests/golden/NAME.json, or writes it when asked to."""

    def check(name, got, rtol=0.0):
        path = GOLDEN / f"{name}.json"
        got = {key: value if isinstance(value, str) else float(value) for key, value in got.items()}
        if request.config.getoption("--update-golden"):
            path.write_text(json.dumps(got, indent=1) + "\n")
        want = json.loads(path.read_text())
        how = f"{path.name} differs. If the change is meant, say in the commit why the numbers moved and run:\n"
        how += f"    pytest {request.node.nodeid} --update-golden\n"
        assert got.keys() == want.keys(), how
        off = {
            key: f"got {got[key]!r}, golden {want[key]!r}"
            for key in want
            if not (got[key] == want[key] if isinstance(want[key], str) else np.isclose(got[key], want[key], rtol, 0))
        }
        assert not off, how + "\n".join(f"{key}: {text}" for key, text in off.items())

    return check


@pytest.fixture
def float64():
    """Double precision for the length of a test."""
    with jax.enable_x64(True):
        yield jnp.float64


def pytest_runtest_makereport(item, call):
    """With CI set, a skip is a failure: a tool that CI lacks must be installed there, not passed over."""
    if os.environ.get("CI") and call.excinfo is not None and call.excinfo.errisinstance(pytest.skip.Exception):
        call.excinfo = pytest.ExceptionInfo.from_exc_info(
            (AssertionError, AssertionError(f"skipped in CI: {call.excinfo.value}"), call.excinfo.tb)
        )
