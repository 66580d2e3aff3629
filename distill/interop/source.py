"""A model on disk as tensors by Hugging Face name: a directory of safetensors or a GGUF file."""

import dataclasses
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from distill.config import ModelConfig
from distill.errors import InteropError
from distill.interop import advice, gguf, hf_config, packed_experts, safetensors
from distill.interop.families import Family, family_of
from distill.interop.layout import expected, layouts
from distill.interop.safetensors import Tensor
from distill.system.files import loads

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"
ADAPTER = "adapter_config.json"  # of peft; transformers would load the adapter too
_COMPARED = 1 << 22  # values of embedding and head that are compared at a time
_OLDEST = ("Llama", "Mistral", "Qwen2", "Qwen3")  # families whose fingerprints do not name them
_log = logging.getLogger(__name__)


class ModelSource(Protocol):
    """What an import reads of a model: its config.json, the shapes of its tensors, and rows of them."""

    path: Path
    tree: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]

    @property
    def family(self) -> Family: ...

    def read(self, name: str, start: int, stop: int) -> Tensor: ...

    def pieces(self, name: str) -> Iterator[bytes]: ...


class Directory:
    """A Hugging Face directory: config.json, and model.safetensors or the shards that its index lists."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not (self.path / CONFIG).exists():
            raise InteropError(
                f"{self.path / CONFIG}: there is no such file; wanted a Hugging Face model's directory"
                f"{advice.about_path(path)}"
            )
        self.tree: dict[str, Any] = read_json(self.path / CONFIG)
        if (self.path / ADAPTER).exists():
            raise InteropError(
                f"{self.path}: it holds {ADAPTER}: an adapter's weights are not read here; merge them into the "
                "model, or move the adapter's files away where they are merged already"
            )
        self._entries: dict[str, safetensors.Entry] = {}
        # Like transformers, prefer a single file to an index.
        if (self.path / SINGLE).exists():
            if (self.path / INDEX).exists():
                _log.warning("%s: holds %s and %s; the first was read, as transformers does", path, SINGLE, INDEX)
            self._entries = safetensors.read_head(self.path / SINGLE)
        elif (self.path / INDEX).exists():
            self._read_index()
        else:
            pickles = sorted(p.name for p in self.path.glob("*.bin"))
            why = f"; {pickles[0]} is a pickle, which is not read here: convert it to safetensors" if pickles else ""
            raise InteropError(f"{self.path}: there is no {SINGLE} and no {INDEX}{why}")
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}
        self.dtypes = {name: entry.dtype for name, entry in self._entries.items()}

    def _read_index(self) -> None:
        index = self.path / INDEX
        where = read_json(index).get("weight_map")
        if not isinstance(where, dict) or not all(isinstance(file, str) for file in where.values()):
            raise InteropError(f"{index}: wanted weight_map, an object of tensor: file")
        for file in sorted(set(where.values())):
            if Path(file).name != file or len(file) > 200:
                raise InteropError(f"{index}: it names the file {file!r:.100}, wanted a file beside it")
            first = next(name for name in where if where[name] == file)
            if not (self.path / file).exists():
                raise InteropError(f"{self.path / file}: there is no such file; it should hold tensor {first!r}")
            self._entries |= safetensors.read_head(self.path / file)
        for name, file in where.items():
            if name not in self._entries or self._entries[name].file.name != file:
                raise InteropError(f"{self.path / file}: tensor {name!r} is not in it, though {INDEX} says so")

    @property
    def family(self) -> Family:
        """The family that config.json names. Raises InteropError for one that is not read."""
        return family_of(self.tree, str(self.path / CONFIG))

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor in their stored dtype."""
        return safetensors.read_rows(self._entries[name], start, stop)

    def pieces(self, name: str) -> Iterator[bytes]:
        """Yields a tensor's stored bytes in pieces of some megabytes."""
        return safetensors.pieces(self._entries[name])

    def unpacked(self) -> ModelSource:
        """The directory itself, or what its packed tensors of experts hold."""
        if not self.family.packed:
            return self
        return packed_experts.UnpackedExperts(self.path, self.tree, self._entries, self.family)


def read_json(path: Path) -> dict[str, object]:
    """Reads a JSON object from a file. Raises InteropError where there is none."""
    try:
        tree = loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InteropError(f"{path}: there is no such file; wanted a Hugging Face model's directory") from None
    except (ValueError, OSError) as error:
        raise InteropError(f"{path}: cannot be read as JSON ({error!s:.100})") from None
    if not isinstance(tree, dict):
        raise InteropError(f"{path}: got {type(tree).__name__}, wanted an object")
    return tree


def is_model(path: str | Path) -> bool:
    """Whether a path is a published model: a GGUF file, or a directory with a config.json."""
    return Path(path).suffix == ".gguf" or (Path(path) / CONFIG).exists()


def open_source(path: str | Path) -> tuple[ModelSource, ModelConfig]:
    """Opens the model at a path: reads all headers and checks the tensors against the config; loads no parameters."""
    if not Path(path).exists():
        raise InteropError(f"{path}: there is no such file or directory{advice.about_path(path)}")
    source: ModelSource = gguf.open_file(path) if Path(path).suffix == ".gguf" else Directory(path).unpacked()
    config = hf_config.read_config(source.tree, str(source.path / CONFIG if source.path.is_dir() else source.path))
    check(source, config)
    if config.tied and not _is_tied(source, config):
        if config.scaled_embedding:
            raise InteropError(f"{path}: lm_head.weight is not the embedding, to which {source.family.name} ties it")
        config = dataclasses.replace(config, tied=False)
        check(source, config)
    return source, config


def _is_tied(source: ModelSource, config: ModelConfig) -> bool:
    """Whether a model declared as tied is tied: a head that differs from the embedding takes precedence."""
    table = layouts(dataclasses.replace(config, tied=False), source.family)
    embed, head = table["embed"].name, table["head"].name
    if head not in source.shapes:
        return True
    if source.shapes[head] != source.shapes[embed]:
        return False
    rows = source.shapes[embed][0]
    step = max(_COMPARED // max(source.shapes[embed][1], 1), 1)
    parts = ((start, min(start + step, rows)) for start in range(0, rows, step))
    same = lambda a, b: np.array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))
    return all(same(source.read(embed, *part), source.read(head, *part)) for part in parts)


def check(source: ModelSource, config: ModelConfig) -> None:
    """Raises InteropError for the first tensor that is missing, has another shape, or is unknown."""
    wanted, family = set(), source.family
    for name, _, _, shape in expected(config, family):  # lazily: a config may claim any number of layers
        wanted.add(name)
        if name not in source.shapes:
            why = ", for tie_word_embeddings is not true in config.json" if name == "lm_head.weight" else ""
            why = advice.about_missing(name, source.shapes) or why
            raise InteropError(f"{source.path}: tensor {name!r} is missing, wanted {list(shape)}{why}")
        if source.shapes[name] != shape:
            got = list(source.shapes[name])
            raise InteropError(f"{source.path}: tensor {name!r} has shape {got}, but config.json wants {list(shape)}")
    for name in source.shapes:
        # Old checkpoints contain rotary frequencies, and some tied ones a head; transformers reads neither.
        known = name.endswith("rotary_emb.inv_freq") or (config.tied and name == "lm_head.weight")
        if name not in wanted and not known:
            got = list(source.shapes[name])
            raise InteropError(f"{source.path}: tensor {name!r} of shape {got} has no place in {family.architecture}")


def fingerprint(source: ModelSource, config: ModelConfig) -> str:
    """Twelve hex digits of a hash of the config and of every tensor's name, shape, dtype and stored bytes.

    Reads the whole model, as loading does: 1.7 GB of SHA-256 per second on one core.
    """
    family = source.family
    digest = hashlib.sha256(_identity(config).encode())
    if family.name not in _OLDEST:
        digest.update(f"{family.name} {sorted(family.folded(source.tree, config).items())}".encode())
    for name, shape in {name: shape for name, _, _, shape in expected(config, family)}.items():
        digest.update(f"{name} {shape} {source.dtypes[name]}".encode())
        for piece in source.pieces(name):
            digest.update(piece)
    return digest.hexdigest()[:12]


def _identity(config: ModelConfig) -> str:
    """The config as it enters a fingerprint: fields from global_layers on only where they differ from their defaults.

    They came later; so the names of models that are without them stay.
    """
    names = [field.name for field in dataclasses.fields(config)]
    first, plain = names.index("global_layers"), ModelConfig()
    kept = names[:first] + [name for name in names[first:] if getattr(config, name) != getattr(plain, name)]
    return f"ModelConfig({', '.join(f'{name}={getattr(config, name)!r}' for name in kept)})"
