"""The tokens that stand around every text because the tokenizer's files say so: BOS before it, EOS after it.

They are written as in a tokenizer.json: '<s> $A </s>', where $A is the text. A token whose name has blanks or is a
number is written as its id.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from distill.config import nearest
from distill.errors import DataError

MODEL, NONE, TEXT = "model", "none", "$A"


class Around(NamedTuple):
    """Ids before and after every text that is not written by a chat template."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


def write_around(around: Around, name: Callable[[int], str]) -> str:
    """'none', or the ids as `read_around` reads them; `name` gives a token's name."""
    if around == Around():
        return NONE

    def one(i: int) -> str:
        token = name(i)
        plain = token and len(token.split()) == 1 and token == token.strip() and not token.isdecimal() and token != TEXT
        return token if plain else str(i)

    return " ".join([*map(one, around.before), TEXT, *map(one, around.after)])


def read_around(text: str, ids: Mapping[str, int], where: str) -> Around:
    """The ids of 'none' or of '<s> $A </s>'. Raises DataError for another form and for a token that is not there."""
    if text == NONE:
        return Around()
    words = text.split()
    if words.count(TEXT) != 1:
        raise DataError(
            f"{where}: data.tokenizer.special is {text!r}, wanted 'model' (what the tokenizer's files say), 'none', or "
            "the tokens around a text, such as '<s> $A'"
        )

    def one(word: str) -> int:
        i = int(word) if word.isdecimal() else ids.get(word, -1)
        if not 0 <= i <= max(ids.values(), default=-1):
            raise DataError(f"{where}: data.tokenizer.special names {word!r}, which is no token.{nearest(word, ids)}")
        return i

    at = words.index(TEXT)
    return Around(tuple(map(one, words[:at])), tuple(map(one, words[at + 1 :])))
