"""Sweeps: what a line means, which runs it makes, and one for real, repeated."""

import csv
import os
import shlex
import subprocess
import sys

import pytest

from distill.config import ConfigError, ExperimentConfig, build, fingerprint
from distill.records.runs import RunTable
from distill.study import sweep
from launch import sweep as launch_sweep
from launch import train as launch_train
from launch.support import cli

TINY = [
    f"--config.{flag}"
    for flag in [
        "data.source=generated",
        "data.generated.tokens=60K",
        "data.generated.validation_tokens=8K",
        "model.vocab_size=8",
        "model.d_ff_multiple=16",
        "seq_len=32",
        "tokens=4K",
        "batch_size=4",
        "eval.tokens=1K",
        "optim.warmup_steps=5",
    ]
]


@pytest.fixture
def config():
    return cli.resolve(ExperimentConfig, ["--config=configs/train.py:micro", *TINY])


@pytest.mark.parametrize(
    ("line", "rows"),
    [
        ("model.n_layers=2,4", [("2",), ("4",)]),
        ("tokens=250K, 1M", [("250K",), ("1M",)]),
        ("seed=range(3)", [("0",), ("1",), ("2",)]),
        ("seed=7,range(0,4,2)", [("7",), ("0",), ("2",)]),
        ("objective.temperature=logspace(0.5,8,5)", [("0.5",), ("1",), ("2",), ("4",), ("8",)]),
        ("optim.learning_rate=linspace(1e-3,3e-3,3)", [("0.001",), ("0.002",), ("0.003",)]),
        ("tokens=logspace(100K,1M,3)", [("100000",), ("316228",), ("1000000",)]),
        ("objective.divergence=forward,reverse", [("forward",), ("reverse",)]),
        ("model.d_model=32,64;optim.learning_rate=1e-2,5e-3", [("32", "1e-2"), ("64", "5e-3")]),
    ],
)
def test_a_line_of_values(line, rows):
    assert sweep.axis(line).rows == tuple(rows)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("model.n_layers", "wanted FIELD=VALUES"),
        ("model.n_layer=2", "Did you mean 'n_layers'"),
        ("model.n_layers=2,x", "wanted an integer"),
        ("model.n_layers=2.5", "wanted an integer"),
        ("objective.temperature=logspace(0.5,4)", r"wanted logspace\(from,to,n\)"),
        ("objective.temperature=logspace(0,4,3)", "cannot read"),
        ("seed=range(a)", "wanted range"),
        ("seed=0,1;tokens=1M", "seed 2, tokens 1"),
        ("objective.divergence=forwards", "Did you mean 'forward'"),
    ],
)
def test_a_line_that_cannot_be_read(line, message):
    with pytest.raises(ConfigError, match=message):
        sweep.axis(line)


def test_every_combination_once_and_only_what_is_wanted(config, tmp_path):
    axes = [sweep.axis("model.d_model=16,32"), sweep.axis("tokens=4K,8K;seed=0,1")]
    tasks = sweep.expand(config, axes, tmp_path)
    assert [task.name for task in tasks] == [
        f"d_model={d} tokens={t} seed={s}" for d in (16, 32) for t, s in (("4K", 0), ("8K", 1))
    ]
    assert len({task.run for task in tasks}) == 4
    assert all(fingerprint(task.config) == task.run for task in tasks)
    assert [task.config.model.d_model for task in tasks] == [16, 16, 32, 32]
    kept = sweep.expand(config, axes, tmp_path, "N > 2e4 and seed == 1")
    assert [task.name for task in kept] == ["d_model=32 tokens=8K seed=1"]
    assert len(sweep.expand(config, [sweep.axis("seed=0,0,1")], tmp_path)) == 2
    with pytest.raises(ConfigError, match="no combination is left"):
        sweep.expand(config, axes, tmp_path, "N > 1e9")
    with pytest.raises(ConfigError, match="swept twice"):
        sweep.expand(config, [axes[0], sweep.axis("model.d_model=64")], tmp_path)
    with pytest.raises(ConfigError, match="sweep: spike=0.5: optim.spike: got 0.5"):
        sweep.expand(config, [sweep.axis("optim.spike=0,0.5")], tmp_path)


def command(workdir, *flags):
    lines = ["--sweep=model.d_model=16,24", "--sweep=seed=range(2)"]
    return [
        sys.executable,
        "-m",
        "launch.sweep",
        "--config=configs/train.py:micro",
        *TINY,
        *lines,
        *flags,
        f"--workdir={workdir}",
    ]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of four runs, one of which cannot be: its folder belongs to another run."""
    workdir = tmp_path_factory.mktemp("sweep")
    environment = os.environ | {"XLA_FLAGS": "", "COLUMNS": "140"}
    listed = subprocess.run(command(workdir, "--dry-run"), env=environment, capture_output=True, text=True, timeout=300)
    assert listed.returncode == 0, listed.stderr
    broken = next(line for line in listed.stdout.splitlines() if "d_model=24 seed=1" in line).split("│")[2].strip()
    folder = workdir / "runs" / broken
    folder.mkdir(parents=True)
    (folder / "config.txt").write_text("nonsense\n")
    first = subprocess.run(command(workdir), env=environment, capture_output=True, text=True, timeout=300)
    (folder / "config.txt").unlink()
    rows = len(RunTable(workdir / "runs.csv").load())
    again = subprocess.run(command(workdir), env=environment, capture_output=True, text=True, timeout=300)
    return workdir, listed, first, rows, again


def test_a_sweep_outlives_a_run_that_fails_and_tries_it_again(swept):
    workdir, listed, first, rows, again = swept
    assert "4 runs, 0 of them finished" in listed.stdout
    assert first.returncode == 1 and "failed d_model=24 seed=1" in first.stdout and rows == 3
    assert again.returncode == 0, again.stdout + again.stderr
    assert "[  4/4] d_model=24 seed=1" in again.stdout and "[  1/4]" not in again.stdout
    with open(workdir / "sweep.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert sorted((row["model.d_model"], row["seed"]) for row in table) == [(d, s) for d in ("16", "24") for s in "01"]
    records = {record.run: record for record in RunTable(workdir / "runs.csv").load()}
    assert [float(row["loss"]) for row in table] == sorted(records[row["run"]].loss for row in table)


def test_students_of_a_teacher_from_elsewhere(swept, tmp_path):
    record = RunTable(swept[0] / "runs.csv").load()[0]
    flags = ["--where=d_model<20 and seed==1", f"--config.teacher.source={swept[0] / 'runs' / record.run}"]
    environment = os.environ | {"XLA_FLAGS": ""}
    done = subprocess.run(command(tmp_path, *flags), env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (student,) = RunTable(tmp_path / "runs.csv").load()
    assert (student.kind, student.teacher, student.L_T) == ("distillation", record.run, record.loss)


def test_other_backends_say_what_is_left(swept, capsys):
    workdir = swept[0]
    flags = command(workdir, "--config.optim.weight_decay=0.01", "--backend=print")[3:]
    assert cli.guard(launch_sweep.main, flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    words = shlex.split(lines[0])
    assert words[:3] == ["python", "-m", "launch.train"] and "--config.optim.weight_decay=0.01" in words
    values = launch_train.parser().parse_args(words[3:])
    assert values.workdir.startswith(str(workdir / "runs"))
    assert cli.guard(launch_sweep.main, command(workdir, "--backend=print")[3:]) == 0
    assert capsys.readouterr().out == "\n"


def test_a_printed_command_is_the_run_that_the_sweep_looks_for(tmp_path, capsys):
    flags = command(tmp_path, "--where=d_model<20 and seed==1", "--backend=print")[3:]
    assert cli.guard(launch_sweep.main, flags) == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[0])
    subprocess.run([sys.executable, *words[1:]], env=os.environ | {"XLA_FLAGS": ""}, check=True, timeout=300)
    assert cli.guard(launch_sweep.main, flags) == 0
    assert capsys.readouterr().out == "\n"


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--backend=slrum", "Did you mean 'slurm'"),
        ("--price=-1", "wanted at least 0"),
        ("--where=N 1", "cannot read"),
        ("--sweep=model.width=2", "no field 'width'"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, flag, message):
    assert cli.guard(launch_sweep.main, [*command(tmp_path)[3:], flag]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_build_is_strict_about_what_a_sweep_replaces():
    config = build(ExperimentConfig, {})
    with pytest.raises(ConfigError, match="optim.spike"):
        sweep.tree.replace(config, "optim.spike", 0.5)
    assert sweep.tree.replace(config, "optim.spike", 4.0).optim.spike == 4.0
