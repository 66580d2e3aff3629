"""Gangs on a real Ray cluster of this machine: TPU slices, whose chips are numbers here, and hosts that are lost.

No TPU is behind them: a process of a unit writes down where it is in place of training. What reserves slices, puts one
process on each of their hosts and tells them --cluster=tpu is the engine's own path, and Ray's.
"""

from types import SimpleNamespace

import pytest

from distill.study import driver, places
from distill.study.units import Unit

ray_engine = pytest.importorskip("distill.study.ray_engine", reason="needs the extra ray")
SMALL = {"object_store_memory": 80_000_000}
# A process of a unit: a line when it begins, one when it ends; `hold` in its folder keeps it until that is deleted.
PROCESS = """
import os, pathlib, sys, time
folder, words = pathlib.Path(sys.argv[1]), sys.argv[2:]
part = next(word[7:] for word in words if word.startswith("--part="))
where = [part, os.environ["TPU_NAME"], os.environ["TPU_WORKER_ID"], " ".join(words)]
def note(what):
    with open(folder / "notes", "a") as file:
        file.write("\\t".join([what, *where]) + "\\n")
note("begin")
deadline = time.monotonic() + 120
while (folder / "hold").exists() and time.monotonic() < deadline:
    time.sleep(0.05)
time.sleep(0.3)
note("end")
"""


@pytest.fixture
def pod():
    """Two slices v5e:2x4 of two hosts each, as Ray describes them on Cloud TPU and GKE: {slice: its nodes}."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **SMALL})
    nodes = {name: [made.add_node(**host(name, i), **SMALL) for i in range(2)] for name in ("slice-a", "slice-b")}
    made.wait_for_nodes()
    yield made, nodes
    made.shutdown()


def host(name, i):
    head = {"TPU-v5litepod-8-head": 1} if i == 0 else {}
    labels = {"slice-name": name, "worker-id": str(i), "pod-type": "v5litepod-8", "topology": "2x4"}
    return {
        "num_cpus": 1,
        "resources": {"TPU": 4, name: 1, **head},
        "labels": {f"ray.io/tpu-{key}": value for key, value in labels.items()}
        | {"ray.io/accelerator-type": "TPU-V5E"},
        "env_vars": {"TPU_NAME": name, "TPU_WORKER_ID": str(i)},
    }


def unit(name, **changes):
    (place,) = places.parse(["to 1e9: slice=v5e:2x4"])
    return Unit(name=name, runs=(SimpleNamespace(run=name, stage=0),), place=place, **changes)


@pytest.mark.slow
def test_units_get_whole_slices_one_each_and_another_one_when_a_host_is_lost(pod, tmp_path, monkeypatch):
    made, nodes = pod
    monkeypatch.setattr(ray_engine, "SLICE_SECONDS", 20.0)
    script, notes = tmp_path / "process.py", tmp_path / "notes"
    script.write_text(PROCESS)
    notes.touch()
    (tmp_path / "hold").touch()
    lost = []

    def lose_a_host(lines):
        """Once two units have begun on all hosts: one host of slice-a dies, and they may go on."""
        begun = [line.split("\t") for line in notes.read_text().splitlines()]
        if not lost and len(begun) == 4:
            lost.append(next(line[1] for line in begun if line[2] == "slice-a"))
            made.remove_node(nodes["slice-a"][1], allow_graceful=False)
        seen.extend(lines)
        if any("again" in line for line in seen):
            (tmp_path / "hold").unlink(missing_ok=True)

    seen: list[str] = []
    options = ray_engine.RayOptions.parse(f"--address={made.address} --slot=TPU:4 --hosts=4")
    with ray_engine.RayEngine(tmp_path, ["python", str(script), str(tmp_path)], options) as engine:
        outcome = driver.drive([unit("one"), unit("two"), unit("three")], engine, lose_a_host, every=0.2)
    assert sorted(outcome.succeeded) == ["one", "three", "two"] and not outcome.failed
    assert [line for line in seen if "again" in line] == [f"{lost[0]} ended with 137: again"]
    rows = [line.split("\t") for line in notes.read_text().splitlines()]
    for name in ("one", "two", "three"):
        ended = [row for row in rows if row[:2] == ["end", name]][-2:]
        assert {row[2] for row in ended} == {"slice-b"} if name == lost[0] else len({row[2] for row in ended}) == 1
        assert sorted(row[3] for row in ended) == ["0", "1"]
        assert all(row[4] == f"--part={name} --cluster=tpu" for row in ended)
    # Never two units at once on slice-b, the only one that is whole.
    order = [(row[0], row[1]) for row in rows if row[2] == "slice-b"]
    spans: dict[str, list[int]] = {}
    for i, (_, name) in enumerate(order):
        spans.setdefault(name, [i, i])[1] = i
    intervals = sorted(spans.values())
    assert all(before[1] < after[0] for before, after in zip(intervals, intervals[1:]))


@pytest.mark.slow
def test_a_slice_that_ray_does_not_know_is_a_sentence(pod, tmp_path):
    from distill.config import ConfigError

    (place,) = places.parse(["to 1e9: slice=v5e:3x16"])
    odd = Unit(name="odd", runs=(SimpleNamespace(run="odd", stage=0),), place=place)
    options = ray_engine.RayOptions.parse(f"--address={pod[0].address} --slot=TPU:4 --hosts=16")
    refused = pytest.raises(ConfigError, match="slice=v5e:3x16 is none of Ray's")
    with ray_engine.RayEngine(tmp_path, ["python"], options) as engine, refused:
        driver.drive([odd], engine, every=0.2)
