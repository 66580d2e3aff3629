"""Units on a Ray cluster (the extra `ray`): warm workers for units of one host, a process a host for the others.

A host is a `slot` of the cluster: some CPUs, GPUs or TPU chips of one node. A unit of several hosts gets a placement
group, all hosts at once or none; one on a TPU slice whole slices, by Ray's own support for these. No unit is sent to an
actor that is pending. The end of this process ends all actors, and their processes.
"""

import contextlib
import dataclasses
import logging
import math
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol, TypeAlias, cast

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from rich.console import Console

from distill.config import ConfigError, chips
from distill.study import part
from distill.study.driver import LOST
from distill.study.ray_options import RayOptions
from distill.study.units import Unit
from distill.study.workers import Trainer
from distill.system import preemption, process

SLICE_SECONDS = 60.0  # for Ray to find a free TPU slice, and for its hosts to come; then it is asked again
_TPUS = {"v5e": "v5litepod"}  # Ray's names of TPUs, where they are others than ours
Actor: TypeAlias = "ray.actor.ActorHandle[Host | Member]"


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

    @property
    def waits(self) -> bool:
        """Whether it has no hosts yet."""
        ...

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
        self._give_way()
        return [(work.unit.name, code) for work, code in found]

    def _give_way(self) -> None:
        """Idle hosts to the units that wait for one: an actor that is to be made on a node that has died would wait for
        ever for what they hold, and a gang for what was idle only after it was asked for."""
        for work in self._running:
            if not (self._idle and work.waits):
                continue
            if isinstance(work, _Warm):
                work.move(self._idle.pop())
            else:
                while self._idle:
                    ray.kill(self._idle.pop())

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

    @property
    def waits(self) -> bool:
        return False

    def poll(self) -> int | None:
        return self._process.poll()


class _Warm:
    """A unit of one host, in an actor that lives on."""

    def __init__(self, unit: Unit, actor: Actor):
        self.unit, self.actor = unit, actor
        self._ready: ray.ObjectRef = actor.__ray_ready__.remote()
        self._result: ray.ObjectRef | None = None

    @property
    def waits(self) -> bool:
        return self._result is None

    def move(self, actor: Actor) -> None:
        """To an actor that lives already; the one that it waited for is not made any more."""
        ray.kill(self.actor)
        self.actor, self._ready = actor, actor.__ray_ready__.remote()

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
        self._asked = self._ask()
        self._hosts: _Hosts | None = None
        self._members: list[Actor] = []
        self._address: ray.ObjectRef | None = None
        self._results: list[ray.ObjectRef] = []

    @property
    def waits(self) -> bool:
        return not self._members

    def poll(self) -> int | None:
        code = self._poll()
        if code is not None:
            for member in self._members:
                ray.kill(member)
            if self._hosts is not None:
                self._hosts.release()
        return code

    def _poll(self) -> int | None:
        if not self._members:
            if self._hosts is None and not self._found():
                return None
            assert self._hosts is not None
            if not ray.wait([self._hosts.ready], timeout=0)[0]:
                self._look_elsewhere()
                return None
            self._members = [self._member(self._hosts.group, i) for i in range(self._hosts.group.bundle_count)]
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

    def _ask(self) -> "Future[_Hosts]":
        """Asks for the hosts, beside this thread: Ray answers about slices only after a while."""
        answer: Future[_Hosts] = Future()

        def ask() -> None:
            try:
                answer.set_result(_reserve(self.unit, self._slot))
            except Exception as error:  # for who asks
                answer.set_exception(error)

        threading.Thread(target=ask, daemon=True).start()
        return answer

    def _found(self) -> bool:
        """Whether there is an answer, with hosts; where no slice was free it is asked again. Raises ConfigError."""
        if not self._asked.done():
            return False
        try:
            self._hosts = self._asked.result()
        except TimeoutError:
            self._asked = self._ask()
        return self._hosts is not None

    def _look_elsewhere(self) -> None:
        """Gives back a slice that is not complete: Ray gives it away by its first host, whatever became of others."""
        if self._hosts is None or not self._hosts.slice or time.monotonic() < self._hosts.since + SLICE_SECONDS:
            return
        if placement_group_table(self._hosts.group)["state"] == "PENDING":
            self._hosts.release()
            self._hosts, self._asked = None, self._ask()

    def _place(self, i: int, where: str) -> list[str]:
        own = [f"--part={self.unit.part}"]
        if self.unit.place.chip and not chips.find(self.unit.place.chip).node:
            return [*own, "--cluster=tpu"]
        return [*own, f"--coordinator={where}", f"--processes={self.unit.place.hosts}", f"--process={i}"]

    def _member(self, group: PlacementGroup, i: int) -> Actor:
        at = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=i)
        options = {"scheduling_strategy": at, **_share(self._slot)}
        return cast(Actor, ray.remote(Member).options(max_restarts=0, **options).remote())


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Hosts:
    """The hosts of a gang: asked for, all theirs once `ready` is, until `release`."""

    group: PlacementGroup
    ready: ray.ObjectRef
    release: "Release"
    slice: bool = False  # a TPU slice
    since: float = dataclasses.field(default_factory=time.monotonic)


def _reserve(unit: Unit, slot: tuple[str, float]) -> _Hosts:
    """The hosts of a gang. Raises TimeoutError where it wants a TPU slice and none is free for SLICE_SECONDS.

    Raises ConfigError for a slice that Ray does not know.
    """
    place, (kind, amount) = unit.place, slot
    if place.chip and not chips.find(place.chip).node:
        from ray.util import tpu

        try:
            whole = tpu.slice_placement_group(
                topology=place.topology,
                accelerator_version=_TPUS.get(place.chip, place.chip),
                chips_per_vm=int(amount),
                head_reservation_timeout_s=SLICE_SECONDS,
            )
        except ValueError as error:
            raise ConfigError(f"places: slice={place.chip}:{place.topology} is none of Ray's: {error}") from None
        group = whole.slice_placement_group
        return _Hosts(group=group, ready=group.ready(), release=whole.shutdown, slice=True)
    group = placement_group([{kind: amount}] * place.hosts, strategy="STRICT_SPREAD")

    def release() -> None:
        with contextlib.suppress(RayError):
            remove_placement_group(group)

    return _Hosts(group=group, ready=group.ready(), release=release)


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
