"""The table of accelerators: peak FLOP/s, memory, bandwidths and a dated list price. Standard library only.

Used by launch.dryrun (time and memory of a step), by the metrics of a run (`mfu`) and by plans (hours and money).
Hardware figures are the vendors' own, for dense products: NVIDIA's data sheets of the SXM modules (A100 80 GB, H100,
H200, HGX B200), Google Cloud's "System architecture" pages of each TPU (v5p is listed there in GiB).

`link` is the bandwidth at which one chip sends in a ring over one axis of its network: both directions together for a
torus axis of a TPU (Austin et al. 2025, "How to Scale Your Model", part 2), one direction of NVLink inside a node of
eight GPUs. `beyond` assumes one network card per GPU between nodes (200 Gb/s for A100, 400 Gb/s since).
`between` is what a chip has to other slices (pods of TPUs, groups of nodes in other data centres): BETWEEN, 100 Gb/s a
host of four chips of v5e, unless `several` is told otherwise.
"""

import dataclasses
import math
from collections.abc import Mapping

from distill.config import ConfigError, MeshConfig, nearest

GIB = 2**30
BETWEEN = 25.0  # Gbit/s of one chip from slice to slice: an assumption, which reports print


@dataclasses.dataclass(frozen=True, kw_only=True)
class Price:
    """An on-demand list price of one chip for an hour. An assumption: prices differ by provider and change."""

    hourly: float
    currency: str
    date: str  # year and month of the figure
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One accelerator: FLOPs a second by dtype, bytes of memory, bytes a second.

    `kinds` are substrings of `jax.Device.device_kind` that identify the device. Without a `price` the user has to give
    one.
    """

    name: str
    kinds: tuple[str, ...]
    peak: Mapping[str, float]
    memory: float
    bandwidth: float
    link: float
    node: int = 0  # chips that `link` connects; 0: all of a pod
    beyond: float = 0.0  # bytes a second between nodes
    slice: int = 0  # chips that those two connect; 0: all
    between: float = 0.0  # bytes a second between slices
    dims: int = 0  # of the torus that the TPU compiler knows; 0: it does not know this chip
    largest: int = 0  # chips of the largest slice that the TPU compiler takes
    price: Price | None = None

    @property
    def flops(self) -> float:
        """Dense bfloat16 FLOPs a second, the precision of training."""
        return self.peak["bfloat16"]

    def seconds(self, wire: float, span: int) -> float:
        """Seconds that a chip takes to send `wire` bytes in a group whose first and last are `span` chips apart."""
        if self.leaves_slice(span):
            return wire / self.between
        return wire / (self.beyond if self.node and span > self.node else self.link)

    def leaves_slice(self, span: int) -> bool:
        """Whether a group whose first and last are `span` chips apart has members in several slices."""
        return 0 < self.slice < span


def _book(hourly: float) -> Price:
    return Price(hourly=hourly, currency="USD", date="2025-02", source="How to Scale Your Model, part 8")


def _rented(hourly: float, date: str, source: str) -> Price:
    return Price(hourly=hourly, currency="USD", date=date, source=source)


_HOPPER = {"bfloat16": 989e12, "float8": 1979e12, "int8": 1979e12}

# GPUs: the public rate cards of two providers that rent GPUs alone. Large clouds list an H100 at up to three times as
# much, marketplaces at two thirds: a plan in money names its source, and `--hourly` replaces it.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(name="v5e", kinds=("TPU v5 lite", "TPU v5e"), peak={"bfloat16": 197e12, "int8": 393e12},
             memory=16 * GIB, bandwidth=819e9, link=90e9, dims=2, largest=256, price=_book(1.2)),
        Chip(name="v5p", kinds=("TPU v5p", "TPU v5"), peak={"bfloat16": 459e12, "int8": 918e12},
             memory=95 * GIB, bandwidth=2765e9, link=180e9, dims=3, largest=6144, price=_book(4.2)),
        Chip(name="v6e", kinds=("TPU v6",), peak={"bfloat16": 918e12, "int8": 1836e12},
             memory=32 * GIB, bandwidth=1638e9, link=180e9, dims=2, largest=256,
             price=Price(hourly=2.7, currency="USD", date="2024-12", source="Google Cloud, general availability")),
        Chip(name="v4", kinds=("TPU v4",), peak={"bfloat16": 275e12, "int8": 275e12},
             memory=32 * GIB, bandwidth=1200e9, link=90e9),
        Chip(name="a100", kinds=("A100",), peak={"bfloat16": 312e12, "int8": 624e12},
             memory=80e9, bandwidth=2039e9, link=300e9, node=8, beyond=25e9,
             price=_rented(2.79, "2026-09", "Lambda, eight A100 SXM 80 GB on demand")),
        Chip(name="h100", kinds=("H100",), peak=_HOPPER,
             memory=80e9, bandwidth=3350e9, link=450e9, node=8, beyond=50e9,
             price=_rented(3.99, "2026-09", "Lambda, eight H100 SXM on demand")),
        Chip(name="h200", kinds=("H200",), peak=_HOPPER,
             memory=141e9, bandwidth=4800e9, link=450e9, node=8, beyond=50e9,
             price=_rented(3.99, "2026-08", "Hyperstack, H200 SXM on demand")),
        Chip(name="b200", kinds=("B200",), peak={"bfloat16": 2250e12, "float8": 4500e12, "int8": 4500e12},
             memory=180e9, bandwidth=8000e9, link=900e9, node=8, beyond=50e9,
             price=_rented(6.69, "2026-09", "Lambda, eight B200 on demand")),
    )
}  # fmt: skip


def find(name: str) -> Chip:
    """The chip of this name. Raises ConfigError that lists the valid names."""
    if name.lower() not in CHIPS:
        raise ConfigError(f"--chip={name}: wanted one of {', '.join(CHIPS)}.{nearest(name, CHIPS)}")
    return CHIPS[name.lower()]


def recognise(device_kind: str) -> Chip | None:
    """The chip that JAX calls `device_kind` ('NVIDIA H100 80GB HBM3', 'TPU v5 lite'); None for any other device.

    The longest match counts: 'TPU v5 lite' is a v5e, 'TPU v5' a v5p.
    """
    matches = [(len(kind), chip) for chip in CHIPS.values() for kind in chip.kinds if kind in device_kind]
    return max(matches, key=lambda match: match[0])[1] if matches else None


def several(chip: Chip, mesh: MeshConfig, slices: int, gbit: float = BETWEEN) -> Chip:
    """The chip where those of a mesh lie in `slices` along data, with `gbit` Gbit/s a chip between them.

    Raises ConfigError if data is no multiple of `slices`.
    """
    if slices < 1:
        raise ConfigError(f"--slices={slices}: wanted at least 1")
    if mesh.data % slices:
        raise ConfigError(
            f"--slices={slices}: got a mesh of data={mesh.data}; only data crosses from slice to slice, so it must be "
            "a multiple of --slices"
        )
    if not 0 < gbit < math.inf:
        raise ConfigError(f"--slice-gbit={gbit}: wanted Gbit/s of a chip between slices, more than 0")
    size = mesh.data * mesh.fsdp * mesh.tensor // slices
    return chip if slices == 1 else dataclasses.replace(chip, slice=size, between=gbit * 1e9 / 8)


def topology(chip: Chip, count: int) -> str:
    """The compiler's name of `count` chips: a TPU's slice 'v5e:16x16', or '1x8x8', eight nodes of eight GPUs.

    Slices are powers of two (v5e, v6e: up to 256), as square as they can be; four chips are one host. Raises
    ConfigError if there is none of this size.
    """
    if not chip.dims:
        if count > chip.node and count % chip.node:
            raise ConfigError(f"--mesh: {count} chips; {chip.name} come in nodes of {chip.node}")
        return f"1x{max(count // chip.node, 1)}x{min(count, chip.node)}"
    if count < 4 or count & (count - 1) or count > chip.largest:
        raise ConfigError(
            f"--mesh: {count} chips; a slice of {chip.name} has a power of two of them, from 4 to {chip.largest}"
        )
    twos = int(math.log2(count))
    sides = sorted(2 ** ((twos + i) // chip.dims) for i in range(chip.dims))
    return f"{chip.name}:{'x'.join(map(str, sides))}"
