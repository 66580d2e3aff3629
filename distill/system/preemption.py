"""Requests to stop: a scheduler's SIGTERM, Ctrl-C, a closed terminal. Work that can resume is saved first."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from distill.errors import DistillError

# The exit code that a launcher reads as 'requeue this job' (EX_TEMPFAIL of sysexits.h).
REQUEUE = 75


class Preempted(DistillError):
    """The system asked this process to stop, and its work was saved: run the same command again to resume."""


class PreemptionFlag:
    """The name of the first signal that asked this process to stop ('SIGTERM'), or '' before any arrived."""

    def __init__(self) -> None:
        self.signal = ""


@contextlib.contextmanager
def catch_preemption() -> Iterator[PreemptionFlag]:
    """Turns SIGTERM, SIGHUP and the first Ctrl-C into a PreemptionFlag, for a loop to read between steps.

    A second SIGTERM is ignored, so that it cannot interrupt the save that the first one began; a second Ctrl-C goes to
    the previous handler (KeyboardInterrupt, or the end of the process: interrupts.py). After SIGHUP the terminal is
    gone and its output is discarded. A signal that is ignored (nohup) stays ignored. Does nothing outside the main
    thread: Python delivers signals only there.
    """
    flag = PreemptionFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def receive(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and flag.signal and callable(handler := before[signal.SIGINT]):
            handler(number, frame)
        if number == signal.SIGHUP:
            _close(terminals)
        flag.signal = flag.signal or signal.Signals(number).name

    caught = [n for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, receive) for number in caught}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _close(descriptors: list[int]) -> None:
    """Discards terminal output: writing to a closed terminal would raise OSError in the middle of a save."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
