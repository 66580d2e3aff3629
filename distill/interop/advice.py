"""What a path that is no model may have been meant to be: the end of an error's sentence."""

import re
from collections.abc import Iterable
from pathlib import Path

from distill.errors import DistillError
from distill.system.files import loads

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")  # 'Qwen/Qwen3-0.6B'
_OURS = ("runs", "models", "stores", "out", "checkpoints", "data", "texts")  # folders of one's own, gone or mistyped
_SHOWN = 3  # names, at most


def about_path(path: str | Path) -> str:
    """What to give instead of a path without a config.json, as '; ...'; '' where nothing there tells it."""
    place, text = Path(path), str(path)
    try:
        if text.startswith("~"):
            return "; no shell expands ~ after '=': write $HOME"
        if place.is_file():
            return f"; it is a file: give its folder, {place.parent}" if place.name.endswith(_PARTS) else ""
        if not place.exists():
            if _HUB.fullmatch(text) and place.parts[0] not in _OURS and not place.parent.exists():
                folder = f"models/{place.name}"
                return (
                    f"; models are not downloaded here: `hf download {text} --local-dir={folder}`, then give {folder}"
                )
            return ""
        return _about_folder(place)
    except OSError:  # a folder that may not be read
        return ""


_PARTS = (".json", ".safetensors", ".bin", ".pth")


def _about_folder(place: Path) -> str:
    if (place / "adapter_config.json").exists():
        base = _base(place / "adapter_config.json")
        return f"; it is an adapter of PEFT for {base}: merge it into that model (merge_and_unload) and save the whole"
    if files := _names(place.glob("*.gguf")):
        return f"; it holds {files}: give that file"
    if cached := sorted(place.glob("snapshots/*/config.json")):
        return f"; it is a cache of Hugging Face: give {cached[-1].parent}"
    if folders := _names(file.parent for file in place.glob("*/config.json")):
        return f"; it holds the folders {folders}: give one of them"
    if (place / "params.json").exists() and any(place.glob("consolidated.*")):
        return "; it is in the form of Meta's own code, wanted that of Hugging Face"
    return ""


def _names(files: Iterable[Path]) -> str:
    names = sorted(file.name for file in files)
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _base(file: Path) -> str:
    try:
        tree = loads(file.read_bytes())
    except (ValueError, OSError, DistillError):
        return "another model"
    return str(tree.get("base_model_name_or_path") or "another model") if isinstance(tree, dict) else "another model"


def about_missing(name: str, names: Iterable[str]) -> str:
    """The tensor that may be the missing one under another prefix, as '; ...'; '' where there is none."""
    end = name.removeprefix("model.")
    alike = next((other for other in names if other == end or other.endswith(f".{end}")), "")
    return f"; there is {alike!r}: rename the tensors, as transformers' save_pretrained writes them" if alike else ""
