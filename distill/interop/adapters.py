"""Writes a model's adapters alone, as a directory that PEFT loads onto the published model that they adapt."""

import json
import math
from pathlib import Path

import numpy as np

from distill.config import ModelConfig
from distill.errors import InteropError
from distill.interop import safetensors
from distill.interop.families import Family
from distill.interop.layout import Layout, layouts
from distill.interop.safetensors import Tensor
from distill.interop.source import ADAPTER, ModelSource
from distill.model import adapted, lora
from distill.model.transformer import Transformer
from distill.system.files import atomic_folder

TENSORS = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # of PEFT's names, before the published model's own


def write(directory: str | Path, params: Transformer, base: ModelSource, card: str = "") -> int:
    """Writes adapter_config.json, adapter_model.safetensors (float32) and a README; returns the number of values.

    base: the published model whose weights `params` holds, as it was read. Raises InteropError where something is at
    `directory` already, where the model has no adapters, and where PEFT could not apply them to that model.
    """
    path, config = Path(directory), params.config
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InteropError(f"{path}: there is something already; give another directory, or move it away")
    if not lora.adapted_maps(config):
        raise InteropError(f"{path}: the model has no adapters (config.model.lora.rank=0); leave --adapter out")
    pairs = _pairs(params, _adapted(config, base))
    tensors = {f"{_PREFIX}{name}.{part}.weight": array for name, both in pairs.items() for part, array in both.items()}
    with atomic_folder(path) as building:
        shapes = {name: array.shape for name, array in tensors.items()}
        for _ in safetensors.write(building / TENSORS, shapes, "F32", tensors.__getitem__):
            pass
        tree = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base.path),
            "r": config.lora.rank, "lora_alpha": config.lora.alpha, "lora_dropout": 0.0, "bias": "none",
            "fan_in_fan_out": False, "inference_mode": True,
            "target_modules": sorted({name.rpartition(".")[2] for name in pairs}),
        }  # fmt: skip
        (building / ADAPTER).write_text(json.dumps(tree, indent=2) + "\n", "utf-8")
        if card:
            (building / "README.md").write_text(card, "utf-8")
    return sum(math.prod(shape) for shape in shapes.values())


def _adapted(config: ModelConfig, base: ModelSource) -> dict[str, Layout]:
    """The layout of every adapted map in the published model. Raises InteropError for a part of a fused tensor."""
    family: Family = base.family
    table = layouts(adapted.plain(config), family, family.folded(base.tree, config))
    found = {name: table[f"blocks.{name}"] for name in lora.adapted_maps(config)}
    for name, layout in found.items():
        if layout.total > math.prod(layout.sizes[letter] for letter in layout.rows):
            raise InteropError(
                f"{base.path}: {layout.name.format(0)} holds {name} together with other maps, so that adapters of one "
                "of them do not fit; leave --adapter out, and adapters are merged"
            )
    return found


def _pairs(params: Transformer, table: dict[str, Layout]) -> dict[str, dict[str, Tensor]]:
    """For each module there lora_A [r, inputs] and lora_B [outputs, r], whose product is added alpha / r times."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, layout in table.items():
        a, b = (np.asarray(array, np.float32) for array in params.blocks.lora.pair(name))
        for layer in range(params.config.n_layers):
            module = layout.name.format(layer).removesuffix(".weight")
            found[module] = {"lora_A": np.ascontiguousarray(a[layer].T), "lora_B": _outputs(b[layer], layout)}
    return found


def _outputs(b: Tensor, layout: Layout) -> Tensor:
    """B [r, outputs] as rows of the tensor there [outputs, r]: its order of channels, and its scale."""
    if layout.order is not None:
        heads = b.reshape(len(b), -1, layout.sizes["k"])
        b = np.take(heads, np.argsort(layout.order), axis=2).reshape(b.shape)
    return np.ascontiguousarray(b.T / np.float32(layout.factor))
