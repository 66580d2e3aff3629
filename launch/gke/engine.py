"""Units of a study as JobSets: the engine of `distill study --backend=gke`.

The driver may run outside of the cluster or in it, wherever kubectl reaches the API server and the workdir is mounted.
Kueue, or Kubernetes itself, queues what does not fit; a JobSet that is there already is waited for, not made again.
The server may be away for a while: what was to be made or asked is tried again, and JobSets go on meanwhile.
"""

import dataclasses
import hashlib
import math
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.config import ConfigError, DistillError, chips
from distill.study.driver import LOST
from distill.study.units import Unit
from distill.system import preemption
from distill.system.files import loads
from launch.gke import __main__ as gke

NAMED = ("--name=x",)  # what every JobSet has, where options alone are read
LABEL = "distill-study"  # on every JobSet, with the same value for all of a study
EVERY = 5.0  # seconds between two looks at the JobSets
PATIENCE = 900.0  # seconds without an answer of the server, after which the driver ends
# kubectl ends with 1 for everything; these words are of a server, or a way to it, that may be back in a while.
_AWAY = re.compile(
    "unable to connect|connection refused|connection reset|no route to host|no such host|i/o timeout|timed? ?out|"
    "handshake|unexpected EOF|server closed|currently unable to handle|serviceunavailable|internal error|"
    "internalerror|too ?many ?requests|etcdserver|leader changed|deadline exceeded|server is overloaded",
    re.IGNORECASE,
)


class KubernetesError(DistillError):
    """kubectl refused a command, with its own words."""


class ServerAway(KubernetesError):
    """The API server could not be reached, or was too busy; the command may or may not have been carried out."""


class AlreadyThere(KubernetesError):
    """An object of this name is there."""


def check(options: Sequence[str]) -> list[str]:
    """The flags of launch.gke that hold for every unit. Raises ConfigError."""
    given = [option for option in options if option]
    if reserved := [option for option in given if re.match("--(name|tpu|topology|gpu|nodes|dry-run)", option)]:
        raise ConfigError(f"--engine: {reserved[0]} follows from the places; leave it out")
    gke.parser().parse_args([*NAMED, *given])
    return given


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A JobSet as the server lists it. code: 0 where it is completed, 1 where it has failed, else None."""

    code: int | None
    deleted: bool  # it ends, and its name is free afterwards
    command: str

    @classmethod
    def read(cls, item: dict[str, Any]) -> "Found":
        true = {each["type"] for each in item.get("status", {}).get("conditions", []) if each["status"] == "True"}
        (job,) = item["spec"]["replicatedJobs"]
        (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
        return cls(
            code=0 if "Completed" in true else 1 if "Failed" in true else None,
            deleted="deletionTimestamp" in item["metadata"],
            command=" ".join(container["command"]),
        )


class GkeEngine:
    """The Engine of a cluster with JobSet; `options` are flags of launch.gke, --image among them."""

    def __init__(self, workdir: Path, command: Sequence[str], options: Sequence[str], every: float = EVERY):
        self._workdir, self._command, self._every = workdir, list(command), every
        self._options = check(options)
        self._study = "s" + hashlib.sha256(str(workdir).encode()).hexdigest()[:6]
        self._wanted: dict[str, Unit] = {}  # to be made
        self._jobsets: dict[str, Unit] = {}  # there when last seen
        self._local: dict[str, subprocess.Popen[bytes]] = {}
        self._looked, self._answered = -math.inf, time.monotonic()

    def __enter__(self) -> "GkeEngine":
        self._namespace = gke.parser().parse_args([*NAMED, *self._options]).namespace
        self._listed()  # a cluster that cannot be reached is an error now
        return self

    def __exit__(self, *_: object) -> None:
        """JobSets go on without this process; the next one waits for them."""

    def capacity(self) -> float:
        return math.inf

    def start(self, unit: Unit) -> None:
        if not unit.runs:  # predict and conclude need no accelerator
            words = [sys.executable, *self._command[1:], f"--part={unit.part}"]
            self._local[unit.name] = subprocess.Popen(words)
            return
        name = f"{self._study}-{hashlib.sha256(unit.name.encode()).hexdigest()[:10]}"
        self.manifest(name, unit)  # what cannot be is an error now
        self._wanted[name] = unit
        self._looked = -math.inf

    def manifest(self, name: str, unit: Unit) -> str:
        """The JobSet of a unit. Raises ConfigError for a place without a slice."""
        place = unit.place
        if not place.chip:
            raise ConfigError(
                f"places: {unit.runs[0].name} has no slice, and GKE chooses machines by it; wanted such as "
                "'to 1e9: slice=v5e:4x4' or 'to 1e9: slice=h100:8', in config.study.places, or --place of a sweep"
            )
        if chips.find(place.chip).node:
            machines = [f"--gpu={place.chip}", f"--nodes={place.hosts}"]
        else:
            machines = [f"--tpu={place.chip}", f"--topology={place.topology}"]
        flags = gke.parser().parse_args([f"--name={name}", *machines, *self._options])
        return gke.render(flags, [*self._command, f"--part={unit.part}"], {LABEL: self._study})

    def ended(self, seconds: float) -> list[tuple[str, int]]:
        done = [(name, code) for name, process in self._local.items() if (code := process.poll()) is not None]
        for name, _ in done:
            del self._local[name]
        if (self._wanted or self._jobsets) and time.monotonic() >= self._looked + self._every:
            try:
                done += self._turn()
                self._answered = time.monotonic()
            except ServerAway as error:
                if time.monotonic() > self._answered + PATIENCE:
                    raise
                if self._looked <= self._answered:
                    print(f"{error}; trying again", file=sys.stderr)
            self._looked = time.monotonic()
        if not done:
            time.sleep(seconds)
        return done

    def _turn(self) -> list[tuple[str, int]]:
        """Makes what is wanted, as far as its name is free, and returns what has ended. Raises KubernetesError."""
        listed, done = self._listed(), list[tuple[str, int]]()
        for name, unit in list(self._jobsets.items()):
            if (found := listed.get(name)) is None:  # deleted by somebody: as a host that is lost
                done.append((unit.name, LOST))
            elif found.code is None or found.deleted:
                continue
            elif found.code == 0 and not all(task.run in found.command for task in unit.runs):
                done.append((unit.name, preemption.REQUEUE))  # it was made for fewer runs than are wanted now
            else:
                done.append((unit.name, found.code))
            del self._jobsets[name]
        for name, unit in list(self._wanted.items()):
            found = listed.get(name)
            if found is not None and not found.deleted and found.code is not None:  # of a former attempt
                self._kubectl("delete", "jobset", name, "--ignore-not-found", "--wait=false")
            if found is None:
                self._make(name, unit)
            if found is None or (found.code is None and not found.deleted):  # made now, or there and at work
                self._jobsets[name] = self._wanted.pop(name)
        return done

    def _make(self, name: str, unit: Unit) -> None:
        """A new JobSet; create, not apply: one that is there keeps its runs, and its spec cannot be changed."""
        try:
            self._kubectl("create", "-f", "-", text=self.manifest(name, unit))
        except AlreadyThere:
            if name not in self._listed():
                raise KubernetesError(
                    f"the namespace {self._namespace} has a JobSet {name} without the label {LABEL}={self._study}; "
                    "delete it, and give the same command again"
                ) from None

    def _listed(self) -> dict[str, Found]:
        """The JobSets of the study."""
        text = self._kubectl("get", "jobsets", f"--selector={LABEL}={self._study}", "--output=json")
        return {item["metadata"]["name"]: Found.read(item) for item in loads(text)["items"]}

    def _kubectl(self, *words: str, text: str = "") -> str:
        command = ["kubectl", *words, f"--namespace={self._namespace}", "--request-timeout=60s"]
        try:
            done = subprocess.run(command, input=text, capture_output=True, text=True)
        except FileNotFoundError:
            raise ConfigError(
                "--backend=gke: there is no kubectl here; install it, and get-credentials of the cluster"
            ) from None
        if done.returncode:
            said = done.stderr.strip() or str(done.returncode)
            kind = AlreadyThere if "(AlreadyExists)" in said else ServerAway if _AWAY.search(said) else KubernetesError
            raise kind(f"kubectl {words[0]}: {said}")
        return done.stdout
