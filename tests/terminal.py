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
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Control sequences (colours, cursor), operating-system commands (links, titles), character sets, single-letter escapes.
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[()][A-Z0-9]|[=>78cDEHM])")


@dataclasses.dataclass(frozen=True)
class Result:
    """How a program ended on the terminal: its exit code (negative: the signal), and all that it wrote."""

    returncode: int
    output: str

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
) -> Result:
    """Runs `command` on a terminal of `columns` x `rows`; `interrupt_after` seconds it gets a Ctrl-C typed into it."""
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    # Variables that tell rich another size, or JAX of the tests' eight devices, are the caller's to set.
    foreign = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CI", "XLA_FLAGS", "JAX_NUM_CPU_DEVICES")
    inherited = {name: value for name, value in os.environ.items() if name not in foreign}
    # The leader of a new session owns the first terminal that it opens; only then does Ctrl-C become SIGINT.
    opened = ["sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(secondary), *command]
    process = subprocess.Popen(
        opened,
        cwd=cwd,
        env={**inherited, "TERM": "xterm-256color", **(env or {})},
        start_new_session=True,
        stdin=subprocess.DEVNULL,
    )
    began, written, typed = time.monotonic(), bytearray(), False
    try:
        while True:
            elapsed = time.monotonic() - began
            if elapsed > timeout:
                raise TimeoutError(f"{' '.join(command)}: still running after {timeout:.0f} s; it wrote\n{written!r}")
            if interrupt_after is not None and not typed and elapsed >= interrupt_after:
                os.write(primary, b"\x03")
                typed = True
            over = process.poll() is not None  # asked before the reading: what it wrote last is there by now
            ready, _, _ = select.select([primary], [], [], 0.0 if over else 0.05)
            if ready:
                written += os.read(primary, 1 << 16)
            elif over:
                return Result(process.returncode, written.decode(errors="replace"))
    finally:
        with contextlib.suppress(ProcessLookupError):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        os.close(primary)
        os.close(secondary)
