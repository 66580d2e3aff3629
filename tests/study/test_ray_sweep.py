"""A sweep on a Ray cluster of two nodes of this machine: the table of a local one, and nothing twice."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.study.compare import table
from tests.study.test_ray import wait_for
from tests.study.test_sweep import TINY

pytest.importorskip("distill.study.ray_engine", reason="needs the extra ray")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def address(monkeypatch):
    """Two nodes of one processor each, and a head that runs nothing."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("XLA_FLAGS", "")  # the nodes' programs have the environment of this one
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    small = {"object_store_memory": 80_000_000}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
    for _ in range(2):
        made.add_node(num_cpus=1, **small)
    made.wait_for_nodes()
    yield made.address
    made.shutdown()


@pytest.mark.slow
def test_a_sweep_has_the_table_of_one_machine_and_is_not_doubled(address, tmp_path):
    """Four runs of two trunks. While the driver lives, another and this machine are refused; later nothing is left."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    local, there = tmp_path / "local", tmp_path / "ray"
    words = [sys.executable, "-m", "launch.sweep", "--config=configs/train.py:micro", *TINY]
    words += ["--sweep=tokens=4K,8K", "--sweep=seed=range(2)"]

    def said(workdir, *flags):
        done = subprocess.run(
            [*words, f"--workdir={workdir}", *flags], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        return done.returncode, done.stdout + done.stderr

    assert said(local)[0] == 0
    flags = ["--backend=ray", f"--engine=--address={address}"]
    driver = subprocess.Popen(
        [*words, f"--workdir={there}", *flags], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    wait_for(lambda: (there / "sweep.json").exists(), 400)
    for other in (flags, []):
        code, text = said(there, *other)
        assert code == 2 and "driver is locked by process" in text and "Traceback" not in text, text
    screen, _ = driver.communicate(timeout=900)
    assert driver.returncode == 0 and "4/4" in screen, screen
    assert table(local, there) == []
    assert (local / "sweep.csv").read_text() == (there / "sweep.csv").read_text()
    results = {path: path.stat().st_mtime_ns for path in there.glob("runs/*/result.json")}
    code, again = said(there, *flags)
    assert code == 0 and "4 runs, 4 of them finished" in again, again
    assert {path: path.stat().st_mtime_ns for path in there.glob("runs/*/result.json")} == results
    assert table(local, there) == []
