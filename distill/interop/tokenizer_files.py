"""The tokenizer files and chat template that accompany a model's weights."""

import dataclasses
import json
from collections.abc import Mapping
from typing import TypeGuard

from distill.data.sources.template_files import DEFAULT, TOKENIZER_CONFIG, read_templates
from distill.data.tokenizers.sentencepiece import SentencePieceTokenizer
from distill.data.tokenizers.spec import SENTENCEPIECE
from distill.data.tokenizers.subword import SubwordTokenizer, byte_letters
from distill.data.tokenizers.tokenizer import ByteTokenizer, Tokenizer
from distill.errors import InteropError
from distill.interop.source import ModelSource

TOKENIZER, GENERATION = "tokenizer.json", "generation_config.json"
# Files that are copied unchanged from one directory to another.
_KEPT = (
    *(TOKENIZER, TOKENIZER_CONFIG, "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", GENERATION),
)
_END = "<|endoftext|>"


# Fields of config.json and generation_config.json: how a prompt begins, what ends a reply, and padding.
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
    """Files by name, the token that ends a document (-1: unknown), and the IDS of config.json, each one or several."""

    files: Mapping[str, bytes]
    end_of_text: int = -1
    ids: Mapping[str, int | list[int]] = dataclasses.field(default_factory=dict)


def of_source(source: ModelSource) -> TokenizerFiles:
    """The tokenizer files of a published model; for GGUF, made from its fields."""
    end = source.tree.get("eos_token_id")
    end = end[0] if isinstance(end, list) and end else end
    known = end if isinstance(end, int) else -1
    ids = {name: value for name in IDS if _is_ids(value := source.tree.get(name))}
    if source.path.is_dir():
        files = {n: (source.path / n).read_bytes() for n in _KEPT if (source.path / n).exists()}
        return TokenizerFiles(files, known, ids)
    templates = read_templates(source.path)
    text = SubwordTokenizer(str(source.path), "none").saying()
    return TokenizerFiles(_files(text, {**templates.special, **_templates(templates.texts)}), known, ids)


def _is_ids(value: object) -> TypeGuard[int | list[int]]:
    items = value if isinstance(value, list) else [value]
    return bool(items) and all(type(item) is int and item >= 0 for item in items)


def _templates(texts: Mapping[str, str]) -> dict[str, object]:
    if set(texts) <= {DEFAULT}:
        return {"chat_template": texts[DEFAULT]} if texts else {}
    return {"chat_template": [{"name": name, "template": text} for name, text in texts.items()]}


def of_tokenizer(tokenizer: Tokenizer) -> TokenizerFiles:
    """The files of one of our tokenizers. Raises InteropError for a generated language, whose symbols are not text."""
    end = tokenizer.end_of_text
    if isinstance(tokenizer, SubwordTokenizer):
        name = tokenizer.token(end) if end >= 0 else ""
        return TokenizerFiles(_files(tokenizer.saying(), {"eos_token": name} if name else {}), end)
    if isinstance(tokenizer, ByteTokenizer):
        return TokenizerFiles(_files(_bytes_json(), {"eos_token": _END}), end)
    if isinstance(tokenizer, SentencePieceTokenizer):
        said = {
            **{f"add_{name}_token": bool(ids) for name, ids in zip(("bos", "eos"), tokenizer.around)},
            **{f"{name}_token": tokenizer.token(ids[0]) for name, ids in zip(("bos", "eos"), tokenizer.around) if ids},
        }
        content = {SENTENCEPIECE: tokenizer.file.read_bytes(), TOKENIZER_CONFIG: json.dumps(said, indent=1).encode()}
        return TokenizerFiles(content, end)
    raise InteropError(f"tokens {tokenizer.name!r} are symbols of a generated language; no tokenizer.json can say them")


def _files(tokenizer_json: str, fields: Mapping[str, object]) -> dict[str, bytes]:
    tree = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **fields}
    return {
        TOKENIZER: tokenizer_json.encode("utf-8"),
        TOKENIZER_CONFIG: (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode("utf-8"),
    }


def _bytes_json() -> str:
    """A tokenizer.json whose ids are UTF-8 bytes; 0 ends a document."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.processors import ByteLevel

    letter = byte_letters()
    vocabulary = {letter[i]: i for i in range(1, 256)} | {_END: 0}
    library = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.post_processor = ByteLevel(trim_offsets=False)
    library.add_special_tokens([AddedToken(_END, special=True, normalized=False)])
    return library.to_str()
