"""The launch scripts: what --dry-run prints, and what they do with tools that stand in for those of a cluster."""

import importlib.util
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.gke import __main__ as gke
from launch.support import cli

ROOT = Path(__file__).parents[2]
TRAIN = ["--", "python", "-m", "launch.train", "--workdir=runs/a b"]


def script(name, *arguments, path=None, cwd=ROOT):
    environment = {"PATH": f"{path}:/usr/bin:/bin" if path else "/usr/bin:/bin", "HOME": "/tmp"}
    command = ["bash", str(ROOT / "launch" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, cwd=cwd)


def stand_in(folder, name, body):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{body}\n")
    (folder / name).chmod(0o755)


# Local processes.


def test_local_prints_one_command_a_process():
    done = script("local.sh", "--processes=3", "--devices=2", "--dry-run", *TRAIN)
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and len({line.rpartition(" --process=")[0] for line in lines}) == 1
    for i, line in enumerate(lines):
        assert "--xla_force_host_platform_device_count=2 python -m launch.train --workdir=runs/a\\ b" in line
        assert line.rstrip().endswith(f"--processes=3 --process={i}")


def test_local_ends_with_the_code_of_the_one_that_failed_and_passes_a_notice_on(tmp_path):
    body = 'trap "exit 75" TERM; echo "$@" >> log; [ "${@: -1}" != --process=1 ] || exit 7; sleep 0.2'
    stand_in(tmp_path / "bin", "mine", body)
    done = script("local.sh", "--processes=3", "--", str(tmp_path / "bin/mine"), cwd=tmp_path)
    assert done.returncode == 7 and len((tmp_path / "log").read_text().splitlines()) == 3
    stand_in(tmp_path / "bin", "mine", 'trap "exit 75" TERM; touch up; for i in {1..300}; do sleep 0.1; done')
    command = ["bash", str(ROOT / "launch/local.sh"), "--processes=1", "--", str(tmp_path / "bin/mine")]
    process = subprocess.Popen(command, cwd=tmp_path)
    while not (tmp_path / "up").exists():
        assert process.poll() is None
        time.sleep(0.01)  # leaves the processor to it
    process.terminate()
    assert process.wait(20) == 75


# Slurm; for real in test_slurm.py.


def test_slurm_prints_the_batch_script():
    done = script(
        "slurm.sh", "--nodes=2", "--gpus-per-node=8", "--time=04:00:00", "--sbatch=--partition=gpu", "--dry-run", *TRAIN
    )
    assert done.returncode == 0, done.stderr
    for line in (
        "#SBATCH --nodes=2 --ntasks-per-node=1",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --time=04:00:00",
        "#SBATCH --requeue --open-mode=append --signal=B:USR1@120",
        "#SBATCH --partition=gpu",
        "  python\\ -m\\ launch.train\\ --workdir=runs/a\\\\\\ b\\ --cluster=slurm",
    ):
        assert line in done.stdout.splitlines()
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True).returncode == 0


def test_slurm_makes_an_array_of_a_file_of_commands(tmp_path):
    (tmp_path / "c.txt").write_text("# two\npython -m launch.train --workdir=a\n\n  python -m launch.study --workdir=b")
    done = script("slurm.sh", f"--array={tmp_path / 'c.txt'}", "--parallel=1", "--dry-run")
    assert "#SBATCH --array=0-1%1" in done.stdout and "--cluster" not in done.stdout
    assert "#SBATCH --output=logs/train-%A-%a.log" in done.stdout


# (exit code, restarts, whether it is queued again): a program was killed, or another host's has ended.
LOSSES = ((137, 0, True), (69, 2, True), (137, 3, False), (69, 3, False))


def test_slurm_queues_a_job_again_that_was_asked_to_end_or_lost_and_no_other(tmp_path):
    """The batch script itself, on the machine that it would run on, with srun and scontrol that say what they hear."""
    tools = tmp_path / "bin"
    stand_in(tools, "scontrol", 'echo "scontrol $*"')
    stand_in(tools, "sleep", "exit 0")
    printed = script("slurm.sh", "--dry-run", *TRAIN).stdout
    for code, starts, again in ((75, 0, True), (75, 9, True), (0, 0, False), (1, 0, False), *LOSSES):
        stand_in(tools, "srun", f"exit {code}")
        environment = {"PATH": f"{tools}:/usr/bin:/bin", "SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n1"}
        environment["SLURM_RESTART_COUNT"] = str(starts)
        done = subprocess.run(["bash"], input=printed, capture_output=True, text=True, env=environment)
        assert done.returncode == code and ("scontrol requeue 12" in done.stdout) == again, done.stderr


@pytest.mark.parametrize("where", ["absolute", "out/test-logs"])
def test_slurm_makes_the_folder_of_logs_where_the_script_writes_them(tmp_path, where):
    """Once an absolute one was made inside of the clone as well, or instead."""
    stand_in(tmp_path / "bin", "sbatch", "pwd; grep -- --output")
    logs = tmp_path / "deep" / "logs" if where == "absolute" else Path(where)
    done = script("slurm.sh", f"--logs={logs}", *TRAIN, path=tmp_path / "bin", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    submitted, output = done.stdout.splitlines()
    assert Path(submitted) == ROOT and output == f"#SBATCH --output={logs}/train-%j.log"
    assert (ROOT / logs).is_dir() and not (ROOT / str(tmp_path).lstrip("/")).exists()


# TPU pods.

GCLOUD = """
case "$*" in
  *" describe "*) cat state 2>/dev/null || exit 1 ;;
  *" create "*) echo READY > state ;;
  *" delete "*) rm -f state ;;
  *"cat distill.code"*) cat code ;;
  *launch.train*) n=$(($(cat starts 2>/dev/null) + 1)); echo $n > starts; sed -n ${n}p plan > code
    [ "$(cat code)" != 137 ] || { echo PREEMPTED > state; exit 255; }; exit "$(cat code)" ;;
esac
"""
POD = ["--name=pod", "--zone=z", "--type=v5litepod-16"]


def test_a_pod_is_printed():
    done = script("tpu_pod.sh", *POD, "--spot", "--dry-run", *TRAIN)
    verbs = [line.split()[4] for line in done.stdout.splitlines()]
    assert verbs == ["create", "scp", "ssh", "ssh"] and done.stdout.count("--zone=z") == 4
    assert "--accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite --spot" in done.stdout
    assert "--cluster=tpu" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "plan, starts, code",
    [((0,), 1, 0), ((75, 0), 2, 0), ((137, 0), 2, 0), ((1,), 1, 1), ((75, 75, 75), 3, 2)],
    ids=["done", "asked to end", "taken away", "failed", "too often"],
)
def test_a_pod_is_made_used_and_made_again(tmp_path, plan, starts, code):
    log = f'echo "$4 $5" >> {tmp_path}/log\ncd {tmp_path}'
    stand_in(tmp_path / "bin", "gcloud", log + GCLOUD)
    stand_in(tmp_path / "bin", "tar", "exit 0")
    (tmp_path / "plan").write_text("".join(f"{each}\n" for each in plan))
    arguments = [*POD, "--restarts=2", "--delete", f"--logs={tmp_path / 'logs'}", *TRAIN]
    done = script("tpu_pod.sh", *arguments, path=tmp_path / "bin")
    assert done.returncode == code, done.stderr
    assert (tmp_path / "starts").read_text() == f"{starts}\n"
    calls = (tmp_path / "log").read_text().splitlines()
    assert calls.count("create pod") == (2 if 137 in plan else 1)
    assert calls.count("delete pod") == (137 in plan) + (code == 0)


# GKE.


def manifest(*arguments, command=("python", "-m", "launch.train", "--workdir=gs://b/it's")):
    given = ["--name=student", "--image=r/i:1", *arguments, "--dry-run", "--", *command]
    command = [sys.executable, "-m", "launch.gke", *given]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


@pytest.mark.parametrize(
    "arguments, pods, cluster",
    [
        (["--tpu=v5e", "--topology=4x4", "--queue=team"], 4, "tpu"),
        (["--tpu=v5p", "--topology=4x4x4", "--slices=2"], 16, "tpu"),
        (["--tpu=v6e", "--topology=2x2"], 1, ""),
        (["--gpu=h100", "--nodes=2"], 2, "jobset"),
    ],
)
def test_manifests_are_of_the_api(arguments, pods, cluster):
    """Types by the API's own models; and nothing is lost on the way through them, so no key is misspelt."""
    yaml = pytest.importorskip("yaml")
    models = pytest.importorskip("kubeflow_trainer_api.models")
    tree = yaml.safe_load(manifest(*arguments))
    (job,) = tree["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    # The models take no quantity, which is a string; kubernetes-validate does, below.
    assert set(container.pop("resources")["limits"]) == {
        "nvidia.com/gpu" if "--gpu=h100" in arguments else "google.com/tpu"
    }
    model = models.JobsetV1alpha2JobSet.model_validate(tree)

    def missing(mine, theirs, where=""):
        if isinstance(mine, dict):
            for key, value in mine.items():
                assert key in theirs, f"{where}.{key} is no field of the API"
                missing(value, theirs[key], f"{where}.{key}")
        elif isinstance(mine, list):
            for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
                missing(a, b, f"{where}[{i}]")
        else:
            assert mine == theirs or str(mine) == str(theirs), where

    missing(tree, model.model_dump(by_alias=True, mode="json"))
    spec = job["template"]["spec"]
    assert spec["completions"] == spec["parallelism"] == pods
    program, flag, line = container["command"]
    words = ["exec", "python", "-m", "launch.train", "--workdir=gs://b/it's"]
    assert (program, flag) == ("/bin/bash", "-c")
    assert shlex.split(line) == (words + [f"--cluster={cluster}"] if cluster else words)
    assert ("kueue.x-k8s.io/queue-name" in tree["metadata"]["labels"]) == ("--queue=team" in arguments)


def test_the_jobs_inside_are_valid_for_kubernetes():
    if importlib.util.find_spec("kubernetes_validate") is None:
        pytest.skip("kubernetes-validate is not installed")
    import kubernetes_validate
    import yaml

    tree = yaml.safe_load(manifest("--tpu=v5e", "--topology=4x4"))
    (job,) = tree["spec"]["replicatedJobs"]
    whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **job["template"]}
    kubernetes_validate.validate(whole, "1.30", strict=True)
    whole["spec"]["completion"] = 4
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(whole, "1.30", strict=True)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--tpu=v5e"], "--topology=: wanted the slice's chips"),
        (["--tpu=v5e", "--topology=1x1"], "its 1 chips are no multiple of 4"),
        (["--tpu=v5e", "--topology=4x4", "--gpu=h100"], "one of --tpu and --gpu"),
        (["--gpu=h100", "--nodes=0"], "--nodes: got '0', wanted at least 1"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments, message, capsys):
    given = ["--name=x", "--image=i", *arguments, "--dry-run", "--", "python"]
    assert cli.guard(gke.main, given) == 2
    assert message in capsys.readouterr().err


def test_the_command_and_the_name_are_needed(capsys):
    assert cli.guard(gke.main, ["--name=x", "--image=i", "--gpu=h100"]) == 2
    assert "no command after --" in capsys.readouterr().err
    assert cli.guard(gke.main, ["--name=X_1", "--image=i", "--gpu=h100", "--", "python"]) == 2


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("local.sh", ["--processes=x", *TRAIN], "--processes=x: wanted a number"),
        ("slurm.sh", ["--nodes=x", *TRAIN], "--nodes=x: wanted a number"),
        ("slurm.sh", ["--array=absent.txt"], "--array=absent.txt: there is no such file"),
        ("slurm.sh", TRAIN, "there is no sbatch here"),
        ("tpu_pod.sh", TRAIN, "--name, --zone and --type are needed"),
        ("tpu_pod.sh", [*POD, *TRAIN], "there is no gcloud here"),
        ("tpu_pod.sh", [*POD, "--dry-run"], "there is no command after --"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, name, arguments, message):
    for tool in ("bash", "dirname", "sed", "cat"):
        (tmp_path / tool).symlink_to(f"/usr/bin/{tool}")
    command = ["/usr/bin/bash", str(ROOT / "launch" / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": str(tmp_path)})
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: launch/{name}: ") and message in done.stderr
