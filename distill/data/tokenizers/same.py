"""Whether two tokenizers give the same ids to the same text: the one place where tokenizers are compared.

Names and folders do not count. Vocabularies are compared token by token, and merges (BPE) or scores (Unigram) where
both tokenizers have them. What remains (normaliser, pre-tokenizer, another library) can be written in many ways that
mean the same; it is compared on a seeded text, made of awkward characters and of the vocabulary's own pieces.
"""

import random
import re

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


def same_names(one: str, other: str) -> bool:
    """Whether two names mean equal tokens: equal names, or equal sizes and hashes with any folder."""
    return one == other or bool(_HASHED.search(one)) and _HASHED.findall(one) == _HASHED.findall(other)


def difference(one: Tokenizer, other: Tokenizer, more: bool = False) -> str:
    """The first thing in which two tokenizers differ, as '... in one and ... in the other'; '' if they are equal.

    more: the other may have further tokens behind those of the first.
    """
    if one.hash == other.hash:
        return ""
    mine, theirs = one.pieces(), other.pieces()
    for i, (a, b) in enumerate(zip(mine, theirs)):
        if a != b:
            return f"token {i} is {_said(a)} in one and {_said(b)} in the other"
    if len(mine) > len(theirs) or len(mine) < len(theirs) and not more:
        return f"{len(mine)} tokens in one and {len(theirs)} in the other"
    if one.rules.split(" ")[0] == other.rules.split(" ")[0] and one.rules != other.rules:
        return f"the same tokens, made by other {'merges' if one.rules.startswith('BPE') else 'scores'}"
    return _on_probes(one, other, mine)


def _said(piece: Piece) -> str:
    if piece.kind == "none":
        return "missing"
    kind = {"byte": " (a byte)", "special": " (special)"}.get(piece.kind, "")
    return f"{piece.text.decode('utf-8', 'replace')!r}{kind}"


def _on_probes(one: Tokenizer, other: Tokenizer, pieces: list[Piece]) -> str:
    # What a template writes is compared where both recognise special tokens in it.
    modes = (False, True) if one.spec.kind == other.spec.kind == "json" else (False,)
    parts = [Part(text, template=template) for template in modes for text in probes(pieces)]
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
