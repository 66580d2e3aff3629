"""Units as JobSets: the driver against an API server (kubernetes.py), by a kubectl that stands in, or a real one."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from configs import study as study_config
from distill.config import ConfigError, StudyExperimentConfig, build
from distill.study import driver, matrix, units
from distill.study.units import CONCLUDE, PREDICT
from launch.gke import engine as gke_engine
from launch.gke.engine import GkeEngine, KubernetesError, ServerAway
from launch.support import cli
from tests.launch import kubernetes

yaml = pytest.importorskip("yaml")

PLACES = ("to 4e4: slice=v5e:2x2", "to 1e9: slice=h100:16 mesh=data=4,tensor=4")
OPTIONS = ["--image=r/i:1", "--queue=team", "--volume=work:/mnt/work"]


@pytest.fixture(params=["stand-in", pytest.param("real", marks=pytest.mark.slow)])
def cluster(request, tmp_path, monkeypatch):
    """A server, and the kubectl that reaches it."""
    if request.param == "real" and not shutil.which("kubectl"):
        pytest.skip("there is no kubectl here")
    monkeypatch.setenv("HOME", str(tmp_path))  # kubectl keeps what it discovers there
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    with kubernetes.serving(tmp_path) as made:
        if request.param == "stand-in":
            monkeypatch.setattr(subprocess, "run", kubernetes.Kubectl(tmp_path, subprocess.run).run)
        yield made


def planned():
    tree = study_config.get_config("smoke").to_dict()
    tree["study"] |= {
        "places": PLACES, "teachers": ("s @ 500K",), "supervised": ("p s @ 125K",), "distilled": ("s@500K > p @ 125K",)
    }  # fmt: skip
    return matrix.expand(build(StudyExperimentConfig, tree), Path("w"))


def run(tasks, tmp_path, options=OPTIONS):
    # What the driver itself runs of a study (predict, conclude) does nothing here.
    with GkeEngine(tmp_path, [sys.executable, "-c", "pass"], options, every=0.02) as engine:
        return driver.drive(units.make(tasks), engine, every=0.02)


def teacher_of(tasks):
    return next(task for task in tasks if task.config.data.split == "teacher")


def test_units_are_jobsets_in_their_order_on_the_machines_of_their_places(cluster, tmp_path):
    tasks = planned()
    outcome = run(tasks, tmp_path)
    assert not outcome.failed and {PREDICT, CONCLUDE} <= set(outcome.succeeded)
    commands = [cluster.command(name) for verb, name in cluster.log if verb == "create"]
    assert len(commands) == len(cluster.objects) == len(outcome.succeeded) - 2
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
    teacher = teacher_of(tasks)
    cluster.fails = lambda command: f"part={teacher.run}" in command
    outcome = run(tasks, tmp_path)
    assert len(outcome.failed) == 2 and any("not run: it needs" in why for why in outcome.failed.values())
    assert not cluster.named(next(task for task in tasks if task.stage).run)
    cluster.fails, cluster.log, cluster.lingers = lambda command: False, [], 2  # a deletion takes a while
    assert not run(tasks, tmp_path).failed
    (name,) = cluster.named(f"part={teacher.run}")
    assert cluster.log.index(("delete", name)) < cluster.log.index(("create", name))
    # A driver that was killed: what runs is waited for, not made again beside itself.
    cluster.objects.clear()
    cluster.patience, cluster.log = 10**6, []
    engine = GkeEngine(tmp_path, [sys.executable, "-c", "pass"], OPTIONS, every=0.0)
    with engine:
        for unit in units.make(tasks):
            if not unit.needs and not unit.after:
                engine.start(unit)
        assert engine.ended(0.0) == []
    first = dict(cluster.objects)
    assert len(first) >= 2
    cluster.patience = cluster.lists - min(it["made"] for it in first.values()) + 3  # they run when it looks first
    assert not run(tasks, tmp_path).failed
    created = [name for verb, name in cluster.log if verb == "create"]
    assert len(set(created)) == len(created) and first.keys() < set(created) and ("delete", name) not in cluster.log
    assert all(len(name) <= 40 for name in created)


def test_one_that_is_there_for_fewer_runs_is_waited_for_and_the_rest_comes_after(cluster, tmp_path):
    """Once such a JobSet was applied again, which a server refuses (its runs cannot be changed)."""
    tree = study_config.get_config("smoke").to_dict()
    tree["study"] |= {
        "places": ("to 1e9: slice=v5e:2x2",),
        "teachers": (),
        "distilled": (),
        "supervised": ("p @ 125K 250K",),
    }
    (unit, _) = units.make(matrix.expand(build(StudyExperimentConfig, tree), Path("w")))
    assert len(unit.runs) == 2
    (left,) = [it for it in units.remaining([unit], {unit.runs[0].run})]
    cluster.patience = 3
    with GkeEngine(tmp_path, ["python"], OPTIONS, every=0.0) as engine:
        engine.start(left)
        engine.ended(0.0)
    assert not run([*unit.runs], tmp_path).failed
    (name,) = cluster.objects
    assert cluster.log == [("create", name), ("delete", name), ("create", name)]
    assert all(task.run in cluster.command(name) for task in unit.runs)


def test_a_jobset_that_somebody_deletes_is_made_again_at_most_three_times(cluster, tmp_path):
    tasks = planned()
    teacher, taken = teacher_of(tasks), []

    def take(verb, n):
        if verb == "list" and len(taken) < most:
            for name in cluster.named(f"part={teacher.run}"):
                taken.append(cluster.objects.pop(name))
        return ""

    cluster.patience, cluster.fail, most = 2, take, 1
    assert not run(tasks, tmp_path).failed
    assert sum(f"part={teacher.run}" in cluster.command(name) for verb, name in cluster.log if verb == "create") == 2
    cluster.objects.clear()
    taken.clear()
    most = 100
    assert "its hosts were lost 4 times" in run(tasks, tmp_path).failed.values()


@pytest.mark.parametrize("how", ["503", "429", "drop", "late"])
def test_a_server_that_breaks_now_and_then_changes_nothing(cluster, tmp_path, how):
    """A third of all requests fail; with `late`, what was asked for was done. Nothing is made twice or forgotten."""
    chance = random.Random(0)
    cluster.fail = lambda verb, n: how if n > 2 and chance.random() < 1 / 3 else ""
    outcome = run(planned(), tmp_path)
    assert not outcome.failed
    assert len(cluster.log) == len(cluster.objects) == len(outcome.succeeded) - 2


def test_a_server_that_lists_and_makes_nothing_for_a_while(cluster, tmp_path, capsys):
    """A part of it is out (the webhook of JobSet, for example): it is said once, and what was wanted is made later."""
    cluster.fail = lambda verb, n: "500" if verb == "create" and n < 12 else ""
    assert not run(planned(), tmp_path).failed
    assert capsys.readouterr().err.count("trying again") <= 2


def test_a_server_that_stays_away_is_a_sentence(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(gke_engine, "PATIENCE", 0.5)
    cluster.fail = lambda verb, n: "503" if n > 1 else ""
    with pytest.raises(ServerAway, match="kubectl get: "):
        run(planned(), tmp_path)


def test_what_a_server_refuses_for_good_ends_the_driver(cluster, tmp_path):
    cluster.fail = lambda verb, n: "403" if verb == "create" else ""
    with pytest.raises(KubernetesError, match=r"kubectl create: .*Forbidden") as refused:
        run(planned(), tmp_path)
    assert not isinstance(refused.value, ServerAway)


def test_an_object_of_another_owner_is_not_taken_for_ours(cluster, tmp_path):
    tasks = planned()
    run(tasks, tmp_path)
    for tree in cluster.objects.values():
        tree["metadata"]["labels"] = {}
    with pytest.raises(KubernetesError, match="without the label distill-study=s"):
        run(tasks, tmp_path)


def test_the_server_of_these_tests_refuses_what_a_real_one_refuses(tmp_path):
    engine = GkeEngine(tmp_path, ["python"], OPTIONS)
    unit = units.make(planned())[0]
    good, cluster = yaml.safe_load(engine.manifest("s123", unit)), kubernetes.Cluster()
    cluster.create(good)
    cases = [
        (409, lambda it: None),
        (422, lambda it: it["metadata"].update(name="S_1")),
        (422, lambda it: it["metadata"].update(name="s" * 60)),
        (422, lambda it: it["spec"].update(failurePolice={})),
        (422, lambda it: it["spec"]["replicatedJobs"][0]["template"]["spec"].update(completion=4)),
        (422, lambda it: it["spec"]["replicatedJobs"][0].update(replicas="four")),
    ]
    for code, change in cases:
        tree = json.loads(json.dumps(good))
        change(tree)
        with pytest.raises(kubernetes.Refused) as refused:
            cluster.create(tree)
        assert refused.value.code == code, (code, str(refused.value))
    for verb in (cluster.get, cluster.delete):
        with pytest.raises(kubernetes.Refused, match="not found"):
            verb("absent")


def test_a_manifest_mounts_the_volume_and_names_the_queue(tmp_path):
    engine = GkeEngine(tmp_path, ["python", "-m", "launch.study", f"--workdir={tmp_path}"], OPTIONS)
    unit = next(unit for unit in units.make(planned()) if unit.runs and unit.place.chip == "h100")
    tree = yaml.safe_load(engine.manifest("s123", unit))
    pod = tree["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert {"name": "shared", "mountPath": "/mnt/work"} in pod["containers"][0]["volumeMounts"]
    assert {"name": "shared", "persistentVolumeClaim": {"claimName": "work"}} in pod["volumes"]
    labels = tree["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "team" and labels["distill-study"].startswith("s")
    assert tree["spec"]["replicatedJobs"][0]["template"]["spec"]["parallelism"] == 2


def test_what_cannot_be_is_a_sentence(cluster, tmp_path):
    with pytest.raises(ConfigError, match="--name=x follows from the places"):
        GkeEngine(tmp_path, ["python"], ["--name=x"])
    with pytest.raises(ConfigError, match="has no slice, and GKE chooses machines by it"):
        tree = study_config.get_config("smoke").to_dict()
        unit = units.make(matrix.expand(build(StudyExperimentConfig, tree), Path("w")))[0]
        GkeEngine(tmp_path, ["python"], OPTIONS).manifest("s1", unit)
    cluster.fail = lambda verb, n: "404"
    with pytest.raises(KubernetesError, match="kubectl get: "):
        run(planned(), tmp_path)


def test_a_sweep_is_jobsets_too_and_is_not_doubled(cluster, tmp_path, monkeypatch):
    """One body with studies: runs of one trunk wait for each other; a second driver finds what the first has made."""
    from distill.study import sweep_elsewhere
    from launch import sweep as launch_sweep
    from tests.study.test_sweep import TINY

    monkeypatch.setattr(gke_engine, "EVERY", 0.02)
    started = subprocess.Popen  # of `conclude`, beside the driver
    quick = lambda words: [sys.executable, "-c", "pass"] if "launch.sweep" in words else words
    monkeypatch.setattr(subprocess, "Popen", lambda words, **options: started(quick(words), **options))
    workdir = tmp_path / "w"
    flags = ["--config=configs/train.py:micro", *TINY, "--sweep=tokens=4K,100M", "--sweep=seed=range(2)"]
    flags += [f"--workdir={workdir}", "--backend=gke", f"--engine={' '.join(OPTIONS)}"]
    place = "--place=to 1e9: slice=v5e:2x2 runs=1"
    assert cli.guard(launch_sweep.main, [*flags, place]) == 1  # these machines train nothing, so runs are missing
    tasks = sweep_elsewhere.prepared(workdir)
    assert len(tasks) == 4 and {task.place.chip for task in tasks} == {"v5e"}
    created = [cluster.command(name) for verb, name in cluster.log if verb == "create"]
    assert all("launch.sweep" in command for command in created)
    for seed in range(2):
        short, long = sorted((t for t in tasks if t.config.seed == seed), key=lambda task: task.config.tokens)
        at = [next(i for i, command in enumerate(created) if task.run in command) for task in (short, long)]
        assert short.trunk == long.trunk and at[0] < at[1]
    # Again, while all of the first driver still runs: what may start is there, and is waited for.
    there, made = dict(cluster.objects), cluster.lists
    cluster.log, cluster.patience = [], made - min(it["made"] for it in there.values()) + 3
    assert cli.guard(launch_sweep.main, [*flags, place]) == 1
    assert cluster.log == [] and cluster.objects.keys() == there.keys()
