"""Whether two tokenizers give the same ids to the same text: the one place where tokenizers are compared.

Names and folders do not count. Contents are compared: vocabularies token by token, merges (BPE) or scores (Unigram),
normaliser, pre-tokenizer and special tokens, and then ids on a short text of awkward characters and of the vocabulary's
own pieces. Where the last contents are written otherwise, which may mean the same (a GGUF file and the folder that it
came from, another library), ids decide on a seeded text of 1 MB in ten scripts, and `Verdict.on` says so.
"""

import random
import re
from typing import NamedTuple

from distill.data.documents import Part
from distill.data.tokenizers.spec import Piece
from distill.data.tokenizers.tokenizer import Tokenizer

_HASHED = re.compile(r"-\d+-[0-9a-f]{8}$")
_PROBES = 64
_AWKWARD = (
    *(" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\u200b", "\ufeff", "\u2028", "\x07"),
    *("a", "The", "HELLO", "iPhone", "don't", "WE'LL", "l'\u00e9t\u00e9", "e\u0301", "\u00c5", "\u212b", "\ufb01"),
    *("\u2163", "\uff46\uff55\uff4c\uff4c", "\u00df", "\u0130", "\u01c5", "\u00b2", "\u00bd", "\u0663", "\ud7ff"),
    *("7", "42", "1234567", "3.14", "日本語", "안녕", "שלום", "नमस्ते", "ไทย", "\U0001f600"),
    *("\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea"),
    *("_", "__init__", "==", "->", "//", "...", "!?", "$5", "#x", "@y", "<s>", "</s>", "\u2581", "\u0120", "##a"),
)


# Letters of ten scripts, as ranges of Unicode.
_SCRIPTS = {
    "Latin": ((0x41, 0x5A), (0x61, 0x7A), (0x61, 0x7A), (0xC0, 0x24F)),
    "Greek": ((0x391, 0x3A1), (0x3A3, 0x3CE)),
    "Cyrillic": ((0x410, 0x44F), (0x430, 0x45F)),
    "Hebrew": ((0x5D0, 0x5EA), (0x5B0, 0x5BC)),
    "Arabic": ((0x621, 0x64A), (0x64B, 0x652)),
    "Devanagari": ((0x904, 0x939), (0x93E, 0x94D)),
    "Thai": ((0xE01, 0xE3A), (0xE40, 0xE4E)),
    "Hangul": ((0xAC00, 0xD7A3),),
    "Han": ((0x4E00, 0x9FA5),),
    "Kana": ((0x3041, 0x3096), (0x30A1, 0x30FA)),
}
_SCRIPT_BYTES, _TEXT_WORDS = 105_000, 400


class Verdict(NamedTuple):
    """The first difference of two tokenizers, '' if they are equal; and what that was seen on."""

    differs: str
    on: str  # 'content', or 'a probe of 1.1 MB'


def same_names(one: str, other: str) -> bool:
    """Whether two names mean equal tokens: equal names, or equal sizes and hashes with any folder."""
    return one == other or bool(_HASHED.search(one)) and _HASHED.findall(one) == _HASHED.findall(other)


def difference(one: Tokenizer, other: Tokenizer, more: bool = False) -> str:
    """The first thing in which two tokenizers differ, as '... in one and ... in the other'; '' if they are equal.

    more: the other may have further tokens behind those of the first.
    """
    return compare(one, other, more).differs


_verdicts: dict[tuple[str, str, bool], Verdict] = {}


def compare(one: Tokenizer, other: Tokenizer, more: bool = False) -> Verdict:
    """`difference`, and what it was seen on; found once in a process for each two contents."""
    key = one.hash, other.hash, more
    if key not in _verdicts:
        _verdicts[key] = Verdict("", "content") if one.hash == other.hash else _compared(one, other, more)
    return _verdicts[key]


def _compared(one: Tokenizer, other: Tokenizer, more: bool) -> Verdict:
    differs = _in_pieces(one, other, more)
    pieces = one.pieces()
    differs = differs or _on_texts(one, other, probes(pieces))
    if differs or one.steps and (one.steps, one.rules) == (other.steps, other.rules):
        return Verdict(differs, "content")
    texts = scripts(pieces)
    size = sum(len(text.encode("utf-8")) for text in texts)
    return Verdict(_on_texts(one, other, texts), f"a probe of {size / 1e6:.1f} MB")


def _in_pieces(one: Tokenizer, other: Tokenizer, more: bool) -> str:
    """The first difference of vocabularies, of merges or of scores."""
    mine, theirs = one.pieces(), other.pieces()
    for i, (a, b) in enumerate(zip(mine, theirs)):
        if a != b:
            return f"token {i} is {_said(a)} in one and {_said(b)} in the other"
    if len(mine) > len(theirs) or len(mine) < len(theirs) and not more:
        return f"{len(mine)} tokens in one and {len(theirs)} in the other"
    if one.rules.split(" ")[0] == other.rules.split(" ")[0] and one.rules != other.rules:
        return f"the same tokens, made by other {'merges' if one.rules.startswith('BPE') else 'scores'}"
    return ""


def _said(piece: Piece) -> str:
    if piece.kind == "none":
        return "missing"
    kind = {"byte": " (a byte)", "special": " (special)"}.get(piece.kind, "")
    return f"{piece.text.decode('utf-8', 'replace')!r}{kind}"


def _on_texts(one: Tokenizer, other: Tokenizer, texts: list[str]) -> str:
    # What a template writes is compared where both recognise special tokens in it.
    modes = (False, True) if one.spec.kind == other.spec.kind == "json" else (False,)
    parts = [Part(text, template=template) for template in modes for text in texts]
    for part, a, b in zip(parts, one.encode(parts), other.encode(parts)):
        if a.tolist() != b.tolist():
            at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
            here, there = a[at : at + 4].tolist(), b[at : at + 4].tolist()
            return f"the text {part.text[:40]!r} is {here} in one and {there} in the other, from token {at} on"
    return ""


def probes(pieces: list[Piece]) -> list[str]:
    """Texts of awkward characters and of a vocabulary's pieces, the same for equal vocabularies."""
    draw = random.Random(0)
    known = [piece.text.decode("utf-8", "ignore") for piece in pieces if piece.kind in ("text", "special")]
    known = [text.replace("\0", "") for text in known]
    special = [piece.text.decode("utf-8", "ignore") for piece in pieces if piece.kind == "special"]
    texts = ["", *_AWKWARD]
    for i in range(_PROBES):
        words = [draw.choice(draw.choice((_AWKWARD, known or _AWKWARD, special or _AWKWARD))) for _ in range(24)]
        texts.append(("", " ")[i % 2].join(words))
    return texts


def scripts(pieces: list[Piece]) -> list[str]:
    """Over 1 MB of seeded words in ten scripts, between blanks, signs, digits and the vocabulary's own pieces."""
    draw = random.Random(1)
    known = [piece.text.decode("utf-8", "ignore").replace("\0", "") for piece in pieces if piece.kind == "text"]
    between = (*(" ",) * 12, ", ", ". ", "\n", " (", ") ", "-", "'", " 42 ", "1984", "\u3002", "\u060c ")
    texts = []
    for ranges in _SCRIPTS.values():
        letters = [chr(i) for first, last in ranges for i in range(first, last + 1)]
        size = 0
        while size < _SCRIPT_BYTES:
            words = ["".join(draw.choices(letters, k=draw.randint(1, 9))) for _ in range(_TEXT_WORDS)]
            words[::4] = [draw.choice(known or words) for _ in words[::4]]
            texts.append("".join(part for word in words for part in (word, draw.choice(between))))
            size += len(texts[-1].encode("utf-8"))
    return texts
