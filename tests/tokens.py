"""Small tokenizers with every part chosen by a test, and model folders that hold them."""

import json
from pathlib import Path

import jax
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from distill.config import ModelConfig
from distill.interop import export
from distill.interop.tokenizer_files import TokenizerFiles
from distill.model.transformer import Transformer

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [
    ("t", "h"),
    ("th", "e"),
    ("Ġ", "the"),
    ("Ġ", "a"),
    ("i", "n"),
    ("Ġ", "in"),
    ("o", "f"),
    ("Ġ", "of"),
    ("a", "n"),
]
SPECIALS = ("<s>", "</s>", "<mask>", "<pad>")
WORDS = [
    *("the", "thin", "man", "of", "Athens,", "an", "ink", "in", "1999;", "\u00e9t\u00e9", "na\u00efve", "\u65e5\u672c"),
    *("<s>", "</s>\n\tanother", "<mask>", "inn"),
]


def library(merges=MERGES, specials=SPECIALS, order=None, processor=None, normalizer=None):
    """A byte-level BPE: the byte letters, the merges, then the specials; `order` renumbers the ids."""
    names = [*LETTERS, *("".join(merge) for merge in merges)]
    order = np.arange(len(names) + len(specials)) if order is None else order
    vocabulary = {name: int(order[i]) for i, name in enumerate(names)}
    vocabulary |= {name: int(order[len(names) + i]) for i, name in enumerate(specials)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    if processor:
        made.post_processor = processor
    return made


def around(made, before=(), after=()):
    """A post-processor that puts these tokens around a text."""
    ids = {name: made.token_to_id(name) for name in (*before, *after)}
    return processors.TemplateProcessing(single=[*before, "$A", *after], special_tokens=list(ids.items()))


def bos(**parts):
    made = library(**parts)
    made.post_processor = around(made, ["<s>"])
    return made


def text(rng, words=12):
    return " ".join(rng.choice(WORDS, words))


def save(made, folder: Path) -> Path:
    """FOLDER/tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def publish(folder: Path, made, *, rows=None, seed=0, scale=1.0, shape=None, **files) -> Path:
    """A Hugging Face directory: a random model with so many rows, beside a tokenizer (None: none).

    shape: fields of the model beside or in place of those of a small Llama; files: JSON files beside the weights.
    """
    rows = rows or made.get_vocab_size()
    shape = {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 24, "qk_norm": False, "tied": False} | (shape or {})
    params = Transformer(ModelConfig(vocab_size=rows, scaled_embedding=False, **shape), jax.random.key(seed))
    params.head[...] = params.head[...] * scale
    content = {} if made is None else {"tokenizer.json": made.to_str().encode()}
    content |= {name: json.dumps(tree).encode() for name, tree in files.items()}
    export.write(folder, params, TokenizerFiles(content, -1), context=64)
    return folder


NFC, LOWER, NFKC = normalizers.NFC(), normalizers.Lowercase(), normalizers.NFKC()


def student_flags(models):
    """Flags of a short run: the published student in models/student, taught by models/teacher, on models/*.txt."""
    return [
        f"--config=configs/student.py:{models / 'teacher'},{models / 'student'}",
        "--config.data.source=files",
        f"--config.data.files.paths={models / 'a.txt'}",
        f"--config.data.files.validation={models / 'v.txt'}",
        f"--config.data.cache={models / 'cache'}",
        *("--config.seq_len=32", "--config.batch_size=2"),
    ]
