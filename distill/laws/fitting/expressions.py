"""Rules that select rows of a table, such as "L_S > 2.3 and not (N_S < 1e9 or kind == pilot)".

    rule     either ("or" either)*
    either   each ("and" each)*
    each     "not" each | "(" rule ")" | "has(" name ")" | name operator value
    operator <= >= == != < >

A name is a column of the table, or one of the law's names (N, D, L, ...), which is resolved as in a fit. Names consist
of letters, digits and _ . / - and need quotes otherwise: "val loss" < 3. A value is a number (1e9, 1.3B, 7_000_000),
another column where the first one holds numbers (L_S < L_T), or a text, in quotes if it contains blanks or parentheses:
State == 'not finished'.

Every comparison with an empty cell is false, != too. `has(L_T)` and `L_T != nan` select the filled cells,
`not has(L_T)` the empty ones.
"""

import operator
import re
from collections.abc import Callable
from typing import Protocol

import numpy as np

from distill.laws.fitting.numerals import is_empty, number
from distill.laws.forms.law import LawError

_OPERATORS: dict[str, Callable] = {"<=": operator.le, ">=": operator.ge, "==": operator.eq, "!=": operator.ne}
_OPERATORS |= {"<": operator.lt, ">": operator.gt}
_TOKEN = re.compile(r"""\s*(?:('[^']*'|"[^"]*"|`[^`]*`)|(<=|>=|==|!=|<|>|=)|([()])|([^\s()<>=!'"`]+)|(\S))""")
_DEPTH = 40  # of parentheses and "not"
_EXAMPLE = "wanted such as 'L_S <= 2.3 and N_S > 1e9', 'has(L_T)' or \"State == 'finished'\""


class RuleTable(Protocol):
    """The part of a table that a rule reads."""

    def __len__(self) -> int: ...

    def column(self, name: str) -> np.ndarray:
        """The cells of a column, float64 or text, by the file's name or the law's. Raises LawError."""
        ...

    def refuse(self, bad: np.ndarray, name: str, wanted: str) -> None:
        """Raises LawError that names the rows where `bad` holds."""
        ...


def matching(rule: str, columns: RuleTable) -> np.ndarray:
    """The mask [rows] of a rule. Raises LawError for an invalid rule or an unknown column."""
    parser = _Parser(rule, columns)
    mask = parser.either(np.ones(len(columns), bool), 0)
    if parser.peek():
        raise parser.error(parser.rest())
    return mask


class _Parser:
    """Recursive descent. Every method takes `open`, the rows that the rest of the rule has not decided yet: only
    their cells must be readable, so that a crashed run's bad cells raise nothing if another comparison excludes it."""

    def __init__(self, rule: str, columns: RuleTable):
        self._rule, self._columns = rule, columns
        self._tokens = [match.group(0).strip() for match in _TOKEN.finditer(rule.strip())]
        self._at = 0

    def peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def next(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1] if self._at <= len(self._tokens) else ""

    def rest(self) -> str:
        return " ".join(self._tokens[self._at :])

    def error(self, part: str) -> LawError:
        return LawError(f"rule {self._rule!r}: cannot read {part or 'its end'!r}; {_EXAMPLE}.")

    def either(self, open: np.ndarray, depth: int) -> np.ndarray:
        mask = self.both(open, depth)
        while self.peek() == "or":
            self.next()
            mask = mask | self.both(open & ~mask, depth)
        return mask

    def both(self, open: np.ndarray, depth: int) -> np.ndarray:
        mask = self.one(open, depth)
        while self.peek() == "and":
            self.next()
            mask = mask & self.one(open & mask, depth)
        return mask

    def one(self, open: np.ndarray, depth: int) -> np.ndarray:
        if depth > _DEPTH:
            raise LawError(f"rule {self._rule[:60]!r}...: nested more than {_DEPTH} deep; wanted a simpler rule.")
        if self.peek() == "not":
            self.next()
            return ~self.one(open, depth + 1)
        if self.peek() == "(":
            self.next()
            mask = self.either(open, depth + 1)
            if self.next() != ")":
                raise LawError(f"rule {self._rule!r}: a parenthesis is not closed; {_EXAMPLE}.")
            return mask
        if self._tokens[self._at : self._at + 2] == ["has", "("]:
            self._at += 2
            name = self.next()
            if not _is_word(name) or self.next() != ")":
                raise self.error(f"has({name}")
            return ~empty(self._columns.column(_unquoted(name)))
        return self._comparison(open)

    def _comparison(self, open: np.ndarray) -> np.ndarray:
        start = self._at
        name, sign, value = self.next(), self.next(), self.next()
        part = " ".join(self._tokens[start : self._at])
        if not _is_word(name) or sign not in _OPERATORS or not _is_word(value):
            raise self.error(part)
        if self.peek() not in ("", "and", "or", ")"):
            raise self.error(f"{part} {self.peek()}")
        return self._compare(_unquoted(name), sign, value, open)

    def _compare(self, name: str, sign: str, text: str, open: np.ndarray) -> np.ndarray:
        cells = self._columns.column(name)
        filled = ~empty(cells)
        quoted = text[0] in "'\"`"
        if not quoted and is_empty(text):
            if sign != "!=":
                raise LawError(f"rule {self._rule!r}: nothing compares with {text}; write has({name}) or not has.")
            return filled
        numeric = cells.dtype.kind == "f"
        value = number(_unquoted(text)) if numeric or not quoted else float("nan")
        compare = _OPERATORS[sign]
        if np.isnan(value) and numeric:
            other = self._beside(name, _unquoted(text))
            with np.errstate(invalid="ignore"):
                return compare(cells, other) & filled & ~np.isnan(other)
        if np.isnan(value):
            texts = cells.astype(str)
            return compare(texts, _unquoted(text)) & filled
        numbers = cells if numeric else np.array([number(cell) for cell in cells])
        unread = np.isnan(numbers) & filled
        if unread.all() and sign in ("==", "!="):  # a column of texts: 'layers == 96x2' and 'name == 12' alike
            return compare(cells.astype(str), text) & filled
        self._columns.refuse(unread & open, name, "a number, as the rule compares with one")
        with np.errstate(invalid="ignore"):
            return compare(numbers, value) & ~np.isnan(numbers)

    def _beside(self, name: str, text: str) -> np.ndarray:
        """The numbers of the column that a column of numbers is compared with."""
        try:
            other = self._columns.column(text)
        except LawError:
            other = np.array([])
        if other.dtype.kind != "f" or not other.size:
            raise LawError(
                f"rule {self._rule!r}: column {name!r} holds numbers, and {text!r} is neither a number nor a column of "
                f"them; {_EXAMPLE}."
            )
        return other


def empty(cells: np.ndarray) -> np.ndarray:
    """The mask [rows] of a column's empty cells."""
    if cells.dtype.kind == "f":
        return np.isnan(cells)
    return np.array([is_empty(cell) for cell in cells], bool)


def _is_word(token: str) -> bool:
    return bool(token) and token not in ("(", ")", "and", "or", "not", *_OPERATORS, "=", "!", "'", '"', "`")


def _unquoted(token: str) -> str:
    return token[1:-1] if token[0] in "'\"`" else token
