"""Studies on other machines: what a part does, and what Slurm is asked for, with tools that stand in for it."""

import json
import os
import re
import shlex

import pytest
from rich.console import Console

from configs import study as study_config
from distill.config import ConfigError, StudyExperimentConfig, build
from distill.study import driver, matrix, part, run, sweep_elsewhere
from distill.study.units import CONCLUDE, PREDICT
from distill.system import preemption, process
from launch import study as launch_study
from launch import sweep as launch_sweep
from launch.support import cli

NINE = [
    "--config=configs/study.py:smoke",
    "--config.study.models=a = 16x1,b = 32x1",
    "--config.study.teachers=b @ 8K",
    "--config.study.supervised=a b @ 4K 6K 8K",
    "--config.study.distilled=b@8K > a b @ 6K",
    "--config.study.places=to 1e9: runs=2",
    "--config.seq_len=32",
    "--config.batch_size=4",
    "--config.eval.tokens=1024",
]


def launch(workdir, *flags):
    return cli.guard(launch_study.main, [*NINE, f"--workdir={workdir}", *flags])


# Printed.


def test_printed_units_name_what_they_need(tmp_path, capsys):
    assert launch(tmp_path, "--backend=print") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    by_name = {line["name"]: line for line in lines}
    assert len(lines) == 8 and set(by_name) >= {PREDICT, CONCLUDE}
    done: set[str] = set()
    for line in lines:
        assert set(line["needs"]) | set(line["after"]) <= done and not set(line["needs"]) & set(line["after"])
        done.add(line["name"])
    _, tasks = run.prepared(tmp_path)
    outputs = [path for line in lines for path in line["outputs"] if path.endswith("result.json")]
    assert sorted(outputs) == sorted(f"{tmp_path}/runs/{task.run}/result.json" for task in tasks)
    students = next(line for line in lines if PREDICT in line["needs"])
    words = shlex.split(shlex.join(students["command"]))
    assert words[:3] == ["python", "-m", "launch.study"] and len(part.chosen(tmp_path, words[-1][7:])) == 2


# A part.


def test_a_part_of_no_study_or_no_run_is_a_sentence(tmp_path, capsys):
    assert cli.guard(launch_study.main, [f"--workdir={tmp_path}", "--part=predict"]) == 2
    assert "there is no study in it (no config.txt)" in capsys.readouterr().err
    assert launch(tmp_path, "--backend=print") == 0
    assert cli.guard(launch_study.main, [f"--workdir={tmp_path}", "--part=abc,def"]) == 2
    assert "has no run 'abc'; wanted RUN,RUN, predict or conclude" in capsys.readouterr().err


def test_a_part_waits_for_a_former_attempt_and_then_asks_to_be_tried_again(tmp_path):
    held = pytest.raises(preemption.Preempted, match="is locked by process")
    with process.folder_lock(tmp_path), held, part.patient_lock(tmp_path, patience=0.1):
        raise AssertionError("two have the lock")
    refused = pytest.raises(process.FolderLocked)
    with part.patient_lock(tmp_path, patience=0.1), refused, process.folder_lock(tmp_path):
        raise AssertionError("two have the lock")


class Noted:
    """A trainer that fails the runs that it is told to, and finishes the others without training."""

    def __init__(self, bad):
        self.bad, self.seen = bad, []

    def train(self, tasks, send):
        from distill.study.workers import FailedMessage, FinishedMessage
        from tests.report.conftest import rows

        (task,) = tasks
        self.seen.append(task.run)
        if task.run in self.bad:
            send(FailedMessage(run=task.run, line="no", detail="no, because"))
        else:
            send(FinishedMessage(run=task.run, record=rows()[0]))


def test_a_run_that_fails_does_not_stop_its_part(tmp_path):
    config = build(StudyExperimentConfig, study_config.get_config("smoke").to_dict())
    tasks = matrix.expand(config, tmp_path)[:3]
    trainer = Noted({tasks[1].run})
    assert part.train(tmp_path, tasks, trainer, Console(quiet=True)) == 1
    assert trainer.seen == [task.run for task in tasks]
    assert (tmp_path / "runs" / tasks[1].run / "error.txt").read_text() == "no, because\n"
    assert not (tmp_path / "runs" / tasks[0].run / "error.txt").exists()
    assert part.train(tmp_path, tasks[2:], trainer, Console(quiet=True)) == 0


# Slurm, with stand-ins; for real in tests/launch/test_slurm.py.


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """sbatch numbers jobs and keeps their scripts; squeue lists those in `alive`, all to begin with."""
    tools = tmp_path / "tools"
    tools.mkdir()
    bodies = {
        "sbatch": f"cd {tools}; n=$(($(cat n 2>/dev/null || echo 10) + 1)); echo $n >n; cat >$n.sh\n"
        'name=$(sed -n "s/#SBATCH --job-name=//p" $n.sh); echo "$n $name" >>alive; echo "Submitted batch job $n"',
        "squeue": f"cat {tools}/alive",
    }
    for name, body in bodies.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return tools


def jobs(tools):
    """{unit name: (job, its dependency, its command)} of the scripts so far."""
    found = {}
    for script in sorted(tools.glob("*.sh")):
        text = script.read_text()
        name = re.search(r"--job-name=\S+?-[0-9a-f]{4}\.(\S+)", text)[1]
        dependency = re.search(r"--dependency=(\S+) --kill-on-invalid-dep=yes", text)[1]
        found[name] = script.stem, dependency, re.search(r"--part=(\S+)", text)[1].replace("\\", "")
    return found


def test_a_study_is_jobs_that_wait_for_each_other(slurm, tmp_path, capsys):
    workdir = tmp_path / "w"
    assert launch(workdir, "--backend=slurm", "--engine=--time=4:00:00") == 0
    assert "8 jobs submitted; 0 runs were in the queue" in capsys.readouterr().out
    sent = jobs(slurm)
    assert len(sent) == 8 and all(dependency.endswith("singleton") for _, dependency, _ in sent.values())
    _, tasks = run.prepared(workdir)
    teacher = next(name for name, (_, _, ran) in sent.items() if ran == tasks[-1].config.teacher.run)
    students = next(name for name in sent if name.startswith("b_8K_a_6K"))
    assert sent[teacher][1] == "singleton"
    wanted = sorted([sent[teacher][0], sent[PREDICT][0]], key=int)
    assert sent[students][1] == f"afterok:{':'.join(wanted)},singleton"
    early = sorted((job for name, (job, _, _) in sent.items() if name not in (PREDICT, CONCLUDE, students)), key=int)
    assert sent[PREDICT][1] == f"afterany:{':'.join(early)},singleton"
    assert "#SBATCH --time=4:00:00" in (slurm / f"{sent[teacher][0]}.sh").read_text()
    chain = next(name for name in sent if name.startswith("b_8K.") and name != teacher)
    assert sent[chain][1].startswith("afterany:")  # the shorter runs of its trunk

    assert launch(workdir) == 2
    assert "8 jobs of it are in the queue of Slurm; wait for them" in capsys.readouterr().err
    # Again while all are queued: nothing. After some have gone: those, waiting only for jobs that are there.
    assert launch(workdir, "--backend=slurm") == 0
    assert "0 jobs submitted; 9 runs were in the queue" in capsys.readouterr().out and len(jobs(slurm)) == 8
    gone = {sent[teacher][0], sent[students][0], sent[CONCLUDE][0]}
    lines = (slurm / "alive").read_text().splitlines()
    (slurm / "alive").write_text("".join(f"{line}\n" for line in lines if line.split()[0] not in gone))
    assert launch(workdir, "--backend=slurm") == 0
    assert "3 jobs submitted; 6 runs were in the queue" in capsys.readouterr().out
    new = jobs(slurm)
    named = {job for _, dependency, _ in new.values() for job in re.findall(r"\d+", dependency)}
    fresh = {new[name][0] for name in (teacher, students, CONCLUDE)}
    assert fresh == {"19", "20", "21"}
    for name in (students, CONCLUDE):
        assert not gone & set(re.findall(r"\d+", new[name][1])) and new[teacher][0] in new[name][1]
    assert named - gone <= {job for job, _, _ in new.values()}


def test_ids_of_another_cluster_are_not_ours(slurm, tmp_path, capsys):
    """The ids begin anew: jobs of those numbers are there, under other names."""
    assert launch(tmp_path / "w", "--backend=slurm") == 0
    (slurm / "alive").write_text("".join(f"{job} other\n" for job in range(11, 19)))
    assert launch(tmp_path / "w", "--backend=slurm") == 0
    assert capsys.readouterr().out.count("8 jobs submitted; 0 runs") == 2


def test_slurm_answers_in_its_own_words(slurm, tmp_path, capsys):
    (slurm / "sbatch").write_text("#!/bin/bash\necho 'sbatch: error: invalid partition' >&2; exit 1\n")
    assert launch(tmp_path / "w", "--backend=slurm") == 2
    assert "invalid partition" in capsys.readouterr().err


def test_a_sweep_is_jobs_too_and_is_not_doubled(slurm, tmp_path, capsys):
    """More runs than an array holds; runs of one trunk wait for each other; what is queued is not sent again."""
    workdir = tmp_path / "w"
    tiny = [
        "--config=configs/train.py:micro",
        "--config.data.source=generated",
        "--config.data.generated.tokens=60K",
        "--config.data.generated.validation_tokens=8K",
        "--config.model.vocab_size=8",
        "--config.seq_len=32",
        "--config.batch_size=4",
        "--config.eval.tokens=1K",
        "--sweep=tokens=4K,100M",
        "--sweep=seed=range(3)",
    ]
    assert (
        cli.guard(launch_sweep.main, [*tiny, f"--workdir={workdir}", "--backend=slurm", "--slurm=--time=1:00:00"]) == 0
    )
    assert "; 0 runs were in the queue" in capsys.readouterr().out
    sent = jobs(slurm)
    tasks = sweep_elsewhere.prepared(workdir)
    ran = {run: job for job, _, part in sent.values() for run in part.split(",")}
    assert set(ran) == {task.run for task in tasks} | {CONCLUDE} and PREDICT not in sent
    dependencies = {job: dependency for job, dependency, _ in sent.values()}
    for seed in range(3):
        short, long = sorted((t for t in tasks if t.config.seed == seed), key=lambda task: task.config.tokens)
        assert short.trunk == long.trunk and f"afterany:{ran[short.run]}," in dependencies[ran[long.run]]
    assert cli.guard(launch_sweep.main, [*tiny, f"--workdir={workdir}", "--backend=slurm"]) == 0
    assert "0 jobs submitted; 6 runs were in the queue" in capsys.readouterr().out


def test_signals_in_memory_are_refused_on_several_hosts_before_a_teacher_trains(slurm, tmp_path, capsys):
    """Seen on two nodes of Slurm: the student failed after its teacher had been trained."""
    there = ["--backend=slurm", "--config.study.places=to 1e9: hosts=2"]
    assert launch(tmp_path / "w", *there) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "is for 2 hosts, and one would keep what another computed" in error
    assert not list(slurm.glob("*.sh")) and not (tmp_path / "w" / "config.txt").exists()
    assert launch(tmp_path / "w", *there, "--config.teacher.signal=online") == 0


@pytest.mark.parametrize("backend", ["local", "slurm", "gke"])
def test_beside_a_driver_every_other_backend_is_refused(slurm, tmp_path, capsys, backend):
    """A driver of Ray or GKE holds the lock of W/driver as long as it lives."""
    workdir = tmp_path / "w"
    with driver.lock(workdir):
        assert launch(workdir, f"--backend={backend}", *(["--engine=--image=i"] if backend == "gke" else [])) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"{workdir}/driver is locked by process {os.getpid()} on" in error
        assert not (workdir / "config.txt").exists() and not list(slurm.glob("*.sh"))


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--follow"], "takes no --follow"),
        (["--backend=slrum"], "Did you mean 'slurm'"),
        (["--config.study.places=to 1e9: hosts=2"], "b@8K is for 2 hosts, and --backend=local has this one"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, flags, message):
    assert launch(tmp_path, *flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


@pytest.mark.parametrize("backend", ["local", "slurm", "ray", "gke", "print"])
def test_a_bucket_is_refused_for_a_study(capsys, monkeypatch, tmp_path, backend):
    monkeypatch.chdir(tmp_path)  # where a folder named gs: would be
    for main in (launch_study.main, launch_sweep.main):
        flags = ["--workdir=gs://bucket/study", f"--backend={backend}", "--config.tokens=8K"]
        flags += ["--engine=--image=i"] if backend == "gke" else []
        flags += ["--sweep=seed=0,1"] if main is launch_sweep.main else []
        assert cli.guard(main, flags) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "a study or sweep needs a file system with locks" in error, error
        assert not list(tmp_path.iterdir())
    assert cli.guard(launch_study.main, ["--workdir=gs://bucket/study", "--part=conclude"]) == 2
    assert "a study or sweep needs a file system with locks" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        run.shared_folder("gs://bucket/study")
