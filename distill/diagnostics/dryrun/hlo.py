"""The collectives of a compiled program, read from its HLO text. Standard library only.

Bodies of loops count as often as they run; a loop whose length is known only at run time (the steps of one call)
counts once. The TPU compiler writes an asynchronous collective several times (start, steps, done) under one channel,
and a reduce-scatter as a fusion of an all-reduce and a slice: each is counted as one collective of its true kind.
"""

import dataclasses
import functools
import math
import re

WIDTH = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16}
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_OPERATION = re.compile(r"^(?P<type>\(.*?\)|\S+) (?P<op>[a-z][\w\-]*)\((?P<rest>.*)$")
_NAMES = re.compile(r"%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective of the program of one device.

    `bytes` is the size of the whole array: gathered, reduced, or before scattering.
    """

    kind: str
    bytes: float
    group: int  # devices that take part
    times: int  # a step
    source: str = ""  # the operation that it came from, as JAX names it

    @property
    def wire(self) -> float:
        """Bytes that a device sends per step, with the ring algorithm."""
        share = (self.group - 1) / self.group
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return factor * self.bytes * self.times


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    op: str
    rest: str  # operands and attributes
    root: bool

    @functools.cached_property
    def operands(self) -> list[str]:
        """Names before the closing bracket; operands may carry their types."""
        depth, end = 1, len(self.rest)
        for i, letter in enumerate(self.rest):
            depth += (letter in "([{") - (letter in ")]}")
            if not depth:
                end = i
                break
        return re.findall(r"%([\w.\-]+)", self.rest[:end]) or _NAMES.findall(self.rest[:end])

    def attribute(self, name: str) -> str:
        match = re.search(rf"\b{name}=%?([\w.\-]+)", self.rest)
        return match[1] if match else ""


def collectives(text: str) -> list[Collective]:
    """Every collective between two or more devices, in the order of the program."""
    program = _Program(text)
    by_channel: dict[tuple[str, str, str], Collective] = {}
    for name, times in program.runs.items():
        for inside in program.inlined(name):
            for instruction in program.computations[inside]:
                one = program.read(instruction, inside, times)
                if one is not None and one.group > 1:
                    channel = re.search(r"channel_id=(\d+)", instruction.rest)
                    by_channel.setdefault((name, one.kind, channel[1] if channel else instruction.name), one)
    return list(by_channel.values())


def bytes_by_kind(collectives: list[Collective]) -> dict[str, float]:
    """Bytes that a device sends per step, by kind."""
    total = {kind: float(sum(one.wire for one in collectives if one.kind == kind)) for kind in KINDS}
    return {kind: wire for kind, wire in total.items() if wire}


class _Program:
    def __init__(self, text: str):
        self.computations: dict[str, list[_Instruction]] = {}
        self.entry = inside = ""
        for line in text.splitlines():
            if header := _COMPUTATION.match(line):
                inside = header[2]
                self.computations[inside] = []
                self.entry = inside if header[1] else self.entry
            elif inside and (match := _INSTRUCTION.match(line)):
                parts = _OPERATION.match(match[3])
                if parts:
                    one = _Instruction(match[2], parts["type"], parts["op"], parts["rest"], bool(match[1]))
                    self.computations[inside].append(one)
        self.runs: dict[str, int] = {}
        self._walk(self.entry, 1)

    def _walk(self, name: str, times: int) -> None:
        """How often each computation that is not part of a fusion runs."""
        self.runs[name] = self.runs.get(name, 0) + times
        for one in self.computations[name]:
            if one.op == "while":
                self._walk(one.attribute("body"), times * self._length(one))
            elif one.op == "conditional":
                branches = re.search(r"branch_computations=\{([^}]*)\}", one.rest)
                names = _NAMES.findall(branches[1]) if branches else []
                for branch in names or [one.attribute("true_computation"), one.attribute("false_computation")]:
                    self._walk(branch, times)
            elif one.op == "call":
                self._walk(one.attribute("to_apply"), times)

    def inlined(self, name: str) -> list[str]:
        """A computation and those inside its fusions and asynchronous starts."""
        names = [name]
        for one in self.computations[name]:
            if one.op in ("fusion", "async-start") and (inside := one.attribute("calls")) in self.computations:
                names += self.inlined(inside)
        return names

    def _length(self, loop: _Instruction) -> int:
        """A loop's trip count, from the compiler's annotation or from `counter < constant` in its condition; else 1."""
        if noted := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(noted[1])
        condition = {one.name: one for one in self.computations[loop.attribute("condition")]}
        root = next(one for one in condition.values() if one.root)
        if root.op == "fusion" and root.attribute("calls") in self.computations:
            outer = [condition[name] for name in root.operands if name in condition]
            inside = self.computations[root.attribute("calls")]
            places = [one for one in inside if one.op == "parameter"]
            condition = {one.name: one for one in inside}
            condition |= {one.name: outer[int(one.rest.split(")")[0])] for one in places}
            root = next(one for one in inside if one.root)
        if root.op != "compare" or "direction=LT" not in root.rest:
            return 1
        bound = condition.get(root.operands[-1])
        number = re.match(r"(\d+)\)", bound.rest) if bound is not None and bound.op == "constant" else None
        return int(number[1]) if number else 1

    def read(self, one: _Instruction, inside: str, times: int) -> Collective | None:
        kind = one.op.removesuffix("-start")
        if kind not in KINDS:
            return None
        whole = _result(one, kind)
        group = _group(one.rest)
        if kind == "reduce-scatter":
            whole *= group
        elif kind == "all-reduce" and self._is_scattered(one, inside):
            kind = "reduce-scatter"
        source = re.search(r'op_name="([^"]*)"', one.rest)
        return Collective(kind=kind, bytes=whole, group=group, times=times, source=source[1] if source else "")

    def _is_scattered(self, reduced: _Instruction, inside: str) -> bool:
        """Whether only a slice of an all-reduce is used, in one fusion: the TPU's reduce-scatter."""
        if inside in self.runs:
            return False
        names, users = {reduced.name}, []
        for one in self.computations[inside]:
            if names & set(one.operands):
                if one.op in ("bitcast", "get-tuple-element", "copy"):
                    names.add(one.name)
                else:
                    users.append(one.op)
        return bool(users) and set(users) == {"dynamic-slice"}


def _result(one: _Instruction, kind: str) -> float:
    """Bytes of what a collective gives.

    A start returns its operand too, and sometimes counters: `(operand, result, ...)`. GPUs combine several of one kind
    into `((operands), (results), ...)`.
    """
    if not one.op.endswith("-start") or kind == "all-reduce":
        return sum(_size(*array) for array in _ARRAY.findall(one.type))
    if combined := re.match(r"\(\(.*?\), ?\((.*?)\)", one.type):
        return sum(_size(*array) for array in _ARRAY.findall(combined[1]))
    return max(_size(*array) for array in _ARRAY.findall(one.type))


def _size(kind: str, dims: str) -> float:
    digits = re.search(r"\d+", kind)
    width = WIDTH.get(kind) or int(digits[0]) / 8 if digits else WIDTH[kind]
    return width * math.prod(int(n) for n in dims.split(",") if n)


def _group(rest: str) -> int:
    """The number of devices in a replica group, in any of the notations."""
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", rest):
        return int(match[2])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    if match := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest):
        return 2 if match[1] != match[2] else 1
    return 1
