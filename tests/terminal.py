"""Commands on a pseudo-terminal: what a person at a real terminal gets, which no pipe shows.

`run` starts a program with a terminal of a given size as its standard streams (Python's `pty`), reads until it ends and
returns its exit code and all that it wrote, escape codes included; `plain` removes the codes that a terminal obeys.
"""

import contextlib
import dataclasses
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Control sequences (colours, cursor), operating-system commands (links, titles), character sets, single-letter escapes.
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[()][A-Z0-9]|[=>78cDEHM])")


@dataclasses.dataclass(frozen=True)
class Result:
    """How a program ended on the terminal: its exit code (negative: the signal), and all that it wrote."""

    returncode: int
    output: str
    ready: bool = True  # whether its handlers of signals were installed when it was interrupted

    @property
    def text(self) -> str:
        """The output without escape codes, with a carriage return or line feed as the end of a line."""
        return plain(self.output)


def plain(output: str) -> str:
    return re.sub(r"[\r\n]+", "\n", _ESCAPE.sub("", output))


def run(
    command: Sequence[str],
    *,
    columns: int = 80,
    rows: int = 24,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    timeout: float = 180.0,
    interrupt_after: float | None = None,
    hangup_after: float | None = None,
    when: Callable[[], bool] = lambda: True,
) -> Result:
    """Runs `command` on a terminal of `columns` x `rows`.

    `interrupt_after` seconds after it has opened the terminal it gets a Ctrl-C typed; at `hangup_after` the terminal is
    closed. The seconds count from where `when` is true as well, or from half of `timeout` if it never is.
    """
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    # Variables that tell rich another size, or JAX of the tests' eight devices, are the caller's to set.
    foreign = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CI", "XLA_FLAGS", "JAX_NUM_CPU_DEVICES")
    inherited = {name: value for name, value in os.environ.items() if name not in foreign}
    # The leader of a new session owns the first terminal that it opens; only then does Ctrl-C become SIGINT.
    # env: what the tests' own parent ignores (nohup, a background job) is not ignored on this terminal.
    opened = [
        "env",
        "--default-signal=INT,HUP",
        "sh",
        "-c",
        'exec "$@" <"$0" >"$0" 2>&1',
        os.ttyname(secondary),
        *command,
    ]
    process = subprocess.Popen(
        opened,
        cwd=cwd,
        env={**inherited, "TERM": "xterm-256color", **(env or {})},
        start_new_session=True,
        stdin=subprocess.DEVNULL,
    )
    began, written, ready, opened_at = time.monotonic(), bytearray(), True, 0.0
    signal_after = interrupt_after if hangup_after is None else hangup_after
    try:
        while True:
            elapsed = time.monotonic() - began
            if elapsed > timeout:
                raise TimeoutError(f"{' '.join(command)}: still running after {timeout:.0f} s; it wrote\n{written!r}")
            # What is typed before it has the terminal is lost.
            if signal_after is not None and not opened_at and _has_terminal(process.pid):
                opened_at = elapsed if elapsed > timeout / 2 or when() else 0.0
            if signal_after is not None and opened_at and elapsed >= opened_at + signal_after:
                signal_after, ready = None, _handles_signals(process.pid)
                if hangup_after is not None:
                    os.close(primary)
                    os.close(secondary)
                    primary = secondary = -1
                    return Result(process.wait(timeout), written.decode(errors="replace"), ready)
                os.write(primary, b"\x03")
            over = process.poll() is not None  # asked before the reading: what it wrote last is there by now
            readable, _, _ = select.select([primary], [], [], 0.0 if over else 0.05)
            if readable:
                written += os.read(primary, 1 << 16)
            elif over:
                return Result(process.returncode, written.decode(errors="replace"), ready)
    finally:
        with contextlib.suppress(ProcessLookupError):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for end in (primary, secondary):
            if end >= 0:
                os.close(end)


def _has_terminal(pid: int) -> bool:
    """Whether a process has opened its terminal (or is gone)."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[4]) != 0
    except OSError:
        return True


def _handles_signals(pid: int) -> bool:
    """Whether a process has a handler of SIGHUP, as our commands have from their first line on."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        caught = int(next(line for line in lines if line.startswith("SigCgt")).split()[1], 16)
        return bool(caught >> (signal.SIGHUP - 1) & 1)
    return False
