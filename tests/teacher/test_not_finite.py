"""Teachers that are not numbers: a tensor of a run's own checkpoint, or what finite weights give; one line names it."""

import dataclasses
import random
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill.config import MeshConfig
from distill.errors import SignalError
from distill.model import sharding
from distill.model.transformer import parameter_name
from distill.records.checkpoints import CheckpointError, Checkpoints
from distill.teacher import load
from distill.teacher.in_memory import InMemorySignals
from distill.teacher.signals import codec
from distill.teacher.signals.reader import SignalStore
from distill.training import step
from launch import cache, convert, train
from launch import evaluate as launch_evaluate
from launch.support import cli

ROOT = Path(__file__).parents[2]
FIRST = ROOT / "tests" / "golden" / "first"
SMALL = [
    "--config.data.source=tokens", f"--config.data.tokens={FIRST / 'store'}", "--config.model.vocab_size=300",
    "--config.model.d_model=16", "--config.model.n_layers=1", "--config.model.n_heads=1", "--config.seq_len=16",
    "--config.batch_size=8", "--config.eval.tokens=512", "--config.tokens=1K",
]  # fmt: skip


def poison(params, name, value, place=0):
    """The parameters with one value of the tensor `name` replaced."""

    def change(path, leaf):
        if parameter_name(path) != name:
            return leaf
        host = np.array(leaf)
        host.reshape(-1)[place % host.size] = value
        return jax.device_put(host, leaf.sharding)

    return jax.tree_util.tree_map_with_path(change, params)


def test_any_value_that_is_not_finite_is_found_and_its_tensor_named(tiny):
    """200 draws of a tensor, a place and a value; the layer is that of the place."""
    params = step.init_state(tiny).params
    load.check_finite("here", params)
    leaves = {parameter_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
    for seed in range(200):
        draw = random.Random(seed)
        name = draw.choice(list(leaves))
        place = draw.randrange(leaves[name].size)
        value = draw.choice([np.nan, np.inf, -np.inf])
        layer = f" of layer {place // leaves[name][0].size}" if name.startswith("blocks.") else ""
        with pytest.raises(CheckpointError) as error:
            load.check_finite("here", poison(params, name, value, place))
        assert f"here: tensor '{name}'{layer} holds values that are not finite" in str(error.value)


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """broken(change): a copy of a finished run with changed parameters, saved as its own checkpoint."""

    def make(change):
        out = tmp_path_factory.mktemp("broken") / "run"
        shutil.copytree(FIRST / "run", out)
        with jax.set_mesh(sharding.make(MeshConfig(), jax.devices()[:1])):
            teacher = load.load(out)
            state = step.init_state(teacher.config)
            with Checkpoints(out / "checkpoints", readonly=True) as checkpoints:
                found = checkpoints.restore(teacher.config.steps, state.stored())
            found["params"] = change(found["params"])
            text = (out / "config.txt").read_text()
            shutil.rmtree(out / "checkpoints")
            with Checkpoints(out / "checkpoints") as checkpoints:
                checkpoints.save(teacher.config.steps, found, text)
        return out

    return make


@pytest.fixture(scope="module")
def with_nan(broken):
    return broken(lambda params: poison(params, "blocks.gate", np.nan, 7))


def test_every_command_names_the_tensor_of_a_run_with_nan(with_nan, tmp_path, capsys, monkeypatch):
    """convert blamed the disk, evaluate printed nan with exit code 0, cache finished with fidelity KL 0."""
    monkeypatch.chdir(ROOT)
    teacher = f"--config.teacher.source={with_nan}"
    commands = {
        "convert": (convert.main, [f"--in={with_nan}", f"--out={tmp_path / 'hf'}", "--verify"]),
        "evaluate": (launch_evaluate.main, [f"--model={with_nan}"]),
        "teacher": (launch_evaluate.main, [f"--model={FIRST / 'run'}", f"--teacher={with_nan}"]),
        "train": (train.main, [*SMALL, teacher, f"--workdir={tmp_path / 'student'}"]),
        "cache": (
            cache.main, ["--config=configs/signals.py:hidden", *SMALL, teacher, f"--out={tmp_path / 'store'}"],
        ),
    }  # fmt: skip
    for name, (main, flags) in commands.items():
        capsys.readouterr()
        assert cli.guard(main, flags) == 2, name
        said = capsys.readouterr().err
        assert re.search(r"error: .*tensor 'blocks.gate' of layer 0 holds values that are not finite", said), name
        assert said.count("error:") == 1 and "Traceback" not in said, name


@pytest.fixture(scope="module")
def overflowing(broken):
    """Finite weights whose logits are not."""

    def change(params):
        grown = {"last_norm": 1e30, "head": 1e20}
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf * jnp.float32(grown.get(parameter_name(path), 1)), params
        )

    return broken(change)


def test_every_command_names_the_window_where_finite_weights_overflow(overflowing, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    teacher = f"--config.teacher.source={overflowing}"
    student = [*SMALL, teacher, f"--workdir={tmp_path / 'student'}"]
    signals = ["--config=configs/signals.py:topk", *SMALL, teacher, f"--out={tmp_path / 'store'}"]
    commands = {
        "evaluate": (launch_evaluate.main, [f"--model={overflowing}"], "window .*the model's output is not finite"),
        "teacher": (
            launch_evaluate.main, [f"--model={FIRST / 'run'}", f"--teacher={overflowing}"],
            "window .*the teacher's output is not finite",
        ),
        "online": (train.main, student, r"the teacher's output on window \d+ of the 'student' split"),
        "memory": (
            train.main, [*student[:-1], f"--workdir={tmp_path / 'm'}", "--config.teacher.signal=memory"],
            r"window \d+: the teacher's output is not finite",
        ),
        "cache": (cache.main, signals, "the teacher's output is not finite|not finite"),
        "convert": (
            convert.main, [f"--in={overflowing}", f"--out={tmp_path / 'hf'}", "--verify"], "logits .*not finite",
        ),
    }  # fmt: skip
    for name, (main, flags, wanted) in commands.items():
        capsys.readouterr()
        assert cli.guard(main, flags) == 2, name
        said = capsys.readouterr().err
        assert re.search(f"error: .*{wanted}", said), (name, said)
        assert "Traceback" not in said, name


def test_a_window_in_memory_is_named(tiny, make_batch):
    batches = make_batch(1, batch=24)
    whole = dataclasses.replace(batches, tokens=batches.tokens[0], weight=batches.weight[0])
    params = step.init_state(tiny).params
    reader = lambda ids: jax.tree.map(lambda array: array[np.asarray(ids)], whole)
    InMemorySignals(params, reader, 24, 16, memory_gib=1.0).read(np.arange(20))
    with pytest.raises(SignalError, match="window 3: the teacher's output is not finite"):
        InMemorySignals(poison(params, "last_norm", np.nan), reader, 24, 16, memory_gib=1.0).read(np.arange(3, 20))


def test_a_stored_window_that_is_not_finite_is_named(monkeypatch):
    """A store of an earlier version could hold such a record, with a digest that matched."""
    store = SignalStore(FIRST / "signals-hidden")
    windows = np.array([2, 26, 83])
    assert np.isfinite(np.asarray(store.read(windows).hidden, np.float32)).all()
    whole = store._payloads(windows)
    values = codec.unpack_dense(whole[1], (16, 16), np.dtype(np.float16)).copy()
    values[3, 5] = np.nan
    monkeypatch.setattr(store, "_payloads", lambda _: [whole[0], codec.pack_dense(values), whole[2]])
    with pytest.raises(SignalError, match="window 26: the stored values are not finite"):
        store.read(windows)
