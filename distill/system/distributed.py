"""Several processes as one program: how they find each other, what each reads, what they decide together, how they end.

Every process runs the same commands in the same order on one mesh over all devices. What only one of them can know (a
clock, a signal, a file that cannot be read) goes through here before anybody acts on it.
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
from typing import Any, NoReturn

import numpy as np

from distill.errors import ConfigError, DistillError

# Seconds without a sign of life after which a process counts as dead, and all others end.
HEARTBEAT = 10
# Seconds that processes wait for the others: to appear, to build a store, to come to the same end.
ARRIVAL, PATIENCE, END = 300, 24 * 3600, 15
# The exit code of a process that lost another one (EX_UNAVAILABLE of sysexits.h).
LOST = 69
CLUSTERS = ("slurm", "jobset", "tpu")
_PORT = 8476
AGAIN = "run the same command again: it continues at its last checkpoint"


class Lost(DistillError):
    """Another process of this run has ended, and this one cannot go on alone."""


class Elsewhere(DistillError):
    """An error of another process, which tells it."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where process 0 listens (HOST:PORT), how many processes there are, and which of them this one is."""

    coordinator: str
    count: int
    index: int


def find(
    cluster: str, coordinator: str, processes: str, process: str, environ: Mapping[str, str] | None = None
) -> Place | None:
    """This process's place, as flags give it or as the cluster's variables do; what is given in a flag holds.

    None on TPUs, where JAX asks the machine itself. Raises ConfigError for what is missing or is no number.
    """
    environ = os.environ if environ is None else environ
    if cluster and cluster not in CLUSTERS:
        raise ConfigError(f"--cluster={cluster}: wanted one of {', '.join(CLUSTERS)}")
    if cluster == "tpu":
        if coordinator or processes or process:
            raise ConfigError("--cluster=tpu: the machine itself says where it stands; leave out the other flags")
        return None
    found = {"coordinator": coordinator, "processes": processes, "process": process}
    if cluster:
        read = _slurm if cluster == "slurm" else _jobset
        try:
            found = {name: given or value for (name, given), value in zip(found.items(), read(environ))}
        except KeyError as missing:
            hint = "start it with srun" if cluster == "slurm" else "take the manifest of launch.gke"
            raise ConfigError(f"--cluster={cluster}: the variable {missing.args[0]} is not set here; {hint}") from None
    for name, value in found.items():
        wanted = r"\S+:\d+" if name == "coordinator" else r"\d+"
        if not re.fullmatch(wanted, value):
            form = "HOST:PORT of process 0" if name == "coordinator" else "a number"
            raise ConfigError(f"--{name}={value}: wanted {form}; coordinator, processes and process go together")
    place = Place(found["coordinator"], int(found["processes"]), int(found["process"]))
    if not place.index < place.count:
        raise ConfigError(f"--process={place.index}: wanted 0 to {place.count - 1} of --processes={place.count}")
    return place


def _slurm(environ: Mapping[str, str]) -> tuple[str, str, str]:
    """As srun tells its tasks. The port follows from the job, so that jobs on one machine do not meet."""
    nodes = environ["SLURM_STEP_NODELIST"]  # 'node7', 'node[001-004,9],other2'
    first = re.match(r"([^,\[]+)(?:\[([^,\]-]+))?", nodes)
    host = (first[1] + (first[2] or "")) if first else nodes
    port = 61440 + int(environ["SLURM_JOB_ID"]) % 4096
    return f"{host}:{port}", environ["SLURM_STEP_NUM_TASKS"], environ["SLURM_PROCID"]


def _jobset(environ: Mapping[str, str]) -> tuple[str, str, str]:
    """As the manifests of launch.gke pass it on: job JOB_INDEX of JOBS, pod JOB_COMPLETION_INDEX of PODS in it."""
    pods = int(environ["PODS"])
    index = int(environ["JOB_INDEX"]) * pods + int(environ["JOB_COMPLETION_INDEX"])
    return f"{environ['COORDINATOR']}:{_PORT}", str(int(environ["JOBS"]) * pods), str(index)


def join(place: Place | None) -> None:
    """Makes this process one of several; call it before JAX is asked for anything.

    Raises DistillError where the others do not appear in time.
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
    """Whether this process is one of several. Asks nothing of JAX's devices, nor loads it."""
    return _client() is not None


def first() -> bool:
    """Whether this is process 0: the one that prints, and that writes what is written once."""
    return rank()[0] == 0


def rank() -> tuple[int, int]:
    """(i, n): which of how many processes this one is."""
    return (_state().process_id, _state().num_processes) if several() else (0, 1)


def _state() -> Any:
    # JAX gives no other way to its coordination service, which orbax uses in the same way.
    found: Any = sys.modules.get("jax._src.distributed")
    return found.global_state if found else None


def _client() -> Any:
    return getattr(_state(), "client", None)


def name() -> str:
    """'process 2 of 4 on HOST'."""
    index, count = rank()
    return f"process {index} of {count} on {socket.gethostname()}"


_round = itertools.count()


def exchange(text: str, topic: str = "", seconds: float = PATIENCE) -> list[str]:
    """The texts of all processes, in their order; returns when each has given one. Raises TimeoutError, or Lost."""
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
        raise Lost(f"{name()}: another process of this run has ended") from error


@contextlib.contextmanager
def agreed() -> Iterator[None]:
    """All processes come out of this together: with an error, if any of them met one inside."""
    error: DistillError | None = None
    try:
        yield
    except DistillError as caught:
        error = caught
    if several():
        texts = exchange(f"{name()}: {error}" if error else "")
        if error is None and any(texts):
            error = Elsewhere(next(text for text in texts if text))
    if error is not None:
        raise error


@contextlib.contextmanager
def in_turn() -> Iterator[None]:
    """Process 0 goes through this first and the others after it: what it has made they find."""
    if several() and not first():
        exchange("")
    try:
        yield
    finally:
        if several() and first():
            exchange("")


def appears(path: Any, seconds: float = 10) -> bool:
    """Whether a file that another process has written is seen here; a network file system may take a moment."""
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(path.exists())


def share(mesh: Any) -> tuple[int, int]:
    """(i, n): which of the n parts of every global batch this process reads.

    Processes that hold the same rows (their devices split the tensor axis) read the same part. Raises ConfigError for a
    mesh that deals its rows out unevenly.
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


def vote(mesh: Any, *ask: Callable[[], bool]) -> Callable[[], tuple[bool, ...]]:
    """Whether any process says yes, for each question; the devices work on until the answers are asked for.

    All processes must call this at the same place. A process of its own answers when it is asked.
    """
    import jax

    if jax.process_count() == 1:
        return lambda: tuple(each() for each in ask)
    flags = [each() for each in ask]
    spread = jax.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names, None))
    mine = np.tile(np.array(flags, np.int32), (jax.local_device_count(), 1))
    found = _any(jax.make_array_from_process_local_data(spread, mine))
    return lambda: tuple(bool(flag) for flag in np.asarray(found))


def _any(flags: Any) -> Any:
    import jax
    import jax.numpy as jnp

    return jax.jit(lambda flags: jnp.max(flags, axis=0))(flags)


def end(code: int, said: str) -> int:
    """Comes to the end of this program together with the others; process 0 prints what there is to say, once.

    Returns the exit code. Where the others do not come, this process ends here and now, so that nobody waits for it.
    """
    try:
        texts = exchange(said, topic="end", seconds=END if code else PATIENCE)
    except (TimeoutError, Lost) as error:
        leave(code or LOST, said or f"error: {error}; {AGAIN}")
    told: list[str] = []
    for text in (text.removeprefix("error: ") for text in texts):
        # An error of one process is told by the others as that of `process 3 of 4`.
        if text and not any(text in other or other in text for other in told):
            told.append(text)
            if first():
                print(text if text == said else f"error: {text}", file=sys.stderr, flush=True)
    sys.modules["jax"].distributed.shutdown()
    return code


def leave(code: int, said: str) -> NoReturn:
    """Ends this process at once, without the exit barrier in which it would wait for those that are gone."""
    print(f"[{name()}] {said}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    logging.shutdown()
    os._exit(code)


def lost(error: BaseException) -> bool:
    """Whether an error means that another process has gone."""
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
    return isinstance(error, Lost) or (not isinstance(error, DistillError) and any(sign in text for sign in signs))
