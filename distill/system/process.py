"""This process's use of the machine: the compilation cache, CPU cores, memory maps, the lock of a folder."""

import contextlib
import ctypes
import dataclasses
import fcntl
import gc
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import TypeVar

from distill.errors import DistillError

T = TypeVar("T")


def cache_compilations(directory: str | Path | None = None) -> None:
    """Keeps every compiled program in `directory` (default $DISTILL_CACHE/xla or ~/.cache/distill/xla).

    The next process that needs the same program loads it in a fraction of the time. Safe for concurrent processes.
    """
    import jax

    home = os.environ.get("DISTILL_CACHE") or os.path.expanduser("~/.cache/distill")
    jax.config.update("jax_compilation_cache_dir", str(directory or Path(home) / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def cores() -> list[int]:
    """The processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pin_to_cores(processors: Iterable[int]) -> None:
    """Restricts this process to these processors, if the system supports it. Call it before JAX starts threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(processors))


def gpus() -> list[str]:
    """The NVIDIA GPUs that this process may use, as CUDA names them: $CUDA_VISIBLE_DEVICES, else all of the machine."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    return sorted((path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")), key=int)


def tpus() -> list[str]:
    """The TPU chips that this process may use, as libtpu names them: $TPU_VISIBLE_CHIPS, else all of the machine."""
    given = os.environ.get("TPU_VISIBLE_CHIPS")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    if importlib.util.find_spec("libtpu") is None:
        return []
    found = [*Path("/dev").glob("accel[0-9]*")] or [*Path("/dev/vfio").glob("[0-9]*")]
    return [str(i) for i in range(len(found))]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """A worker's part of the machine. `memory` is its part of each GPU's memory; 0 leaves that to JAX."""

    cores: tuple[int, ...]
    gpus: tuple[str, ...] = ()
    memory: float = 0.0
    tpus: tuple[str, ...] = ()  # none also where the worker has all of the machine


def shares(n: int, cores: Sequence[int], gpus: Sequence[str], tpus: Sequence[str] = (), each: int = 0) -> list[Share]:
    """The machine in `n` parts: cores and accelerators to each alike.

    More workers than GPUs share each of them; a TPU chip has one process, so there are never more workers than chips.
    With `each`, a worker has so many accelerators, and there are as many workers as groups of them.
    """
    accelerators = gpus or tpus
    if each and accelerators:
        n = max(len(accelerators) // each, 1)
        gpus, tpus = gpus[: n * each], tpus[: n * each]
    n = min(n, len(tpus)) if tpus else n
    return [
        Share(
            cores=_part(cores, i, n),
            gpus=_part(gpus, i, n),
            memory=0.9 / -(-n // len(gpus)) if 0 < len(gpus) < n else 0.0,
            tpus=_part(tpus, i, n) if n > 1 else (),
        )
        for i in range(n)
    ]


# Chips of one process along the axes of its host (x, y, z): libtpu takes no others.
_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1"}


def _part(items: Sequence[T], i: int, n: int) -> tuple[T, ...]:
    """Part `i` of `n`: a run of equal length; single items in turn where there are fewer than parts."""
    share = max(len(items) // n, 1)
    return tuple(items[i * share % len(items) :][:share]) if items else ()


def take(share: Share) -> None:
    """Restricts this process to its share. Call it before JAX starts."""
    pin_to_cores(share.cores)
    if share.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(share.gpus)
    if share.tpus:
        os.environ["TPU_VISIBLE_CHIPS"] = ",".join(share.tpus)
        os.environ["TPU_PROCESS_BOUNDS"] = "1,1,1"
        if bounds := _BOUNDS.get(len(share.tpus)):
            os.environ["TPU_CHIPS_PER_PROCESS_BOUNDS"] = bounds
    if share.memory:
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{share.memory:.3f}")


def die_with_parent() -> None:
    """On Linux, ends this process when its parent ends, however that happens."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def use_fast_cpu_compilation() -> None:
    """Without an accelerator, compiles at LLVM's level 1; call it before JAX starts.

    At micro sizes (widths 16, 32, 64, one run each) a step compiled in 5.4 s instead of 7.5 s and ran as fast, with the
    same losses; a study compiles dozens of shapes and runs each for seconds.
    """
    accelerators = [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*")]
    if not accelerators:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=1 {flags}".strip()


def clear_jit_caches(most: int = 20_000) -> bool:
    """Clears JAX's in-memory caches of compiled programs once this process has `most` memory maps; True if it did.

    A program compiled for a CPU takes three maps for each of its parts, and Linux allows a process 65,530. Beyond that
    it ends in a segmentation fault, after some hundreds of programs. Programs needed again load from the disk cache.
    """
    import jax

    try:
        with open("/proc/self/maps", "rb") as file:
            count = sum(1 for _ in file)
    except OSError:  # another system, with another limit
        return False
    if count > most:
        jax.clear_caches()
        gc.collect()
    return count > most


class FolderLocked(DistillError):
    """Another process holds the lock of a folder."""


@contextlib.contextmanager
def folder_lock(folder: str | Path) -> Iterator[None]:
    """Locks `folder` for this process; the system releases the lock when the process ends, however that happens.

    Raises FolderLocked, naming the process that holds the lock. Between machines this needs a network file system with
    flock; a bucket (gs://) has no locks and is not locked.
    """
    if "://" in str(folder):
        yield
        return
    path = Path(folder) / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            raise FolderLocked(
                f"{folder} is locked by {holder}; wait for it, stop it, or choose another folder"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def gone_holder(folder: str | Path) -> int | None:
    """The id of the process that last locked `folder`, if it ran on this machine and has ended.

    None if it is alive, if it ran on another machine (whose processes are not visible here), or if nothing was locked.
    """
    try:
        with open(Path(folder) / "lock", encoding="utf-8", errors="replace") as file:
            words = file.read(200).split()
    except OSError:
        return None
    match words:
        case ["process", pid, "on", host] if pid.isdecimal() and len(pid) < 10 and host == socket.gethostname():
            return None if _lives(int(pid)) else int(pid)
    return None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # signal 0 only tests that the process exists
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class _QuietProcess(SpawnProcess):
    """Starts with SIGINT and SIGHUP blocked: the parent handles both and ends this process."""

    def start(self) -> None:
        resource_tracker.ensure_running()  # it unblocks SIGINT when it starts
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP))
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class _QuietContext(SpawnContext):
    Process = _QuietProcess


def worker_context() -> SpawnContext:
    """The multiprocessing context of workers: no fork (a fork of a threaded process may hang), Ctrl-C blocked."""
    return _QuietContext()


def commit() -> str:
    """The commit of this source tree, with + if it has local changes; outside a checkout the version, or ''."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--abbrev=9"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("distill")
        except PackageNotFoundError:  # neither a checkout nor installed: a missing name must not fail a run
            return ""
