"""Checkpoints with all experts of a layer in one tensor (gpt-oss), seen as one tensor for each map of each expert.

There `gate_up_proj` is [X, D, 2 F], gate and up in alternate columns, and `down_proj` [X, F, D]; or both are MXFP4: as
`_blocks` [X, rows, columns / 32, 16], two values a byte, the first in the lower half, and `_scales` [X, rows,
columns / 32], exponents of two plus 127, of the transposed maps (OCP Microscaling Formats 1.0, sections 5.2 and 6.3).
What MXFP4 expresses, bfloat16 does exactly.
"""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from distill.errors import InteropError
from distill.interop import safetensors
from distill.interop.families import Family
from distill.interop.safetensors import Entry, Tensor

_ONE = re.compile(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.(weight|bias)")
_ALL = re.compile(r"(.*\.experts)\.(gate_up|down)_proj(_bias|_blocks|)")
_BLOCK = 32  # values of a scale
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_FP4 = np.array([*_MAGNITUDES, *(-one for one in _MAGNITUDES)], np.float32)  # by their four bits
_COLUMNS = {"gate": slice(0, None, 2), "up": slice(1, None, 2), "down": slice(None)}  # of the packed tensor


class UnpackedExperts:
    """A directory whose experts are packed, as a source of separate tensors (source.ModelSource)."""

    def __init__(self, path: Path, tree: dict[str, Any], entries: Mapping[str, Entry], family: Family):
        """Raises InteropError for a packed tensor whose shape, or whose scales, are not those of this format."""
        self.path, self.tree, self.family = path, tree, family
        self._entries = entries
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for name, entry in entries.items():
            if match := _ALL.fullmatch(name):
                self._unpack(name, entry, *match.groups())
            elif not (name.endswith("_scales") and f"{name.removesuffix('_scales')}_blocks" in entries):
                self.shapes[name], self.dtypes[name] = entry.shape, entry.dtype

    def _unpack(self, name: str, entry: Entry, stem: str, kind: str, part: str) -> None:
        """Names and shapes of the separate tensors that one packed tensor holds."""
        shape = entry.shape
        maps = ("gate", "up") if kind == "gate_up" else ("down",)
        if part == "_blocks":
            scales = self._entries.get(f"{name.removesuffix('_blocks')}_scales")
            if len(shape) != 4 or shape[3] != _BLOCK // 2 or scales is None or scales.shape != shape[:3]:
                raise InteropError(
                    f"{self.path}: tensor {name!r} is {list(shape)} with scales of "
                    f"{list(scales.shape) if scales else 'no shape'}; wanted [experts, rows, blocks, {_BLOCK // 2}] "
                    "and scales [experts, rows, blocks]"
                )
            shape = (shape[0], shape[2] * _BLOCK, shape[1])  # as the map itself
        if len(shape) != (2 if part == "_bias" else 3) or shape[-1] % len(maps) or not all(shape):
            raise InteropError(
                f"{self.path}: tensor {name!r} has shape {list(shape)}, wanted one map of each expert"
                f"{', and an even number of columns' if len(maps) > 1 else ''}"
            )
        width = shape[-1] // len(maps)
        for expert in range(shape[0]):
            for one in maps:
                separate = f"{stem}.{expert}.{one}_proj.{'bias' if part == '_bias' else 'weight'}"
                self.shapes[separate] = (width,) if part == "_bias" else (width, shape[1])
                self.dtypes[separate] = "BF16" if part == "_blocks" else entry.dtype

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor: MXFP4 as bfloat16, others in their stored dtype."""
        match = _ONE.fullmatch(name)
        if match is None:
            return safetensors.read_rows(self._entries[name], start, stop)
        stem, expert, kind, part = match.groups()
        packed = f"{stem}.{'down' if kind == 'down' else 'gate_up'}_proj"
        row = int(expert), int(expert) + 1
        if part == "bias":
            return safetensors.read_rows(self._entries[f"{packed}_bias"], *row)[0, _COLUMNS[kind]][start:stop]
        if packed in self._entries:
            return safetensors.read_rows(self._entries[packed], *row)[0][:, _COLUMNS[kind]].T[start:stop]
        blocks, scales = (
            safetensors.read_rows(self._entries[f"{packed}_{one}"], *row)[0, _COLUMNS[kind]][start:stop]
            for one in ("blocks", "scales")
        )
        return dequantise(blocks.view(np.uint8), scales.view(np.uint8))

    def pieces(self, name: str) -> Iterator[bytes]:
        """Yields a tensor's bytes, as it is read."""
        if _ONE.fullmatch(name):
            yield np.ascontiguousarray(self.read(name, 0, self.shapes[name][0])).tobytes()
        else:
            yield from safetensors.pieces(self._entries[name])


def dequantise(blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> Tensor:
    """The values [rows, 32 blocks] of MXFP4, in bfloat16."""
    halves = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:2], _BLOCK)
    values = np.ldexp(_FP4[halves], scales.astype(np.int32)[..., None] - 127)
    return values.reshape(len(blocks), -1).astype(ml_dtypes.bfloat16)


def pack(
    shapes: Mapping[str, tuple[int, ...]], readers: Mapping[str, Callable[[], Tensor]]
) -> tuple[dict[str, tuple[int, ...]], dict[str, Callable[[], Tensor]]]:
    """Shapes and readers of the tensors of a checkpoint, those of the experts of a layer as one; not in MXFP4."""
    whole: dict[str, tuple[int, ...]] = {}
    parts: dict[str, list[tuple[int, str, str]]] = {}  # expert, map, and name of what a packed tensor holds
    for name, shape in shapes.items():
        match = _ONE.fullmatch(name)
        if match is None:
            whole[name] = shape
            continue
        stem, expert, kind, part = match.groups()
        packed = f"{stem}.{'down' if kind == 'down' else 'gate_up'}_proj{'_bias' if part == 'bias' else ''}"
        parts.setdefault(packed, []).append((int(expert), kind, name))
        columns = shape[0] * (1 if kind == "down" else 2)
        whole[packed] = (int(expert) + 1, *shape[1:], columns)

    def read(packed: str) -> Tensor:
        array = np.empty(whole[packed], np.float32)
        for expert, kind, name in parts[packed]:
            array[expert][..., _COLUMNS[kind]] = readers[name]().T
        return array

    return whole, {name: functools.partial(read, name) if name in parts else readers[name] for name in whole}
