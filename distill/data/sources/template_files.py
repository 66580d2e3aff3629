"""The chat templates and special tokens of a published model, as its files say them."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from distill.data.tokenizers.gguf import GgufFile
from distill.errors import DataError
from distill.system.files import loads

TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP = "tokenizer_config.json", "special_tokens_map.json"
JINJA, MORE = "chat_template.jinja", "additional_chat_templates"
DEFAULT, TOOL_USE = "default", "tool_use"
# The variables of a template that name special tokens, whether or not a tokenizer has them.
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Classes of tokenizers that define no special tokens besides those of the files.
_WITHOUT_DEFAULTS = (None, "PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend")
_GGUF_NAMES = {"unk": "unknown", "sep": "seperator", "pad": "padding"}  # the format's own spelling


class TemplateFiles(NamedTuple):
    """Templates by name, special tokens by the variable that a template reads, and variables of unknown value."""

    texts: Mapping[str, str]
    special: Mapping[str, str]
    unknown: tuple[str, ...] = ()


def read_templates(path: str | Path) -> TemplateFiles:
    """Reads the chat templates of a model folder, a GGUF, .jinja or .json file; no texts if there are none.

    The special tokens are those that transformers would find in the same files; a .jinja file takes those of the folder
    in which it lies. Raises DataError where a file cannot be read.
    """
    path = Path(path)
    if path.suffix == ".gguf":
        return _of_gguf(path)
    folder = path if path.is_dir() else path.parent
    try:
        tree = _tree(folder / TOKENIZER_CONFIG)
        if path.is_dir():
            texts = _texts(folder, tree)
        elif path.suffix == ".json":
            texts = _told(_tree(path).get("chat_template"))
        else:
            texts = {DEFAULT: path.read_text("utf-8")}
        if "added_tokens_decoder" not in tree:
            tree = tree | _tree(folder / SPECIAL_TOKENS_MAP)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot read its chat template ({error})") from None
    for name, text in texts.items():
        if not isinstance(text, str):
            raise DataError(f"{path}: its chat template {name!r} is {text!r:.60}, wanted text")
    extra = tree.get("extra_special_tokens")
    named = {key: value for key, value in tree.items() if key in NAMED or key.endswith("_token")}
    contents = {key: _content(value) for key, value in {**named, **(extra if isinstance(extra, dict) else {})}.items()}
    guess = bool(tree) and tree.get("tokenizer_class") in _WITHOUT_DEFAULTS
    return TemplateFiles(
        texts={name: str(text) for name, text in texts.items() if text},
        special={key: text for key, text in contents.items() if text is not None},
        unknown=() if guess else tuple(name for name in NAMED if name not in tree),
    )


def _tree(file: Path) -> dict[str, object]:
    tree = loads(file.read_text("utf-8")) if file.exists() else {}
    if not isinstance(tree, dict):
        raise ValueError(f"{file.name} holds no object")
    return tree


def _content(value: object) -> str | None:
    """The text of a token, which is given as text or as an object with its content."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _texts(folder: Path, tree: Mapping[str, object]) -> dict[str, object]:
    """The templates by name. Files of their own win over the tokenizer's config as a whole."""
    files: dict[str, object] = {}
    if (folder / JINJA).exists():
        files[DEFAULT] = (folder / JINJA).read_text("utf-8")
    for file in sorted((folder / MORE).glob("*.jinja")):
        files[file.name.removesuffix(".jinja")] = file.read_text("utf-8")
    return files or _told(tree.get("chat_template"))


def _told(value: object) -> dict[str, object]:
    """The templates that a field of a config holds: one, or several by name."""
    if isinstance(value, list):
        return {str(item.get("name")): item.get("template") for item in value if isinstance(item, dict)}
    return dict(value) if isinstance(value, dict) else {DEFAULT: value} if value else {}


def _of_gguf(path: Path) -> TemplateFiles:
    fields = GgufFile(path).fields
    tokens = fields.get("tokenizer.ggml.tokens", [])
    names = [name.removesuffix("_token") for name in NAMED]
    ids = {name: fields.get(f"tokenizer.ggml.{_GGUF_NAMES.get(name, name)}_token_id") for name in names}
    special = {
        f"{name}_token": str(tokens[i])
        for name, i in ids.items()
        if isinstance(tokens, list) and type(i) is int and 0 <= i < len(tokens)
    }
    start = "tokenizer.chat_template"
    found = {key.removeprefix(start + "."): text for key, text in fields.items() if key.startswith(start + ".")}
    texts = {DEFAULT: fields.get(start, ""), **found}
    return TemplateFiles({name: str(text) for name, text in texts.items() if text}, special)
