"""Tokenizers are equal if they give equal ids, whatever their folders, names and forms."""

import json
import shutil

import numpy as np
import pytest
from tokenizers import Regex, pre_tokenizers, processors

from distill.data.documents import Part
from distill.data.tokenizers.same import difference, same_names
from distill.data.tokenizers.spec import Piece
from distill.data.tokenizers.subword import SubwordTokenizer, byte_letters
from distill.data.tokenizers.tokenizer import ByteTokenizer, SymbolTokenizer
from tests import tokens

SIZE = len(tokens.LETTERS) + len(tokens.MERGES) + len(tokens.SPECIALS)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """place(library): a SubwordTokenizer of it, in a folder of its own."""
    count = iter(range(10_000))
    root = tmp_path_factory.mktemp("tokenizers")
    return lambda made: SubwordTokenizer(str(tokens.save(made, root / f"t{next(count)}").parent))


@pytest.fixture(scope="module")
def plain(place):
    return place(tokens.library())


def test_another_folder_and_another_form_are_the_same(plain, place, tmp_path):
    shutil.copytree(plain.spec.path, tmp_path / "copy")
    assert difference(plain, SubwordTokenizer(str(tmp_path / "copy"))) == ""
    assert same_names(plain.name, SubwordTokenizer(str(tmp_path / "copy")).name)
    split = tokens.library()
    rule = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # GPT-2's, spelt out
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(rule), "isolated"), whole])
    processed = tokens.library(processor=processors.ByteLevel(trim_offsets=True))
    for other in (split, processed, tokens.bos()):
        assert place(other).hash != plain.hash and difference(plain, place(other)) == ""


def test_bytes_are_the_same_in_a_tokenizer_json(tmp_path):
    from distill.interop import tokenizer_files

    for name, content in tokenizer_files.of_tokenizer(ByteTokenizer()).files.items():
        (tmp_path / name).write_bytes(content)
    assert difference(ByteTokenizer(), SubwordTokenizer(str(tmp_path))) == ""
    assert "256 tokens in one and 8" in difference(ByteTokenizer(), SymbolTokenizer(8)) or "token 0" in difference(
        ByteTokenizer(), SymbolTokenizer(8)
    )


CHANGES = {
    "two ids": lambda rng: {"order": _swapped(rng)},
    "all ids": lambda rng: {"order": rng.permutation(SIZE)},
    "a merge less": lambda rng: {"merges": _without(rng.choice([3, 5, 7, 8]))},
    "a merge more": lambda rng: {"merges": [*tokens.MERGES, (chr(97 + rng.integers(26)), chr(97 + rng.integers(26)))]},
    "the order of merges": lambda rng: {"merges": [tokens.MERGES[-1], *tokens.MERGES[:-1]], "order": _rotated()},
    "a special token": lambda rng: {"specials": [*tokens.SPECIALS[:2], f"<{rng.integers(99)}>", "<pad>"]},
    "a token more": lambda rng: {"specials": [*tokens.SPECIALS, f"<{rng.integers(99)}>"]},
    "lower case": lambda rng: {"normalizer": tokens.LOWER},
    "NFC": lambda rng: {"normalizer": tokens.NFC},
    "NFKC": lambda rng: {"normalizer": tokens.NFKC},
}


def _without(place):
    return [merge for i, merge in enumerate(tokens.MERGES) if i != place]


def _swapped(rng):
    order = np.arange(SIZE)
    i, j = rng.choice(SIZE, 2, replace=False)
    order[[i, j]] = order[[j, i]]
    return order


def _rotated():
    """The ids with which merges in another order keep the vocabulary."""
    first, count = len(tokens.LETTERS), len(tokens.MERGES)
    order = np.arange(SIZE)
    order[first : first + count] = np.roll(order[first : first + count], 1)
    return order


@pytest.mark.parametrize("kind", CHANGES)
def test_every_change_is_seen(plain, place, kind):
    """Twenty draws of each kind. Seen to catch pieces, rules and probes left out, one at a time."""
    rng = np.random.default_rng(sum(map(ord, kind)))
    for _ in range(20):
        other = place(tokens.library(**CHANGES[kind](rng)))
        assert difference(plain, other) and difference(other, plain), kind
        assert not same_names(plain.name, other.name)


def test_what_differs_is_said(plain, place):
    order = np.arange(SIZE)
    order[[0, 1]] = [1, 0]
    assert difference(plain, place(tokens.library(order=order))) == "token 0 is '!' in one and '\"' in the other"
    more = place(tokens.library(specials=[*tokens.SPECIALS, "<tool>"]))
    assert difference(plain, more) == f"{SIZE} tokens in one and {SIZE + 1} in the other"
    assert difference(plain, more, more=True) == "" and difference(more, plain, more=True)
    other = place(tokens.library(**CHANGES["the order of merges"](None)))
    assert difference(plain, other) == "the same tokens, made by other merges"


def test_pieces_are_the_texts_of_tokens(plain):
    """Against the library's decoder, for tokens that are whole characters."""
    letters = {letter: i for i, letter in byte_letters().items()}
    assert len(letters) == 256
    for i, piece in enumerate(plain.pieces()):
        if piece.kind == "text" and piece.text.decode("utf-8", "ignore").encode() == piece.text:
            assert plain.decode([i]).encode() == piece.text
    assert plain.pieces()[SIZE - 1] == Piece("special", b"<pad>")
    assert sum(len(p.text) for p in (plain.pieces()[i] for i in plain.encode([Part("thé in")])[0])) == len(
        "thé in".encode()
    )


def test_sentencepiece_and_its_copy(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    from distill.data.tokenizers.sentencepiece import SentencePieceTokenizer

    (tmp_path / "text.txt").write_text("\n".join(tokens.text(np.random.default_rng(i)) for i in range(200)))
    for name, rule in (("a", "nmt_nfkc"), ("b", "identity")):
        sentencepiece.SentencePieceTrainer.train(
            input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / name), vocab_size=80, minloglevel=2,
            hard_vocab_limit=False, normalization_rule_name=rule,
        )  # fmt: skip
    (tmp_path / "m").mkdir()
    shutil.copy(tmp_path / "a.model", tmp_path / "m" / "tokenizer.model")
    a, b, folder = (SentencePieceTokenizer(str(tmp_path / name)) for name in ("a.model", "b.model", "m"))
    assert difference(a, folder) == "" and difference(a, b)
    assert folder.name.startswith("m-") and folder.spec.special == "none"
    said = {"add_bos_token": True, "add_eos_token": False}
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(said))
    assert SentencePieceTokenizer(str(tmp_path / "m")).spec.special == "<s> $A"
