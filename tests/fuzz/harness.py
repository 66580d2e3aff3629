"""What strangers may send, and what a reader may answer: a correct result, or one of our errors that names the place.

A Reader turns bytes into a call of the project's own code. `judge` makes one call and names its outcome: 'read', the
name of the typed error, or what must not be: an exception from inside a library, an error that does not say where, a
file opened outside of the folder, a call that is slow or greedy, and, where content carries checksums, a number that
is not the one that was written.
"""

import contextlib
import copy
import dataclasses
import json
import os
import random
import resource
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from distill.errors import DistillError
from tests.fuzz.campaign import BAD

SLOW = 5.0  # seconds of work a case
STUCK = 60.0  # seconds a case, however little of it was work
GREED, ROOM = 10, 100 << 20  # memory: this many times the input, and this many bytes
LONGEST = 1 << 16  # bytes of a case

ROOT = Path(__file__).parents[2]
FIRST = ROOT / "tests" / "golden" / "first"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
    """`prepare(folder)` gives the call that reads a case (bytes) there, and the cases to begin with.

    named: what every error must name (the file, or the flag). true: every result must be that of one of the seeds.
    tree: cases are JSON, and are changed as such. size: what a case decompresses to.
    """

    name: str
    prepare: Callable[[Path], tuple[Callable[[bytes], Any], list[bytes]]]
    named: tuple[str, ...] = ()
    true: bool = False
    tree: bool = False
    words: tuple[bytes, ...] = ()
    size: Callable[[bytes], int] = len


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a case; `detail` is for a person."""

    kind: str
    detail: str = ""
    seconds: float = 0.0
    grown: int = 0  # bytes that the process's peak grew by

    @property
    def bad(self) -> bool:
        return self.kind.startswith(BAD)


class Bench:
    """A reader set up in a folder of its own, ready to be called again and again."""

    def __init__(self, reader: Reader, folder: Path):
        self.reader, self.folder = reader, folder
        self._call, self.seeds = reader.prepare(folder)
        with contextlib.suppress(OSError):  # what this process needed for other tests is no peak of this reader
            Path("/proc/self/clear_refs").write_text("5")
        self._truths = [repr(self._call(seed)) for seed in self.seeds] if reader.true else []
        for seed in self.seeds:
            first = self.judge(seed)
            assert first.kind == "read", f"{reader.name}: a seed is not read: {first}"

    def judge(self, case: bytes) -> Outcome:
        """One call, and its outcome. A reader is slow for what it does, not for what else the machine does."""
        before, began, waited, busy = _peak(), time.perf_counter(), _waited(), _busy()
        kind, detail = self._outcome(case)
        seconds, grown = time.perf_counter() - began - (_waited() - waited), _peak() - before
        # Its threads and processes wait for a busy machine too, and their waiting is not told.
        if min(seconds, _busy() - busy) > SLOW or seconds > STUCK:
            kind, detail = "slow", f"{seconds:.1f} s"
        elif grown > GREED * self.reader.size(case) + ROOM:
            kind, detail = "greedy", f"{grown:,} bytes for an input of {self.reader.size(case):,}"
        return Outcome(kind=kind, detail=detail, seconds=seconds, grown=grown)

    def _outcome(self, case: bytes) -> tuple[str, str]:
        with watching(self.folder) as escapes, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an overflow in a stranger's numbers is no failure
            try:
                found: Any = self._call(case)
                kind, detail = "read", ""
                if self.reader.true and repr(found) not in self._truths:
                    kind, detail = "wrong", f"{found!r:.200}"
            except DistillError as error:
                kind, detail = type(error).__name__, str(error)
                if (
                    not detail
                    or "\n" in detail.strip()
                    or not any(name in detail for name in self.reader.named or [""])
                ):
                    kind = f"unnamed {kind}"
            except (KeyboardInterrupt, GeneratorExit):
                raise
            except BaseException as error:  # a panic of a Rust library is no Exception
                kind, detail = f"foreign {type(error).__name__} in {_place(error)}", traceback.format_exc()
        if escapes:
            kind, detail = f"escape {escapes[0][0]}", str(escapes)
        return kind, detail


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/distill/" in frame.filename or "/launch/" in frame.filename]
    frame = (ours or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def _waited() -> float:
    """Seconds that this thread has stood ready without a processor (0 where the system does not say)."""
    try:
        with open("/proc/self/schedstat", "rb") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def _busy() -> float:
    """Seconds of processor time of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


_WATCHED: list[Any] = [None, []]  # the folder that may be opened, and what was opened besides
_HARMLESS = ("/usr", "/proc", "/dev", "/sys", "/etc/localtime", sys.prefix, sys.base_prefix, str(ROOT))


def _audit(event: str, args: tuple[Any, ...]) -> None:
    folder, found = _WATCHED
    if folder is None:
        return
    if event == "open" and isinstance(args[0], str | bytes):
        path = os.path.realpath(os.fsdecode(args[0]))
        if not path.startswith((folder, *_HARMLESS)):
            found.append((event, path))
    elif event in ("pickle.find_class", "os.system", "os.exec", "socket.connect", "shutil.rmtree"):
        found.append((event, str(args)[:200]))


_audited = False


@contextlib.contextmanager
def watching(folder: Path) -> Iterator[list[tuple[str, str]]]:
    """What is opened outside of `folder` (and of Python's own files), unpickled or executed meanwhile."""
    global _audited
    if not _audited:
        sys.addaudithook(_audit)
        _audited = True
    _WATCHED[:] = [os.path.realpath(folder), []]
    try:
        yield _WATCHED[1]
    finally:
        _WATCHED[0] = None


ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63), 2**64, 10**400, 0.5, -0.5, 1e308, -1e-320, float("nan")),
    *(
        float("inf"),
        "",
        " ",
        "0",
        "-1",
        "nan",
        "1e999",
        "\x00",
        "\ud800",
        "é" * 50,
        "../../../etc/passwd",
        "/etc/passwd",
    ),
    *("a" * 5000, [], {}, [[]], [None], [0] * 300, {"": {}}, {"a": [1, {"b": None}]}),
)
NUMBERS = (0, 1, 2, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def mutate(reader: Reader, case: bytes, other: bytes, chance: random.Random) -> bytes:
    """A case near another one: as JSON where the reader reads that, else as bytes, at times spliced with `other`."""
    if reader.tree and chance.random() < 0.8:
        with contextlib.suppress(ValueError, RecursionError, UnicodeError):
            tree = json.loads(case)
            for _ in range(chance.choice((1, 1, 1, 2, 4))):
                tree = _graft(tree, chance)
            return json.dumps(tree).encode()[:LONGEST]
    data = bytearray(case)
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        data = _scratch(data, other, reader.words, chance)
    return bytes(data[:LONGEST])


def _graft(tree: Any, chance: random.Random) -> Any:
    """The tree with one place of it changed."""
    top: dict[str, Any] = {"": copy.deepcopy(tree)}
    holder: Any = top
    key: Any = ""
    while isinstance(holder[key], dict | list) and holder[key] and chance.random() < 0.85:
        holder = holder[key]
        key = chance.choice(list(holder)) if isinstance(holder, dict) else chance.randrange(len(holder))
    what, value, inside = chance.random(), chance.choice(ODD), holder is not top
    if what < 0.15 and inside:
        del holder[key]
    elif what < 0.3 and inside and isinstance(holder, dict):
        holder[chance.choice(("", "../x", "a/b", f"{key}x", "\x00"))] = holder[key]
    elif what < 0.4 and isinstance(holder, list):
        holder.extend(copy.deepcopy(holder[key : key + 1]) * chance.choice((1, 2, 50)))
    elif what < 0.55 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        number = holder[key]
        holder[key] = chance.choice((number + 1, number - 1, -number, number * 1000, str(number)))
    elif what < 0.6:
        for _ in range(chance.choice((3, 50, 400))):
            value = [value]
        holder[key] = value
    else:
        holder[key] = copy.deepcopy(value)
    return top[""]


def _scratch(data: bytearray, other: bytes, words: Sequence[bytes], chance: random.Random) -> bytearray:
    at = chance.randrange(len(data) + 1)
    what = chance.randrange(9)
    if what == 0 and data:
        data[min(at, len(data) - 1)] ^= 1 << chance.randrange(8)
    elif what == 1 and data:
        data[min(at, len(data) - 1)] = chance.randrange(256)
    elif what == 2:
        del data[at : at + chance.choice((1, 2, 8, 64, len(data)))]
    elif what == 3:
        data[at:at] = data[at : at + chance.choice((1, 8, 64, 1024))]
    elif what == 4:
        data[at:at] = chance.randbytes(chance.choice((1, 2, 8, 40)))
    elif what == 5:
        width, number = chance.choice((("<H", 16), ("<I", 32), ("<Q", 64))), chance.choice(NUMBERS)
        packed = struct.pack(width[0], number % 2 ** width[1])
        data[at : at + len(packed)] = packed
    elif what == 6 and words:
        data[at : at + chance.choice((0, 0, 1, 4))] = chance.choice(words)
    elif what == 7 and other:
        begin = chance.randrange(len(other))
        data[at : at + chance.choice((0, 16, len(data)))] = other[begin : begin + chance.choice((4, 64, len(other)))]
    elif what == 8:
        data[at:at] = chance.choice((b"\x00", b"\xff", b"\n", b'"', b",", b"[" * 3000, b"9" * 5000, b" " * 3000, b"\r"))
    return data


def random_cases(bench: Bench, cases: int, seed: int) -> Iterator[bytes]:
    """Seeded cases without a guide: seeds and what was read or refused before, changed."""
    chance = random.Random(f"{bench.reader.name} {seed}")
    kept = list(bench.seeds)
    for _ in range(cases):
        case = mutate(bench.reader, chance.choice(kept), chance.choice(kept), chance)
        yield case
        if chance.random() < 0.02 and len(case) < 4 * max(map(len, bench.seeds)):
            kept.append(case)
            if len(kept) > 200:
                kept.pop(chance.randrange(len(bench.seeds), len(kept)))
