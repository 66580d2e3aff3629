"""How this process uses its machine: compiled programs kept on disk, cores and folders held, notices heeded."""

import contextlib
import ctypes
import fcntl
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType

from distill.errors import DistillError


class Preempted(DistillError):
    """The system asked this process to end, and what it had done was saved: run the same command again."""


# What a launcher reads as 'requeue this job' (EX_TEMPFAIL of sysexits.h).
REQUEUE = 75


def cache_compilations(directory: str | Path | None = None) -> None:
    """Keeps every compiled program in `directory` (default $DISTILL_CACHE/xla or ~/.cache/distill/xla).

    The next process that needs the same program loads it in a fraction of the time. Safe for processes side by side.
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


def hold(processors: Iterable[int]) -> None:
    """Runs this process on these processors only, where the system can; call it before JAX starts its threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(processors))


def die_with_parent() -> None:
    """On Linux, ends this process when its parent ends, however that happens."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def compile_quickly() -> None:
    """Without an accelerator, compiles at LLVM's level 1; call it before JAX starts.

    At micro sizes (widths 16, 32, 64, one run each) a step compiled in 5.4 s instead of 7.5 s and ran as fast, with the
    same losses; a study compiles dozens of shapes and runs each for seconds.
    """
    accelerators = [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*")]
    if not accelerators:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=1 {flags}".strip()


def forget_programs(most: int = 20_000) -> bool:
    """Lets go of JAX's compiled programs once this process has `most` memory maps; says whether it did.

    A program compiled for a CPU takes three maps for each of its parts and Linux gives a process 65,530: beyond them it
    ends in a segmentation fault, after some hundreds of programs. What is used again is loaded from the cache.
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


@contextlib.contextmanager
def sole(folder: str | Path) -> Iterator[None]:
    """Holds `folder` for this process; the system lets go of it when the process ends, however that happens.

    Raises DistillError, naming the process that holds it. A network file system must support flock for this to hold
    between machines; a bucket (gs://) has no locks and is not held.
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
            raise DistillError(
                f"{folder}: {holder} is at work in this folder; wait for it, end it, or use another folder"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


class Notice:
    """Whether the system, or the user with Ctrl-C, has asked this process to end."""

    def __init__(self) -> None:
        self.given = ""


@contextlib.contextmanager
def heed() -> Iterator[Notice]:
    """Turns SIGTERM (a preemption notice) and the first Ctrl-C into a Notice, for a loop to read between steps.

    A second SIGTERM changes nothing, so that it cannot break the saving that the first one began; a second Ctrl-C
    ends the process. Outside of the main thread nothing is turned, for only that one is told of signals.
    """
    notice = Notice()
    if threading.current_thread() is not threading.main_thread():
        yield notice
        return

    def receive(number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and notice.given:
            raise KeyboardInterrupt
        notice.given = signal.Signals(number).name

    before = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield notice
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def commit() -> str:
    """The commit of this source tree, with + where it has been changed since; outside a checkout the version, or ''."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--abbrev=9"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("distill")
        except PackageNotFoundError:  # neither a checkout nor installed: a run is not lost for want of a name
            return ""
