"""Seconds of a step by a compiler's own estimates of its operations. Standard library only.

A TPU's compiler notes cycles at every operation (`estimated_cycles`), XLA's GPU compiler the times of its cost model
(`reification_cost`). Bodies of loops count as often as they run. Nobody has measured them: only ratios of two
estimates by the same compiler count.

What the compilers leave out is filled in: Pallas kernels of a TPU by the bundles of their programs (bundles.py),
products of bfloat16 into float32 on a GPU by XLA's figure for the same shape into bfloat16, cuDNN's attention by
CUDNN_SHARE of the chip's peak, plain copies on a GPU by its memory's bandwidth. A collective takes the seconds of a
ring (distill/config/chips.py), one after another on one link, hidden behind what is scheduled between its start and the
place that waits for it; what is not hidden is the part `network`, or `slices` where it goes from slice to slice.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from distill.config.chips import Chip
from distill.diagnostics.dryrun import hlo
from distill.diagnostics.dryrun.bundles import Kernel
from distill.diagnostics.dryrun.hlo import Instruction, Program
from distill.diagnostics.dryrun.sources import Sources

PARTS = ("products", "attention", "loss", "elementwise", "copies", "optimizer", "network", "slices")
# XLA's GPU compiler has no figure of cuDNN's attention: this share of the peak is assumed, of the FLOPs that a causal
# mask leaves. (Shah et al. 2407.08608 measure 51 to 75% on an H100 in bfloat16.)
CUDNN_SHARE = 0.60
# Its backward pass has five products to the forward pass's two (Dao et al. 2205.14135).
BACKWARD = 2.5
# Types of operands whose products are taken at twice the rate of bfloat16 (products_without_estimate).
EIGHT_BITS = ("s8", "f8e4m3fn")
# Cycles a second of a TPU's core; with them the compiler's products reach the makers' peaks.
CLOCK = {"v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9}

_LOSS = re.compile(r"loss_sums_(\d+)x\d+")

Product: TypeAlias = tuple[int, int, int]  # M, K, N
# The seconds of one run of an operation, and whether it is a matrix product; None: nobody has an estimate.
Timed: TypeAlias = tuple[float, bool] | None

_FREE = {"parameter", "constant", "bitcast", "get-tuple-element", "tuple", "after-all", "partition-id", "replica-id"}
_STEP = re.compile(r"^jit\(\w+\)/(?:while/body/)?")
_CONTROL = {"while", "conditional", "call"}
_MOVES = _FREE | {"copy", "transpose", "convert", "reshape", "slice", "dynamic-slice", "dynamic-update-slice", "pad"}
_MOVES |= {"concatenate", "broadcast", "iota", "copy-start", "copy-done", "slice-start", "slice-done"}
# Operations of a GPU that take time, so that one without a figure is missed and not free.
_ESTIMATED = {"fusion", "custom-call", "transpose", "convert", "reduce", "sort", "scatter"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
    """Where a program's parts come from: a pattern each, searched in 'file:function' of an operation's stack frames."""

    loss: str
    attention: str  # and what is around the kernels, without the linear maps before and after
    optimizer: str


OURS = Places(
    loss=r"distill/losses/",
    attention=r"model/attention_kernels\.py|model/layers\.py:.*attention",
    optimizer=r"/optax/|training/optim\.py|training/guard\.py",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """All runs of one operation in a step."""

    name: str
    part: str  # of PARTS
    source: str  # 'folder/file.py:line function'
    seconds: float
    times: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A step's operations with their seconds, and how often operations ran that have no estimate, by kind."""

    operations: Sequence[Operation]
    unknown: Mapping[str, int]

    @property
    def seconds(self) -> float:
        return math.fsum(one.seconds for one in self.operations)

    def by_part(self) -> dict[str, float]:
        return {part: math.fsum(one.seconds for one in self.operations if one.part == part) for part in PARTS}

    def dearest(self, count: int) -> list[Operation]:
        """The lines of source with the most seconds; operations of one line and part are one."""
        by_line: dict[tuple[str, str], list[Operation]] = {}
        for one in self.operations:
            by_line.setdefault((one.source, one.part), []).append(one)
        merged = [
            dataclasses.replace(max(same, key=lambda one: one.seconds), seconds=math.fsum(one.seconds for one in same),
                                times=sum(one.times for one in same))
            for same in by_line.values()
        ]  # fmt: skip
        return sorted(merged, key=lambda one: -one.seconds)[:count]


def of_tpu(text: str, chip: Chip, kernels: Mapping[str, Kernel], places: Places = OURS) -> Estimate:
    """By the cycles that the TPU compiler wrote (its dump after code generation); `kernels`: Splash's, the loss's."""
    clock = CLOCK[chip.name]

    def timed(one: Instruction, types: Mapping[str, str]) -> Timed:
        if one.op == "custom-call" and "tpu_custom_call" in one.rest:
            if block := _LOSS.search(one.name):
                kernel = _kernel_of(one.name, kernels)
                return None if kernel is None else (_loss_seconds(one, types, kernel, int(block[1]), chip), False)
            cycles = _kernel_cycles(one, types, _kernel_of(one.name, kernels))
            return None if cycles is None else (cycles / clock, False)
        noted = re.search(r'"estimated_cycles":"(\d+)"', one.rest)
        return (int(noted[1]) / clock if noted else 0.0, "convolution_algorithm_config" in one.rest)

    return _Walk(text, chip, timed, places).estimate()


def _kernel_of(name: str, kernels: Mapping[str, Kernel]) -> Kernel | None:
    """The kernel of a call. Of calls that are alike libtpu dumps one: 'splash_x.3' may be that of 'splash_x.2'."""
    plain = lambda name: re.sub(r"(\.\d+)+$", "", name)
    alike = [kernel for other, kernel in kernels.items() if plain(other) == plain(name)]
    return kernels.get(name) or next(iter(alike), None)


def _kernel_cycles(one: Instruction, types: Mapping[str, str], kernel: Kernel | None) -> float | None:
    """Cycles of a call of Splash on queries [B, H, S, K] or [H, S, K]; None for another kernel."""
    size = re.search(r"block_q\w*\W+(\d+)", one.rest)
    # An operand may be one of several results of a fusion, '%fusion.5#1': what the call itself takes is exact.
    taken = re.search(r"operand_layout_constraints=\{((?:[^{}]|\{[^{}]*\})*)\}", one.rest)
    given = [taken[1]] if taken else [types.get(name, "") for name in one.operands]
    shapes = [dims for text in given for _, dims in hlo.arrays(text) if len(dims) in (3, 4)]
    if kernel is None or size is None or not shapes:
        return None
    *heads, length, _ = max(shapes, key=lambda dims: (len(dims), math.prod(dims)))
    if length < int(size[1]):
        return None
    return kernel.cycles(math.prod(heads), length // int(size[1]))


def _loss_seconds(one: Instruction, types: Mapping[str, str], kernel: Kernel, block: int, chip: Chip) -> float:
    """Of a call of distill/losses/kernel.py: of its bundles, its products at the peak and its bytes the most.

    Its operands are scalars, ids [n, K], hidden states [n, _], as many heads [v, _], logits [n, v] or none. Heads are
    read again for each `block` of tokens.
    """
    found = [text for name in one.operands if len(hlo.arrays(text := types.get(name, ""))[0][1]) == 2]
    count = (len(found) - 1) // 2
    tokens, heads = found[1 : 1 + count], found[1 + count : 1 + 2 * count]
    dims = lambda text: hlo.arrays(text)[0][1]
    size = lambda texts: math.fsum(map(hlo.size, texts))
    n, v = dims(tokens[0])[0], dims(heads[0])[0]
    flops = 2 * n * v * sum(dims(text)[1] for text in tokens)
    wire = size(found) + size(heads) * (math.ceil(n / block) - 1) + hlo.size(one.type)
    return max(kernel.whole / CLOCK[chip.name], flops / chip.flops, wire / chip.bandwidth)


def of_gpu(text: str, chip: Chip, products: Mapping[Product, float]) -> Estimate:
    """By XLA's cost model. `products` has the seconds of the shapes that `products_without_estimate` lists."""

    def timed(one: Instruction, types: Mapping[str, str]) -> Timed:
        if "__cudnn$fmha" in one.rest:
            return attention_flops(one) / chip.flops / CUDNN_SHARE, False
        multiplies = _is_gpu_product(one)
        shape = _unlisted_product(one, types) if multiplies else None
        if shape is not None:
            faster = 2 if _operand(one, types)[0] in EIGHT_BITS else 1
            return (products[shape] / faster, True) if shape in products else None
        costs = _model_costs(one)
        if not costs and one.op == "copy":
            return 2 * hlo.size(one.type) / chip.bandwidth, False
        if not costs and one.op in _ESTIMATED:
            return None
        return next((costs[name] for name in ("sol", "", "indexing-cost-model") if name in costs), 0.0), multiplies

    return _Walk(text, chip, timed).estimate()


def products_without_estimate(text: str) -> list[Product]:
    """The products of a GPU's program that XLA's table of measured ones lacks, or has at more than the GPU's peak.

    Those of bfloat16 into float32, and of eight bits, which are taken at twice the rate of bfloat16: of int8 the table
    has none, and of float8 it has 2,424 TFLOP/s on an H100 whose peak is 1,979.
    """
    program, found = Program(text), dict[Product, None]()
    for name in program.runs:
        types = {one.name: one.type for one in program.computations[name]}
        for one in program.computations[name]:
            if _is_gpu_product(one) and (shape := _unlisted_product(one, types)) is not None:
                found[shape] = None
    return list(found)


def product_seconds(text: str) -> dict[Product, float]:
    """The seconds of each product of a GPU's program, by its shape, as XLA's cost model gives them."""
    program, found = Program(text), dict[Product, float]()
    for name in program.runs:
        types = {one.name: one.type for one in program.computations[name]}
        for one in program.computations[name]:
            shape, costs = _product_shape(one, types) if _is_gpu_product(one) else None, _model_costs(one)
            if shape is not None and "sol" in costs:
                found[shape] = costs["sol"]
    return found


class _Walk:
    """One pass over a program in the order of its schedule."""

    def __init__(
        self,
        text: str,
        chip: Chip,
        timed: Callable[[Instruction, Mapping[str, str]], Timed],
        places: Places = OURS,
    ):
        self.program, self.sources = Program(text), Sources(text)
        self.chip, self.timed, self.places = chip, timed, places
        self.operations: list[Operation] = []
        self.unknown: collections.Counter[str] = collections.Counter()
        self.lasting: dict[str, float] = {}

    def estimate(self) -> Estimate:
        self._duration(self.program.entry)
        return Estimate(operations=self.operations, unknown=dict(self.unknown))

    def _duration(self, name: str) -> float:
        """Seconds of one run of a computation; its operations are noted once, for all their runs."""
        if name in self.lasting:
            return self.lasting[name]
        now, free, types = 0.0, collections.defaultdict[float, float](float), dict[str, str]()
        begins: dict[int, list[tuple[hlo.Collective, int]]] = {}
        waits: dict[int, list[tuple[hlo.Collective, float]]] = {}
        for found, first, last in self.program.transfers(name):
            begins.setdefault(first, []).append((found, last))
        for place, one in enumerate(self.program.computations[name]):
            types[one.name] = one.type
            for found, last in begins.get(place, ()):
                sends = found.wire / found.times
                took = self.chip.seconds(sends, found.span)
                speed = sends / took if took else 0.0
                free[speed] = max(now, free[speed]) + took
                waits.setdefault(last, []).append((found, free[speed]))
            now += self._run(name, one, types)
            for found, ends in waits.get(place, ()):
                if ends > now:
                    part = "slices" if self.chip.leaves_slice(found.span) else "network"
                    self._note(name, one, part, ends - now, f"{found.kind}, ")
                    now = ends
        self.lasting[name] = now
        return now

    def _run(self, name: str, one: Instruction, types: Mapping[str, str]) -> float:
        """Seconds of one run of an instruction, without what a collective keeps it waiting."""
        if one.op == "while":
            return self._duration(one.attribute("body")) * self.program.length(one)
        if one.op in _CONTROL:
            return sum(self._duration(inner) for inner in self.program.branches(one))
        if one.op in _FREE or one.op.removesuffix("-start").removesuffix("-done") in hlo.KINDS:
            return 0.0
        timed = self.timed(one, types)
        if timed is None:
            target = re.search(r'custom_call_target="([^"]+)"', one.rest)
            self.unknown[target[1] if target else one.op] += self.program.runs[name]
            return 0.0
        seconds, multiplies = timed
        if seconds:
            self._note(name, one, self._part(one, multiplies), seconds)
        return seconds

    def _note(self, name: str, one: Instruction, part: str, seconds: float, kind: str = "") -> None:
        times = self.program.runs[name]
        stack = self.sources.stack(one.rest)
        named = re.search(r'op_name="([^"]*)"', one.rest)
        where = kind + (str(stack[0]) if stack else _STEP.sub("", named[1]) if named else one.name)
        self.operations.append(Operation(name=one.name, part=part, source=where, seconds=seconds * times, times=times))

    def _part(self, one: Instruction, multiplies: bool) -> str:
        stack = [f"{frame.file}:{frame.function}" for frame in self.sources.stack(one.rest)]
        within = lambda pattern: any(re.search(pattern, place) for place in stack)
        if within(self.places.loss):
            return "loss"
        kernel = "__cudnn$fmha" in one.rest or "tpu_custom_call" in one.rest
        if kernel or within(self.places.attention):
            return "attention"
        if within(self.places.optimizer):
            return "optimizer"
        if multiplies:
            return "products"
        return "copies" if self._only_moves(one) else "elementwise"

    def _only_moves(self, one: Instruction) -> bool:
        """Whether an operation computes nothing, or only places."""
        if one.op != "fusion":
            return one.op in _MOVES
        within = self.program.inlined(one.attribute("calls"))
        inside = [part for name in within for part in self.program.computations[name]]
        scalar = re.compile(r"\w+\[\]")
        return all(part.op in _MOVES or part.op == "fusion" or scalar.match(part.type) for part in inside)


def _is_gpu_product(one: Instruction) -> bool:
    return (one.op == "custom-call" and "__cublas" in one.rest) or "gemm_fusion" in one.rest


def _model_costs(one: Instruction) -> dict[str, float]:
    """Seconds by each of XLA's models that has an estimate."""
    noted = re.search(r'"reification_cost":\[(.*?)\]', one.rest)
    found = {}
    for model in re.findall(r"\{[^{}]*\}", noted[1]) if noted else ():
        time, name = re.search(r'"exec_time_us":([\d.e+\-]+)', model), re.search(r'"name":"([^"]*)"', model)
        if time:
            found[name[1] if name else ""] = 1e-6 * float(time[1])
    return found


def _product_shape(one: Instruction, types: Mapping[str, str]) -> Product | None:
    """M, K and N of a call of cuBLAS."""
    left = _operand(one, types)[1]
    result, contracted = hlo.arrays(one.type), re.search(r'"lhs_contracting_dimensions":\["?(\d+)', one.rest)
    if not left or not result or not contracted:
        return None
    k = left[int(contracted[1])]
    m = math.prod(left) // k
    return m, k, math.prod(result[0][1]) // m


def _operand(one: Instruction, types: Mapping[str, str]) -> tuple[str, tuple[int, ...]]:
    """Type and dims of an instruction's first operand; ('', ()) where they are not known."""
    left = hlo.arrays(types.get(one.operands[0], "")) if one.operands else []
    return left[0] if left else ("", ())


def _unlisted_product(one: Instruction, types: Mapping[str, str]) -> Product | None:
    """The shape of a product of eight bits, or of bfloat16 whose result is float32."""
    left, result = _operand(one, types)[0], hlo.arrays(one.type)
    if one.op != "custom-call" or not result:
        return None
    mixed = (left, result[0][0]) == ("bf16", "f32")
    return _product_shape(one, types) if mixed or left in EIGHT_BITS else None


def attention_flops(one: Instruction) -> float:
    """FLOPs of one call of cuDNN's causal attention, of the scores [B, H, S, T] that the mask leaves."""
    noted = re.search(r'"intermediate_tensor_shape": ?\{[^}]*?"dimensions": ?\[([^\]]*)\]', one.rest)
    scores = [int(n) for n in re.findall(r"\d+", noted[1])] if noted else []
    first = next((dims for _, dims in hlo.arrays(one.type) if len(dims) == 4), ())
    if len(scores) != 4 or not first:
        raise ValueError(f"a call of cuDNN's attention whose shapes are not known: {one.name}")
    width = math.prod(first) / math.prod(scores[:3])
    return 2 * 2 * math.prod(scores) / 2 * width * (BACKWARD if "Backward" in one.rest else 1.0)
