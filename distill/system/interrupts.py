"""Ctrl-C and a closed terminal at any moment: one line, exit code 130, nothing lost.

Everything on disk is written whole or not at all, so a command may end between any two instructions, as it may under
SIGKILL. So a signal ends the process where it stands, rather than raising KeyboardInterrupt: that exception is lost in
callbacks of the garbage collector (JAX has one), shows a traceback in an import, and aborts in C++ frames. Where a run
can save itself first, `preemption.catch_preemption` takes the signals meanwhile. Standard library only, for this module
comes before all imports.
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
# Seconds that the main thread has for the signal's handler; longer, and it is inside a call of C++ (compilation).
_PATIENCE = 0.3
_SIGNALS = (signal.SIGINT, signal.SIGHUP)
_ending = threading.Lock()


def install() -> None:
    """Ends this process in one line at Ctrl-C or a closed terminal, from now on. Call it in the main thread.

    What the parent has set to be ignored (nohup, a shell's background job) stays ignored.
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
    # Registered first, so it runs last: Python's own end would restore the default, which kills without a word.
    atexit.register(_ignore)


def end(number: int, _: FrameType | None = None) -> None:
    """The handler: prints one line and ends the process."""
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
    """The command has come to its end: its exit code is its own."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Lets Ctrl-C be a KeyboardInterrupt meanwhile: for a loop that shows something until it comes."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _listen(reader: int) -> None:
    """Ends the process where the main thread cannot: it handles signals only between two lines of Python."""
    pressed = 0
    while True:
        number = os.read(reader, 1)[0]
        if number not in _SIGNALS:
            continue
        mine = signal.getsignal(number) is end
        # While preemption is caught the first Ctrl-C asks for a saving, the second ends.
        pressed = 0 if mine else pressed + (number == signal.SIGINT)
        if mine or pressed > 1:
            time.sleep(_PATIENCE)
            end(number)
