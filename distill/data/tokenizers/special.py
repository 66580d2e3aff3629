"""Special tokens in a text of which a template wrote one part and people the other.

The whole text is encoded at once, so that its tokens are those of the published tokenizer. Special tokens that people
typed must nevertheless stay text. Where there are some, the special tokens of the template are replaced by aliases:
added tokens whose names no text holds, for a second copy of the tokenizer that takes all special tokens for text.
"""

import itertools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from numpy.typing import NDArray

from distill.data.documents import Encoding, Part
from distill.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

# Noncharacters of Unicode, which no text should hold. The first that a text does not hold delimits its aliases.
_MARKS = [chr(plane << 16 | last) for plane in range(16, 0, -1) for last in (0xFFFE, 0xFFFF)]


class AddedToken(TypedDict):
    """An added token of a tokenizer.json."""

    id: int
    content: str
    special: bool
    single_word: bool
    lstrip: bool
    rstrip: bool


class SpecialTokens:
    """The special tokens of the tokenizer.json `text`, and who wrote those that an encoded document holds."""

    def __init__(self, text: str, path: str, added: Sequence[AddedToken], unknown: str, size: int):
        """size: of the vocabulary. unknown: the name of the token for unknown text, or ''."""
        self._text, self._path, self._unknown_name = text, path, unknown
        self._tokens = [token for token in added if token["special"] and token["content"]]
        self.names = {token["id"]: token["content"] for token in self._tokens}
        self._ids = np.array(list(self.names), np.int32)
        self._is_special = np.zeros(size, bool)
        self._is_special[self._ids] = True
        self._unknown = next((token["id"] for token in self._tokens if token["content"] == unknown), -1)
        longest_first = sorted(self.names.values(), key=len, reverse=True)
        self._written = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._libraries: dict[str, Library] = {}

    def settle(self, parts: Sequence[Part], ids: NDArray[np.int32], spans: NDArray[np.int64]) -> Encoding:
        """The encoding of a document, given that in which all its special tokens are control tokens.

        ids: [tokens]; spans: [tokens, 2], in characters. Raises DataError where the two cannot be told apart.
        """
        text = "".join(part.text for part in parts)
        control = self._is_special[ids]
        for i in np.flatnonzero(ids == self._unknown):  # stands for unknown text, unless that text is its name
            control[i] = text[slice(*spans[i])].strip() == self._unknown_name
        runs = _template_runs(parts)
        inside = np.zeros(len(ids), bool)
        for start, end in runs:
            inside |= (spans[:, 0] >= start) & (spans[:, 1] <= end)
        if not (control & ~inside).any():
            return Encoding(ids, spans, control)
        places = [(m.start() + a, m.end() + a) for a, b in runs for m in self._written.finditer(text[a:b])]
        known = {start for start, _ in places}
        if any(not known & set(range(a, b)) for a, b in spans[control & inside].tolist()):
            raise DataError(
                f"tokenizer {self._path}: the chat template writes a special token in another form; "
                f"cannot tell it from one that a message holds, in {text!r:.60}"
            )
        return self._with_aliases(text, places)

    def _with_aliases(self, text: str, places: Sequence[tuple[int, int]]) -> Encoding:
        """Encodes the text; only the special tokens at `places` are control tokens."""
        mark = next((mark for mark in _MARKS if mark not in text), "")
        if not mark:
            raise DataError(f"tokenizer {self._path}: a text holds every noncharacter of Unicode; wanted text")
        pieces, origin, at = [], [], 0
        for start, end in places:
            alias = _alias(mark, text[start:end])
            pieces += [text[at:start], alias]
            origin += [*range(at, start), *[start] * len(alias)]
            at = end
        origin += range(at, len(text) + 1)
        library = self._libraries.get(mark) or self._aliased(mark)
        encoding = library.encode("".join([*pieces, text[at:]]), add_special_tokens=False)
        places_of = np.array(origin, np.int64)
        spans = places_of[np.array(encoding.offsets, np.int64).reshape(-1, 2)]
        aliases = {library.token_to_id(_alias(mark, t["content"])): t["id"] for t in self._tokens}
        ids = np.array([aliases.get(i, i) for i in encoding.ids], np.int32)
        control = np.array([i in aliases for i in encoding.ids], bool)
        if control.sum() != len(places) or np.isin(ids[~control], self._ids[self._ids != self._unknown]).any():
            name = next((name for name in self.names.values() if name in text), "")
            raise DataError(
                f"tokenizer {self._path}: a text holds the special token {name!r}, which this tokenizer cannot write "
                "as text; take it out"
            )
        return Encoding(ids, spans, control)

    def _aliased(self, mark: str) -> "Library":
        """The tokenizer that takes special tokens for text, and has an alias of each."""
        from tokenizers import AddedToken as Added
        from tokenizers import Tokenizer as Library

        library = Library.from_str(self._text)
        library.no_truncation()
        library.no_padding()
        library.encode_special_tokens = True
        library.add_tokens(
            [
                Added(
                    _alias(mark, token["content"]),
                    special=False,
                    normalized=False,
                    single_word=token["single_word"],
                    lstrip=token["lstrip"],
                    rstrip=token["rstrip"],
                )
                for token in self._tokens
            ]
        )
        self._libraries[mark] = library
        return library


def _alias(mark: str, content: str) -> str:
    return mark + content + mark


def _template_runs(parts: Sequence[Part]) -> list[tuple[int, int]]:
    """The stretches of the whole text that the template wrote, in characters."""
    runs, at = [], 0
    for template, group in itertools.groupby(parts, lambda part: part.template):
        length = sum(len(part.text) for part in group)
        if template and length:
            runs.append((at, at + length))
        at += length
    return runs
