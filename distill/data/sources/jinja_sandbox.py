"""Renders untrusted Jinja templates in a separate process whose time and memory are bounded.

Jinja's sandbox protects Python from a template. It limits neither memory (`{{ 'x' * 10**10 }}`) nor time (three nested
loops). This file is therefore also the program of a child process: the system bounds its memory, and the parent ends
it after a timeout. One child serves all templates of a process.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

# Seconds for all renderings of one conversation, and for each of its turns; bytes of memory for a rendering.
PATIENCE, PER_TURN = 3.0, 0.05
ROOM = 64 << 20


class RenderError(Exception):
    """Why a template gave no text; `compiled` tells whether it is valid Jinja."""

    def __init__(self, reason: str, compiled: bool = True):
        super().__init__(reason)
        self.compiled = compiled


class _Child:
    """The child process, started on first use and again after a timeout has ended it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ask(self, request: bytes, patience: float) -> bytes:
        """Sends one line and returns the child's answer. Raises RenderError where no answer comes in time."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                command = [sys.executable, "-I", __file__, str(os.getpid())]
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                self._line(30.0)  # wait until it is ready
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(request)
                self._process.stdin.flush()
                return self._line(patience)
            except OSError:
                raise RenderError("it ended its process") from None

    def _line(self, patience: float) -> bytes:
        assert self._process is not None and self._process.stdout is not None
        pieces: list[bytes] = []
        until = time.monotonic() + patience
        stream = self._process.stdout.fileno()
        while not (pieces and pieces[-1].endswith(b"\n")):
            left = until - time.monotonic()
            piece = os.read(stream, 1 << 20) if select.select([stream], [], [], max(left, 0))[0] else None
            if not piece:
                self.end()
                raise RenderError(f"it takes longer than {patience:.1f} s" if piece is None else "it ended its process")
            pieces.append(piece)
        return b"".join(pieces)

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in filter(None, (self._process.stdin, self._process.stdout)):
                with contextlib.suppress(OSError):
                    stream.close()
            self._process = None


_CHILD = _Child()


class Call(TypedDict):
    """The variables of one conversation."""

    messages: Sequence[Mapping[str, str]]
    add_generation_prompt: bool


def render(template: str, variables: Mapping[str, object], calls: Sequence[Call]) -> list[str]:
    """Renders a template once per call, with `variables` and the call's own. Raises RenderError."""
    turns = sum(len(call.get("messages", ())) for call in calls)
    request = json.dumps({"template": template, "variables": dict(variables), "calls": list(calls)}).encode() + b"\n"
    answer = json.loads(_CHILD.ask(request, PATIENCE + PER_TURN * turns**0.5))
    if "texts" not in answer:
        raise RenderError(answer["reason"], answer["compiled"])
    return answer["texts"]


def _serve() -> None:
    """The main loop of the child: reads one request per line, writes one answer per line."""
    import resource

    import jinja2
    import jinja2.sandbox

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    place = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    place.globals["raise_exception"] = refuse
    # Published templates expect plain JSON, not JSON escaped for HTML.
    place.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    statm = Path("/proc/self/statm")
    size = int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 1 << 30
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    sys.stdout.buffer.write(b"ready\n")
    sys.stdout.buffer.flush()
    known: tuple[str, Any] = ("", None)
    for line in sys.stdin.buffer:
        compiled = False
        try:
            request = json.loads(line)
            if known[0] != request["template"]:
                known = request["template"], place.from_string(request["template"])
            compiled = True
            texts = [known[1].render(**request["variables"], **call) for call in request["calls"]]
            answer = json.dumps({"texts": texts}).encode()
        except Exception as error:  # untrusted code may raise anything
            reason = f"{error!s:.200}" or type(error).__name__
            if isinstance(error, MemoryError):
                reason = f"it needs more than {ROOM >> 20} MB"
            known = ("", None) if not compiled else known
            answer = json.dumps({"reason": reason, "compiled": compiled}).encode()
        sys.stdout.buffer.write(answer + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
