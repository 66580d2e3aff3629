"""Cycles of Splash's kernels and of the loss's on a TPU, counted in the programs that libtpu dumps of them.

One bundle of instructions is one cycle; stalls are not counted. A kernel is one loop over its grid. Of Splash's regions
that run under a condition, the largest is the product of one block of scores, which only blocks that the causal mask
leaves run; the others start or end a row of blocks; the rest runs for each block of the grid. The kernel of the loss
counts as if all ran for each block, as often as the program's loop says: half of the blocks on each core of a v5p.
Standard library only.
"""

import dataclasses
import re
from pathlib import Path

_ADDRESS = re.compile(r"^\s*(0x[0-9a-f]+)\s")
_BRANCH = re.compile(r"\bsbr\.rel\b.*target = \$region(\d+)")
_NAMED = re.compile(r"(?:splash_\w+|loss_sums_\d+x\d+)(?:\.\d+)?")
_EXIT = re.compile(r"scmp\.ge\.s32\.totalorder %\w+, (\d+) /\* loop exit test")
_BOUND = re.compile(r"(Start|End|Start/End empty) region (\d+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
    """Cycles of one block of the grid, of the product of one block, and of a row's start and end."""

    step: int
    block: int
    row: int
    turns: int = 0  # of the loop on one core; 0: not known

    @property
    def whole(self) -> float:
        """Cycles of one call, if every turn ran all regions."""
        return float(self.turns * (self.step + self.block + self.row))

    def cycles(self, heads: int, blocks: int) -> float:
        """Cycles of one call over `heads` heads (of all rows of the batch) of `blocks` x `blocks` blocks, causal."""
        causal = blocks * (blocks + 1) // 2
        return float(heads * (blocks**2 * self.step + causal * self.block + blocks * self.row))


def kernels(folder: Path) -> dict[str, Kernel]:
    """The kernels whose final bundles libtpu wrote into a folder, by their names in the program."""
    found = {}
    for path in sorted(folder.glob("*final_bundles.txt")):
        if "schedule-analysis" not in path.name and (name := _NAMED.search(path.name)):
            found[name[0]] = kernel(path.read_text("utf-8"))
    return found


def kernel(text: str) -> Kernel:
    """A kernel's cycles, from the text of its final bundles."""
    starts: dict[int, int] = {}  # of regions that a branch jumps over
    ends: dict[int, int] = {}
    begin = end = 0
    for line in text.splitlines():
        if not (found := _ADDRESS.match(line)):
            continue
        address = int(found[1], 16)
        begin = begin or (address if " LB: " in line else 0)
        for kind, number in _BOUND.findall(line):
            if kind != "Start" and kind != "End":
                ends.setdefault(int(number), address)
        if branch := _BRANCH.search(line):
            starts[int(branch[1])] = address
            end = address if int(branch[1]) not in ends and "!%p" in line else end
    spans = [(starts[n], ends[n]) for n in starts if n in ends and starts[n] < ends[n]]
    leaves = [(a, b) for a, b in spans if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in spans)]
    sizes = sorted(b - a for a, b in leaves)
    if not sizes:
        raise ValueError("a dumped kernel without a region that runs under a condition; wanted Splash's or the loss's")
    length = max([address for _, address in spans] + [end]) - begin
    turns = [int(number) for number in _EXIT.findall(text)]
    return Kernel(step=length - sum(sizes), block=sizes[-1], row=sum(sizes[:-1]), turns=max(turns, default=0))
