"""A compiled program and its collectives, read from its HLO text. Standard library only.

Bodies of loops count as often as they run; a loop whose length is known only at run time (the steps of one call)
counts once. The TPU compiler writes an asynchronous collective several times (start, steps, done) under one channel,
and a reduce-scatter as a fusion of an all-reduce and a slice: each is counted as one collective of its true kind.
Between slices of a TPU it writes what each chip gives to and takes from its host: a send and a receive, which name the
collective that the hosts make of them.
"""

import dataclasses
import functools
import math
import re

WIDTH = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16}
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
SLICE = 100_000  # libtpu counts slices from 1 and calls chip i of slice s SLICE s + i

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
# Of a computation, also of one for a v6e's sparse cores; '}}, metadata=' and '}, ' continue a kernel's call.
_END = re.compile(r"^\}(?![},])|^\}, execution_thread=")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_OPERATION = re.compile(r"^(?P<type>\(.*?\)|\S+) (?P<op>[a-z][\w\-]*)\((?P<rest>.*)$")
_NAMES = re.compile(r"%?([\w.\-]+)")
_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective of the program of one device.

    `bytes` is the size of the whole array: gathered, reduced, or before scattering.
    """

    kind: str
    bytes: float
    group: int  # devices that take part
    times: int  # a step
    span: int = 0  # from the first to the last of them, in the order of the mesh; more than a node: they are far apart
    source: str = ""  # the operation that it came from, as JAX names it

    @property
    def wire(self) -> float:
        """Bytes that a device sends per step, with the ring algorithm."""
        share = (self.group - 1) / self.group
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return factor * self.bytes * self.times


@dataclasses.dataclass(frozen=True)
class Instruction:
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
    program = Program(text)
    return [found for name in program.runs for found, *_ in program.transfers(name)]


def bytes_by_kind(collectives: list[Collective]) -> dict[str, float]:
    """Bytes that a device sends per step, by kind."""
    total = {kind: float(sum(one.wire for one in collectives if one.kind == kind)) for kind in KINDS}
    return {kind: wire for kind, wire in total.items() if wire}


class Program:
    """A program's computations by name, and how often each that is not part of a fusion runs in a step (`runs`)."""

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = inside = ""
        for line in _whole_lines(text):
            if header := _COMPUTATION.match(line):
                inside = header[2]
                self.computations[inside] = []
                self.entry = inside if header[1] else self.entry
            elif inside and (match := _INSTRUCTION.match(line)):
                parts = _OPERATION.match(match[3])
                if parts:
                    one = Instruction(match[2], parts["type"], parts["op"], parts["rest"], bool(match[1]))
                    self.computations[inside].append(one)
        self.runs: dict[str, int] = {}
        self._walk(self.entry, 1)

    def _walk(self, name: str, times: int) -> None:
        """How often each computation that is not part of a fusion runs."""
        self.runs[name] = self.runs.get(name, 0) + times
        for one in self.computations[name]:
            if one.op == "while":
                self._walk(one.attribute("body"), times * self.length(one))
            elif one.op in ("conditional", "call"):
                for branch in self.branches(one):
                    self._walk(branch, times)

    def branches(self, one: Instruction) -> list[str]:
        """The computations that a conditional or a call runs."""
        if one.op == "call":
            return [one.attribute("to_apply")]
        listed = re.search(r"branch_computations=\{([^}]*)\}", one.rest)
        named = [one.attribute("true_computation"), one.attribute("false_computation")]
        return _NAMES.findall(listed[1]) if listed else named

    def inlined(self, name: str) -> list[str]:
        """A computation and those inside its fusions and asynchronous starts."""
        names = [name]
        for one in self.computations[name]:
            if one.op in ("fusion", "async-start") and (inside := one.attribute("calls")) in self.computations:
                names += self.inlined(inside)
        return names

    def transfers(self, name: str) -> list[tuple[Collective, int, int]]:
        """The collectives of a computation, each with the places of the instructions where it starts and is waited for.

        The two places are the same where nothing else can run meanwhile. Pieces of one channel in fusions are one
        collective of a TPU; on a GPU a start is waited for by a done. Between slices, what is sent is waited for where
        the receive of the same name is done.
        """
        instructions, found = self.computations[name], dict[tuple[str, str], tuple[Collective, int, int]]()
        receives = {one.name: one for one in instructions if one.op == "recv"}
        for place, outer in enumerate(instructions):
            if outer.op == "send" and (sent := self.between_slices(outer, self.runs[name])) is not None:
                found["between slices", _rendezvous(outer)] = sent, place, place
                continue
            if outer.op == "recv-done" and (receive := receives.get(next(iter(outer.operands), ""))) is not None:
                if (key := ("between slices", _rendezvous(receive))) in found:
                    found[key] = (*found[key][:2], place)
                continue
            if outer.op.endswith("-done") and outer.operands:
                for key in [key for key in found if key[1] == outer.operands[0]]:
                    found[key] = (*found[key][:2], place)
                continue
            within = [(name, outer)]
            if outer.op in ("fusion", "async-start") and (calls := outer.attribute("calls")) in self.computations:
                within = [(inner, one) for inner in self.inlined(calls) for one in self.computations[inner]]
            for inner, one in within:
                read = self.read(one, inner, self.runs[name])
                if read is None or read.group == 1:
                    continue
                channel = re.search(r"channel_id=(\d+)", one.rest) if outer.op == "fusion" else None
                key = (read.kind, f"channel {channel[1]}" if channel else outer.name if outer is not one else one.name)
                found[key] = (*found[key][:2], place) if key in found else (read, place, place)
        return list(found.values())

    def length(self, loop: Instruction) -> int:
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

    def read(self, one: Instruction, inside: str, times: int) -> Collective | None:
        kind = one.op.removesuffix("-start")
        if kind not in KINDS:
            return None
        whole = _result(one, kind)
        group, span = _group(one.rest)
        if kind == "reduce-scatter":
            whole *= group
        elif kind == "all-reduce" and self._is_scattered(one, inside):
            kind = "reduce-scatter"
        source = re.search(r'op_name="([^"]*)"', one.rest)
        origin = source[1] if source else ""
        return Collective(kind=kind, bytes=whole, group=group, span=span, times=times, source=origin)

    def between_slices(self, send: Instruction, times: int) -> Collective | None:
        """The collective between slices to which a chip of a TPU sends its part; None for another send."""
        noted = re.search(r'_xla_megascale_transfer_type="(\w+)"', send.rest)
        if not noted:
            return None
        kind = "collective-permute" if noted[1] == "ONE_TO_ONE" else noted[1].lower().replace("_", "-")
        if kind not in KINDS:
            raise ValueError(f"a transfer between slices of a kind that is not known: {send.name}, {noted[1]}")
        group, span = _group(send.rest)
        whole = max(_size(*array) for array in _ARRAY.findall(send.type)) * (group if kind == "all-gather" else 1)
        source = re.search(r'op_name="([^"]*)"', send.rest)
        origin = source[1] if source else _rendezvous(send)
        return Collective(kind=kind, bytes=whole, group=group, span=span, times=times, source=origin)

    def _is_scattered(self, reduced: Instruction, inside: str) -> bool:
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


def _result(one: Instruction, kind: str) -> float:
    """Bytes of what a collective gives.

    A start returns its operand too, and sometimes counters: `(operand, result, ...)`. GPUs combine several of one kind
    into `((operands), (results), ...)`; a reduce-scatter of one array is `((operand), result)`.
    """
    if not one.op.endswith("-start") or kind == "all-reduce":
        return size(one.type)
    if combined := re.match(r"\(\(.*?\), ?\((.*?)\)", one.type):
        return size(combined[1])
    if kind == "reduce-scatter":
        return _size(*_ARRAY.findall(one.type)[1])
    return max(_size(*array) for array in _ARRAY.findall(one.type))


def arrays(type_text: str) -> list[tuple[str, tuple[int, ...]]]:
    """The dtype and dimensions of each array in a type."""
    return [(kind, tuple(int(n) for n in dims.split(",") if n)) for kind, dims in _ARRAY.findall(type_text)]


def size(type_text: str) -> float:
    """Bytes of all arrays in a type."""
    return sum(_size(*array) for array in _ARRAY.findall(type_text))


def _size(kind: str, dims: str) -> float:
    digits = re.search(r"\d+", kind)
    width = WIDTH.get(kind) or int(digits[0]) / 8 if digits else WIDTH[kind]
    return width * math.prod(int(n) for n in dims.split(",") if n)


def _group(rest: str) -> tuple[int, int]:
    """The number of devices in a replica group, and how far apart its first and last are, in any of the notations."""
    members = _members(rest)
    return len(members), max(members) - min(members) + 1


def _rendezvous(one: Instruction) -> str:
    """The name under which a send and a receive between slices belong together."""
    match = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', one.rest)
    return match[1] if match else one.name


def _members(rest: str) -> list[int]:
    """The devices of the first replica group."""
    if match := re.search(r'_xla_megascale_target="?\{+([\d,>-]+)\}', rest):
        members = [int(n) for n in re.findall(r"\d+", match[1])]
        return members if members[0] >= SLICE else [SLICE * slice for slice in members]
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return _numbers(match[1])
    if match := re.search(rf"replica_groups=\[\d+,(\d+)\]<={_IOTA}", rest):
        return _iota(match[2], match[3])[: int(match[1])]
    if match := re.search(rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_IOTA}\))? \{{([^}}]*)\}}", rest):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
        devices = _iota(match[2], match[3]) if match[2] else list(range(math.prod(sizes.values())))
        places = [0]
        for i, (axis, size) in enumerate(sizes.items()):
            if f"'{axis}'" in match[4]:
                stride = math.prod(list(sizes.values())[i + 1 :])
                places = [place + stride * step for place in places for step in range(size)]
        return [devices[place] for place in places]
    if match := re.search(r"source_target_pairs=\{([\d,{} ]*)\}", rest):
        pairs = [_numbers(pair) for pair in re.findall(r"\d+,\d+", match[1])]
        farthest = max(pairs, key=lambda pair: abs(pair[0] - pair[1]), default=[0])
        return sorted(set(farthest))
    return [0]


def _numbers(text: str | None) -> list[int]:
    return [int(n) for n in text.split(",")] if text else []


def _iota(dims_text: str, order_text: str | None) -> list[int]:
    """The devices 0, 1, ... as an array of these dimensions, transposed, in reading order: '[2,8]T(1,0)'."""
    dims = _numbers(dims_text)
    order = _numbers(order_text) or list(range(len(dims)))
    strides = [math.prod(dims[axis + 1 :]) for axis in order]
    members = [0]
    for axis, stride in zip(order, strides):
        members = [first + stride * step for first in members for step in range(dims[axis])]
    return members


def _whole_lines(text: str) -> list[str]:
    """The text's lines; an instruction that newlines in its attributes broke over several lines is one again."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        ends = bool(_END.match(line))
        if inside and not ends and not _INSTRUCTION.match(line):
            lines[-1] += " " + line
            continue
        inside = bool(_COMPUTATION.match(line)) or (inside and not ends)
        lines.append(line)
    return lines
