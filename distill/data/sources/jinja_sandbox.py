"""Renders untrusted Jinja templates in a separate process whose time and memory are bounded.

Templates find what `apply_chat_template` of transformers defines: the same filters, globals, tags and variables.
Jinja's sandbox protects Python from a template. It limits neither memory (`{{ 'x' * 10**10 }}`) nor time (three nested
loops). This file is therefore also the program of a child process: the system bounds its memory, and the parent ends
it after a timeout. One child serves all templates of a process.
"""

import contextlib
import datetime
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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


class Rendered(NamedTuple):
    """The text of one call, or why there is none."""

    text: str = ""
    # What stands in {% generation %} blocks, as first character and the one after the last; None: its place is unknown.
    generated: list[tuple[int, int]] | None = None
    problem: str = ""


def render(
    template: str, variables: Mapping[str, object], calls: Sequence[Mapping[str, object]], today: str = ""
) -> list[Rendered]:
    """Renders a template once per call, with `variables` and the call's own, which win.

    today: what strftime_now takes for now, in ISO format; '' is the machine's clock. Raises RenderError where the
    template is not Jinja, or its process has to be ended.
    """
    return [Rendered(**each) for each in _ask(template, variables, calls, today)["texts"]]


def names_read(template: str) -> set[str]:
    """The variables that the template reads and does not set itself. Raises RenderError where it is not Jinja."""
    return set(_ask(template, {}, [], "")["names"])


def _ask(template: str, variables: Mapping[str, object], calls: Sequence[Mapping[str, object]], today: str) -> Any:
    turns = sum(len(messages) for call in calls if isinstance(messages := call.get("messages"), list))
    request = {"template": template, "variables": dict(variables), "calls": [dict(call) for call in calls]}
    line = json.dumps(request | {"today": today}).encode() + b"\n"
    answer = json.loads(_CHILD.ask(line, PATIENCE + PER_TURN * turns**0.5))
    if "texts" not in answer:
        raise RenderError(answer["reason"], compiled=False)
    return answer


class _Place:
    """The environment of the child, and what it notes while a template renders. Only the child imports jinja2."""

    def __init__(self) -> None:
        import jinja2
        import jinja2.ext
        import jinja2.meta
        import jinja2.sandbox

        self._meta = jinja2.meta
        self._written: list[str] = []  # by the rendering so far
        self._blocks: list[tuple[int, str]] = []  # where each {% generation %} block begins, and its text
        self._today = ""
        place = self

        class Generation(jinja2.ext.Extension):
            """{% generation %} ... {% endgeneration %}: writes its body, and notes where."""

            tags = {"generation"}

            def parse(self, parser: Any) -> Any:
                line = next(parser.stream).lineno
                body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
                return jinja2.nodes.CallBlock(self.call_method("note"), [], [], body).set_lineno(line)

            def note(self, caller: Callable[[], str]) -> str:
                text = caller()
                place._blocks.append((sum(map(len, place._written)), text))
                return text

        class Namespace(jinja2.utils.Namespace):
            """A namespace without names that begin with an underscore."""

            def __init__(*fields: Any, **named: Any) -> None:
                for name in dict(*fields[1:], **named):
                    Namespace._check(name)
                jinja2.utils.Namespace.__init__(*fields, **named)

            def __setitem__(self, name: str, value: object) -> None:
                Namespace._check(name)
                jinja2.utils.Namespace.__setitem__(self, name, value)

            @staticmethod
            def _check(name: object) -> None:
                if isinstance(name, str) and name.startswith("_"):
                    raise jinja2.exceptions.SecurityError(f"a namespace may not hold the name {name!r}")

        class Dictionary:
            """dict(...) and dict.fromkeys(...), without the other attributes of the type."""

            def __call__(self, *fields: Any, **named: Any) -> dict[Any, Any]:
                return dict(*fields, **named)

            def fromkeys(self, *fields: Any) -> dict[Any, Any]:
                return dict.fromkeys(*fields)

        self._environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
        )

        # Names of what every template finds are none of those that jinja2 reports.
        self._bare = jinja2.sandbox.ImmutableSandboxedEnvironment(extensions=[Generation, jinja2.ext.loopcontrols])

        def refuse(message: str) -> None:
            raise jinja2.exceptions.TemplateError(message)

        self._environment.globals |= {
            "raise_exception": refuse,
            "strftime_now": self._strftime_now,
            "namespace": Namespace,
            "dict": Dictionary(),
        }
        # Published templates expect plain JSON, not JSON escaped for HTML.
        self._environment.filters["tojson"] = _to_json

    def _strftime_now(self, form: str) -> str:
        now = datetime.datetime.fromisoformat(self._today) if self._today else datetime.datetime.now()
        return now.strftime(form)

    def names(self, text: str) -> list[str]:
        return sorted(self._meta.find_undeclared_variables(self._bare.parse(text)))

    def compile(self, text: str) -> Any:
        return self._environment.from_string(text)

    def render(self, template: Any, variables: Mapping[str, object], today: str) -> Mapping[str, object]:
        self._today, self._written, self._blocks = today, [], []
        try:
            for piece in template.generate(**variables):
                self._written.append(piece)
        except Exception as error:  # untrusted code may raise anything
            problem = f"{error!s:.200}" or type(error).__name__
            return {"problem": f"it needs more than {ROOM >> 20} MB" if isinstance(error, MemoryError) else problem}
        text = "".join(self._written)
        # A block in a macro, or in text that is kept for later, does not stand where the rendering was then.
        placed = all(text[start : start + len(body)] == body for start, body in self._blocks)
        spans = [(start, start + len(body)) for start, body in self._blocks] if placed else None
        return {"text": text, "generated": spans}


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _serve() -> None:
    """The main loop of the child: reads one request per line, writes one answer per line."""
    import resource

    place = _Place()
    statm = Path("/proc/self/statm")
    size = int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 1 << 30
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    sys.stdout.buffer.write(b"ready\n")
    sys.stdout.buffer.flush()
    known: tuple[str, Any, list[str]] = ("", None, [])
    for line in sys.stdin.buffer:
        try:
            request = json.loads(line)
            text = request["template"]
            if known[0] != text:
                known = text, place.compile(text), place.names(text)
            variables, today = request["variables"], request["today"]
            texts = [place.render(known[1], variables | call, today) for call in request["calls"]]
            answer = json.dumps({"texts": texts, "names": known[2]}).encode()
        except Exception as error:
            reason = f"{error!s:.200}" or type(error).__name__
            if isinstance(error, MemoryError):
                reason = f"it needs more than {ROOM >> 20} MB"
            known = ("", None, [])
            answer = json.dumps({"reason": reason}).encode()
        sys.stdout.buffer.write(answer + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
