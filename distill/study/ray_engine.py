"""Units on a Ray cluster (the extra `ray`): warm workers for units of one host, a process a host for the others.

A host is a `slot` of the cluster: some CPUs, GPUs or TPU chips of one node. A unit of several hosts gets a placement
group, all hosts at once or none; one on a TPU slice whole slices, by Ray's own support for these. No unit is sent to an
actor that is pending. The end of this process ends all actors, and their processes.
"""

import contextlib
import dataclasses
import logging
import math
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeAlias, cast

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from rich.console import Console

from distill.config import ConfigError, chips
from distill.study import part
from distill.study.units import Unit
from distill.study.workers import Trainer
from distill.system import preemption, process

Actor: TypeAlias = "ray.actor.ActorHandle[Host | Member]"
LOST = 137  # as the code of a process that was killed


@dataclasses.dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Which cluster, and what a host of it is.

    address: of its head ('auto': the cluster of this node). slot: what a host is, as 'GPU:8'. hosts: how many there may
    be, where an autoscaler makes them; 0: those that there are.
    """

    address: str = "auto"
    slot: tuple[str, float] = ("CPU", 1.0)
    hosts: int = 0

    @classmethod
    def parse(cls, text: str) -> "RayOptions":
        """'--address=HOST:PORT --slot=TPU:4 --hosts=16'. Raises ConfigError."""
        values = {}
        for word in shlex.split(text):
            match = re.fullmatch(r"--(address|slot|hosts)=(\S+)", word)
            if not match:
                raise ConfigError(f"--engine: got {word!r}, wanted --address=HOST:PORT, --slot=GPU:8 or --hosts=16")
            values[match[1]] = match[2]
        slot = re.fullmatch(r"(\w+):(\d+)", values.get("slot", "CPU:1"))
        if not slot or not re.fullmatch(r"\d{1,6}", values.get("hosts", "0")):
            raise ConfigError(f"--engine={text}: wanted a slot such as CPU:1, GPU:8 or TPU:4, and a number of hosts")
        return cls(
            address=values.get("address", "auto"), slot=(slot[1], float(slot[2])), hosts=int(values.get("hosts", "0"))
        )


class Host:
    """An actor on one host: runs units of one host itself, and keeps programs and signals; or a process of a gang."""

    def __init__(self, workdir: str):
        process.use_fast_cpu_compilation()
        process.cache_compilations()
        self._workdir, self._trainer = Path(workdir), Trainer(Path(workdir))

    def train(self, runs: str) -> int:
        """The exit code of a part, carried out here."""
        try:
            return part.train(self._workdir, part.chosen(self._workdir, runs), self._trainer, Console())
        except preemption.Preempted:
            return preemption.REQUEUE


class Member:
    """An actor on one host of a gang."""

    def address(self) -> str:
        """HOST:PORT that is free on this host."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def run(self, command: Sequence[str], log: str) -> int:
        """The exit code of a process that ends with this actor."""
        with open(log, "ab") as file:
            return subprocess.Popen(
                [sys.executable, *command], stdout=file, stderr=file, preexec_fn=process.die_with_parent
            ).wait()


class _Work(Protocol):
    """A unit on its way: waiting for hosts, or running."""

    unit: Unit

    def poll(self) -> int | None:
        """Its exit code once it has ended."""
        ...


class RayEngine:
    """The Engine of a Ray cluster; the caller has its lock. Use as a context: at its end all actors end."""

    def __init__(self, workdir: Path, command: Sequence[str], options: RayOptions):
        self._workdir, self._command, self._options = workdir, list(command), options
        self._running: list[_Work] = []
        self._idle: list[Actor] = []

    def __enter__(self) -> "RayEngine":
        try:
            ray.init(address=self._options.address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"--backend=ray: there is no cluster at {self._options.address} ({reason}); start one with `ray start`"
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()

    def capacity(self) -> float:
        """Slots of the nodes that are alive, or what --hosts says."""
        kind, amount = self._options.slot
        alive = [node["Resources"].get(kind, 0.0) for node in ray.nodes() if node["Alive"]]
        return max(self._options.hosts, sum(resource // amount for resource in alive))

    def start(self, unit: Unit) -> None:
        (self._workdir / "logs").mkdir(exist_ok=True)
        if not unit.runs:
            self._running.append(_Local(unit, self._command, self._log(unit)))
        elif unit.place.hosts == 1:
            self._running.append(_Warm(unit, self._idle.pop() if self._idle else self._host()))
        else:
            while self._idle:  # a gang needs what they hold
                ray.kill(self._idle.pop())
            self._running.append(_Gang(unit, self._options.slot, self._command, self._log(unit)))

    def ended(self, seconds: float) -> list[tuple[str, int]]:
        deadline = time.monotonic() + seconds
        while True:
            found = [(work, code) for work in self._running if (code := work.poll()) is not None]
            if found or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        for work, code in found:
            self._running.remove(work)
            if isinstance(work, _Warm) and code != LOST:
                self._idle.append(work.actor)
        return [(work.unit.name, code) for work, code in found]

    def _log(self, unit: Unit) -> str:
        return str(self._workdir / "logs" / f"{unit.name}.log")

    def _host(self) -> "Actor":
        made = ray.remote(Host).options(max_restarts=0, max_task_retries=0, **_share(self._options.slot))
        return cast(Actor, made.remote(str(self._workdir)))


def _share(slot: tuple[str, float]) -> dict[str, object]:
    """A slot as options of an actor."""
    kind, amount = slot
    if kind == "CPU":
        return {"num_cpus": amount}
    return {"num_cpus": 0, "num_gpus": amount} if kind == "GPU" else {"num_cpus": 0, "resources": {kind: amount}}


class _Local:
    """`predict` or `conclude`, beside this driver."""

    def __init__(self, unit: Unit, command: Sequence[str], log: str):
        self.unit = unit
        with open(log, "ab") as file:
            words = [sys.executable, *command[1:], f"--part={unit.part}"]
            self._process = subprocess.Popen(words, stdout=file, stderr=file)

    def poll(self) -> int | None:
        return self._process.poll()


class _Warm:
    """A unit of one host, in an actor that lives on."""

    def __init__(self, unit: Unit, actor: Actor):
        self.unit, self.actor = unit, actor
        self._ready: ray.ObjectRef = actor.__ray_ready__.remote()
        self._result: ray.ObjectRef | None = None

    def poll(self) -> int | None:
        if self._result is None:
            if _state(self._ready) is None:
                return None
            self._result = self.actor.train.remote(self.unit.part)
        return _state(self._result)


class _Gang:
    """A unit of several hosts: a placement group, and a process on each."""

    def __init__(self, unit: Unit, slot: tuple[str, float], command: Sequence[str], log: str):
        self.unit, self._slot, self._command, self._log = unit, slot, list(command[1:]), log
        self._group, self._release = _reserve(unit, slot)
        self._ready = self._group.ready()
        self._members: list[Actor] = []
        self._address: ray.ObjectRef | None = None
        self._results: list[ray.ObjectRef] = []

    def poll(self) -> int | None:
        code = self._poll()
        if code is not None:
            for member in self._members:
                ray.kill(member)
            self._release()
        return code

    def _poll(self) -> int | None:
        if not self._members:
            if not ray.wait([self._ready], timeout=0)[0]:
                return None
            self._members = [self._member(i) for i in range(self.unit.place.hosts)]
            self._address = self._members[0].address.remote()
        if not self._results:
            assert self._address is not None
            if not ray.wait([self._address], timeout=0)[0]:
                return None
            try:
                where = str(ray.get(self._address))
            except RayError:
                return LOST
            self._results = [
                member.run.remote([*self._command, *self._place(i, where)], self._log.replace(".log", f"-{i}.log"))
                for i, member in enumerate(self._members)
            ]
        codes = [_state(result) for result in self._results]
        ended = [code for code in codes if code is not None]
        if len(ended) < len(codes) and not (set(ended) & {LOST}):
            return None
        # One failure or loss is that of all: the others end because of it.
        for kind in (LOST, 1, 2, preemption.REQUEUE):
            if kind in ended:
                return kind
        return max(ended, key=abs)

    def _place(self, i: int, where: str) -> list[str]:
        own = [f"--part={self.unit.part}"]
        if self.unit.place.chip and not chips.find(self.unit.place.chip).node:
            return [*own, "--cluster=tpu"]
        return [*own, f"--coordinator={where}", f"--processes={self.unit.place.hosts}", f"--process={i}"]

    def _member(self, i: int) -> Actor:
        at = PlacementGroupSchedulingStrategy(placement_group=self._group, placement_group_bundle_index=i)
        options = {"scheduling_strategy": at, **_share(self._slot)}
        return cast(Actor, ray.remote(Member).options(max_restarts=0, **options).remote())


def _reserve(unit: Unit, slot: tuple[str, float]) -> "tuple[PlacementGroup, Release]":
    """The hosts of a gang, and how they are given back."""
    place, (kind, amount) = unit.place, slot
    if place.chip and not chips.find(place.chip).node:
        from ray.util import tpu

        whole = tpu.slice_placement_group(topology=place.topology, accelerator_version=place.chip)
        return whole.slice_placement_group, whole.shutdown
    group = placement_group([{kind: amount}] * place.hosts, strategy="STRICT_SPREAD")

    def release() -> None:
        with contextlib.suppress(RayError):
            remove_placement_group(group)

    return group, release


class Release(Protocol):
    """Gives hosts back."""

    def __call__(self) -> None: ...


def _state(result: "ray.ObjectRef") -> int | None:
    """The exit code that a call returned; LOST where its process or node is gone, None while it runs."""
    if not ray.wait([result], timeout=0)[0]:
        return None
    try:
        value = ray.get(result)
        return int(value) if isinstance(value, int | float) and math.isfinite(value) else 0
    except RayTaskError as error:  # an error of ours, with its traceback
        print(error, file=sys.stderr)
        return 1
    except RayError:
        return LOST
