"""Ctrl-C or a closed terminal ends a command at any moment with one line and exit code 130, and loses nothing.

All writes to disk are atomic, so a command may end between any two instructions, as under SIGKILL. A signal therefore
ends the process at once instead of raising KeyboardInterrupt: that exception is lost in callbacks of the garbage
collector (JAX has one), shows a traceback during an import, and aborts in C++ frames. While a run can save itself
first, `preemption.catch_preemption` handles the signals. Standard library only, because this module is imported first.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

LINE = "interrupted; run the same command again to continue"
CODE = 130
# Seconds the main thread gets to run the signal's handler; if it takes longer, it is inside a C++ call (compilation).
_PATIENCE = 0.3
_SIGNALS = (signal.SIGINT, signal.SIGHUP)
_ending = threading.Lock()


def install() -> None:
    """Installs handlers that end this process with one line at Ctrl-C or a closed terminal. Call it in the main thread.

    Signals that the parent process ignores (nohup, a shell's background job) stay ignored.
    """
    taken = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    if not taken:
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    threading.Thread(target=_listen, args=(reader,), name="interrupts", daemon=True).start()
    for number in taken:
        signal.signal(number, end)
    # Registered first, so it runs last: Python's exit would restore the default handler, which kills silently.
    atexit.register(_ignore)


def end(number: int, _: FrameType | None = None) -> None:
    """The signal handler: prints one line and ends the process."""
    if not _ending.acquire(blocking=False):
        return
    if threading.current_thread() is threading.main_thread():
        with contextlib.suppress(Exception):
            sys.stdout.flush()
    with contextlib.suppress(OSError):
        # A bar hides the cursor and leaves it behind the bar.
        shown = b"\x1b[?25h\r\n" if os.isatty(2) and os.environ.get("TERM", "dumb") != "dumb" else b""
        os.write(2, shown + f"{LINE}\n".encode())
    os._exit(CODE)


def _ignore() -> None:
    """Ignores the signals once the command has finished, so that it keeps its own exit code."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Within the block Ctrl-C raises KeyboardInterrupt, for a loop that shows something until then."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _listen(reader: int) -> None:
    """Ends the process when the main thread cannot: it handles signals only between two instructions of Python."""
    pressed = 0
    while True:
        number = os.read(reader, 1)[0]
        if number not in _SIGNALS:
            continue
        mine = signal.getsignal(number) is end
        # While preemption is caught, the first Ctrl-C requests a checkpoint and the second ends the process.
        pressed = 0 if mine else pressed + (number == signal.SIGINT)
        if mine or pressed > 1:
            time.sleep(_PATIENCE)
            end(number)
