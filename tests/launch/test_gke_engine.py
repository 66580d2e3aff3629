"""Units as JobSets: the driver against a kubectl that stands in for the real one and keeps the objects in a file."""

import json
import os
import sys
from pathlib import Path

import pytest

from configs import study as study_config
from distill.config import ConfigError, StudyExperimentConfig, build
from distill.study import driver, matrix, units
from distill.study.units import CONCLUDE, PREDICT
from launch.gke.engine import GkeEngine, KubernetesError

yaml = pytest.importorskip("yaml")

# apply: a JobSet that runs; get: what ran at the last get has ended, failed where `fails` names its run; delete.
KUBECTL = f"""#!{sys.executable}
import json, pathlib, sys
import yaml
home = pathlib.Path(__file__).parent
state = json.loads((home / "state").read_text())
verb = sys.argv[1]
if verb == "apply":
    tree = yaml.safe_load(sys.stdin.read())
    command = tree["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["command"][2]
    name = tree["metadata"]["name"]
    state["log"].append([name, command])
    state["objects"].setdefault(name, {{"command": command, "gets": 0}})
elif verb == "get":
    items = []
    for name, it in state["objects"].items():
        it["gets"] += 1
        kind = "Failed" if any(run in it["command"] for run in state["fails"]) else "Completed"
        conditions = [{{"type": "Suspended", "status": "False"}}]
        conditions += [{{"type": kind, "status": "True"}}] if it["gets"] > state["patience"] else []
        items.append({{"metadata": {{"name": name}}, "status": {{"conditions": conditions}}}})
    print(json.dumps({{"items": items}}))
elif verb == "delete":
    del state["objects"][sys.argv[3]]
    state["log"].append([sys.argv[3], "deleted"])
(home / "state").write_text(json.dumps(state))
"""
PLACES = ("to 4e4: slice=v5e:2x2", "to 1e9: slice=h100:16 mesh=data=4,tensor=4")
OPTIONS = ["--image=r/i:1", "--queue=team", "--volume=work:/mnt/work"]


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "kubectl").write_text(KUBECTL)
    (tools / "kubectl").chmod(0o755)
    (tools / "state").write_text(json.dumps({"objects": {}, "log": [], "fails": [], "patience": 1}))
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return tools / "state"


def planned():
    tree = study_config.get_config("smoke").to_dict()
    tree["study"] |= {
        "places": PLACES, "teachers": ("s @ 500K",), "supervised": ("p s @ 125K",), "distilled": ("s@500K > p @ 125K",)
    }  # fmt: skip
    return matrix.expand(build(StudyExperimentConfig, tree), Path("w"))


def change(state, **values):
    state.write_text(json.dumps(json.loads(state.read_text()) | values))


def run(tasks, tmp_path):
    # What the driver itself runs of a study (predict, conclude) does nothing here.
    with GkeEngine(tmp_path, [sys.executable, "-c", "pass"], OPTIONS) as engine:
        return driver.drive(units.make(tasks), engine, every=0.05)


def test_units_are_jobsets_in_their_order_on_the_machines_of_their_places(cluster, tmp_path):
    tasks = planned()
    outcome = run(tasks, tmp_path)
    assert not outcome.failed and {PREDICT, CONCLUDE} <= set(outcome.succeeded)
    commands = [command for _, command in json.loads(cluster.read_text())["log"]]
    at = {task.run: next(i for i, command in enumerate(commands) if task.run in command) for task in tasks}
    student = next(task for task in tasks if task.stage)
    assert all(at[task.run] < at[student.run] for task in tasks if task is not student)
    sizes = {task.run: task.place.chip for task in tasks}
    for task in tasks:  # the larger of student and teacher
        several = "--cluster=jobset" in commands[at[task.run]]
        assert several == (sizes[task.run] == "h100")
    assert set(sizes.values()) == {"v5e", "h100"}


def test_a_driver_that_starts_again_waits_for_what_is_there_and_tries_what_failed(cluster, tmp_path):
    tasks = planned()
    teacher = next(task for task in tasks if task.config.data.split == "teacher")
    change(cluster, fails=[f"part={teacher.run}"])
    outcome = run(tasks, tmp_path)
    assert len(outcome.failed) == 2 and any("not run: it needs" in why for why in outcome.failed.values())
    change(cluster, fails=[], log=[])
    assert not run(tasks, tmp_path).failed
    log = json.loads(cluster.read_text())["log"]
    assert any(entry[1] == "deleted" for entry in log)
    # Names do not depend on what is left of a unit, so a JobSet that still runs is applied again, not beside itself.
    change(cluster, patience=3, log=[], objects={})
    run(tasks, tmp_path)
    names = {name for name, _ in json.loads(cluster.read_text())["log"]}
    assert names == set(json.loads(cluster.read_text())["objects"]) and all(len(name) <= 40 for name in names)


def test_a_manifest_mounts_the_volume_and_names_the_queue(cluster, tmp_path):
    engine = GkeEngine(tmp_path, ["python", "-m", "launch.study", f"--workdir={tmp_path}"], OPTIONS)
    unit = next(unit for unit in units.make(planned()) if unit.runs and unit.place.chip == "h100")
    tree = yaml.safe_load(engine.manifest("s123", unit))
    pod = tree["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert {"name": "shared", "mountPath": "/mnt/work"} in pod["containers"][0]["volumeMounts"]
    assert {"name": "shared", "persistentVolumeClaim": {"claimName": "work"}} in pod["volumes"]
    assert tree["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "team"}
    assert tree["spec"]["replicatedJobs"][0]["template"]["spec"]["parallelism"] == 2


def test_what_cannot_be_is_a_sentence(cluster, tmp_path):
    with pytest.raises(ConfigError, match="--name=x follows from study.places"):
        GkeEngine(tmp_path, ["python"], ["--name=x"])
    with pytest.raises(ConfigError, match="has no slice, and GKE chooses machines by it"):
        tree = study_config.get_config("smoke").to_dict()
        unit = units.make(matrix.expand(build(StudyExperimentConfig, tree), Path("w")))[0]
        GkeEngine(tmp_path, ["python"], OPTIONS).manifest("s1", unit)
    (cluster.parent / "kubectl").write_text("#!/bin/bash\necho 'the server could not find it' >&2; exit 1\n")
    with pytest.raises(KubernetesError, match="kubectl get: the server could not find it"):
        run(planned(), tmp_path)
