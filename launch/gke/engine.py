"""Units of a study as JobSets: the engine of `distill study --backend=gke`.

The driver may run outside of the cluster or in it, wherever kubectl reaches the API server and the workdir is mounted.
Kueue, or Kubernetes itself, queues what does not fit; a JobSet that is there already is waited for, not made again.
"""

import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from distill.config import ConfigError, DistillError, chips
from distill.study.units import Unit
from distill.system.files import loads
from launch.gke import __main__ as gke


class KubernetesError(DistillError):
    """kubectl refused a command, with its own words."""


class GkeEngine:
    """The Engine of a cluster with JobSet; `options` are flags of launch.gke, --image among them."""

    def __init__(self, workdir: Path, command: Sequence[str], options: Sequence[str]):
        self._workdir, self._command = workdir, list(command)
        self._options = [option for option in options if option]
        if reserved := [
            option for option in self._options if re.match("--(name|tpu|topology|gpu|nodes|dry-run)", option)
        ]:
            raise ConfigError(f"--engine: {reserved[0]} follows from study.places; leave it out")
        self._prefix = "s" + hashlib.sha256(str(workdir).encode()).hexdigest()[:6]
        self._jobsets: dict[str, Unit] = {}
        self._local: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "GkeEngine":
        self._namespace = gke.parser().parse_args(["--name=x", *self._options]).namespace
        self._listed()  # a cluster that cannot be reached is an error now
        return self

    def __exit__(self, *_: object) -> None:
        """JobSets go on without this process; the next one waits for them."""

    def capacity(self) -> float:
        return float("inf")

    def start(self, unit: Unit) -> None:
        if not unit.runs:  # predict and conclude need no accelerator
            words = [sys.executable, *self._command[1:], f"--part={unit.part}"]
            self._local[unit.name] = subprocess.Popen(words)
            return
        name = f"{self._prefix}-{hashlib.sha256(unit.name.encode()).hexdigest()[:10]}"
        if self._listed().get(name) in (0, 1):  # of a former attempt
            _kubectl("delete", "jobset", name, f"--namespace={self._namespace}", "--wait=true")
        _kubectl("apply", "-f", "-", text=self.manifest(name, unit))
        self._jobsets[name] = unit

    def manifest(self, name: str, unit: Unit) -> str:
        """The JobSet of a unit. Raises ConfigError for a place without a slice."""
        place = unit.place
        if not place.chip:
            raise ConfigError(
                f"config.study.places: {unit.runs[0].name} has no slice, and GKE chooses machines by it; wanted such "
                "as 'to 1e9: slice=v5e:4x4' or 'to 1e9: slice=h100:8'"
            )
        if chips.find(place.chip).node:
            machines = [f"--gpu={place.chip}", f"--nodes={place.hosts}"]
        else:
            machines = [f"--tpu={place.chip}", f"--topology={place.topology}"]
        flags = gke.parser().parse_args([f"--name={name}", *machines, *self._options])
        return gke.render(flags, [*self._command, f"--part={unit.part}"])

    def ended(self, seconds: float) -> list[tuple[str, int]]:
        time.sleep(seconds)
        done = [(name, code) for name, process in self._local.items() if (code := process.poll()) is not None]
        for name, _ in done:
            del self._local[name]
        listed = self._listed() if self._jobsets else {}
        for name, unit in list(self._jobsets.items()):
            if name not in listed:  # deleted by somebody
                done.append((unit.name, 1))
            elif (code := listed[name]) is not None:
                done.append((unit.name, code))
            else:
                continue
            del self._jobsets[name]
        return done

    def _listed(self) -> dict[str, int | None]:
        """Every JobSet of the namespace: 0 where it is completed, 1 where it has failed, else None."""
        text = _kubectl("get", "jobsets", f"--namespace={self._namespace}", "--output=json")
        found: dict[str, int | None] = {}
        for item in loads(text)["items"]:
            conditions = item.get("status", {}).get("conditions", [])
            true = {condition["type"] for condition in conditions if condition["status"] == "True"}
            found[item["metadata"]["name"]] = 0 if "Completed" in true else 1 if "Failed" in true else None
        return found


def _kubectl(*words: str, text: str = "") -> str:
    try:
        done = subprocess.run(["kubectl", *words], input=text, capture_output=True, text=True)
    except FileNotFoundError:
        raise ConfigError(
            "--backend=gke: there is no kubectl here; install it, and get-credentials of the cluster"
        ) from None
    if done.returncode:
        raise KubernetesError(f"kubectl {words[0]}: {done.stderr.strip() or json.dumps(done.returncode)}")
    return done.stdout
