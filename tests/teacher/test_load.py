"""Finding and loading a finished run as a teacher."""

import dataclasses

import jax
import pytest

from distill import config as configs
from distill.config import ConfigError
from distill.records import runs
from distill.records.checkpoints import CheckpointError, Checkpoints
from distill.teacher import load
from distill.training import step


def record(config) -> runs.RunRecord:
    values = {field.name: None for field in dataclasses.fields(runs.RunRecord)}
    return runs.RunRecord(**values | {"run": configs.fingerprint(config), "tokenizer": "bytes", "loss": 2.0})


@pytest.fixture
def finished(tiny, tmp_path):
    """(state, workdir) of a run that ended after its last step."""
    state = step.init_state(tiny)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(tiny.steps, state.stored(), configs.to_text(tiny))
    (tmp_path / "config.txt").write_text(configs.to_text(tiny))
    runs.save_record(record(tiny), tmp_path / "result.json")
    return state, tmp_path


def test_a_finished_run_is_found_by_its_workdir(finished, tiny):
    info = load.read_info(finished[1])
    assert info.config == tiny and info.record == record(tiny) and info.source == str(finished[1])


def test_its_parameters_come_back_on_the_mesh_of_the_student(finished, tiny, mesh_of, assert_trees_equal):
    state, workdir = finished
    assert_trees_equal(load.load(workdir).params, state.params)
    with jax.set_mesh(mesh_of(2, 1, 2)):
        teacher = load.load(workdir)
    assert teacher.config == tiny and teacher.record == record(tiny)
    assert_trees_equal(teacher.params, state.params)
    assert teacher.params.embed[...].addressable_shards[0].data.shape == (16, 16)  # the vocabulary over tensor


def test_an_unfinished_run_teaches_nobody(finished):
    _, workdir = finished
    (workdir / "result.json").unlink()
    with pytest.raises(ConfigError, match="no finished run .no result.json. and no .*; give the workdir of") as error:
        load.read_info(workdir)
    assert str(workdir) in str(error.value)


def test_a_teacher_whose_last_checkpoint_is_gone_is_named(tiny, tmp_path):
    (tmp_path / "config.txt").write_text(configs.to_text(tiny))
    runs.save_record(record(tiny), tmp_path / "result.json")
    with pytest.raises(CheckpointError, match=rf"step {tiny.steps}. is gone.*delete .*result.json to train it again"):
        load.load(tmp_path)
