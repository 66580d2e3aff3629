"""The accelerators that a step can be compiled or reckoned for. Standard library only.

Peaks are the makers' figures for dense bfloat16. `link` is what one chip sends a second in a ring over one axis of
its network, both directions together: one torus axis of a TPU, NVLink inside a node of eight H100, and one 400 Gb/s
card a GPU between nodes.
"""

import dataclasses
import math

from distill.config import ConfigError, nearest

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One accelerator: FLOPs a second, bytes of memory and bytes a second."""

    name: str
    flops: float
    memory: float
    bandwidth: float
    link: float
    node: int = 0  # chips that `link` connects; 0: all of a pod
    beyond: float = 0.0  # bytes a second between nodes
    dims: int = 0  # of the torus that its compiler knows; 0: there is no compiler here

    def seconds(self, wire: float, group: int) -> float:
        """How long a chip takes to send `wire` bytes in a group of so many chips."""
        return wire / (self.beyond if self.node and group > self.node else self.link)


CHIPS = {
    chip.name: chip
    for chip in (
        Chip(name="v5e", flops=197e12, memory=16 * GIB, bandwidth=819e9, link=90e9, dims=2),
        Chip(name="v5p", flops=459e12, memory=95 * GIB, bandwidth=2765e9, link=180e9, dims=3),
        Chip(name="h100", flops=989e12, memory=80e9, bandwidth=3350e9, link=450e9, node=8, beyond=50e9),
    )
}
LARGEST = {"v5e": 256, "v5p": 6144}


def find(name: str) -> Chip:
    """The chip of this name. Raises ConfigError, with the names that there are."""
    if name not in CHIPS:
        raise ConfigError(f"--chip={name}: wanted one of {', '.join(CHIPS)}.{nearest(name, CHIPS)}")
    return CHIPS[name]


def topology(chip: Chip, count: int) -> str:
    """The slice of `count` chips as the TPU compiler names it: 'v5e:16x16'. Raises ConfigError where there is none.

    Slices are powers of two (v5e: up to 256), as square as they can be; four chips are one host.
    """
    if count < 4 or count & (count - 1) or count > LARGEST[chip.name]:
        raise ConfigError(
            f"--mesh: {count} chips; a slice of {chip.name} has a power of two of them, from 4 to {LARGEST[chip.name]}"
        )
    twos = int(math.log2(count))
    sides = sorted(2 ** ((twos + i) // chip.dims) for i in range(chip.dims))
    return f"{chip.name}:{'x'.join(map(str, sides))}"
