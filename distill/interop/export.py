"""Exports a model as a Hugging Face directory: config.json, safetensors, the tokenizer's files, a model card."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from distill.config import ModelConfig
from distill.errors import InteropError
from distill.interop import hf_config, packed_experts, safetensors
from distill.interop.families import fitting
from distill.interop.layout import expected, layouts
from distill.interop.safetensors import Tensor
from distill.interop.source import CONFIG, INDEX, SINGLE
from distill.interop.tokenizer_files import GENERATION, IDS, TokenizerFiles
from distill.model import adapted, lora
from distill.model.transformer import Transformer, parameter_name
from distill.system.files import atomic_folder

DTYPES = {"float32": "F32", "bfloat16": "BF16"}
_LARGEST_FILE = 5_000_000_000  # bytes


def published(config: ModelConfig) -> ModelConfig:
    """Returns the config with which a model of `config` is published.

    A tied embedding that is scaled at lookup becomes two tables, unless a family (Gemma) is this model and scales it
    too. Rows of padding are removed, because other software would give them probability. Both leave the logits
    unchanged. Products are full ones, the only ones that other software has.
    """
    plain = adapted.plain(config)
    cut = dataclasses.replace(
        plain,
        scaled_embedding=config.tied and config.scaled_embedding,
        vocab_size=config.tokens,
        valid_vocab=0,
        products="full",
    )
    untied = cut.scaled_embedding and fitting(cut) is None
    return dataclasses.replace(cut, tied=False, scaled_embedding=False) if untied else cut


def write(
    directory: str | Path,
    params: Transformer,
    tokenizer: TokenizerFiles,
    *,
    context: int,
    dtype: str = "float32",
    card: str = "",
    on_tensor: Callable[[int], None] = lambda _: None,
) -> None:
    """Writes the directory, which appears under its name once complete; only one tensor at a time is in memory.

    context: number of positions of the model. `on_tensor` is called with the bytes of each tensor.
    Raises InteropError where `directory` already exists, or no supported architecture fits.
    """
    path = Path(directory)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InteropError(f"{path}: there is something already; give another directory, or move it away")
    config = published(params.config)
    tree = hf_config.write_config(config, context=context, dtype=dtype, end_of_text=tokenizer.end_of_text)
    tree |= {
        name: ids for name, ids in tokenizer.ids.items() if max(ids if isinstance(ids, list) else [ids]) < config.tokens
    }
    said = {name: tree[name] for name in IDS if name in tree}
    readers = tensors(params, config)
    shapes = {name: shape for name, _, _, shape in expected(config)}
    if (family := fitting(config)) is not None and family.packed:
        shapes, readers = packed_experts.pack(shapes, readers)
    with atomic_folder(path) as building:
        for size in _write_tensors(building, shapes, DTYPES[dtype], lambda name: readers[name]()):
            on_tensor(size)
        texts = {CONFIG: json.dumps(tree, indent=2) + "\n", **({"README.md": card} if card else {})}
        if said and GENERATION not in tokenizer.files:  # without it, some readers of today do not know where to stop
            texts[GENERATION] = json.dumps(said, indent=2) + "\n"
        for name, content in ({n: t.encode("utf-8") for n, t in texts.items()} | dict(tokenizer.files)).items():
            (building / name).write_bytes(content)


def tensors(params: Transformer, config: ModelConfig) -> Mapping[str, Callable[[], Tensor]]:
    """Maps the name of each tensor of the checkpoint to a function that computes it; adapters are merged."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    arrays = {parameter_name(path): leaf for path, leaf in leaves}
    table, ours = layouts(config), params.config
    maps = lora.adapted_maps(ours)
    scale = math.sqrt(ours.d_model) if ours.tied and not config.tied and ours.scaled_embedding else 1.0

    def reader(names: list[str], index: tuple[int, ...]) -> Callable[[], Tensor]:
        return lambda: part(names[0], index)() if len(names) == 1 else _joined([part(one, index)() for one in names])

    def part(name: str, index: tuple[int, ...]) -> Callable[[], Tensor]:
        def read() -> Tensor:
            array = arrays["embed" if name == "head" and ours.tied else name]
            value = _on_host(array[index] if index else array)
            if (short := name.removeprefix("blocks.")) in maps:
                value = value + lora_delta(params, short, *index).reshape(value.shape)
            if table[name].rows == "v":
                value = value[: config.vocab_size]
            if name == "embed" and scale != 1:
                value = value * np.float32(scale)
            return table[name].export(value)

        return read

    parts: dict[str, tuple[list[str], tuple[int, ...]]] = {}
    for there, name, index, _ in expected(config):
        parts.setdefault(there, ([], index))[0].append(name)
    return {there: reader(names, index) for there, (names, index) in parts.items()}


def lora_delta(params: Transformer, name: str, layer: int) -> Tensor:
    """What the adapter of a map adds to its weights in one layer, [inputs, outputs] in float32."""
    a, b = (_on_host(array[layer]).astype(np.float32) for array in params.blocks.lora.pair(name))
    return np.float32(params.config.lora.scale) * (a @ b)


def _joined(parts: list[Tensor]) -> Tensor:
    """A fused tensor of its parts."""
    return np.concatenate(parts, axis=0)


def _on_host(array: jax.Array) -> Tensor:
    return np.asarray(jax.sharding.reshard(array, jax.P(*[None] * array.ndim)))


def _write_tensors(
    folder: Path, shapes: dict[str, tuple[int, ...]], dtype: str, read: Callable[[str], Tensor]
) -> Iterator[int]:
    """Writes one file, or several with an index where one would be too large."""
    width = np.dtype(safetensors.DTYPES[dtype]).itemsize
    files: list[dict[str, tuple[int, ...]]] = [{}]
    room = _LARGEST_FILE
    for name, shape in shapes.items():
        size = math.prod(shape) * width
        if files[-1] and size > room:
            files.append({})
            room = _LARGEST_FILE
        files[-1][name] = shape
        room -= size
    if len(files) == 1:
        yield from safetensors.write(folder / SINGLE, files[0], dtype, read)
        return
    where: dict[str, str] = {}
    for i, part in enumerate(files, 1):
        file = f"model-{i:05d}-of-{len(files):05d}.safetensors"
        where |= dict.fromkeys(part, file)
        yield from safetensors.write(folder / file, part, dtype, read)
    total = sum(math.prod(shape) * width for shape in shapes.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=1), "utf-8")
