"""The Slurm path for real (tests/launch/slurm/run.sh): Debian's slurm-wlm as two nodes of this machine."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def run(name: str, folder: Path, seconds: int) -> str:
    """What a script of tests/launch/slurm prints; it starts the cluster, and ends it."""
    missing = [tool for tool in ("slurmctld", "slurmd", "munged") if not shutil.which(tool, path="/usr/sbin:/usr/bin")]
    if missing or os.geteuid():
        pytest.skip(f"needs root and Debian's slurm-wlm and munge; missing: {', '.join(missing) or 'root'}")
    script = Path(__file__).parent / "slurm" / name
    environment = os.environ | {"PATH": f"/usr/sbin:{os.environ['PATH']}"}
    done = subprocess.run(["bash", script, folder], capture_output=True, text=True, timeout=seconds, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_training_a_sweep_and_a_preemption_on_two_nodes(tmp_path):
    assert "all three passed" in run("run.sh", tmp_path, 600)


@pytest.mark.slow
def test_a_study_as_jobs_while_a_node_is_killed_a_second_submission_and_a_failed_teacher(tmp_path):
    assert "all three passed" in run("study.sh", tmp_path, 1800)


@pytest.mark.slow
def test_units_on_two_hosts_survive_a_dead_node_and_a_killed_program(tmp_path):
    assert "both passed" in run("gang.sh", tmp_path, 1800)
