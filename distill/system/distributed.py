"""Several processes as one program: discovery, each process's share of the data, joint decisions, joint exit.

Every process runs the same commands in the same order on one mesh over all devices. What only one of them can know (a
clock, a signal, a file that cannot be read) is exchanged here before any process acts on it.
"""

import contextlib
import dataclasses
import itertools
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import numpy as np

from distill.errors import ConfigError, DistillError
from distill.system import hostlist

if TYPE_CHECKING:
    import jax

# Seconds without a heartbeat after which a process counts as dead and all others exit.
HEARTBEAT = 10
# Seconds that processes wait for the others: to connect, to build a store, to exit together.
ARRIVAL, PATIENCE, END = 300, 24 * 3600, 15
# The exit code of a process that lost a peer (EX_UNAVAILABLE of sysexits.h).
LOST = 69
CLUSTERS = ("slurm", "jobset", "tpu")
_PORT = 8476
AGAIN = "run the same command again: it continues at its last checkpoint"


class PeerLost(DistillError):
    """Another process of this run has ended; this one cannot continue without it."""


class RemoteError(DistillError):
    """An error that another process of this run raised, with its message."""


@dataclasses.dataclass(frozen=True)
class ProcessAddress:
    """Where process 0 listens (HOST:PORT), how many processes there are, and which of them this one is."""

    coordinator: str
    count: int
    index: int


def find(
    cluster: str, coordinator: str, processes: str, process: str, environ: Mapping[str, str] | None = None
) -> ProcessAddress | None:
    """The address of this process, from flags or the cluster's environment variables; flags take precedence.

    None on TPUs, where JAX finds it itself. Raises ConfigError for a value that is missing or not a number.
    """
    environ = os.environ if environ is None else environ
    if cluster and cluster not in CLUSTERS:
        raise ConfigError(f"--cluster={cluster}: wanted one of {', '.join(CLUSTERS)}")
    if cluster == "tpu":
        if coordinator or processes or process:
            raise ConfigError("--cluster=tpu: JAX reads the addresses from the machine; leave out the other flags")
        return None
    values = {"coordinator": coordinator, "processes": processes, "process": process}
    if cluster:
        read = _slurm if cluster == "slurm" else _jobset
        try:
            values = {name: given or value for (name, given), value in zip(values.items(), read(environ))}
        except KeyError as missing:
            hint = "start it with srun" if cluster == "slurm" else "use the manifest of launch.gke"
            raise ConfigError(f"--cluster={cluster}: the variable {missing.args[0]} is not set here; {hint}") from None
    for name, value in values.items():
        wanted = r"\S+:\d+" if name == "coordinator" else r"\d+"
        if not re.fullmatch(wanted, value):
            form = "HOST:PORT of process 0" if name == "coordinator" else "a number"
            raise ConfigError(f"--{name}={value}: wanted {form}; coordinator, processes and process go together")
    place = ProcessAddress(values["coordinator"], int(values["processes"]), int(values["process"]))
    if not place.index < place.count:
        raise ConfigError(f"--process={place.index}: wanted 0 to {place.count - 1} of --processes={place.count}")
    return place


def _slurm(environ: Mapping[str, str]) -> tuple[str, str, str]:
    """From the variables that srun sets. The port depends on the job, so that two jobs on a machine never share one."""
    host = hostlist.first(environ["SLURM_STEP_NODELIST"])
    port = 61440 + int(environ["SLURM_JOB_ID"]) % 4096
    return f"{host}:{port}", environ["SLURM_STEP_NUM_TASKS"], environ["SLURM_PROCID"]


def _jobset(environ: Mapping[str, str]) -> tuple[str, str, str]:
    """From the variables in manifests of launch.gke: job JOB_INDEX of JOBS, pod JOB_COMPLETION_INDEX of PODS."""
    pods = int(environ["PODS"])
    index = int(environ["JOB_INDEX"]) * pods + int(environ["JOB_COMPLETION_INDEX"])
    return f"{environ['COORDINATOR']}:{_PORT}", str(int(environ["JOBS"]) * pods), str(index)


def join(place: ProcessAddress | None) -> None:
    """Connects this process to the others. Call it before any other use of JAX.

    Raises DistillError where the others do not connect within ARRIVAL seconds.
    """
    import jax

    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM; see preemption.catch_preemption
    given: dict[str, Any] = {}
    if place:
        given = {"coordinator_address": place.coordinator, "num_processes": place.count, "process_id": place.index}
        given["cluster_detection_method"] = "deactivate"
    where = f"process {place.index} of {place.count} at {place.coordinator}" if place else "--cluster=tpu"
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT, initialization_timeout=ARRIVAL, **given)
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise DistillError(f"{where}: the processes did not find each other within {ARRIVAL} s: {reason}") from None


def several() -> bool:
    """Whether this process is one of several. Does not load JAX or touch its devices."""
    return _client() is not None


def first() -> bool:
    """Whether this is process 0, which prints, and writes the files that are written once."""
    return rank()[0] == 0


def rank() -> tuple[int, int]:
    """(i, n): the index of this process and the number of processes."""
    return (_state().process_id, _state().num_processes) if several() else (0, 1)


class _Client(Protocol):
    """The methods used of JAX's coordination service."""

    def key_value_set(self, key: str, value: str) -> None: ...
    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...
    def wait_at_barrier(self, barrier_id: str, timeout_in_ms: int) -> None: ...


def _state() -> Any:
    # JAX has no public access to its coordination service; orbax uses the same private one.
    module: Any = sys.modules.get("jax._src.distributed")
    return module.global_state if module else None


def _client() -> _Client | None:
    return getattr(_state(), "client", None)


def name() -> str:
    """'process 2 of 4 on HOST'."""
    index, count = rank()
    return f"process {index} of {count} on {socket.gethostname()}"


_round = itertools.count()


def exchange(text: str, topic: str = "", seconds: float = PATIENCE) -> list[str]:
    """Gathers one text from each process, in order of index; waits for all. Raises TimeoutError or PeerLost."""
    client = _client()
    if client is None:
        return [text]
    place = f"distill/{topic or next(_round)}"
    try:
        client.key_value_set(f"{place}/{rank()[0]:06d}", text)
        client.wait_at_barrier(f"{place}/all", int(seconds * 1000))
        return [value for _, value in sorted(client.key_value_dir_get(place))]
    except Exception as error:  # XlaRuntimeError, with the reason in its text
        if "DEADLINE_EXCEEDED" in str(error):
            raise TimeoutError(f"{name()}: the others did not come within {seconds:.0f} s") from None
        raise PeerLost(f"{name()}: another process of this run has ended") from error


@contextlib.contextmanager
def raise_everywhere() -> Iterator[None]:
    """All processes leave the block together; if one of them raised a DistillError inside, all of them raise."""
    error: DistillError | None = None
    try:
        yield
    except DistillError as caught:
        error = caught
    if several():
        texts = exchange(f"{name()}: {error}" if error else "")
        if error is None and any(texts):
            error = RemoteError(next(text for text in texts if text))
    if error is not None:
        raise error


@contextlib.contextmanager
def process_zero_first() -> Iterator[None]:
    """Process 0 runs the block first and the others after it, so that they find the files it made."""
    if several() and not first():
        exchange("")
    try:
        yield
    finally:
        if several() and first():
            exchange("")


def wait_for_file(path: Path, seconds: float = 10) -> bool:
    """Whether a file that another process wrote is visible here within `seconds`; a network file system may lag."""
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(path.exists())


def batch_slice(mesh: "jax.sharding.Mesh") -> tuple[int, int]:
    """(i, n): this process reads part i of n of every global batch.

    Processes that hold the same rows (their devices split the tensor axis) read the same part. Raises ConfigError for a
    mesh that splits the rows unevenly.
    """
    import jax

    if jax.process_count() == 1:
        return 0, 1
    axes = ("data", "fsdp")
    rows = int(np.prod([mesh.shape[axis] for axis in axes]))
    held: dict[int, set[int]] = {}
    places: Any = jax.NamedSharding(mesh, jax.sharding.PartitionSpec(axes)).devices_indices_map((rows,))
    for device, (part,) in places.items():
        held.setdefault(device.process_index, set()).add(part.start or 0)
    parts = sorted({tuple(sorted(each)) for each in held.values()})
    if sum(len(part) for part in parts) != rows or len({len(part) for part in parts}) > 1:
        raise ConfigError(
            f"config.mesh: {dict(mesh.shape)} splits a batch unevenly over {jax.process_count()} processes of "
            f"{jax.local_device_count()} devices; choose a tensor axis that divides or is a multiple of the latter"
        )
    return parts.index(tuple(sorted(held[jax.process_index()]))), len(parts)


def any_process(mesh: "jax.sharding.Mesh", *ask: Callable[[], bool]) -> Callable[[], tuple[bool, ...]]:
    """Whether each question is true on any process. Does not block: the returned function waits for the answers.

    All processes must call this at the same place. A single process evaluates `ask` when the answers are requested.
    """
    import jax

    if jax.process_count() == 1:
        return lambda: tuple(each() for each in ask)
    flags = [each() for each in ask]
    spread = jax.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names, None))
    local = np.tile(np.array(flags, np.int32), (jax.local_device_count(), 1))
    answers = _any(jax.make_array_from_process_local_data(spread, local))
    return lambda: tuple(bool(flag) for flag in np.asarray(answers))


def _any(flags: "jax.Array") -> "jax.Array":
    import jax
    import jax.numpy as jnp

    return jax.jit(lambda flags: jnp.max(flags, axis=0))(flags)


def exit_together(code: int, message: str) -> int:
    """Ends this program together with the others; process 0 prints each message once.

    Returns the exit code. If the others do not arrive in time, this process exits at once.
    """
    try:
        texts = exchange(message, topic="end", seconds=END if code else PATIENCE)
    except (TimeoutError, PeerLost) as error:
        exit_now(code or LOST, message or f"error: {error}; {AGAIN}")
    printed: list[str] = []
    for text in (text.removeprefix("error: ") for text in texts):
        # The other processes report an error of one process as `process 3 of 4: ...`.
        if text and not any(text in other or other in text for other in printed):
            printed.append(text)
            if first():
                print(text if text == message else f"error: {text}", file=sys.stderr, flush=True)
    sys.modules["jax"].distributed.shutdown()
    return code


def exit_now(code: int, message: str) -> NoReturn:
    """Exits at once, without JAX's exit barrier, which would wait for processes that are gone."""
    print(f"[{name()}] {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    logging.shutdown()
    os._exit(code)


def lost(error: BaseException) -> bool:
    """Whether an error means that another process has ended."""
    signs = (
        "gloo",
        "nccl",
        "connection closed",
        "connection reset",
        "heartbeat",
        "unavailable",
        "coordination service",
    )
    text = str(error).lower()
    return isinstance(error, PeerLost) or (not isinstance(error, DistillError) and any(sign in text for sign in signs))
