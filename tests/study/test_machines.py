"""What a study does with one machine's accelerators, what it prints before it starts, and what it refuses."""

import dataclasses
import os

import pytest

from distill.config import ConfigError, ExperimentConfig, build, chips
from distill.diagnostics.dryrun import apart
from distill.study import forecast, scheduler, sweep, units
from distill.system import process
from launch import study as launch_study
from launch import sweep as launch_sweep
from launch.support import cli
from tests.study.test_units import planned

EIGHT = [str(i) for i in range(8)]


def groups(shares):
    return [share.gpus or share.tpus for share in shares]


def test_places_say_how_many_accelerators_a_worker_has(monkeypatch):
    """Seen to fail where `study.workers` still counts: two workers of four GPUs each, and a mesh of one device."""
    monkeypatch.setattr(process, "gpus", lambda: EIGHT)
    one, two = planned("smoke", ("to 1e9: mesh=data=1",)), planned("smoke", ("to 1e9: slice=h100:2",))
    assert groups(scheduler.shares(one, 2)) == [(name,) for name in EIGHT]
    assert groups(scheduler.shares(two, 2)) == [("0", "1"), ("2", "3"), ("4", "5"), ("6", "7")]
    assert groups(scheduler.shares(planned("smoke"), 2)) == [tuple(EIGHT[:4]), tuple(EIGHT[4:])]
    assert len(scheduler.shares(one[:3], 2)) == 3  # no more workers than runs
    with pytest.raises(ConfigError, match="is for 16 accelerators, and this machine has 8"):
        scheduler.shares(planned("smoke", ("to 1e9: slice=h100:16 mesh=data=4,tensor=4",)), 2)
    with pytest.raises(ConfigError, match="runs want 1 and 4 accelerators"):
        scheduler.shares(planned("smoke", ("to 4e4: mesh=data=1", "to 1e9: mesh=data=4")), 2)
    monkeypatch.setattr(process, "gpus", lambda: [])
    monkeypatch.setattr(process, "tpus", lambda: [])
    assert groups(scheduler.shares(two, 2)) == [(), ()]


@pytest.mark.parametrize("n, each, wanted", [(2, 0, [4, 4]), (3, 0, [2, 2, 2]), (16, 0, [1] * 8), (2, 1, [1] * 8)])
def test_a_tpu_chip_has_one_process(n, each, wanted):
    shares = process.shares(n, [0], [], EIGHT, each)
    assert [len(share.tpus) for share in shares] == wanted
    assert len({name for share in shares for name in share.tpus}) == sum(wanted)


def test_a_worker_sees_its_chips_alone(monkeypatch):
    monkeypatch.setattr(process, "pin_to_cores", lambda cores: None)
    for name in ("TPU_VISIBLE_CHIPS", "TPU_PROCESS_BOUNDS", "TPU_CHIPS_PER_PROCESS_BOUNDS"):
        monkeypatch.setenv(name, "")
    process.take(process.shares(4, [0], [], EIGHT)[1])
    assert os.environ["TPU_VISIBLE_CHIPS"] == "2,3" and os.environ["TPU_CHIPS_PER_PROCESS_BOUNDS"] == "1,2,1"
    assert process.tpus() == ["2", "3"]
    assert not process.shares(1, [0], [], EIGHT)[0].tpus  # all chips: libtpu finds them itself


@pytest.mark.parametrize(
    "backend, engine, message",
    [
        ("slurm", "--tiem=4:00:00", "got '--tiem=4:00:00', wanted"),
        ("slurm", "--nodes=4", "names, hosts and order follow from the study"),
        ("slurm", "--partition=gpu", "--sbatch=--partition=gpu"),
        ("ray", "--slots=GPU:8", "got '--slots=GPU:8'"),
        ("gke", "--image=i --tpu=v5e", "follows from the places"),
        ("gke", "--image=i --queu=team", "queu"),
    ],
)
def test_a_wrong_flag_of_an_engine_is_named_before_anything_is_written(tmp_path, capsys, backend, engine, message):
    try:
        code = cli.guard(
            launch_study.main, [f"--workdir={tmp_path / 'w'}", f"--backend={backend}", f"--engine={engine}"]
        )
    except SystemExit as end:  # argparse's own
        code = end.code
    assert code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_a_dry_run_of_a_backend_shows_its_jobs(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert launch_study.main([f"--workdir={tmp_path / 'w'}", "--backend=slurm", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    made = units.make(planned("smoke"))
    assert f"{len(made)} units" in shown and "predict" in shown and "conclude" in shown
    assert not (tmp_path / "w").exists()


def test_labels_of_chains_are_whole_in_a_narrow_terminal(tmp_path, capsys, monkeypatch):
    """Seen to fail with the columns' default, which ends a label that is too long with three dots."""
    monkeypatch.setenv("COLUMNS", "80")
    assert launch_study.main([f"--workdir={tmp_path}", "--config=configs/study.py:chains", "--dry-run"]) == 0
    assert "…" not in capsys.readouterr().out


def test_the_largest_step_of_each_place_is_compiled_once(monkeypatch, tmp_path, capsys):
    """Memory by tokens of the name here; that what is kept is asked for by step, chip and place, not by run."""
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path))
    lines = ("to 4e4: slice=h100:1", "to 1e9: slice=h100:2")
    tasks = planned("smoke", lines)
    steps = forecast.largest(tasks, lambda config, teacher: float(config.model.d_model))
    assert [(task.place.chips, task.config.model.d_model) for task, _, _ in steps] == [(1, 32), (2, 64)]
    assert all(config.mesh.data * config.mesh.fsdp == task.place.chips for task, config, _ in steps)
    (_, config, teacher), chip = steps[0], chips.find("h100")
    key = apart.key(config, teacher, chip)
    assert apart.key(dataclasses.replace(config, tokens=2 * config.tokens), teacher, chip) == key
    assert apart.key(dataclasses.replace(config, microbatches=2), teacher, chip) != key
    assert apart.key(config, config.model, chip) != key
    with pytest.raises(ConfigError, match="no line of config.study.places names a slice"):
        launch_study.main([f"--workdir={tmp_path}", "--dry-run=compile"])


def test_where_no_compiler_is_installed_the_step_is_reckoned_and_said_to_be(monkeypatch, tmp_path, capsys):
    """Seen to fail with the model's answer kept, which a compiler that was installed later could not replace."""
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path))
    monkeypatch.setenv("XLA_FLAGS", "")
    line = "--config.study.places=to 1e13: slice=h100:2 mesh=data=1,fsdp=2"
    few = ["--config.study.models=a = 16x1", "--config.study.teachers=", "--config.study.distilled="]
    few += ["--config.study.supervised=a @ 8K", f"--workdir={tmp_path / 'w'}", "--dry-run=compile", line]
    assert launch_study.main(few) == 0
    said = capsys.readouterr().out
    assert "h100:2, a@8K: fits, 0.0 of 75 GiB a chip, says a model (arithmetic, no compiler)\n" in said
    assert said.count("no compiler was asked: XLA's GPU compiler is not installed") == 1
    assert not (tmp_path / "dryrun").exists() and not (tmp_path / "w").exists()
    assert launch_study.main([*few, "--config.study.models=a = 65536x16"]) == 1
    assert "DOES NOT FIT" in capsys.readouterr().out


def test_a_sweep_that_is_refused_or_only_listed_leaves_nothing(tmp_path, capsys):
    """Seen to fail with the token store in WORKDIR/data after either."""
    here = ["--config.tokens=8K", "--config.model.d_model=16", f"--workdir={tmp_path / 'w'}"]
    assert cli.guard(launch_sweep.main, [*here, "--sweep=seed=0,1", "--dry-run"]) == 0
    assert "2 runs" in capsys.readouterr().out and not (tmp_path / "w").exists()
    assert cli.guard(launch_sweep.main, [*here, "--sweep=microbatches=1,3"]) == 2
    assert "microbatches=3" in capsys.readouterr().err and not (tmp_path / "w").exists()


def test_a_file_or_folder_of_the_wrong_kind_is_said(tmp_path, capsys):
    from launch import report, train

    file, new = tmp_path / "config.txt", f"--workdir={tmp_path / 'w'}"
    file.write_text("tokens = 1\n")
    mistakes = {
        (launch_study.main, f"--workdir={file}"): "got a file, wanted the folder of the study",
        (train.main, f"--config={tmp_path}", new): "got a folder, wanted a Python file",
        (
            train.main,
            f"--config={tmp_path / 'config.txt'}",
            f"--workdir={tmp_path / 'w'}",
        ): "is not a Python file; wanted",
        (report.main, f"--workdir={tmp_path}"): "is a folder without runs.csv; wanted the workdir of a study",
        (report.main, f"--workdir={tmp_path / 'no' / 'thing'}"): "there is no",
    }
    for (main, *words), message in mistakes.items():
        assert cli.guard(main, words) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1, said


def test_a_sweep_of_more_runs_than_an_array_holds_is_units(tmp_path):
    """MaxArraySize is 1001 by default; units are plain jobs, and small runs share them."""
    config = build(ExperimentConfig, {"tokens": 8192, "model": {"d_model": 16, "n_layers": 1}})
    tasks = sweep.expand(config, [sweep.axis("seed=range(0,1200)")], tmp_path, preview=True)
    made = units.make(tasks)
    assert len(tasks) == 1200 and sorted(run.run for unit in made for run in unit.runs) == sorted(t.run for t in tasks)
    assert len(made) < 1001 and max(unit.seconds for unit in made if len(unit.runs) > 1) <= units.UNIT_SECONDS
