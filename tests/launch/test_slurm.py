"""The Slurm path for real (tests/launch/slurm/run.sh): Debian's slurm-wlm as two nodes of this machine."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_training_a_sweep_and_a_preemption_on_two_nodes(tmp_path):
    missing = [tool for tool in ("slurmctld", "slurmd", "munged") if not shutil.which(tool, path="/usr/sbin:/usr/bin")]
    if missing or os.geteuid():
        pytest.skip(f"needs root and Debian's slurm-wlm and munge; missing: {', '.join(missing) or 'root'}")
    script = Path(__file__).parent / "slurm" / "run.sh"
    environment = os.environ | {"PATH": f"/usr/sbin:{os.environ['PATH']}"}
    done = subprocess.run(["bash", script, tmp_path], capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0 and "all three passed" in done.stdout, done.stdout + done.stderr
